"""README.md and the guides about training: each command that they show runs, each thing they name is there.

A command that needs more than this machine (a large download, GPUs, several hosts) is read and resolved to
the end of its configuration instead. sharing.md, loading-elsewhere.md and interop.md have their own tests.
"""

from __future__ import annotations

import bz2
import gzip
import json
import lzma
import re
import shlex
import zipfile
from collections.abc import Iterator
from pathlib import Path

import pytest
from desk import HIDE_CRAFT, Desk, parquet
from pages import CHECKOUT, TINY, blocks, commands, page
from server import Hub

README, OWN_TEXT, CONFIGURATION = "README.md", "your-own-text.md", "configuration.md"
PAGES = (README, OWN_TEXT, CONFIGURATION, "evaluation.md", "reliability.md", "multi-gpu.md")
TYPED = [
    line
    for line in dict.fromkeys(line for name in PAGES for line in commands(name))
    if line.startswith("craft ") and "|" not in line and " … " not in f"{line} "  # the last: left open
]
FOX = "The quick brown fox jumps over a lazy dog. ROMEO: 9 green bottles\n"
TOO_MUCH = ("experiments=", "data=text8", "--minutes")
"""Parts of commands that load large texts or train for minutes: resolved, not trained."""
ELSEWHERE = {
    "user/name": "ada/pages",
    "max_steps=20000": "max_steps=6",
    "validation_size=100000": "validation_size=1000",
    "[RUN]": "outputs/models/RUN",
    "sliding-32": "sliding-8",
    "data/tinyshakespeare.txt": "tinyshakespeare.txt",
}
"""What the pages write in general, or for larger texts and runs than those here."""


@pytest.fixture(scope="module")
def reader(hub: Hub, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Desk]:
    """Someone with the texts that the pages speak of, and one finished run."""
    desk = Desk(hub, tmp_path_factory.mktemp("reader"))
    folder = desk.folder
    (folder / "home").mkdir()
    (folder / "notes").mkdir()
    (folder / "shards").mkdir()
    text = FOX * 60
    for name in ("my.txt", "tinyshakespeare.txt"):
        (folder / name).write_text(text)
    (folder / "story.txt").write_text(text)
    for name in ("new.txt", "other.txt"):
        (folder / name).write_text(FOX[::-1] * 60)
    (folder / "notes" / "monday.md").write_text(text)
    (folder / "preface.txt").write_text(text)
    (folder / "old.txt").write_text(text + "\u201cquoted\u201d", encoding="cp1252")
    for place in ("chapters/1.txt", "poems/1.txt", "poems/2.txt", "src/a/b.py", "src/c.js"):
        (folder / place).parent.mkdir(parents=True, exist_ok=True)
        (folder / place).write_text(text)
    rows = [{"body": f"row {n}: {FOX}", "text": f"row {n}: {FOX}"} for n in range(300)]
    for name in ("rows.jsonl", "shards/a.jsonl", "shards/b.jsonl"):
        (folder / name).write_text("".join(json.dumps(row) + "\n" for row in rows))
    (folder / "my.txt.gz").write_bytes(gzip.compress(text.encode()))
    (folder / "my.txt.bz2").write_bytes(bz2.compress(text.encode()))
    (folder / "my.txt.xz").write_bytes(lzma.compress(text.encode()))
    for name in ("my.txt.zip", "export.zip"):
        with zipfile.ZipFile(folder / name, "w") as archive:
            archive.writestr("my.txt", text)
    chat = [{"messages": [{"role": "user", "content": FOX}, {"role": "bot", "content": FOX}]}] * 60
    (folder / "chat.jsonl").write_text("".join(json.dumps(row) + "\n" for row in chat))
    table = parquet(**{column: [row[column] for row in rows] for column in ("body", "text")})
    parts = ("train", "validation")
    files = {f"data/{part}-00000-of-00001.parquet": table for part in parts}
    hub.add("datasets/ada/pages", {**files, "input.txt": text.encode()})
    (yaml,) = (text for kind, text in blocks(CONFIGURATION) if kind == "yaml")
    own = folder / "my_configs"
    for group, name, content in (
        ("experiments", "thesis", yaml),
        ("models", "wide", "# Wide\nmodel_type: char_lstm\nhidden_size: 512\n"),
        ("training", "night", "# A night\ndefaults: [cpu]\nmax_steps: 100000\n"),
    ):
        (own / group).mkdir(parents=True)
        (own / group / f"{name}.yaml").write_text(content)
    desk.done("train", "my.txt", *TINY)
    yield desk
    desk.leave()


def finished(reader: Desk) -> Path:
    """The first finished run."""
    models = (reader.folder / "outputs" / "models").glob("*_step_4")
    return min(models, key=lambda path: path.stat().st_mtime_ns).relative_to(reader.folder)


