"""What a process of the campaign does: one `craft` command, with everything imported beforehand."""

from __future__ import annotations

import os
import sys

import accelerate  # noqa: F401
import datasets  # noqa: F401
import torch
import transformers  # noqa: F401

import craft.data.loaders
import craft.evaluation.finished
import craft.models
import craft.train
import craft.training.base
import craft.views.png  # noqa: F401
from craft.cli.main import main


def command(words: list[str], folder: str, variables: dict[str, str], say: str) -> None:
    """Runs `craft WORDS` in `folder`; what it says goes to `{say}.out` and `{say}.err`."""
    for name, value in variables.items():
        os.environ[name] = value
    os.chdir(folder)
    for number, name in ((1, "out"), (2, "err")):
        file = os.open(f"{say}.{name}", os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
        os.dup2(file, number)
    os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
    sys.stdout = open(1, "w", encoding="utf-8", closefd=False)  # noqa: SIM115
    sys.stderr = open(2, "w", encoding="utf-8", closefd=False, buffering=1)  # noqa: SIM115
    torch.set_num_threads(1)
    main(words)
