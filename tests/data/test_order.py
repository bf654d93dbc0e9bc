"""The keyed permutation and the hash behind it."""

from __future__ import annotations

from collections import Counter

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from craft.data.order import mix, permuted, random_integers

SEED = st.integers(0, 2**63)


@settings(deadline=None)
@given(st.integers(1, 3000), SEED, st.integers(0, 1000))
def test_a_permutation_visits_everything_once(size: int, seed: int, epoch: int) -> None:
    assert sorted(permuted(np.arange(size), size, seed, epoch).tolist()) == list(range(size))


@settings(deadline=None)
@given(st.integers(1, 10**15), SEED, st.lists(st.integers(0, 10**15), min_size=1, max_size=20, unique=True))
def test_single_places_of_a_huge_permutation_are_computed_alone(
    size: int, seed: int, index: list[int]
) -> None:
    index = [i % size for i in index]
    found = permuted(np.array(index), size, seed)
    assert ((found >= 0) & (found < size)).all()
    assert len(set(found.tolist())) == len(set(index))
    assert found.tolist() == [int(permuted(np.array([i]), size, seed)[0]) for i in index]


@pytest.mark.parametrize("size", [2, 3, 4])
def test_small_permutations_are_all_about_equally_likely(size: int) -> None:
    trials = 400 * [1, 1, 2, 6, 24][size]
    seen = Counter(tuple(permuted(np.arange(size), size, seed).tolist()) for seed in range(trials))
    assert len(seen) == [1, 1, 2, 6, 24][size]
    assert min(seen.values()) > 300  # 400 expected, five standard deviations
    assert max(seen.values()) < 500


def test_neighbours_are_scattered_and_seeds_differ() -> None:
    size = 10_000
    one, two = (permuted(np.arange(size), size, seed) for seed in (1, 2))
    assert (np.abs(np.diff(one)) > size / 100).mean() > 0.95
    assert (one == two).mean() < 0.001
    assert abs(np.corrcoef(np.arange(size), one)[0, 1]) < 0.05


@settings(deadline=None)
@given(st.integers(1, 10**12), SEED)
def test_hashed_numbers_stay_below_their_limit(limit: int, seed: int) -> None:
    values = random_integers(limit, seed, np.arange(50))
    assert ((values >= 0) & (values < limit)).all()


def test_hash_is_uniform_depends_on_every_key_and_never_changes() -> None:
    ids = random_integers(10, 3, np.arange(100_000))
    assert np.bincount(ids).min() > 9_500
    assert len({int(mix(a, b)) for a in range(30) for b in range(30)}) == 900
    # An old run resumes in its old order only if these stay what they are.
    assert [int(x) for x in mix(7, np.arange(2))] == [10959146043091017608, 16532905846432384345]
    assert permuted(np.arange(8), 8, 42, 1).tolist() == [0, 4, 6, 5, 1, 7, 3, 2]
