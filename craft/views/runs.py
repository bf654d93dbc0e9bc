"""Several runs in one picture, as data: validation over time, characters or steps."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from craft.utils.errors import UserError
from craft.utils.units import UNITS, Unit

AXES = {"minutes": "wall", "steps": "step", **{unit.plural: unit.plural for unit in UNITS.values()}}
"""What runs may be drawn over, and the key of it in their metrics."""


@dataclass(frozen=True)
class RunCurves:
    """Bits per unit of the validation split while runs went on.

    Attributes:
        unit: what is counted.
        over: what the first numbers of points count: "minutes", "steps" or "characters".
        runs: by name, its points (how far, bits per unit), in order.
    """

    unit: Unit
    over: str
    runs: dict[str, list[tuple[float, float]]]


def run_curves(histories: Mapping[str, Sequence[dict[str, Any]]], over: str = "minutes") -> RunCurves:
    """The curves in the metrics of some runs.

    Args:
        histories: by name, the entries of `metrics.jsonl`.
        over: one of `AXES`; minutes are those since the process of a run began.

    Raises:
        UserError: for a run without what is to be drawn, or runs that count different units.
    """
    scored = {name: {key for entry in history for key in entry} for name, history in histories.items()}
    units = [
        unit for unit in UNITS.values() if all(f"eval_{unit.metric}" in keys for keys in scored.values())
    ]
    if not units:
        known = "; ".join(
            f"{name}: {', '.join(sorted(key for key in keys if key.startswith('eval_bits_'))) or 'none'}"
            for name, keys in scored.items()
        )
        raise UserError(f"these runs have no score in common to draw: {known}", code="model-mismatch")
    key, metric = AXES[over], f"eval_{units[0].metric}"
    runs = {}
    for name, history in histories.items():
        entries = [entry for entry in history if _is_number(entry.get(metric)) and _is_number(entry.get(key))]
        if not entries:
            raise UserError(
                f"{name} logged no scores over {over}; choose another one by --over ({', '.join(AXES)})",
                code="setting-conflict",
            )
        factor = 1 / 60 if over == "minutes" else 1.0
        runs[name] = sorted((factor * entry[key], entry[metric]) for entry in entries)
    return RunCurves(units[0], over, runs)


def _is_number(value: Any) -> bool:
    return isinstance(value, (int, float)) and math.isfinite(value)
