"""craft's figures as modules of `evaluate`: metrics, measurements of texts, a comparison of two models.

They are in the package, so nothing is fetched. Each names its inputs by what they are, so that modules of one
kind stand in one `evaluate.combine`. The arithmetic is that of figures.py and novelty.py.

Examples:
    >>> import evaluate
    >>> from craft.evaluation.metrics import BitsPerUnit, NextUnitAccuracy
    >>> both = evaluate.combine([BitsPerUnit("byte"), NextUnitAccuracy("byte")])
    >>> both.compute(predictions=[5, 7], references=[5, 6], nats=[0.6931, 1.3863], units=[1, 1])
    {'bits_per_byte': 1.5, 'nats_per_byte': 1.03972, 'next_byte_accuracy': 0.5}
"""

from __future__ import annotations

import math
from typing import Any

import datasets
import evaluate
import numpy as np

from craft.evaluation.figures import (
    bits_per_unit,
    calibration_error,
    confidence_bins,
    distinct_n,
    paired_bootstrap,
    repetition,
)
from craft.evaluation.novelty import novelty
from craft.utils.units import unit_named


class BitsPerUnit(evaluate.Metric):
    """`nats` that each predicted id cost, and the `units` that it stands for.

    Args:
        unit: what is counted: "character", "byte", "pixel", or a word of your own.
    """

    def __init__(self, unit: str = "character", **settings: Any) -> None:
        self.unit = unit_named(unit)
        super().__init__(**settings)

    def _info(self) -> evaluate.MetricInfo:
        about = f"Cross-entropy in {self.unit.label}: summed nats over counted {self.unit.plural}, over ln 2."
        return _info(evaluate.MetricInfo, about, nats="float64", units="int64")

    def _compute(self, nats: list[float], units: list[int], **others: Any) -> dict[str, float]:
        bits = bits_per_unit(math.fsum(nats), sum(units))
        return {self.unit.metric: bits, self.unit.nats: bits * math.log(2)}


class NextUnitAccuracy(evaluate.Metric):
    """`predictions`: the likeliest ids. `references`: the right ones.

    Args:
        unit: what an id is, for the name of the figure.
    """

    def __init__(self, unit: str = "character", **settings: Any) -> None:
        self.unit = unit_named(unit)
        super().__init__(**settings)

    def _info(self) -> evaluate.MetricInfo:
        about = f"Share of predictions whose likeliest {self.unit.name} was the right one."
        return _info(evaluate.MetricInfo, about, predictions="int64", references="int64")

    def _compute(self, predictions: list[int], references: list[int], **others: Any) -> dict[str, float]:
        right = np.equal(predictions, references)
        return {f"next_{self.unit.name}_accuracy": float(right.mean())}


class CalibrationError(evaluate.Metric):
    """`predictions`: the likeliest ids; `confidences`: their probabilities. `references`: the right ids."""

    def _info(self) -> evaluate.MetricInfo:
        about = "Expected calibration error in 15 bins of equal width (Guo et al., arXiv 1706.04599)."
        inputs = {"predictions": "int64", "references": "int64", "confidences": "float64"}
        return _info(evaluate.MetricInfo, about, **inputs)

    def _compute(
        self, predictions: list[int], references: list[int], confidences: list[float], **others: Any
    ) -> dict[str, float]:
        bins = confidence_bins(confidences, np.equal(predictions, references))
        return {"calibration_error": calibration_error(bins)}


class DistinctN(evaluate.Measurement):
    """How many of the n-grams of characters of texts, `data`, are different ones.

    Args:
        n: characters of an n-gram.
    """

    def __init__(self, n: int = 4, **settings: Any) -> None:
        self.n = n
        super().__init__(**settings)

    def _info(self) -> evaluate.MeasurementInfo:
        about = f"Different {self.n}-grams of characters over all of them (Li et al., NAACL 2016)."
        return _info(evaluate.MeasurementInfo, about, data="string")

    def _compute(self, data: list[str], **others: Any) -> dict[str, float]:
        return {f"distinct_{self.n}": distinct_n(data, self.n)}


class Repetition(evaluate.Measurement):
    """How much of texts, `data`, was said a moment ago, in loops or lines that come again."""

    def _info(self) -> evaluate.MeasurementInfo:
        about = "Share of the characters in a passage of 20 which began already within the 1,000 before it."
        return _info(evaluate.MeasurementInfo, about, data="string")

    def _compute(self, data: list[str], **others: Any) -> dict[str, float]:
        return {"repetition": repetition(data)}


class Novelty(evaluate.Measurement):
    """How much of texts, `data`, is copied from a training text. Needs the extra 'novelty'.

    Args:
        train: the training text.
    """

    def __init__(self, train: str, **settings: Any) -> None:
        self.train = train.encode()
        super().__init__(**settings)

    def _info(self) -> evaluate.MeasurementInfo:
        about = (
            "The longest passage that the training text has too, and the shares of characters in such ones."
        )
        return _info(evaluate.MeasurementInfo, about, data="string")

    def _compute(self, data: list[str], **others: Any) -> dict[str, Any]:
        (found,) = novelty(self.train, [data])
        others_have = ("distinct", "repetition", "characters")
        return {name: value for name, value in found.items() if not name.startswith(others_have)}


class PairedBootstrap(evaluate.Comparison):
    """Whether a model is better than another one on the same text.

    `predictions1` and `predictions2` are the nats that the same predictions cost, in the order of the text.
    A `difference` below 0 says that the first is better, `probability` how sure that is; `seed` may be given
    to `compute`.
    """

    def _info(self) -> evaluate.ComparisonInfo:
        about = "Paired bootstrap over stretches of a text (Koehn, EMNLP 2004)."
        return _info(evaluate.ComparisonInfo, about, predictions1="float64", predictions2="float64")

    def _compute(
        self, predictions1: list[float], predictions2: list[float], seed: int = 0, **others: Any
    ) -> dict[str, Any]:
        return paired_bootstrap(predictions1, predictions2, seed)._asdict()


def _info(kind: type, description: str, **inputs: str) -> Any:
    features = datasets.Features({name: datasets.Value(dtype) for name, dtype in inputs.items()})
    # Lists, because the format "numpy" rounds to float32.
    return kind(description=description, citation="", inputs_description="", features=features)
