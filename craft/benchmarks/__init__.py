"""craft against its baselines: one file a benchmark, one harness (`harness.py`), one description of the
machine.

Every benchmark module has `PROTOCOL`, what is measured in a sentence or two, and `comparisons(options)`,
which yields the comparisons one after the other; the harness does the rest. Nothing here is imported by the
rest of craft.
"""

from __future__ import annotations

NAMES = ("train", "generate", "encode", "windows", "startup")
