"""Texts and ids that need no file and no network.

Speed doesn't depend on what a text says, only on how many different characters it has, how often they occur
and how many bytes each takes; so the texts are random characters of fixed alphabets.
"""

from __future__ import annotations

import string

import numpy as np

ASCII = string.ascii_letters + " \n!$&',-.3:;?"
"""65 characters, as many as in tiny Shakespeare."""
RANGES = ((0x410, 0x450), (0x3B1, 0x3C9), (0x4E00, 0x4E00 + 1100), (0x1F600, 0x1F640))
MIXED = ASCII + "".join(chr(code) for first, last in RANGES for code in range(first, last))
"""1 to 4 bytes each in UTF-8: Latin, Cyrillic, Greek, Chinese, emoji; 1,317 characters."""
VOCAB = len(ASCII) + 4
"""With the tokenizer's special tokens, which have the first ids."""


def make_text(alphabet: str, size: int) -> str:
    """At least `size` bytes of UTF-8 with every character of `alphabet`, in frequencies of 1/rank."""
    rng = np.random.default_rng(0)
    codes = np.array([ord(c) for c in alphabet], dtype="<u4")
    rng.shuffle(codes)
    weights = 1 / np.arange(1, len(codes) + 1)
    # A block of a few hundred thousand characters, repeated: long texts cost no time to make.
    block = np.concatenate([codes, rng.choice(codes, size=min(size, 1 << 19), p=weights / weights.sum())])
    text = block.tobytes().decode("utf-32-le")
    return text * -(-size // len(text.encode("utf-8")))


def make_ids(count: int) -> np.ndarray:
    """Random ids of the characters of `ASCII`, int64."""
    return np.random.default_rng(0).integers(4, VOCAB, count, dtype=np.int64)
