"""What a corpus was, in a few numbers that someone else can check: sizes, and the hash of each split."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

from craft.data.loaders import Corpus
from craft.data.tokenization import CharTokenizer
from craft.utils.outputs import DATA
from craft.utils.units import unit_of

CHUNK = 1 << 20


def facts(corpus: Corpus) -> dict[str, Any]:
    """Plain data for JSON.

    Returns:
        `name`, `characters` (or what the tokenizer counts; null for a stream), `vocabulary` (ids, with the
        special ones), `documents` (whether it is made of them) and `splits`: for each, its `characters` and
        the `sha256` of its text in UTF-8 without the marks between documents; both null for a stream, which
        is never held as a whole.
    """
    units = unit_of(corpus.tokenizer).plural
    splits = {"train": corpus.train, "validation": corpus.validation, "test": corpus.test}
    return {
        "name": corpus.name,
        units: corpus.n_units,
        "vocabulary": len(corpus.tokenizer),
        "documents": corpus.documents,
        "splits": {
            name: split_facts(ids, corpus.tokenizer)
            if isinstance(ids, np.ndarray)
            else {units: None, "sha256": None}
            for name, ids in splits.items()
            if ids is not None
        },
    }


def recorded_hashes(folder: Path) -> dict[str, str]:
    """The `sha256` of each split that the model in a folder was trained with, where its run left one."""
    try:
        splits = json.loads((folder / DATA).read_text(encoding="utf-8"))["splits"]
        found = {name: split["sha256"] for name, split in splits.items()}
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        return {}
    return {name: sha256 for name, sha256 in found.items() if isinstance(sha256, str) and sha256}


def split_facts(ids: np.ndarray, tokenizer: CharTokenizer) -> dict[str, Any]:
    """How many `characters` (or other units) some ids stand for, and the `sha256` of these in UTF-8."""
    digest = hashlib.sha256()
    for piece in utf8_pieces(ids, tokenizer):
        digest.update(piece)
    units = sum(
        int(tokenizer.id_units[np.asarray(ids[i : i + CHUNK])].sum()) for i in range(0, len(ids), CHUNK)
    )
    return {unit_of(tokenizer).plural: units, "sha256": digest.hexdigest()}


def utf8_pieces(ids: np.ndarray, tokenizer: CharTokenizer) -> Iterator[bytes]:
    """What some ids stand for, in UTF-8, a piece at a time; nothing for special tokens."""
    table = tokenizer.processor.token_bytes
    widths = np.array([len(b) for b in table])
    spelled = np.zeros((len(table), max(1, widths.max())), np.uint8)  # [vocabulary, longest] UTF-8 bytes
    for row, b in zip(spelled, table):
        row[: len(b)] = np.frombuffer(b, np.uint8)
    used = np.arange(spelled.shape[1]) < widths[:, None]
    for begin in range(0, len(ids), CHUNK):
        part = np.asarray(ids[begin : begin + CHUNK])
        yield spelled[part][used[part]].tobytes()
