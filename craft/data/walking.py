"""The files below a folder that match a pattern; a folder itself stands for all of them, the pattern `**`.

Folders and patterns are one walk, so that they agree: links are followed, hidden names belong only to
patterns that spell their dot, and what craft wrote itself is left out.
"""

from __future__ import annotations

import fnmatch
import os
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path, PurePath

from craft.utils.errors import UserError
from craft.utils.outputs import written_by_craft

EVERYTHING = ("**",)

Pattern = tuple[str, ...]
"""The parts of a path; `**` stands for any number of them."""


@dataclass
class Walk:
    """Searches that share what they leave out.

    Args:
        exclude: names (`node_modules`, `*.min.js`) of files and folders at any depth, or the last parts of
            their paths (`docs/api`); what begins with `/`, `~` or `./` is a whole path.
        cache: craft's cache, which is no text.

    Attributes:
        excluding: how often each of `exclude` matched.
        own: folders that craft wrote, which were left out.
        cycles: links to a folder around them, which weren't followed.
        folders: folders whose own name matched a pattern.
    """

    exclude: Sequence[str] = ()
    cache: Path | None = None
    excluding: Counter[str] = field(default_factory=Counter)
    own: list[Path] = field(default_factory=list)
    cycles: list[Path] = field(default_factory=list)
    folders: list[Path] = field(default_factory=list)

    def below(self, folder: Path, pattern: Pattern = EVERYTHING) -> list[Path]:
        """Everything but folders below `folder` whose path from there matches, sorted.

        Raises:
            UserError: for a folder that can't be read.
        """
        found = []
        start: tuple[str, ...] = (os.path.realpath(folder),)
        waiting = [(folder, [pattern], start)]
        while waiting:
            here, patterns, above = waiting.pop()
            for path in _listed(here):
                matched = any(_ends(each, path.name) for each in patterns)
                deeper = [rest for each in patterns for rest in _behind(each, path.name)]
                if not (matched or deeper) or self.excludes(path):
                    continue
                if not os.path.isdir(path):
                    found += [path] if matched else []
                    continue
                self.folders += [path] if matched else []
                real = os.path.realpath(path)
                if written_by_craft(path) or real == str(self.cache):
                    self.own.append(path)
                elif path.is_symlink() and any(PurePath(each).is_relative_to(real) for each in above):
                    self.cycles.append(path)
                elif deeper:
                    waiting.append((path, deeper, (*above, real)))
        return sorted(found)

    def excludes(self, path: Path) -> bool:
        """Whether `exclude` names a file or folder."""
        for pattern in self.exclude:
            wanted = os.path.expanduser(pattern)
            if wanted.startswith(("./", "../")):
                wanted = os.path.abspath(wanted)
            wanted = wanted.removeprefix("**/").removesuffix("/**").rstrip("/") or "/"
            # Relative patterns match from the right, absolute ones as a whole.
            if path.name == wanted or Path(os.path.abspath(path)).match(wanted):
                self.excluding[pattern] += 1
                return True
        return False


def _listed(folder: Path) -> list[Path]:
    try:
        return [folder / name for name in sorted(os.listdir(folder))]
    except OSError as error:
        raise UserError(
            f"the folder {folder} can't be read: {error.strerror}; leave it out with data.exclude={folder}"
        ) from None


def _ends(pattern: Pattern, name: str) -> bool:
    """Whether a pattern is used up by one name."""
    first, *rest = pattern
    if first == "**" and rest:
        return _ends(tuple(rest), name)
    return not rest and _matches(first, name)


def _behind(pattern: Pattern, name: str) -> list[Pattern]:
    """What is left of a pattern below a folder of that name, in each way in which it can be read."""
    first, *rest = pattern
    if first == "**":
        left = _behind(tuple(rest), name) if rest else []
        return [pattern, *left] if _matches(first, name) else left
    return [tuple(rest)] if rest and _matches(first, name) else []


def _matches(part: str, name: str) -> bool:
    if name.startswith(".") and not part.startswith("."):
        return False
    return part == name or fnmatch.fnmatch(name, part)
