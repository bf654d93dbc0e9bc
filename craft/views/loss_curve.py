"""The loss curve of a run, as data."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from craft.utils.units import Unit

Points = list[tuple[float, float]]


@dataclass(frozen=True)
class LossCurve:
    """Bits per unit over what was trained on.

    Attributes:
        unit: what the model counts.
        over: what the first numbers of points count, for example "training characters".
        training, validation: (how far, bits per unit).
        best: the place of the best validation in `validation`, and its step; None without validation.
        scored: of what the validation is, for example "whole split".
        title: one line above it.
    """

    unit: Unit
    over: str
    training: Points
    validation: Points
    best: tuple[int, int] | None
    scored: str
    title: str


def loss_curve(
    history: Sequence[dict[str, Any]], unit: Unit, scored: str = "whole split", title: str = ""
) -> LossCurve | None:
    """The curve in the metrics of a run; None if no loss was logged.

    Args:
        history: the entries of `metrics.jsonl`: dicts with `step` and the metric of the unit, with or without
            `eval_` before it (losses wouldn't do: training's is per id, which may be one of a character's
            bytes) and, where known, how many units were trained on so far.
    """
    train, validation = _finite(history, unit.metric), _finite(history, f"eval_{unit.metric}")
    logged = [*train, *validation]
    if not logged:
        return None
    by_units = all(unit.plural in entry for entry, _ in logged)
    x = unit.plural if by_units else "step"
    bits = [value for _, value in validation]
    best = bits.index(min(bits)) if bits else None
    return LossCurve(
        unit,
        f"training {unit.plural}" if by_units else "step",
        [(entry[x], value) for entry, value in train],
        [(entry[x], value) for entry, value in validation],
        None if best is None else (best, validation[best][0]["step"]),
        scored,
        title,
    )


def _finite(history: Sequence[dict[str, Any]], key: str) -> list[tuple[dict[str, Any], float]]:
    """The entries that have a number under `key` (a NaN is written as null), with it."""
    values = [(entry, entry.get(key)) for entry in history]
    return [(entry, value) for entry, value in values if value is not None and math.isfinite(value)]
