"""One process at a time writes into a folder: a lock that the system takes back when its holder dies."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from filelock import FileLock, Timeout

from craft.utils.errors import UserError

LOCK = ".lock"


@contextmanager
def run_lock(folder: Path) -> Iterator[None]:
    """Inside, the folder is this process', which may lock it several times.

    On a file system without locks a run is rather trained than refused.

    Raises:
        UserError: if another process has it.
    """
    # One object a file, which counts; `is_locked` of another process holds it for a moment.
    lock = FileLock(folder.resolve() / LOCK, timeout=1, is_singleton=True)
    try:
        lock.acquire()
    except Timeout:
        raise UserError(
            f"{folder} is being trained by another process; wait for it or stop it, or choose another "
            "training.output_dir",
            code="run-locked",
        ) from None
    except (NotImplementedError, OSError):
        pass
    try:
        yield
    finally:
        lock.release()


def is_locked(folder: Path) -> bool:
    """Whether some process is training in a folder now."""
    if not (folder / LOCK).exists():
        return False
    try:
        with FileLock(folder / LOCK, timeout=0):
            return False
    except (Timeout, RuntimeError):  # another process, or this one
        return True
    except (NotImplementedError, OSError):
        return False
