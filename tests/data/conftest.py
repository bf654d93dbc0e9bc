"""Real text, and a cache folder of its own for every test."""

from __future__ import annotations

from pathlib import Path

import pytest

SHAKESPEARE = Path(__file__).resolve().parents[3] / "shared" / "data" / "tinyshakespeare.txt"


@pytest.fixture
def shakespeare() -> Path:
    """Tiny Shakespeare, 1,115,394 ASCII characters, as nanoGPT and char-rnn use it."""
    if not SHAKESPEARE.is_file():
        pytest.skip(f"the corpus isn't there: {SHAKESPEARE}")
    return SHAKESPEARE


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The cache folder of craft during this test."""
    folder = tmp_path / "cache"
    monkeypatch.setenv("CRAFT_CACHE", str(folder))
    return folder
