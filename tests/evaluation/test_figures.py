"""Figures by hand, and the bootstrap beside what is known of it."""

from __future__ import annotations

import math

import numpy as np
import pytest
from refusals import refused

from craft.evaluation.figures import (
    block_variance,
    by_stretch,
    calibration_error,
    confidence_bins,
    distinct_n,
    paired_bootstrap,
    repetition,
)


def test_the_calibration_error_of_two_bins_by_hand() -> None:
    """Three predictions at 0.9, of which two are right; one at 0.5, which is wrong."""
    bins = confidence_bins(np.array([0.9, 0.9, 0.9, 0.5]), np.array([True, True, False, False]))
    assert calibration_error(bins) == pytest.approx((3 * abs(2 / 3 - 0.9) + 0.5) / 4)
    assert bins.shape == (3, 15)


def test_bins_hold_their_upper_edge_and_nothing_is_outside() -> None:
    """As in Guo and others: the m-th of 15 holds what lies above (m - 1) / 15, up to m / 15."""
    counts, _, _ = confidence_bins(np.array([0.0, 1 / 15, 0.0667, 1.0, 1.0001, math.nan]), np.ones(6, bool))
    assert (counts[0], counts[1], counts[14], counts.sum()) == (2, 1, 3, 6)


def test_bins_of_parts_add_up() -> None:
    random = np.random.default_rng(0)
    confidences, right = random.random(100), random.random(100) < 0.5
    parts = confidence_bins(confidences[:30], right[:30]) + confidence_bins(confidences[30:], right[30:])
    assert parts == pytest.approx(confidence_bins(confidences, right))


def test_a_calibrated_model_has_a_small_error_and_an_overconfident_one_what_it_is_off() -> None:
    random = np.random.default_rng(0)
    chances = random.random(100_000)
    right = random.random(100_000) < chances
    assert calibration_error(confidence_bins(chances, right)) < 0.01
    sure = np.minimum(1, chances + 0.2)
    assert calibration_error(confidence_bins(sure, right)) == pytest.approx((sure - chances).mean(), abs=0.01)


def test_the_bootstrap_agrees_with_the_error_from_stretches() -> None:
    random = np.random.default_rng(0)
    b = random.exponential(size=60_000)
    a = b + 0.1 * np.repeat(random.normal(size=600), 100) - 0.005
    sums, counts = by_stretch(a - b)
    found = paired_bootstrap(a, b, seed=1)
    assert found.difference == pytest.approx((a - b).mean())
    assert found.standard_error == pytest.approx(math.sqrt(block_variance(sums, counts)) / len(a), rel=0.05)
    assert found.interval[0] < found.difference < found.interval[1]
    assert found == paired_bootstrap(a, b, seed=1)
    summed = paired_bootstrap(by_stretch(a)[0], by_stretch(b)[0], 1, counts)
    assert np.hstack(summed) == pytest.approx(np.hstack(found))
    other = paired_bootstrap(b, a, seed=1)
    assert other.difference == -found.difference
    assert other.probability == pytest.approx(1 - found.probability)
    assert 0.5 < found.probability < 1


def test_of_two_equal_models_none_is_better() -> None:
    nats = np.random.default_rng(0).exponential(size=3000)
    assert paired_bootstrap(nats, nats) == (0, 0, (0, 0), 0.5)
    clear = paired_bootstrap(nats - 0.1, nats)
    assert clear.probability == 1
    assert clear.interval == pytest.approx((-0.1, -0.1))


def test_only_predictions_of_one_text_are_compared() -> None:
    for a, b, counts in (([1.0], [1.0, 2.0], None), ([], [], None), ([1.0, 2.0], [1.0, 2.0], [3])):
        with refused("setting-value", np.shape(a)):
            paired_bootstrap(a, b, counts=counts)


@pytest.mark.parametrize(
    ("texts", "n", "share"),
    [
        (["abab"], 1, 2 / 4),
        (["abab"], 2, 2 / 3),
        (["ab", "ab"], 2, 1 / 2),  # none across texts
        ([["to", "be", "to", "be"]], 2, 2 / 3),
        (["a"], 2, 0),
    ],
)
def test_distinct_n_by_hand(texts: list[str], n: int, share: float) -> None:
    assert distinct_n(texts, n) == pytest.approx(share)


LINE = "0123456789abcdefghij"


@pytest.mark.parametrize(
    ("text", "repeated"),
    [
        ("a" * 100, 99),  # all but the first could have been copied from just before
        ("abc" * 20, 57),
        (LINE + LINE, 20),
        (LINE + LINE[:-1], 0),
        (LINE + "-" * 3 + LINE + "+" * 3 + LINE, 40),
        (LINE + "".join(map(chr, range(200, 1180))) + LINE, 20),
        (LINE + "".join(map(chr, range(200, 1181))) + LINE, 0),  # too long ago
        ("", 0),
    ],
)
def test_what_was_said_within_the_last_thousand_characters(text: str, repeated: int) -> None:
    assert repetition([text]) == pytest.approx(repeated / max(1, len(text)))
    assert repetition([text, LINE]) == pytest.approx(repeated / (len(text) + 20))  # each text for itself
