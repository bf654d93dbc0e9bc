"""Files that survive a power cut: written to the disk, replaced as a whole; and whether one was touched."""

from __future__ import annotations

import hashlib
import os
import shutil
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

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
    """Writes a text file so that at any moment the old text or the new one is there, never half of it."""
    temporary = path.with_name(f".{path.name}.tmp")
    temporary.write_text(text, encoding="utf-8")
    sync(temporary)
    temporary.replace(path)


@contextmanager
def staged_folder(final: Path) -> Iterator[Path]:
    """A folder to write into, which becomes `final` once it is whole and on the disk; if that fails, nothing
    is left of it."""
    staging = final.with_name(f".staging-{final.name}")
    shutil.rmtree(staging, ignore_errors=True)  # of a process that was killed
    staging.mkdir(parents=True)
    try:
        yield staging
        for path in (*staging.rglob("*"), staging):
            sync(path)
        staging.rename(final)
    except BaseException:
        shutil.rmtree(staging, ignore_errors=True)
        raise


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
