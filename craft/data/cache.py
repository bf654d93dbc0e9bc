"""Prepared data on the disk: directories that are either whole or absent, and verified before they are used.

An entry is built in a temporary directory beside its place, synced, and renamed, so that a kill at any moment
leaves nothing or everything. A lock per entry (released by the system when its holder dies) lets concurrent
processes prepare the same corpus once, and tells a dead process's leftovers from a live one's work.

A manifest holds the sha256 of every file. It is checked when an entry is used first, again whenever a file's
size, times or inode differ from those of the last check, and once a week in any case, because a disk may
forget without a trace. In between a start costs a few `stat` calls, however large the corpus.
"""

from __future__ import annotations

import errno
import json
import os
import shutil
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout

from craft.utils.errors import UserError
from craft.utils.files import TICK_NS, replace_text, sync
from craft.utils.logging import get_logger
from craft.utils.manifest import difference, read_manifest, write_manifest
from craft.utils.paths import typed_path

CHECKED = "checked.json"  # when the files were last read and compared with the manifest, and their state then
SILENT_BYTES = 10**9  # reading more than this takes seconds, which should be explained
TRUSTED_NS = 7 * 24 * 3600 * 10**9
_TEMPORARY = ".building-"


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
        if not self._fault(place):
            return place
        with self._explained(), self._lock(key):
            fault = self._fault(place)  # another process may have been faster
            if fault:
                if place.exists():
                    get_logger(__name__).warning(
                        "prepared data in %s are damaged (%s): rebuilding", place, fault
                    )
                self._remove_leftovers(key)
                self._build(key, build)
        return place

    def _build(self, key: str, build: Callable[[Path], None]) -> None:
        place, work = self.root / key, self.root / f"{_TEMPORARY}{key}"
        work.mkdir()
        try:
            build(work)
            _remember(work, write_manifest(work))
            for path in (*work.iterdir(), work):
                sync(path)
            if place.exists():
                place.rename(self.root / f"{_TEMPORARY}{key}-damaged")
            work.rename(place)
            sync(self.root)
        finally:
            self._remove_leftovers(key)

    @staticmethod
    def _fault(place: Path) -> str | None:
        """Why an entry can't be used, or None."""
        try:
            files = read_manifest(place)["files"]
            if why := difference(place, files, sums=False):
                return why
            if _checked(place) == _state(place, files):
                return None
            if (size := sum(written["size"] for written in files.values())) > SILENT_BYTES:
                get_logger(__name__).info(f"checking {size / 1e9:.1f} GB of prepared data in {place}")
            if why := difference(place, files):
                return why
            _remember(place, files)
        except (OSError, ValueError) as error:
            return str(error)
        return None

    def _remove_leftovers(self, key: str) -> None:
        """Removes what builds of `key` (whose lock is held) and of processes that died have left."""
        for path in self.root.glob(f"{_TEMPORARY}*"):
            other = path.name[len(_TEMPORARY) :].removesuffix("-damaged")
            if other == key:
                shutil.rmtree(path, ignore_errors=True)
                continue
            try:
                with FileLock(self._lock_file(other), timeout=0):
                    shutil.rmtree(path, ignore_errors=True)
            except Timeout:
                pass  # at work

    def _lock_file(self, key: str) -> str:
        return str(self.root / ".locks" / f"{key}.lock")

    def _lock(self, key: str) -> FileLock:
        try:
            (self.root / ".locks").mkdir(parents=True, exist_ok=True)
        except FileNotFoundError as error:  # what /proc answers, though it is there
            raise self._refused(f"it can't be made ({error.strerror})") from error
        return FileLock(self._lock_file(key))

    def _refused(self, reason: str) -> UserError:
        return UserError(
            f"the cache folder {self.root}: {reason}; choose another with data.cache_dir or CRAFT_CACHE"
        )

    @contextmanager
    def _explained(self) -> Iterator[None]:
        try:
            yield
        except OSError as error:
            if error.errno in (errno.ENOSPC, errno.EDQUOT):
                reason = "no space is left on that disk"
            elif error.errno in (errno.EACCES, errno.EPERM, errno.EROFS, errno.ENOTDIR, errno.EEXIST):
                reason = f"it can't be written ({error.strerror})"
            else:
                raise
            raise self._refused(reason) from error


def _state(place: Path, files: Iterable[str]) -> dict[str, list[int]]:
    """Size, times and inode of each file, without the path: an entry may be moved as a whole."""
    stats = {name: (place / name).stat() for name in files}
    return {name: [s.st_size, s.st_mtime_ns, s.st_ctime_ns, s.st_ino] for name, s in stats.items()}


def _checked(place: Path) -> Any:
    """The state of the files when they were last compared with the manifest, if that can be trusted: it isn't
    long ago, and they were older then than a tick, within which an edit would leave their times equal."""
    try:
        last = json.loads((place / CHECKED).read_text(encoding="utf-8"))
        state, at = last["state"], last["time_ns"]
        old = all(at - max(times) >= TICK_NS for _, *times, _ in state.values())
        return state if old and 0 <= time.time_ns() - at < TRUSTED_NS else None
    except (OSError, ValueError, KeyError, TypeError):
        return None


def _remember(place: Path, files: Iterable[str]) -> None:
    with suppress(OSError):  # a folder that can't be written is checked every time
        state = {"time_ns": time.time_ns(), "state": _state(place, files)}
        replace_text(place / CHECKED, json.dumps(state))
