"""One process at a time writes into a folder: a lock that the system takes back when its holder dies."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

from filelock import FileLock, Timeout

from craft.utils.errors import UserError

LOCK = ".lock"


@dataclass
class _Claim:
    lock: FileLock
    holders: int = 0


_held: dict[Path, _Claim] = {}


@contextmanager
def claimed(folder: Path, doing: str = "trained", setting: str = "training.output_dir") -> Iterator[None]:
    """Inside, the folder is this process'. It may be claimed several times, and is free after the last.

    Args:
        doing: what is done with it, for the message.
        setting: by what another folder is chosen.

    Raises:
        UserError: if another process has it.
    """
    place = folder.resolve()
    if place not in _held:
        lock = FileLock(place / LOCK, timeout=1)  # `is_claimed` holds it for a moment
        try:
            lock.acquire()
        except (Timeout, RuntimeError):
            raise UserError(
                f"{folder} is being {doing} by another process; wait for it or stop it, or choose another "
                f"{setting}"
            ) from None
        except (NotImplementedError, OSError):  # a file system without locks; better trained than locked
            yield
            return
        _held[place] = _Claim(lock)
    claim = _held[place]
    claim.holders += 1
    try:
        yield
    finally:
        claim.holders -= 1
        if not claim.holders:
            del _held[place]
            with suppress(OSError):
                (place / LOCK).unlink()
            claim.lock.release()


def is_claimed(folder: Path) -> bool:
    """Whether some process is training in a folder now."""
    if not (folder / LOCK).exists():
        return False
    try:
        with FileLock(folder / LOCK, timeout=0):
            return False
    except Timeout:
        return True
    except (NotImplementedError, OSError, RuntimeError):
        return False
