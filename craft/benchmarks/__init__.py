"""craft beside its baselines: one file a benchmark, and one that repeats, compares and saves (`harness.py`).

The docstring of a benchmark says what it measures and goes into its report; `comparisons(options)` yields
what is compared. Nothing here is imported by the rest of craft.
"""

from __future__ import annotations

NAMES = ("train", "step", "generate", "encode")
