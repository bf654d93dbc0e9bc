"""Files and folders that appear whole or not at all: written to the disk, then renamed.

A disk that fills up meanwhile costs nothing that was there, and becomes one line for the user.
"""

from __future__ import annotations

import errno
import hashlib
import os
import shutil
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from craft.utils.errors import CraftError, Failed

STAGING, REPLACED = ".staging-", ".replaced-"
"""How hidden folders begin: one that is being written, and one that makes room for its successor."""
DISK_FULL = (errno.ENOSPC, errno.EDQUOT)
DISK_ERRORS = (
    *DISK_FULL,
    *(errno.EROFS, errno.EIO, errno.EACCES, errno.EPERM, errno.EFBIG, errno.ESTALE, errno.ENAMETOOLONG),
)
"""What a disk answers when it refuses; other errors of the system, such as of the network, aren't its."""
FOLDER_GONE = (errno.ENOENT, errno.ENOTDIR)
"""What it answers besides where another machine doesn't share a folder; elsewhere that may be a bug."""

# Time stamps of files advance in ticks of up to 10 ms (a kernel's jiffy): an edit within the tick of the
# last one leaves them equal. A file is therefore only trusted once it is older than this.
TICK_NS = 50_000_000


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
    """As `replace_bytes`, in UTF-8."""
    replace_bytes(path, text.encode())


def replace_bytes(path: Path, content: bytes) -> None:
    """Writes a file so that at any moment the old content or the new one is there, never half of it."""
    temporary = path.with_name(f".{path.name}.tmp")
    try:
        temporary.write_bytes(content)
        sync(temporary)
        temporary.replace(path)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise


@contextmanager
def staged_folder(final: Path) -> Iterator[Path]:
    """A folder to write into, which becomes `final` once it is whole and on the disk.

    If something fails, `final` is as it was before and nothing new is left. A process that is killed leaves
    hidden folders beside it: what it wrote (see `remove_staging`), and between the two renames at the end the
    old `final`, which is then missing (see `restore_replaced`).
    """
    staging, replaced = (final.with_name(prefix + final.name) for prefix in (STAGING, REPLACED))
    _restore(replaced)
    shutil.rmtree(staging, ignore_errors=True)
    staging.mkdir(parents=True)
    try:
        yield staging
        readable = staging.stat().st_mode & 0o666
        for path in (*staging.rglob("*"), staging):
            if path.is_file():
                path.chmod(readable)  # safetensors makes its files unreadable for others
            sync(path)
        if final.exists():
            final.rename(replaced)  # not deleted before the new one is there
        staging.rename(final)
        sync(final.parent)
        shutil.rmtree(replaced, ignore_errors=True)
    except BaseException:
        shutil.rmtree(staging, ignore_errors=True)
        _restore(replaced)
        raise


def restore_replaced(parent: Path) -> None:
    """Puts back what a killed process had moved away to make room for its successor."""
    for replaced in parent.glob(f"{REPLACED}*"):
        _restore(replaced)


def _restore(replaced: Path) -> None:
    final = replaced.with_name(replaced.name.removeprefix(REPLACED))
    if final.exists():
        shutil.rmtree(replaced, ignore_errors=True)
    elif replaced.exists():
        replaced.rename(final)


def remove_staging(parent: Path) -> None:
    """Removes what killed processes left half written; only where no other process writes."""
    for staging in parent.glob(f"{STAGING}*"):
        shutil.rmtree(staging, ignore_errors=True)


@contextmanager
def explain_disk_errors(what: str, folder: Path, hint: Callable[[], str]) -> Iterator[None]:
    """Turns the error of a disk that refuses into one line. Also a decorator.

    Args:
        what: is written inside.
        folder: where to.
        hint: what is left and how to go on, for the end of the line.

    Raises:
        Failed: with what the disk said and how much of it is free, staged folders there counted as free, for
            they are removed.
    """
    try:
        yield
    except Exception as error:
        reason = disk_error(error)
        if isinstance(error, CraftError) or not reason:
            raise
        there = next(place for place in (folder, *folder.absolute().parents) if place.exists())
        staged = sum(path.stat().st_size for path in there.glob(f"{STAGING}*/**/*") if path.is_file())
        free, full = shutil.disk_usage(there).free + staged, any(os.strerror(n) in reason for n in DISK_FULL)
        raise Failed(
            f"{what} can't be written to {folder} ({reason}; {free:,} bytes are free there); "
            f"{'make room; ' if full else ''}{hint()}",
            code="disk-full" if full else "file-unwritable",
        ) from error


def disk_error(error: BaseException | None) -> str:
    """What the disk said, where an error is its own or was raised from it; else nothing."""
    while error is not None:
        # safetensors, written in Rust, reports errors of the disk in its message alone.
        refused = isinstance(error, OSError) and error.errno in (*DISK_ERRORS, *FOLDER_GONE)
        if refused or "(os error" in str(error):
            return str(error).splitlines()[0]
        error = error.__cause__
    return ""


def file_signature(path: Path) -> list[Any]:
    """Path, size, times of the last change of content and of status, inode: equal only for an untouched file.

    The status time catches an edit that restores size and modification time.
    """
    while True:
        stat = path.stat()
        age = time.time_ns() - max(stat.st_mtime_ns, stat.st_ctime_ns)
        if not 0 <= age < TICK_NS:
            return [str(path.absolute()), stat.st_size, stat.st_mtime_ns, stat.st_ctime_ns, stat.st_ino]
        time.sleep((TICK_NS - age) / 1e9)


def sha256(*paths: Path) -> str:
    """Of the content of files, one after the other, read in pieces."""
    digest, buffer = hashlib.sha256(), memoryview(bytearray(1 << 20))
    for path in paths:
        with path.open("rb", buffering=0) as file:
            while count := file.readinto(buffer):
                digest.update(buffer[:count])
    return digest.hexdigest()
