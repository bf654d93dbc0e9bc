"""What the words of a command line mean: a text, choices of files, values of fields."""

from __future__ import annotations

import math
import os
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from craft.config.fields import all_keys, suggest
from craft.config.files import GROUPS, config_folders, list_group
from craft.utils.common import did_you_mean
from craft.utils.errors import UserError
from craft.utils.paths import typed_path

OVERRIDE = re.compile(r"\+*([A-Za-z_]\w*(?:\.\w+)*)=(.*)", re.DOTALL)
KEY_VALUE = "settings are written KEY=VALUE, for example training.max_steps=500"
IN_ONE_LINE: Any = {"default_style": '"', "default_flow_style": True, "width": math.inf}
"""How YAML is written that holds any path."""


def split_text(arguments: Sequence[str]) -> list[str]:
    """The overrides of a command line: words that aren't `KEY=VALUE` are the user's texts, and train on them.

    Raises:
        UserError: for a text that doesn't exist.
    """
    texts = [word for word in arguments if not OVERRIDE.fullmatch(word)]
    settings = [word for word in arguments if OVERRIDE.fullmatch(word)]
    if any(word.startswith("=") for word in texts):
        raise UserError(
            f"can't read {' '.join(arguments)!r}: settings are written KEY=VALUE, without spaces around the ="
        )
    for path in texts:
        pattern_or_url = "://" in path or any(char in path for char in "*?[")
        if not pattern_or_url and not os.path.exists(typed_path(path)):
            if "=" in path:
                raise UserError(f"can't read {path!r}: it is no file, and {KEY_VALUE}")
            raise UserError(f"no file {path!r}{_suggest_text(path)}")
    if not texts:
        return settings
    import yaml

    path = yaml.safe_dump(texts if len(texts) > 1 else texts[0], **IN_ONE_LINE).strip()
    return ["data=text_file", f"data.path={path}", *settings]


def _suggest_text(path: str) -> str:
    for group in reversed(GROUPS):
        if path in {name for name, _, _ in list_group(group, config_folders(None))}:
            return f", did you mean {group}={path}?"
    folder, name = os.path.split(typed_path(path))
    names = os.listdir(folder or ".") if os.path.isdir(folder or ".") else []
    return did_you_mean(name, [other for other in names if other != name])  # a broken link


def split_overrides(
    overrides: Sequence[str], folders: Sequence[Path]
) -> tuple[dict[str, str], list[tuple[str, str]]]:
    """Choices of files (`models=char_lstm`) and values of fields (`models.hidden_size=256`), in their order.

    Raises:
        UserError: for text that is neither, and for files that don't exist.
    """
    choices: dict[str, str] = {}
    values: list[tuple[str, str]] = []
    for text in overrides:
        match = OVERRIDE.fullmatch(text)
        if not match:
            raise UserError(f"can't read {text!r}: {KEY_VALUE}")
        key, value = match.groups()
        if "." in key:
            values.append((key, value))
        elif key in GROUPS:
            choices[key] = _choice(key, value, folders)
        else:
            file = f"; for the file of that name write ./{text}" if os.path.exists(text) else ""
            raise UserError(f"unknown setting {key!r} in {text!r}{suggest_setting(key)}{file}")
    return choices, values


def _choice(group: str, value: str, folders: Sequence[Path]) -> str:
    names = [name for name, _, _ in list_group(group, folders)]
    name = value.removesuffix(".yaml")
    if name not in names and not (group == "experiments" and name in ("null", "none")):
        raise UserError(f"no {group}={value}{did_you_mean(name, names)} (there are: {', '.join(names)})")
    return "none" if name == "null" else name


def suggest_setting(key: str) -> str:
    """`", did you mean 'training.max_steps'?"` for what was written where a setting belongs."""
    if key in all_keys():
        return f", did you mean {key!r}?"
    return did_you_mean(key, GROUPS) or suggest(key) or f" (groups are {', '.join(GROUPS)})"
