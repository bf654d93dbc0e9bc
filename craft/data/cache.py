"""Prepared data on the disk: directories that are either whole or absent, and verified before they are used.

An entry is built in a staging folder, synced, and renamed, so that a kill at any moment leaves nothing or
everything. A lock per entry (released by the system when its holder dies) lets concurrent processes prepare
the same corpus once.

A manifest holds the sha256 of every file. It is checked when an entry is used first, again whenever a file
was touched, and once a week in any case, because disks corrupt silently. In between a start costs
a few `stat` calls, however large the corpus.
"""

from __future__ import annotations

import os
import shutil
import time
from collections.abc import Callable, Iterable
from contextlib import suppress
from pathlib import Path

from filelock import FileLock

from craft.utils.errors import DISK_FULL, Failed, UserError
from craft.utils.files import TICK_NS, staged_folder
from craft.utils.logging import get_logger
from craft.utils.manifest import difference, read_manifest, write_manifest
from craft.utils.paths import typed_path

CHECKED = "checked"  # an empty file, whose time is when the others were last compared with the manifest
TRUSTED_NS = 7 * 24 * 3600 * 10**9


class Cache:
    """A folder of entries by key.

    Args:
        folder: None is `$CRAFT_CACHE`, else `~/.cache/craft`.
    """

    def __init__(self, folder: str | None = None) -> None:
        given = folder or os.environ.get("CRAFT_CACHE") or "~/.cache/craft"
        self.root = Path(typed_path(given, "data.cache_dir=" if folder else "CRAFT_CACHE="))

    def entry(self, key: str, build: Callable[[Path], None]) -> Path:
        """The directory of `key`, built by `build(empty_directory)` if it isn't there or is damaged.

        Raises:
            UserError: if the folder can't be written or the disk is full.
        """
        place = self.root / key
        if not _fault(place):
            return place
        try:
            (self.root / ".locks").mkdir(parents=True, exist_ok=True)
            with FileLock(self.root / ".locks" / f"{key}.lock"):
                if fault := _fault(place):  # another process may have been faster
                    if place.exists():
                        get_logger(__name__).warning(
                            "prepared data in %s are damaged (%s): rebuilding", place, fault
                        )
                        shutil.rmtree(place)
                    with staged_folder(place) as folder:
                        build(folder)
                        write_manifest(folder)
                        _remember(folder)
        except OSError as error:
            full = error.errno in DISK_FULL
            raise (Failed if full else UserError)(
                f"the cache folder {self.root} can't be written ({error.strerror or error}); choose another "
                "with data.cache_dir or CRAFT_CACHE",
                code="disk-full" if full else "file-unwritable",
            ) from error
        return place


def _fault(place: Path) -> str:
    """Why an entry can't be used; empty if it can."""
    try:
        files = read_manifest(place)["files"]
        if _is_checked(place, files):
            return ""
        if why := difference(place, files):
            return why
        _remember(place)
    except (OSError, ValueError) as error:
        return str(error)
    return ""


def _is_checked(place: Path, files: Iterable[str]) -> bool:
    """Whether the files were compared with the manifest in the last week, and not touched since. (What
    changed within a tick of the clock before that may have changed behind it, too.)"""
    stats = [(place / name).stat() for name in files]
    changed = max(max(stat.st_mtime_ns, stat.st_ctime_ns) for stat in stats)
    try:
        checked = (place / CHECKED).stat().st_mtime_ns
    except OSError:
        return False
    return changed + TICK_NS <= checked and 0 <= time.time_ns() - checked < TRUSTED_NS


def _remember(place: Path) -> None:
    with suppress(OSError):  # a folder that can't be written is checked every time
        (place / CHECKED).touch()
        os.utime(place / CHECKED, ns=(time.time_ns(), time.time_ns()))
