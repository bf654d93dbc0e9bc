"""The list of a folder's files with their sizes and SHA-256 sums, with one of the list itself.

It is written last, so that a folder without one was never finished.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from craft.utils.files import sha256

MANIFEST = "manifest.json"
CHANGED = f"its {MANIFEST} has changed since it was written"


def write_manifest(folder: Path, **more: Any) -> None:
    """Writes the manifest of all files that a folder holds: by path `size` in bytes and `sha256`, with `more`
    to be kept beside them.

    Raises:
        OSError: if the disk refuses.
    """
    paths = sorted(path for path in folder.rglob("*") if path.is_file() and path.name != MANIFEST)
    files = {
        path.relative_to(folder).as_posix(): {"size": path.stat().st_size, "sha256": sha256(path)}
        for path in paths
    }
    (folder / MANIFEST).write_text(manifest_text({**more, "files": files}), encoding="utf-8")


def manifest_text(content: dict[str, Any]) -> str:
    """The text of a manifest, the only one for its content: a flip of any of its bytes shows."""
    own = hashlib.sha256(json.dumps(content).encode()).hexdigest()
    return json.dumps({**content, "sha256": own}, indent=1)


def read_manifest(folder: Path) -> dict[str, Any]:
    """What was written beside the files, and these as `files`.

    Raises:
        ValueError: in a few words, if it isn't as it was written.
    """
    try:
        text = (folder / MANIFEST).read_text(encoding="utf-8")
        content: dict[str, Any] = json.loads(text)
        del content["sha256"]
        content["files"].items()
    except FileNotFoundError:
        raise ValueError(f"it has no {MANIFEST}, so writing it was never finished") from None
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        raise ValueError(f"its {MANIFEST} can't be read") from None
    if text != manifest_text(content):
        raise ValueError(CHANGED)
    return content


def difference(folder: Path, files: Mapping[str, Mapping[str, Any]]) -> str:
    """The first difference between the files of a folder and its manifest, in a few words; empty if none."""
    name = ""
    try:
        for name, written in files.items():
            path = folder / name
            if not path.is_file():
                return f"{name} is missing"
            if (size := path.stat().st_size) != written["size"]:
                return f"{name} has {size} bytes instead of {written['size']}"
        for name, written in files.items():
            if sha256(folder / name) != written["sha256"]:
                return f"{name} has changed since it was written"
    except OSError as error:
        return f"{name} can't be read ({error.strerror or error})"
    except (KeyError, TypeError):
        return CHANGED
    return ""


def damage(folder: Path, step: int) -> str:
    """What is wrong with the checkpoint of a step, in a few words; empty if all files are as listed."""
    try:
        content = read_manifest(folder)
    except ValueError as error:
        return str(error)
    return difference(folder, content["files"]) if content.get("step") == step else CHANGED
