"""The arithmetic of figures, from sums and arrays by numpy alone.

Scores, comparisons, `craft novelty` and the modules for `evaluate` (metrics.py) call these functions.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from typing import Any, NamedTuple

import numpy as np

from craft.utils.errors import UserError

STRETCH, FEWEST_STRETCHES = 1000, 50
"""Predictions of a stretch of text for the standard error, fewer where there would be too few stretches."""
BINS = 15
RESAMPLES = 10_000
REPEATED, RECENT = 20, 1000
"""Characters of a passage that counts as repeated, and how far back it is looked for."""


def bits_per_unit(nats: float, units: float) -> float:
    """Cross-entropy in bits: summed nats over what the predictions stand for."""
    return nats / units / math.log(2)


def perplexity(nats: float, predictions: int) -> float:
    """Per prediction: among how many equally likely ids the model hesitates."""
    return math.exp(min(nats / predictions, 700.0))


def confidence_bins(confidences: Any, correct: Any) -> np.ndarray:
    """Sums from which `calibration_error` follows; those of several texts or processes are added up.

    Args:
        confidences: [n], the probability of the likeliest id.
        correct: bool [n], whether it was the right one.

    Returns:
        [3, BINS]: predictions, summed confidence, correct ones. The bins are equally wide.
    """
    bins = np.searchsorted(np.arange(1, BINS) / BINS, confidences)
    weights = (None, confidences, correct)
    return np.stack([np.bincount(bins, weight, BINS).astype(np.float64) for weight in weights])


def calibration_error(bins: np.ndarray) -> float:
    """Expected calibration error: how far confidence and accuracy lie apart, averaged over predictions.

    Guo, Pleiss, Sun and Weinberger, On Calibration of Modern Neural Networks, ICML 2017, arXiv 1706.04599,
    equation 3, in 15 bins of equal width as there.

    Args:
        bins: [3, bins] of `confidence_bins`.
    """
    predictions, confidence, correct = bins
    return float(np.abs(correct - confidence).sum() / max(1.0, predictions.sum()))


def stretch_length(predictions: int) -> int:
    """Of how many predictions the stretches are from which the standard error is taken."""
    return max(1, min(STRETCH, predictions // FEWEST_STRETCHES))


def by_stretch(values: Any) -> tuple[np.ndarray, np.ndarray]:
    """(sums of the stretches of a text, how many values each has), both [stretches], of values [n]."""
    starts = np.arange(0, len(values), stretch_length(len(values)))
    sums = np.add.reduceat(np.asarray(values, np.float64), starts)
    return sums, np.diff(np.append(starts, len(values)))


def block_variance(sums: Any, counts: Any) -> float:
    """The variance of a sum (of nats, say), taken for what independent stretches of a text came to.

    Neighbouring predictions depend on each other, whole stretches hardly do. A block bootstrap, which draws
    stretches with replacement, tends to it (Davison and Hinkley, Bootstrap Methods, 1997, 8.2.3).

    Args:
        sums, counts: [stretches], of how many predictions; those of none are left out.
    """
    sums, counts = np.asarray(sums, np.float64), np.asarray(counts)
    sums, counts = sums[counts > 0], counts[counts > 0]
    if len(counts) < 2:
        return 0.0
    residuals = sums - counts * (sums.sum() / counts.sum())
    return float(np.square(residuals).sum()) * len(counts) / (len(counts) - 1)


class Paired(NamedTuple):
    """How two models differ on the same predictions, `a` minus `b`, in nats per prediction."""

    difference: float
    """Below 0 where `a` is better."""
    standard_error: float
    interval: tuple[float, float]
    """In which 95 of 100 resampled differences lie."""
    probability: float
    """Of all resampled differences, the share by which `a` is better; a tie is half of one."""


def paired_bootstrap(a: Any, b: Any, seed: int = 0, counts: Any = None) -> Paired:
    """Whether one model is better than another, by resampling stretches of the text that both predicted.

    Stretches, because neighbouring predictions depend on each other (`block_variance`); paired, because what
    is hard for one model is hard for the other (Koehn, Statistical Significance Tests for Machine
    Translation Evaluation, EMNLP 2004). It says nothing about other seeds of training.

    Args:
        a, b: nats [n] of the same predictions in the order of the text; with `counts`, summed over stretches.
        counts: [n], predictions of each stretch.

    Raises:
        UserError: if they aren't of the same predictions, or there are none.
    """
    a, b = np.asarray(a, np.float64), np.asarray(b, np.float64)
    if a.shape != b.shape or a.ndim != 1 or not len(a) or (counts is not None and len(counts) != len(a)):
        raise UserError(
            f"a and b have shapes {a.shape} and {b.shape}; both must be [n], nats of the same predictions",
            code="setting-value",
        )
    sums, sizes = by_stretch(a - b) if counts is None else (a - b, np.asarray(counts))
    random, drawn = np.random.default_rng(seed), []
    rows = max(1, 2**20 // len(sums))  # at once: 8 MiB of places
    for begin in range(0, RESAMPLES, rows):
        places = random.integers(0, len(sums), (min(rows, RESAMPLES - begin), len(sums)))
        drawn.append(sums[places].sum(axis=1) / sizes[places].sum(axis=1))
    differences = np.concatenate(drawn)
    low, high = np.quantile(differences, [0.025, 0.975])
    return Paired(
        float(sums.sum() / sizes.sum()),
        float(differences.std(ddof=1)),
        (float(low), float(high)),
        float((differences < 0).mean() + (differences == 0).mean() / 2),
    )


def distinct_n(texts: Iterable[Sequence[str]], n: int) -> float:
    """How many of the n-grams of some texts are different ones, as a share; 0 where there are none.

    A longer text has a smaller share, so only texts of one length compare. Li, Galley, Brockett, Gao and
    Dolan, A Diversity-Promoting Objective Function for Neural Conversation Models, NAACL 2016.

    Args:
        texts: strings for n-grams of characters, lists of words for those of words.
    """
    different: set[Any] = set()
    count = 0
    for text in texts:
        different.update(zip(*(text[i:] for i in range(n))))
        count += max(0, len(text) - n + 1)
    return len(different) / max(1, count)


def repetition(texts: Iterable[str]) -> float:
    """Share of the characters that lie in a passage of 20 which began already within the 1,000 before it.

    So loops of any period up to 1,000 count, and so does a line that comes again soon.
    """
    repeated = characters = 0
    for text in texts:
        latest: dict[str, int] = {}
        end = 0  # of what has been counted
        for place in range(len(text) - REPEATED + 1):
            passage = text[place : place + REPEATED]
            if place - latest.get(passage, -RECENT - 1) <= RECENT:
                repeated += place + REPEATED - max(end, place)
                end = place + REPEATED
            latest[passage] = place
        characters += len(text)
    return repeated / max(1, characters)
