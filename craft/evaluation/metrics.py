"""`evaluate.Metric` classes over predictions made elsewhere. In the package, so they need no network.

Examples:
    >>> from craft.evaluation.metrics import BitsPerUnit
    >>> BitsPerUnit("byte").compute(predictions=[0.6931, 1.3863], references=[1, 1])["bits_per_byte"]
    1.5
"""

from __future__ import annotations

import math
from typing import Any

import datasets
import evaluate

from craft.utils.units import unit_named


class BitsPerUnit(evaluate.Metric):
    """`predictions`: nats that each predicted id cost. `references`: units that it stands for.

    Args:
        unit: what is counted: "character", "byte", "pixel", or a word of your own.
    """

    def __init__(self, unit: str = "character", **settings: Any) -> None:
        self.unit = unit_named(unit)
        super().__init__(**settings)

    def _info(self) -> evaluate.MetricInfo:
        return _info(
            f"Cross-entropy in {self.unit.label}: summed nats over counted {self.unit.plural}, over ln 2.",
            {"predictions": datasets.Value("float64"), "references": datasets.Value("int64")},
        )

    def _compute(self, predictions: list[float], references: list[int], **kwargs: Any) -> dict[str, float]:
        nats = math.fsum(predictions) / sum(references)
        name = self.unit.label.replace(" ", "_")
        return {name: nats / math.log(2), name.replace("bits", "nats"): nats}


class NextUnitAccuracy(evaluate.Metric):
    """`predictions`: the likeliest ids. `references`: the right ones.

    Args:
        unit: what an id is, for the name of the figure.
    """

    def __init__(self, unit: str = "character", **settings: Any) -> None:
        self.unit = unit_named(unit)
        super().__init__(**settings)

    def _info(self) -> evaluate.MetricInfo:
        return _info(
            f"Share of predictions whose likeliest {self.unit.name} was the right one.",
            {"predictions": datasets.Value("int64"), "references": datasets.Value("int64")},
        )

    def _compute(self, predictions: list[int], references: list[int], **kwargs: Any) -> dict[str, float]:
        right = sum(guess == truth for guess, truth in zip(predictions, references))
        return {f"next_{self.unit.name}_accuracy": right / len(references)}


def _info(description: str, features: dict[str, Any]) -> evaluate.MetricInfo:
    return evaluate.MetricInfo(
        description=description,
        citation="",
        inputs_description="",
        features=datasets.Features(features),
    )


BitsPerCharacter, NextCharacterAccuracy = BitsPerUnit, NextUnitAccuracy
"""The same under the names of what they count by default."""
