"""A folder of the user's own configuration files."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from craft.config.files import GROUPS


@pytest.fixture
def own(tmp_path: Path) -> Callable[..., Path]:
    """`own(**{"models/mine": "model_type: char_lstm"})` writes those files and returns their folder."""

    def write(**files: str) -> Path:
        folder = tmp_path / "own"
        for group in GROUPS:
            (folder / group).mkdir(parents=True, exist_ok=True)
        for name, text in files.items():
            (folder / f"{name}.yaml").write_text(text, encoding="utf-8")
        return folder

    return write
