"""Makes `tiny_run` importable here; tests in processes of their own import it by the same name."""

from __future__ import annotations

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent))
