"""Differences between models, by hand-made scores whose noise is known."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from craft.evaluation.comparison import difference, rank, spread
from craft.evaluation.scores import Evaluation

STRETCHES = 200


def scored(nats: np.ndarray, **changes: Any) -> Evaluation:
    """A score of a text of stretches of 10 characters each."""
    counts, size = np.full(len(nats), 10.0), 10 * len(nats)
    variance = float(np.var(nats, ddof=1)) * len(nats)
    fields: dict[str, Any] = {"protocol": "blocks", "split": "validation", "predictions": size, "units": size}
    fields |= {
        "bytes": size,
        "correct": 0,
        "block_size": 8,
        "sha256": "a",
        "stretches": np.stack([nats, counts]),
    }
    return Evaluation(**{**fields, "nats": float(nats.sum()), "variance": variance, **changes})


@pytest.fixture
def hard() -> np.ndarray:
    """Nats of stretches that are hard to a very different degree."""
    return np.random.default_rng(1).gamma(2.0, 10.0, STRETCHES)


def test_a_difference_of_many_nats_is_one_and_noise_is_none(hard: np.ndarray) -> None:
    better = difference(("a", "b"), [scored(hard - 1.0)], [scored(hard)])
    assert (better.nats, better.share) == (pytest.approx(-0.1), 1.0)
    assert better.high < 0
    assert str(better).startswith("a is better than b by 0.1000")
    assert str(difference(("b", "a"), [scored(hard)], [scored(hard - 1.0)])).startswith("a is better than b")
    noise = np.random.default_rng(3).normal(0.0, 3.0, STRETCHES)
    none = difference(("a", "b"), [scored(hard + noise - noise.mean())], [scored(hard)])
    assert none.low < 0 < none.high
    assert str(none).startswith("no difference seen")


def test_seeds_that_differ_widen_the_interval(hard: np.ndarray) -> None:
    one = difference(("a", "b"), [scored(hard - 1.0)], [scored(hard)])
    several = [scored(hard - 1.0 + shift) for shift in (-2.0, 0.0, 2.0)]
    three = difference(("a", "b"), several, [scored(hard + shift) for shift in (-2.0, 0.0, 2.0)])
    assert three.nats == pytest.approx(one.nats)
    assert three.error == pytest.approx((2 / 3) ** 0.5 * spread([-0.2, 0.0, 0.2]))
    assert three.high > 0 > one.high
    assert three.high - three.nats == pytest.approx(2.776 * three.error)  # 4 degrees of freedom


def test_other_predictions_are_not_paired(hard: np.ndarray) -> None:
    other = scored(hard, sha256="b")
    found = difference(("a", "b"), [scored(hard - 1.0)], [other])
    assert found.share is None
    assert found.error == pytest.approx(2**0.5 * other.standard_error, rel=1e-6)


def test_models_of_characters_and_of_bytes_meet_in_bytes(hard: np.ndarray) -> None:
    size = 10 * STRETCHES
    of_bytes = scored(hard, unit="byte", units=2 * size, bytes=2 * size)
    found = difference(("a", "b"), [scored(hard, bytes=2 * size)], [of_bytes])
    assert (found.unit, found.nats) == ("byte", 0.0)


def test_the_ranking_goes_by_the_first_protocol(hard: np.ndarray) -> None:
    scores = {
        "worse": {"blocks": [scored(hard)], "stateful": [scored(hard - 5.0, protocol="stateful")]},
        "better": {"blocks": [scored(hard - 1.0), scored(hard - 2.0)]},
    }
    ranked, (only,) = rank(scores, ["blocks", "stateful"])
    assert [each["name"] for each in ranked] == ["better", "worse"]
    assert (only.first, only.second) == ("better", "worse")
    (figure,) = ranked[0]["figures"].values()
    assert figure["error"] == pytest.approx(spread([0.1, 0.2]) / np.log(2))
    assert ranked[1]["figures"]["blocks"]["error"] == pytest.approx(scored(hard).standard_error / np.log(2))
