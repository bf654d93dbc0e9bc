"""`evaluate.Metric` classes over predictions made elsewhere. In the package, so they need no network.

Examples:
    >>> from craft.evaluation.metrics import BitsPerCharacter
    >>> BitsPerCharacter().compute(predictions=[0.6931, 1.3863], references=[1, 1])["bits_per_character"]
    1.5
"""

from __future__ import annotations

import math
from typing import Any

import datasets
import evaluate


class BitsPerCharacter(evaluate.Metric):
    """`predictions`: nats that each predicted id cost. `references`: characters that it stands for."""

    def _info(self) -> evaluate.MetricInfo:
        return _info(
            "Cross-entropy in bits per character: summed nats over counted characters, over ln 2.",
            {"predictions": datasets.Value("float64"), "references": datasets.Value("int64")},
        )

    def _compute(self, predictions: list[float], references: list[int], **kwargs: Any) -> dict[str, float]:
        nats, characters = math.fsum(predictions), sum(references)
        return {
            "bits_per_character": nats / characters / math.log(2),
            "nats_per_character": nats / characters,
        }


class NextCharacterAccuracy(evaluate.Metric):
    """`predictions`: the likeliest ids. `references`: the right ones."""

    def _info(self) -> evaluate.MetricInfo:
        return _info(
            "Share of predictions whose likeliest character was the right one.",
            {"predictions": datasets.Value("int64"), "references": datasets.Value("int64")},
        )

    def _compute(self, predictions: list[int], references: list[int], **kwargs: Any) -> dict[str, float]:
        right = sum(guess == truth for guess, truth in zip(predictions, references))
        return {"next_character_accuracy": right / len(references)}


def _info(description: str, features: dict[str, Any]) -> evaluate.MetricInfo:
    return evaluate.MetricInfo(
        description=description,
        citation="",
        inputs_description="",
        features=datasets.Features(features),
    )
