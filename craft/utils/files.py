"""Files that survive a power cut: written to the disk, replaced as a whole."""

from __future__ import annotations

import os
from pathlib import Path


def sync(path: Path) -> None:
    """Makes sure that a file or folder is on the disk, not only in memory."""
    if path.is_dir():
        if os.name == "nt":  # which opens no folders
            return
        descriptor = os.open(path, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)
        return
    with path.open("r+b") as file:  # Windows syncs only what it may write
        os.fsync(file.fileno())


def replace_text(path: Path, text: str) -> None:
    """Writes a text file so that at any moment the old text or the new one is there, never half of it."""
    temporary = path.with_name(f".{path.name}.tmp")
    temporary.write_text(text, encoding="utf-8")
    sync(temporary)
    temporary.replace(path)
