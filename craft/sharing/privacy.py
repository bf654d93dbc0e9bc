"""What nobody else should see: secrets, and where things lie on this machine."""

from __future__ import annotations

import os
import re
from pathlib import Path, PurePosixPath, PureWindowsPath
from typing import Any

from craft.utils.hub import is_repo_id
from craft.utils.masking import has_secret, mask, secrets
from craft.utils.paths import HOLDS_PATH
from craft.utils.settings import SECTIONS

TEXT_FIELDS = ("sample_prompt", "sample")
"""What holds a text to go on from, or by a model, where a slash is no path."""
PLACE_SETTINGS = ("cache_dir", "output_dir")
"""Paths of this machine, which are removed from what is uploaded."""
UPLOAD_SETTINGS = re.compile("hub_|push_to_hub$")
"""Settings of `training` that say what is uploaded where."""
PATH_START = re.compile(r"/|~|\.{1,2}[/\\]|[A-Za-z]:[/\\]|\\\\|file:")


def sanitized_run(run: dict[str, Any]) -> dict[str, Any]:
    """A resolved run as others may see it: paths are names, what it writes goes where it does by default, and
    it pushes nothing.

    It stays valid for `craft train --config`: whoever repeats it puts the text of that name into the current
    folder.
    """
    sections = [name for name in SECTIONS if isinstance(run.get(name), dict)]
    shown = sanitized({name: run[name] for name in run if name in ("experiment", *sections)})
    for section in sections:
        fields = shown[section]
        fields |= dict.fromkeys(set(PLACE_SETTINGS) & set(fields))
        if section == "training":
            shown[section] = {name: fields[name] for name in fields if not UPLOAD_SETTINGS.match(name)}
        elif section == "models" and (model := hub_model(run[section])):
            fields["init_from"] = model
        elif section == "data" and fields.get("source") == "hub" and isinstance(fields.get("path"), str):
            fields["path"] = hub_data_set(run[section]) or f"./{fields['path']}"
    return shown


def hub_data_set(data: dict[str, Any]) -> str | None:
    """The id of the data set of the Hub that a run read, if it read one; a folder is `./folder` there."""
    path = data.get("path")
    return path if data.get("source") == "hub" and is_repo_id(path) else None


def hub_model(models: dict[str, Any]) -> str | None:
    """The id of the model of the Hub that a run started from, if it did: of a folder there is no commit."""
    base = models.get("init_from")
    return base if models.get("init_revision") and is_repo_id(base) else None


def sanitized(value: Any, key: str = "") -> Any:
    """Plain data without secrets and paths: what is a path, or stands where one belongs, becomes its name."""
    if isinstance(value, dict):
        return {sanitized_text(name): sanitized(each, name) for name, each in value.items()}
    if isinstance(value, list):
        return [sanitized(each, key) for each in value]
    if not isinstance(value, str):
        return value
    if key in TEXT_FIELDS:
        return sanitized_text(value)
    if re.match("https?://", value):  # without a user, a query and an anchor
        value = re.sub(r"(?<=://)[^/]*@|[?#].*", "", value, flags=re.DOTALL)
    elif PATH_START.match(value) or HOLDS_PATH.search(key):
        value = name_of(value)
    return sanitized_text(value)


def sanitized_text(text: str) -> str:
    """A text without secrets; folders of this machine in it show as `~` and `.`."""
    for pattern, shown in _machine_folders():
        text = re.sub(pattern, shown, text)
    return mask(text)


def find_private(content: bytes, *, text: bool) -> str:
    """What is private in the content of a file, in a few words; empty if there is nothing.

    Args:
        text: also look for what has the form of a secret, which in numbers means nothing.
    """
    known = any(os.fsencode(secret) in content for secret in secrets())
    if known or (text and has_secret(content.decode(errors="replace"))):
        return "a token or password"
    if any(re.search(os.fsencode(pattern), content) for pattern, _ in _machine_folders()):
        return "a path of this machine"
    return ""


def name_of(path: str) -> str:
    """The last part of a path of any system, `my.txt` of `C:\\texts\\my.txt`."""
    kind = PureWindowsPath if "\\" in path or re.match(r"[A-Za-z]:", path) else PurePosixPath
    return kind(path.rstrip("/\\")).name or "unnamed"


def _machine_folders() -> list[tuple[str, str]]:
    """(pattern, what is shown instead) of the home folder and the current one, the longer first."""
    home, here = str(Path.home()), os.getcwd()
    spelled = {here: ".", os.environ.get("PWD") or here: ".", home: "~", os.path.realpath(home): "~"}
    # A short name such as /tmp may be a word of the text; with something below it, it is a path.
    return [
        (re.escape(folder) + (r"(?![\w-])" if folder.count(os.sep) > 1 else r"(?=[/\\]\w)"), shown)
        for folder, shown in sorted(spelled.items(), key=lambda each: -len(each[0]))
        if len(folder.strip("/\\")) > 1  # not the root of everything
    ]
