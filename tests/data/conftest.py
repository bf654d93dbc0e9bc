"""A cache folder of its own for every test."""

from __future__ import annotations

from pathlib import Path

import pytest


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The cache folder of craft during this test."""
    folder = tmp_path / "cache"
    monkeypatch.setenv("CRAFT_CACHE", str(folder))
    return folder
