"""The list of a checkpoint's files with their sizes and SHA-256 sums, which vouches for itself too."""

from __future__ import annotations

import hashlib
import json
from typing import Any

MANIFEST = "manifest.json"


def manifest_text(content: dict[str, Any]) -> str:
    """The text of a manifest, the only one for its content: a flip of any of its bytes shows."""
    own = hashlib.sha256(json.dumps(content).encode()).hexdigest()
    return json.dumps({**content, "sha256": own}, indent=1)
