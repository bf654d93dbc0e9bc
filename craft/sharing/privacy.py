"""What nobody else should see: secrets, and where things lie on this machine."""

from __future__ import annotations

import os
import re
from mmap import mmap
from pathlib import Path, PurePosixPath, PureWindowsPath
from typing import Any
from urllib.parse import urlsplit, urlunsplit

from craft.utils.masking import mask, secrets

TEXTS = ("sample_prompt",)
"""Settings that hold the user's words, where a slash is no path."""
PATHS = re.compile(r"(^|_)(path|dir|file|folder|from|checkpoint)$")
"""Names of settings that hold a path, if they hold text."""
HUB = re.compile(r"[\w.-]{1,96}/[\w.-]{1,96}", re.ASCII)
WORD = re.compile(r"[\w.-]{1,96}", re.ASCII)
"""An id of the Hub's oldest data sets, which have no owner: `imdb`."""


def public_run(run: dict[str, Any]) -> dict[str, Any]:
    """A resolved run as others may see it: paths are names, and it pushes nothing.

    It stays valid for `craft train --config`: whoever repeats it puts the text of that name into the current
    folder.
    """
    shown = {str(key): public(value, str(key)) for key, value in run.items()}
    data, training = run.get("data"), shown.get("training")
    if isinstance(data, dict) and (corpus := hub_data_set(data)):
        shown["data"]["path"] = corpus
    models = run.get("models")
    if isinstance(models, dict) and _is_hub_id(models.get("init_from")):
        shown["models"]["init_from"] = models["init_from"]
    if isinstance(training, dict):
        shown["training"] = {
            key: value
            for key, value in training.items()
            if key != "push_to_hub" and not str(key).startswith("hub_")
        }
    return shown


def hub_data_set(data: dict[str, Any]) -> str | None:
    """The id of the data set of the Hub that a run read, if it read one."""
    path = data.get("path")
    listed = _is_hub_id(path) or (isinstance(path, str) and WORD.fullmatch(path) and not Path(path).exists())
    return path if data.get("source") == "hub" and listed else None


def public(value: Any, key: str = "") -> Any:
    """Plain data without secrets and paths: what is a path, or stands where one belongs, becomes its name."""
    if isinstance(value, dict):
        return {name: public(each, str(name)) for name, each in value.items()}
    if isinstance(value, list):
        return [public(each, key) for each in value]
    if not isinstance(value, str):
        return value
    if key not in TEXTS:
        if re.match(r"https?://", value):
            try:
                parts = urlsplit(value)
            except ValueError:  # of brackets that aren't an IPv6 address
                return public_text(name_of(value))
            host = parts.netloc.rpartition("@")[2]
            value = urlunsplit((parts.scheme, host, parts.path, "", ""))
        elif _looks_like_a_path(value) or PATHS.search(key):
            value = name_of(value)
    return public_text(value)


def public_text(text: str) -> str:
    """A text without secrets; folders of this machine in it show as `~` and `.`."""
    for pattern, shown in _folders():
        text = re.sub(pattern, lambda found, shown=shown: shown, text)  # type: ignore[misc]
    return mask(text)


def leak(data: bytes | mmap) -> str:
    """What is private in the bytes of a file, in a few words; empty if there is nothing."""
    if any(data.find(secret.encode()) >= 0 for secret in secrets()):
        return "a token or password"
    if any(re.search(pattern.encode(), data) for pattern, _ in _folders()):
        return "a path of this machine"
    return ""


def name_of(path: str) -> str:
    """The last part of a path of any system, `my.txt` of `C:\\texts\\my.txt`."""
    kind = PureWindowsPath if "\\" in path or re.match(r"[A-Za-z]:", path) else PurePosixPath
    return kind(path.rstrip("/\\")).name or "unnamed"


def _folders() -> list[tuple[str, str]]:
    """(pattern, what is shown instead) of the home folder and the current one, the longer first."""
    home, here = str(Path.home()), os.getcwd()
    spelled = {here: ".", os.path.realpath(here): ".", os.environ.get("PWD") or here: "."}
    spelled |= {home: "~", os.path.realpath(home): "~"}
    patterns = []
    for folder in sorted(spelled, key=len, reverse=True):
        if len(folder.strip("/\\")) < 2:  # the root of everything
            continue
        # A short name such as /tmp may be a word of the text; with something below it, it is a path.
        long = folder.count(os.sep) > 1
        patterns.append((re.escape(folder) + (r"(?![\w-])" if long else r"(?=[/\\]\w)"), spelled[folder]))
    return patterns


def _looks_like_a_path(value: str) -> bool:
    return re.match(r"(/|~|\.{1,2}[/\\]|[A-Za-z]:[/\\]|\\\\|file:)", value) is not None


def _is_hub_id(value: Any) -> bool:
    return isinstance(value, str) and HUB.fullmatch(value) is not None and not Path(value).exists()
