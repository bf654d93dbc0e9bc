"""Reads a page of the documents as someone who types what it shows."""

from __future__ import annotations

import re
import shlex
from pathlib import Path

CHECKOUT = Path(__file__).resolve().parents[2]
TABLE = re.compile(r"^\| (?P<client>[^|]+) \| (?P<version>[\d.]*) \| (?P<commands>`[^|]+`) \|", re.MULTILINE)
INLINE = re.compile(r"`((?:[A-Z_]+=\w+ )*(?:craft|hf|python|accelerate|torchrun) [^`]* [^`]+)`")
TINY = [
    *("models.hidden_size=16", "models.num_hidden_layers=1", "models.num_attention_heads=2"),
    *("data.block_size=16", "training.global_batch_size=4", "training.max_steps=4", "training.eval_steps=2"),
    *("training.save_steps=2", "training.logging_steps=2", "training.sample_chars=20"),
    *("training.report_to=none", "training.precision=fp32"),
]
"""What is put behind every `craft train` of the pages, so that it takes seconds."""


def page(name: str) -> str:
    """Of a guide, or of a path from the root of the repository."""
    path = CHECKOUT / "docs" / "guides" / name
    return (path if path.is_file() else CHECKOUT / name).read_text(encoding="utf-8")


def blocks(name: str) -> list[tuple[str, str]]:
    """(language, content) of every block of code."""
    return re.findall(r"^```(\w*)\n(.*?)^```", page(name), re.DOTALL | re.MULTILINE)


def commands(name: str) -> list[str]:
    """The lines of the bash blocks, then those of the table, then whatever else in the text is a command."""
    lines = [
        line
        for kind, text in blocks(name)
        if kind == "bash"
        for line in text.replace("\\\n", " ").splitlines()
    ]
    shown = [shlex.join(shlex.split(line, comments=True)) for line in lines if line.strip()]
    listed = [
        text for row in TABLE.finditer(page(name)) for text in re.findall(r"`([^`]+)`", row["commands"])
    ]
    return list(dict.fromkeys([*shown, *listed, *INLINE.findall(page(name))]))
