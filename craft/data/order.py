"""The order in which windows are visited, as pure functions of (seed, epoch, step).

Nothing is stored and nothing is drawn from a global generator: a resumed run computes the windows of step
1,000,000 directly, and memory doesn't grow with the corpus. Randomness comes from a counter-based mixer
(splitmix64), written out here so that no version of a library can change the order of an old run.
"""

from __future__ import annotations

import heapq
from collections.abc import Sequence

import numpy as np

ROUNDS = 6  # Feistel rounds; 4 are enough for large domains, small ones mix visibly better with 6


def mix(*keys: int | np.ndarray) -> np.ndarray:
    """uint64 hash of integer keys (broadcast against each other), by chained splitmix64 finalisers."""
    with np.errstate(over="ignore"):
        state = np.uint64(0x9E3779B97F4A7C15)
        for key in keys:
            state = (state ^ np.asarray(key, np.uint64)) + np.uint64(0x9E3779B97F4A7C15)
            state = (state ^ (state >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
            state = (state ^ (state >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
            state = state ^ (state >> np.uint64(31))
        return state


def random_integers(limit: int, *keys: int | np.ndarray) -> np.ndarray:
    """int64 in [0, limit), uniform up to a bias of limit / 2**64."""
    return (mix(*keys) % np.uint64(limit)).astype(np.int64)


def permuted(index: np.ndarray, size: int, *keys: int) -> np.ndarray:
    """Where a keyed permutation of range(size) sends each of `index`: int64, same shape.

    An alternating Feistel network over a grid of a x b >= size cells (a, b near the square root), walked on
    while it lands outside; the grid is at most 2 * sqrt(size) cells too large, so walks are rare.
    """
    columns = max(1, int(np.ceil(np.sqrt(size))))
    rows = -(-size // columns)
    position = np.array(index, np.int64)
    outside = np.ones(position.shape, bool)
    while outside.any():
        left, right = np.divmod(position[outside], columns)
        for i in range(ROUNDS):
            if i % 2:
                left = (left + random_integers(rows, *keys, i, right)) % rows
            else:
                right = (right + random_integers(columns, *keys, i, left)) % columns
        position[outside] = left * columns + right
        outside = position >= size
    return position


def balanced_shards(sizes: Sequence[int], parts: int, *keys: int) -> list[list[int]]:
    """Which of the shards 0, 1, … each part gets: in a keyed order, each goes to the part that holds least.

    Parts differ by at most the largest shard.
    """
    chosen: list[list[int]] = [[] for _ in range(parts)]
    held = [(0, part) for part in range(parts)]
    for shard in permuted(np.arange(len(sizes)), len(sizes), *keys).tolist():
        size, part = held[0]
        chosen[part].append(shard)
        heapq.heapreplace(held, (size + max(1, sizes[shard]), part))
    return chosen
