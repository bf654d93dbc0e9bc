"""docs/guides/interop.md: each command of its table and each script it calls runs; versions are pins."""

from __future__ import annotations

import os
import re
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from .conftest import Trained

for needed in (
    "fastapi",
    "onnxruntime",
    "onnxscript",
    "lm_eval",
    "peft",
    "trl",
    "optuna",
    "torchao",
    "openai",
):
    pytest.importorskip(needed)

CHECKOUT = Path(__file__).resolve().parents[2]
GUIDE = (CHECKOUT / "docs/guides/interop.md").read_text(encoding="utf-8")
ROWS = [
    [cell.strip() for cell in line.strip("|").split("|")] for line in GUIDE.splitlines() if line[:2] == "| "
]
TABLE = {row[0]: (row[1], re.findall(r"`([^`]+)`", row[2])) for row in ROWS[1:]}
SCRIPTS = dict(re.findall(r"```python\n# (\w+\.py)\n(.*?)```", GUIDE, re.DOTALL))


OF_THEIR_OWN = ("optuna", "transformers")
"""Make a model, the same whatever the reader has."""


@pytest.fixture(scope="module")
def folder(trained: Trained) -> Path:
    """Where the reader of the guide works: a model, two texts, the scripts."""
    home = trained.home
    (home / "my.txt").write_bytes(trained.text.read_bytes())
    (home / "new.txt").write_bytes(trained.other.read_bytes())
    shutil.copytree(CHECKOUT / "docs/guides/lm-eval", home / "lm-eval")
    for name, text in SCRIPTS.items():
        (home / name).write_text(text, encoding="utf-8")
    commands = home / "bin"
    commands.mkdir()
    chat = "from transformers.cli.transformers import main; main()"
    calls = {"craft": "-m craft", "python": "", "transformers": f"-c '{chat}'"}
    for name, call in calls.items():
        (commands / name).write_text(f'#!/bin/sh\nexec {sys.executable} {call} "$@"\n')
        (commands / name).chmod(0o755)
    return home


@pytest.mark.parametrize("client", TABLE)
def test_the_commands_of_the_table_work(folder: Path, trained: Trained, client: str) -> None:
    if client in OF_THEIR_OWN and trained.kind != "char_transformer":
        pytest.skip("makes a model of its own, which the other round has made")
    environment = {
        **os.environ,
        "PATH": f"{folder / 'bin'}{os.pathsep}{os.environ['PATH']}",
        "MODEL": str(trained.model),
        "OMP_NUM_THREADS": "1",
        "ACCELERATE_USE_CPU": "true",
        "CRAFT_CACHE": str(folder / "cache"),
        "HF_DATASETS_CACHE": str(folder / "datasets"),
        "HF_HUB_OFFLINE": "0",  # with which transformers chat wouldn't ask this machine either
    }
    _, commands = TABLE[client]
    assert commands
    server = None
    for command in commands:
        if command.startswith("craft serve"):
            server = subprocess.Popen(
                ["bash", "-c", f"exec {command}"],
                cwd=folder,
                env=environment,
                stderr=subprocess.PIPE,
                text=True,
            )
            assert server.stderr is not None
            assert any("/v1" in line for line in server.stderr)
            continue
        done = subprocess.run(
            ["bash", "-c", command], cwd=folder, env=environment, capture_output=True, text=True
        )
        assert done.returncode == 0, f"{command}\n{done.stdout}\n{done.stderr}"
        assert "[y/N]" not in done.stdout  # transformers' question whether to run a model's code
    if server is not None:
        server.send_signal(signal.SIGTERM)
        assert server.wait(timeout=60) == 0


def test_every_script_is_called() -> None:
    called = {word for _, commands in TABLE.values() for command in commands for word in command.split()}
    assert set(SCRIPTS) == {word for word in called if word.endswith(".py")}


@pytest.mark.parametrize("client", [name for name, (version, _) in TABLE.items() if version])
def test_the_versions_are_those_of_the_constraints(client: str) -> None:
    pins = (CHECKOUT / "constraints.txt").read_text()
    name = {"torch.export": "torch", "transformers chat": "transformers"}.get(client, client)
    assert re.search(rf"^{re.escape(name)}=={re.escape(TABLE[client][0])}(?![\d.])", pins, re.MULTILINE)
