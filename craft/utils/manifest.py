"""The list of a checkpoint's files with their sizes and SHA-256 sums, which vouches for itself too."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any

from craft.utils.files import sha256

MANIFEST = "manifest.json"


def manifest_text(content: dict[str, Any]) -> str:
    """The text of a manifest, the only one for its content: a flip of any of its bytes shows."""
    own = hashlib.sha256(json.dumps(content).encode()).hexdigest()
    return json.dumps({**content, "sha256": own}, indent=1)


def damage(folder: Path, step: int) -> str:
    """What is wrong with the checkpoint of a step, in a few words; empty if all files are as listed."""
    try:
        text = (folder / MANIFEST).read_text(encoding="utf-8")
        content = json.loads(text)
        del content["sha256"]
        if text != manifest_text(content) or content["step"] != step:
            return f"its {MANIFEST} has changed since it was written"
        entries = content["files"]
    except FileNotFoundError:
        return f"it has no {MANIFEST}, so writing it was never finished"
    except (OSError, ValueError, KeyError, TypeError):
        return f"its {MANIFEST} can't be read"
    for name, entry in entries.items():
        path = folder / name
        try:
            if not path.is_file():
                return f"{name} is missing"
            if path.stat().st_size != entry["size"]:
                return f"{name} has {path.stat().st_size} bytes instead of {entry['size']}"
            if sha256(path) != entry["sha256"]:
                return f"{name} has changed since it was written"
        except OSError as error:
            return f"{name} can't be read ({error.strerror or error})"
    return ""
