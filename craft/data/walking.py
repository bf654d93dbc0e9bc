"""The files below a folder that match a pattern; a folder itself stands for all of them, the pattern `**`.

Folders and patterns are one walk, so that they agree: links are followed, hidden names belong only to
patterns that spell their dot, and what craft wrote itself is left out.
"""

from __future__ import annotations

import os
from collections import defaultdict
from collections.abc import Callable, Sequence
from fnmatch import fnmatch
from pathlib import Path, PurePath
from typing import NoReturn

from craft.utils.errors import UserError
from craft.utils.outputs import written_by_craft


class Walk:
    """Searches that share what they leave out.

    Args:
        exclude: names (`node_modules`, `*.min.js`) of files and folders at any depth, or the last parts of
            their paths (`docs/api`); what begins with `/`, `~` or `./` is a whole path.
        cache: craft's cache, which is no text.

    Attributes:
        left_out: what was left out, by the reason.
        unused: those of `exclude` that matched nothing.
    """

    def __init__(self, exclude: Sequence[str], cache: Path) -> None:
        self._excluding = {each: _from_the_right(each) for each in exclude}
        self._cache = os.path.realpath(cache)
        self.left_out: dict[str, list[Path]] = defaultdict(list)
        self.unused = set(exclude)

    def files(self, folder: Path, pattern: Sequence[str], is_text: Callable[[Path], bool]) -> list[Path]:
        """The texts below `folder` whose path from there matches, sorted.

        Raises:
            UserError: for a folder or file that can't be read.
        """
        depth = None if "**" in pattern else len(pattern)
        hidden = any(part.startswith(".") for part in pattern)
        found = []
        for here, folders, names in os.walk(folder, followlinks=True, onerror=_unreadable):
            place = Path(here)
            parts = place.relative_to(folder).parts
            deeper = depth is None or len(parts) + 1 < depth
            shown = [name for name in folders if deeper and (hidden or not name.startswith("."))]
            folders[:] = [name for name in shown if self._goes_into(place / name)]
            found += [place / name for name in names if matches((*parts, name), pattern)]
        texts: list[Path] = []
        for file in sorted(file for file in found if not self.excludes(file)):
            try:
                readable = file.is_file() and is_text(file)
            except OSError as error:
                _unreadable(error)
            (texts if readable else self.left_out["aren't text and are left out"]).append(file)
        return texts

    def excludes(self, path: Path) -> bool:
        """Whether `exclude` names a file or folder."""
        for pattern, wanted in self._excluding.items():
            if path.name == wanted or Path(os.path.abspath(path)).match(wanted):
                self.unused.discard(pattern)
                return True
        return False

    def _goes_into(self, folder: Path) -> bool:
        if self.excludes(folder):
            return False
        real = os.path.realpath(folder)
        if written_by_craft(folder) or real == self._cache:
            self.left_out["were written by craft itself and are left out"].append(folder)
            return False
        above = (PurePath(os.path.realpath(parent)) for parent in Path(os.path.abspath(folder)).parents)
        if folder.is_symlink() and any(each.is_relative_to(real) for each in above):
            self.left_out["lead to a folder around them and aren't followed"].append(folder)
            return False
        return True


def matches(path: Sequence[str], pattern: Sequence[str]) -> bool:
    """Whether the parts of a path are those of a pattern, in which `**` stands for any number of them.

    Names that begin with a dot need a part that does, too.
    """
    if not path or not pattern:
        return not path and all(part == "**" for part in pattern)
    first, *rest = pattern
    shown = first.startswith(".") or not path[0].startswith(".")
    if first == "**":
        return matches(path, rest) or (shown and matches(path[1:], pattern))
    return shown and (path[0] == first or fnmatch(path[0], first)) and matches(path[1:], rest)


def _from_the_right(pattern: str) -> str:
    """As `PurePath.match` takes it: whole paths begin with `/`, others are compared with the end of paths."""
    wanted = os.path.expanduser(pattern)
    if wanted.startswith(("./", "../")):
        wanted = os.path.abspath(wanted)
    return wanted.removeprefix("**/").removesuffix("/**").rstrip("/") or "/"


def _unreadable(error: OSError) -> NoReturn:
    raise UserError(
        f"{error.filename} can't be read: {error.strerror}; leave it out with data.exclude={error.filename}",
        code="file-unreadable",
    ) from None
