"""Paths as users type them: a shell expands `~` in few of the places where craft takes one."""

from __future__ import annotations

import os
import re
from collections.abc import Mapping
from typing import Any

from craft.utils.errors import UserError

HOLDS_PATH = re.compile(r"(^|_)(path|dir|file|folder|from|checkpoint)$")
"""Names of settings that hold a path, if they hold text."""


def typed_path(text: str | os.PathLike[str], where: str = "") -> str:
    """A path that a user typed, with `~` and `~user` expanded, else as it stands: it may be a pattern, an
    address or a name on the Hub.

    Args:
        where: the option or setting, to begin a message with: `--output `, `training.output_dir=`.

    Raises:
        UserError: for an unknown user, and for what can't be a path or can't be recorded as one.
    """
    path = os.fspath(text)
    expanded = os.path.expanduser(path)
    if "\0" in path:
        problem = "holds a NUL"
    elif any("\ud800" <= char <= "\udfff" for char in path):
        problem = "isn't UTF-8, in which names are recorded; name its folder, or a pattern such as '*.txt'"
    elif expanded.startswith("~") and not os.path.lexists(expanded):
        problem = "begins with the home folder of a user who isn't here; write ./~ for a file of that name"
    else:
        return expanded
    raise UserError(f"{where}{path!r} {problem}", code="path-invalid")


def typed_setting(value: Any, where: str) -> Any:
    """The value of a setting that holds a path or a list of them, as `typed_path`; anything else as it is."""
    if isinstance(value, list):
        return [typed_setting(each, where) for each in value]
    return typed_path(value, where) if isinstance(value, str | os.PathLike) else value


def typed_settings(section: str, values: Mapping[str, Any]) -> dict[str, Any]:
    """Settings, with `typed_setting` of those whose name says that they hold a path."""
    return {
        name: typed_setting(value, f"{section}.{name}=") if HOLDS_PATH.search(name) else value
        for name, value in values.items()
    }
