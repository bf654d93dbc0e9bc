"""A user at a machine, for tests here."""

from __future__ import annotations

import os
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from server import Hub

SECRETS = {
    "WANDB_API_KEY": "0123456789abcdefplantedplantedplanted000",
    "DB_PASSWORD": "planted-password-of-a-data-base",
}
"""What no upload may hold, besides the token and the folders."""
SMALL = [
    *("models=char_lstm", "models.hidden_size=16", "data.block_size=16", "training.global_batch_size=4"),
    *("training.max_steps=12", "training.eval_steps=6", "training.save_steps=6", "training.logging_steps=3"),
    *("training.report_to=none", "training.sample_chars=20", "training.precision=fp32"),
]


@dataclass
class Desk:
    """A user at a machine: a home, a current folder, a login."""

    hub: Hub
    folder: Path
    user: str | None = "ada"

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

    def craft(self, *arguments: str, status: int = 0, **environment: str) -> subprocess.CompletedProcess[str]:
        return self.run("-m", "craft", *arguments, status=status, **environment)

    def refused(self, *arguments: str, status: int = 2, **environment: str) -> str:
        """The one line of an error."""
        error = self.craft(*arguments, status=status, **environment).stderr
        lines = [line for line in error.splitlines() if not line.startswith("uploading")]
        assert len(lines) == 1, error
        assert lines[0].startswith("error: ")
        return lines[0]

    def python(self, code: str, **environment: str) -> str:
        return self.run("-c", code, **environment).stdout