@pytest.mark.parametrize("line", TYPED)
def test_a_command_of_the_pages_works(hub: Hub, reader: Desk, line: str) -> None:
    run = str(finished(reader)).removesuffix("_step_4")
    texts = f"{hub.url}/datasets/ada/pages/resolve/main/"
    typed = line
    for shown, meant in {**ELSEWHERE, "outputs/models/RUN": run, "https://…/": texts}.items():
        typed = typed.replace(shown, meant)
    _, command, *words = shlex.split(typed)
    if command == "train" and any(part in typed for part in TOO_MUCH):
        words.append("--print-config")
    elif command == "train" and "--print-config" not in words and run not in typed:
        given = {word.partition("=")[0] for word in words}
        if {"models=char_lstm", "models.model_type=mamba"} & {*words}:
            given.add("models.num_attention_heads")
        words += [word for word in TINY if word.partition("=")[0] not in given - {"training.max_steps"}]
    elif command == "novelty":
        words += ["--chars", "500"]
    if command == "decompress":  # what the command before it made
        reader.done("compress", "latest", "my.txt", "--force")
    reader.done(command, *words, *(["--force"] if command == "compress" else []))


@pytest.mark.parametrize("ending", [".bz2", ".xz", ".zip"])
def test_the_other_archives(reader: Desk, ending: str) -> None:
    assert f"`{ending}`" in page(OWN_TEXT)
    reader.done("train", f"my.txt{ending}", *TINY)


def test_the_pipeline_of_the_readme_writes(reader: Desk) -> None:
    (code,) = (text for kind, text in blocks(README) if kind == "python")
    model = str(finished(reader))
    printed = reader.python(
        HIDE_CRAFT
        + code.replace("outputs/models/…_step_1200", model)
        + "print(write('The ', max_new_tokens=9)[0]['generated_text'], end='')"
    )
    assert len(printed) == len("The ") + 9


def launches() -> list[str]:
    """Command lines of launchers, wherever they are."""
    return [line for line in commands("multi-gpu.md") if "-m craft.train" in line]


@pytest.mark.parametrize("line", launches())
def test_a_launch_is_one_that_the_launcher_and_craft_understand(reader: Desk, line: str) -> None:
    from accelerate.commands.launch import launch_command_parser
    from torch.distributed.run import get_args_parser

    typed = line.replace("RUN", "run").replace("machine_rank R", "machine_rank 0")
    words = shlex.split(typed)
    while "=" in words[0]:
        words.pop(0)
    at = words.index("craft.train")
    if words[0] == "torchrun":
        known = get_args_parser().parse_args(words[1:])
        assert (known.module, known.training_script) == (True, "craft.train")
    else:
        assert words[:2] == ["accelerate", "launch"]
        known = launch_command_parser().parse_args(words[2:])
        assert known.config_file is None or (CHECKOUT / known.config_file).is_file()
        assert (known.module, known.training_script) == (True, "craft.train")
    settings = ["my.txt" if word == "…" else word for word in words[at + 1 :]]
    here = "training.precision=auto"  # a machine without GPUs refuses fp16
    assert "training:" in reader.done("train", *settings, here, "--print-config")


def test_every_setting_that_the_documents_name_is_one() -> None:
    from craft.config.fields import all_keys

    known = set(all_keys())
    for path in [CHECKOUT / README, *(CHECKOUT / "docs").rglob("*.md")]:
        text = path.read_text(encoding="utf-8")
        named = re.findall(r"(?<![\w./])((?:models|data|training)\.[a-z]\w*)(?=[=`\s,;:)]|$)", text)
        unknown = (
            set(named)
            - known
            - {"models.kernel_size", "models.second_weight", "data.json", "models.is_decoder"}
        )  # examples; a file; of transformers
        assert not unknown, f"{path.name}: {unknown}"


def test_the_targets_and_extras_that_the_documents_name_are_there() -> None:
    targets = re.findall(r"^([a-z-]+):", (CHECKOUT / "Makefile").read_text(), re.MULTILINE)
    _, _, declared = (CHECKOUT / "pyproject.toml").read_text().partition("[project.optional-dependencies]")
    extras = re.findall(r"^(\w+) = \[", declared.partition("\n[")[0], re.MULTILINE)
    for path in [CHECKOUT / README, *(CHECKOUT / "docs").rglob("*.md")]:
        text = path.read_text(encoding="utf-8")
        assert set(re.findall(r"^make (\w+)|`make (\w+)`", text, re.MULTILINE)) <= {
            pair for name in targets for pair in ((name, ""), ("", name))
        }
        for listed in re.findall(r'"(?:\.|craft-lm)\[([\w,]+)\]"', text):
            assert set(listed.split(",")) <= set(extras), f"{path.name}: {listed}"


def test_nothing_of_the_pages_is_left_out() -> None:
    assert {kind for name in PAGES for kind, _ in blocks(name)} <= {"bash", "python", "yaml", "text", ""}
    assert len(TYPED) >= 30
    assert len(launches()) >= 7
