"""Texts and ids made from a seed, so that a benchmark needs no file and no network.

Speed doesn't depend on what a text says, only on how many different characters it has, how often they occur
and how many bytes each takes; so the texts are random characters of fixed alphabets.
"""

from __future__ import annotations

import string

import numpy as np

# 65 characters, as many as in tiny Shakespeare.
ASCII = string.ascii_letters + " \n!$&',-.3:;?"
# 1 to 4 bytes each in UTF-8: Latin, Cyrillic, Greek, CJK, emoji; about 1,300 characters.
MIXED = (
    ASCII
    + "".join(map(chr, range(0x410, 0x450)))
    + "".join(map(chr, range(0x3B1, 0x3C9)))
    + "".join(map(chr, range(0x4E00, 0x4E00 + 1100)))
    + "".join(map(chr, range(0x1F600, 0x1F640)))
)


def make_text(alphabet: str, size: int, seed: int) -> str:
    """A text of about `size` bytes of UTF-8 (never fewer) in which every character of `alphabet` occurs, with
    frequencies as 1/rank in a shuffled order."""
    rng = np.random.default_rng(seed)
    codes = np.array([ord(c) for c in alphabet], dtype="<u4")
    rng.shuffle(codes)
    weights = 1 / np.arange(1, len(codes) + 1)
    # A block of a few hundred thousand characters, repeated: long texts cost no time to make.
    block = np.concatenate([codes, rng.choice(codes, size=min(size, 1 << 19), p=weights / weights.sum())])
    text = block.tobytes().decode("utf-32-le")
    return text * -(-size // len(text.encode("utf-8")))


def make_ids(count: int, vocab_size: int, seed: int, first: int = 4) -> np.ndarray:
    """`count` random ids in `[first, vocab_size)`, int64; the ids below `first` are special tokens."""
    return np.random.default_rng(seed).integers(first, vocab_size, count, dtype=np.int64)
