"""Fixtures that several rooms share: small real texts, and Tiny Shakespeare where this machine has it."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

CHECKOUT = Path(__file__).resolve().parent.parent

os.environ.setdefault("HF_HUB_OFFLINE", "1")  # no test reaches the network
os.environ.setdefault("WANDB_MODE", "offline")
os.environ.setdefault("GOMP_SPINCOUNT", "3000")  # as the command line does, before torch is imported
# Processes that tests start in other folders find this checkout, installed or not.
os.environ["PYTHONPATH"] = os.pathsep.join(filter(None, (str(CHECKOUT), os.environ.get("PYTHONPATH"))))


@pytest.fixture(scope="session")
def checkout() -> Path:
    """The root of the repository."""
    return CHECKOUT


@pytest.fixture(scope="session")
def shakespeare() -> Path:
    """Tiny Shakespeare: $CRAFT_TINY_SHAKESPEARE, or `shared/data/` in or beside the checkout."""
    roots = (CHECKOUT, CHECKOUT.parent)
    named = os.environ.get("CRAFT_TINY_SHAKESPEARE")
    places = [Path(named)] if named else [root / "shared/data/tinyshakespeare.txt" for root in roots]
    for path in places:
        if path.is_file():
            return path
    pytest.skip("Tiny Shakespeare isn't on this machine; set CRAFT_TINY_SHAKESPEARE to its file")


@pytest.fixture
def tiny_text(tmp_path: Path) -> Path:
    """A text file of 6,600 characters over 27 different ones."""
    path = tmp_path / "tiny.txt"
    path.write_text("the quick brown fox jumps over the lazy dog\n" * 150, encoding="utf-8")
    return path


@pytest.fixture
def unicode_text(tmp_path: Path) -> Path:
    """A text file with CRLF, a combining mark, an emoji of several code points and three scripts."""
    path = tmp_path / "unicode.txt"
    path.write_bytes("Größe\r\ncafe\u0301 👩‍🚀\tмир 世界\r\n".encode() * 60)
    return path
