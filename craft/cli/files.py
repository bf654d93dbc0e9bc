"""Files that a command reads and writes by the names that the user gave."""

from __future__ import annotations

import os
from pathlib import Path

from craft.utils.errors import UserError


def read_file(path: Path) -> bytes:
    """The content of a file that the user named.

    Raises:
        UserError: if there is none, or it can't be read.
    """
    if not path.is_file():
        raise UserError(f"no file {str(path)!r}", code="file-missing")
    try:
        return path.read_bytes()
    except OSError as error:
        raise UserError(f"can't read {str(path)!r}: {error.strerror}", code="file-unreadable") from error


def free_path(path: Path, force: bool) -> Path:
    """A path to write to, where nothing is lost.

    Raises:
        UserError: if there is something, unless that is to be replaced, or no folder.
    """
    if not path.parent.is_dir():
        raise UserError(f"no folder {str(path.parent)!r} to write {path.name} to", code="file-missing")
    if os.path.lexists(path) and not (force and path.is_file()):
        raise UserError(f"{path} exists; name another file by -o, or say --force", code="setting-conflict")
    return path
