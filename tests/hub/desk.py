"""A user at a machine, for tests here."""

from __future__ import annotations

import io
import os
import subprocess
import sys
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
from server import Hub
from warm import CRAFT, LIBRARIES, Warm

SECRETS = {
    "WANDB_API_KEY": "0123456789abcdefplantedplantedplanted000",
    "DB_PASSWORD": "planted-password-of-a-data-base",
}
"""What no upload may hold, besides the token and the folders."""
SMALL = [
    *("models=char_lstm", "models.hidden_size=16", "data.block_size=16", "training.global_batch_size=4"),
    *("training.max_steps=12", "training.eval_steps=6", "training.save_steps=6", "training.logging_steps=3"),
    *("training.report_to=none", "training.sample_chars=20", "training.precision=fp32"),
    "training.eval_protocols=[blocks]",
]
SHORT = [
    *("training.global_batch_size=4", "training.max_steps=2", "training.save_steps=2"),
    *("training.eval_strategy=no", "training.logging_steps=2", "training.sample_chars=0"),
    *("training.report_to=none", "training.precision=fp32"),
]


HIDE_CRAFT = """
import sys
class Hidden:
    def find_spec(self, name, path=None, target=None):
        if name.split(".")[0] == "craft": raise ModuleNotFoundError(name)
sys.meta_path.insert(0, Hidden())
"""
"""What to begin a program with that must do without craft."""


AT_IMPORT = {"HF_ENDPOINT", "HF_HUB_OFFLINE", "HF_HUB_DOWNLOAD_TIMEOUT", "HF_HOME"}
"""Variables that libraries read while they are imported."""


@dataclass
class Desk:
    """A user at a machine: a home, a current folder, a login."""

    hub: Hub
    folder: Path
    user: str | None = "ada"
    waiting: Warm | None = field(default=None, repr=False)

    def command(self, *arguments: str, **environment: str) -> dict[str, Any]:
        home = self.folder / "home"
        variables = {
            **{key: value for key, value in os.environ.items() if not key.startswith(("HF_", "WANDB_"))},
            **self.hub.environment(home / "hf", self.user),
            **SECRETS,
            "HOME": str(home),
            "CRAFT_CACHE": str(self.folder / "cache"),
            "OMP_NUM_THREADS": "1",
            **environment,
        }
        return {"args": [sys.executable, *arguments], "cwd": self.folder, "env": variables, "text": True}

    def run(self, *arguments: str, status: int = 0, **environment: str) -> subprocess.CompletedProcess[str]:
        done = subprocess.run(
            **self.command(*arguments, **environment), capture_output=True, timeout=300, check=False
        )
        assert done.returncode == status, f"{arguments}\n{done.stdout}\n{done.stderr}"
        return done

    def craft(
        self, *arguments: str, status: int | None = 0, folder: Path | None = None, **environment: str
    ) -> subprocess.CompletedProcess[str]:
        """What a command gives, by a process that waits with its imports done (`Warm`).

        Args:
            status: the one to end with; None for any.
            folder: where to run it.
            environment: what is read while libraries are imported starts a process of its own.
        """
        if environment.keys() & AT_IMPORT:
            return self.run("-m", "craft", *arguments, status=status or 0, **environment)
        if self.waiting is None:
            self.waiting = Warm([*LIBRARIES, *CRAFT], self.command()["env"])
        done = self.waiting.python("-m", "craft", *arguments, cwd=folder or self.folder, env=environment)
        assert status in (None, done.returncode), f"{arguments}\n{done.stdout}\n{done.stderr}"
        return done

    def done(self, *arguments: str, folder: Path | None = None, **environment: str) -> str:
        """What a command that must work prints."""
        return self.craft(*arguments, folder=folder, **environment).stdout

    def refused(
        self, *arguments: str, status: int = 2, folder: Path | None = None, **environment: str
    ) -> str:
        """The one line of an error."""
        return one_line(self.craft(*arguments, status=status, folder=folder, **environment))

    def python(self, code: str, **environment: str) -> str:
        return self.run("-c", code, **environment).stdout

    def leave(self) -> None:
        if self.waiting is not None:
            self.waiting.close()


def parquet(**columns: Any) -> bytes:
    """A table as a file of a data set."""
    table = io.BytesIO()
    pq.write_table(pa.table(columns), table)
    return table.getvalue()


def one_line(done: subprocess.CompletedProcess[str]) -> str:
    """The one line of an error; what a command tells before it is no error."""
    lines = [
        line
        for line in done.stderr.splitlines()
        if not line.startswith(("uploading", "data  ", "model  ", "precision ", "run  ", "  "))
    ]
    assert len(lines) == 1, done.stderr
    assert lines[0].startswith("error: ")
    return lines[0]
