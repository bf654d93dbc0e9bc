"""What nobody else should see: secrets, and where things lie on this machine."""

from __future__ import annotations

import os
import re
from mmap import mmap
from pathlib import Path, PurePosixPath, PureWindowsPath
from typing import Any
from urllib.parse import urlsplit, urlunsplit

from craft.utils.hub import is_repo_id
from craft.utils.masking import mask, secrets
from craft.utils.paths import HOLDS_PATH

TEXTS = ("sample_prompt", "sample")
"""What holds a text to go on from, or by a model, where a slash is no path."""
OWN_PLACES = {"data": ("cache_dir",), "training": ("output_dir",)}
"""Settings that say only where things lie here, which is nobody's business and no use elsewhere."""
PLACES = re.compile(
    r"""
      file:/+{rest}                                 # file:///data/my.txt
    | (?<![\w.~/\\<-]) (?:/{part})(?:/{part})+ /?  # /data/my.txt; neither and/or, https://a/b nor /a/
    | (?<![\w]) [A-Za-z]:(?:\\|/(?!/)){rest}       # C:\texts\my.txt
    | (?<![\w\\]) \\\\{part}\\{rest}               # \\server\texts\my.txt
    """.replace("{part}", r"[^\s/\\'\"<>|,;)\]}]+").replace("{rest}", r"[^\s'\"<>|,;)\]}]+"),
    re.VERBOSE,
)
"""Absolute paths among other words."""


def public_run(run: dict[str, Any]) -> dict[str, Any]:
    """A resolved run as others may see it: paths are names, what it writes goes where it does by default, and
    it pushes nothing.

    It stays valid for `craft train --config`: whoever repeats it puts the text of that name into the current
    folder.
    """
    shown = public(run)
    for section, names in OWN_PLACES.items():
        if isinstance(shown.get(section), dict):
            shown[section].update({name: None for name in names if name in shown[section]})
    data, training = run.get("data"), shown.get("training")
    if isinstance(data, dict) and data.get("source") == "hub" and isinstance(data.get("path"), str):
        shown["data"]["path"] = hub_data_set(data) or f"./{name_of(data['path'])}"
    if isinstance(models := run.get("models"), dict) and (base := hub_model(models)):
        shown["models"]["init_from"] = base
    if isinstance(training, dict):
        shown["training"] = {
            key: value
            for key, value in training.items()
            if key != "push_to_hub" and not str(key).startswith("hub_")
        }
    return shown


def hub_data_set(data: dict[str, Any]) -> str | None:
    """The id of the data set of the Hub that a run read, if it read one; a folder is `./folder` there."""
    return _repo_id(data.get("path")) if data.get("source") == "hub" else None


def hub_model(models: dict[str, Any]) -> str | None:
    """The id of the model of the Hub that a run started from, if it did: of a folder there is no commit."""
    return _repo_id(models.get("init_from")) if models.get("init_revision") else None


def public(value: Any, key: str = "", known: dict[str, str] | None = None) -> Any:
    """Plain data without secrets and paths: what is a path, or stands where one belongs, becomes its name.

    Args:
        known: keys that were made public already, for many lines of the same ones.
    """
    if isinstance(value, dict):
        return _public_fields(value, {} if known is None else known)
    if isinstance(value, list):
        return [public(each, key, known) for each in value]
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
        elif _looks_like_a_path(value) or HOLDS_PATH.search(key):
            value = name_of(value)
        return public_words(value)
    return public_text(value)


def _public_fields(fields: dict[Any, Any], known: dict[str, str]) -> dict[Any, Any]:
    shown: dict[Any, Any] = {}
    for key, value in fields.items():
        if isinstance(key, str) and key not in known:
            known[key] = public_words(key)
        name = words = known[key] if isinstance(key, str) else key
        number = 1
        while name in shown or (name != key and name in fields):  # paths of one name
            number += 1
            name = f"{words} ({number})"
        shown[name] = public(value, str(key), known)
    return shown


def public_words(text: str) -> str:
    """What somebody wrote, without secrets and with paths as names."""
    return public_text(PLACES.sub(lambda found: name_of(found[0]), text))


def public_text(text: str) -> str:
    """A text of a model or for it without secrets; folders of this machine in it show as `~` and `.`."""
    for pattern, shown in _folders():
        text = re.sub(pattern, lambda found, shown=shown: shown, text)  # type: ignore[misc]
    return mask(text)


def leak(data: bytes | mmap) -> str:
    """What is private in the bytes of a file, in a few words; empty if there is nothing."""
    if any(data.find(os.fsencode(secret)) >= 0 for secret in secrets()):
        return "a token or password"
    if any(re.search(os.fsencode(pattern), data) for pattern, _ in _folders()):
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


def _repo_id(value: Any) -> str | None:
    return value if isinstance(value, str) and is_repo_id(value) else None
