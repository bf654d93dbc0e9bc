"""A source to splits of ids: the door of this room.

`load_corpus(args)` finds the source, trains the tokenizer on it (or takes the one given), prepares the ids
once, and cuts them into train, validation and test.
"""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from craft.data.arguments import DataArguments
from craft.data.base import BaseDataset
from craft.data.cache import Cache
from craft.data.char_dataset import CharDataset
from craft.data.finding import find_source
from craft.data.lookalikes import doubled, instead, named
from craft.data.prepare import Scan, ids, ids_key, scan
from craft.data.sources import Source
from craft.data.stream_splits import open_stream
from craft.data.streaming import StreamDataset, TextStream
from craft.data.tokenization import ByteTokenizer, CharTokenizer
from craft.utils.errors import UserError
from craft.utils.logging import get_logger

logger = get_logger(__name__)

NAMED = 10
"""How many characters a message names before it counts the others."""


@dataclass(frozen=True)
class Corpus:
    """A tokenized corpus.

    Args:
        tokenizer: trained on the whole corpus, or the one that was given.
        train: 1-D ids, memory-mapped; a `TextStream` when streaming.
        validation, test: 1-D ids; None if `validation_size` or `test_size` is 0.
        name: as in the names of outputs.
        fingerprint: of content, tokenizer and splits.
        n_units: characters (or what the tokenizer counts) of all splits; None when streaming.
        documents: whether `<eos>` ends each document.
    """

    tokenizer: CharTokenizer
    train: np.ndarray | TextStream
    validation: np.ndarray | None
    test: np.ndarray | None
    name: str
    fingerprint: str
    n_units: int | None
    documents: bool


def load_corpus(
    args: DataArguments, tokenizer: CharTokenizer | None = None, extend: bool | None = None
) -> Corpus:
    """The corpus that the arguments describe.

    Args:
        tokenizer: used as it is (to evaluate or fine-tune a model); None trains one on the corpus.
        extend: whether characters that `tokenizer` doesn't know get ids behind its own; False refuses them
            with a list if its policy does, None when the first one is met.

    Raises:
        UserError: if the source is missing, empty or no text.
    """
    source = find_source(args)
    if (
        tokenizer is None or extend is not None
    ):  # to train on it; a text that is scored takes a run's settings
        _without_effect(args, source)
    if args.streaming:
        return _streamed(args, source, tokenizer)
    cache = Cache(args.cache_dir)
    sources: dict[str, Source] = {"train": source}
    if args.validation_split:
        sources["validation"] = find_source(args, args.validation_split)
    if args.test_split:
        sources["test"] = find_source(args, args.test_split)
    scans = {split: scan(source, cache) for split, source in sources.items()}
    for split, found in scans.items():
        if not found.characters:
            raise UserError(
                f"data.path={args.shown} is empty" + (f" in its {split} split" if len(scans) > 1 else "")
            )
    if tokenizer is None:
        tokenizer = build_tokenizer(args, scans)
    elif extend is not None:
        tokenizer = fit_tokenizer(tokenizer, _counts(scans), extend, args.shown)
    whole = {split: ids(source, scans[split], tokenizer, cache) for split, source in sources.items()}
    # The dataset's own splits are kept; those it doesn't have are cut from the end of its train split.
    validation_size = 0 if args.validation_split else args.validation_size
    test_size = 0 if args.test_split else args.test_size
    splits: dict[str, Any] = dict(
        zip(("train", "validation", "test"), cut(whole["train"], validation_size, test_size, tokenizer))
    )
    splits.update({split: array for split, array in whole.items() if split != "train"})
    keys = [ids_key(found, tokenizer) for found in scans.values()]
    return Corpus(
        tokenizer=tokenizer,
        **splits,
        name=args.label,
        fingerprint=hashlib.sha256(repr((keys, validation_size, test_size)).encode()).hexdigest()[:16],
        n_units=sum(f.bytes if tokenizer.unit == "byte" else f.characters for f in scans.values()),
        documents=sources["train"].documents,
    )


def train_dataset(
    corpus: Corpus,
    args: DataArguments,
    global_batch_size: int,
    seed: int,
    order: str | None = None,
    lookahead: int = 1,
) -> BaseDataset:
    """The windows that training draws from a corpus.

    Args:
        order: `shuffled`, `random` or `streams` (for carried state); None is `args.order`.
        lookahead: ids of a window behind its inputs, as the model needs them.

    Raises:
        UserError: if the corpus is too short for the window or the batch, or a stream is asked for parallel
            streams.
    """
    order = order or args.order
    if isinstance(corpus.train, np.ndarray):
        _long_enough(corpus, args)
        _something_to_learn(corpus.train, args)
        return CharDataset(corpus.train, args.block_size, global_batch_size, seed, order, lookahead)
    if order == "streams":
        raise UserError(
            "data.streaming=true reads the corpus from front to back, but carried state needs many places "
            "of it at once: set data.streaming=false or training.carry_state=false"
        )
    return StreamDataset(corpus.train, args.block_size, global_batch_size, seed, args.lanes, lookahead)


def build_tokenizer(args: DataArguments, scans: dict[str, Scan]) -> CharTokenizer:
    """The tokenizer of `args` over the characters of all splits (as nanoGPT's, which sees the whole text)."""
    if args.tokenizer == "byte":
        return ByteTokenizer.create()
    counts = _counts(scans)
    tokenizer = CharTokenizer.from_counts(counts, args.unknown, args.min_frequency, args.max_vocab_size)
    if ways := doubled(tokenizer.alphabet):
        logger.info(f"alphabet  holds look-alikes: {'; '.join(ways[:NAMED])}")
    return tokenizer


def fit_tokenizer(
    tokenizer: CharTokenizer, counts: Mapping[str, int], extend: bool, name: str
) -> CharTokenizer:
    """A trained model's tokenizer made ready for a text, whose characters `counts` has.

    Raises:
        UserError: for characters that have no id, under the policy `strict` and without `extend`.
    """
    if extend:
        return tokenizer.extended(counts)
    if new := tokenizer.unseen(counts):
        commonest = sorted(new, key=lambda char: (-counts[char], char))
        listed = [f"{named(c)} {counts[c]:,} times" for c in commonest[:NAMED]]
        known = [f"{has} for {c!r}" for c in commonest[:NAMED] if (has := instead(c, tokenizer.alphabet))]
        more = f" and {len(new) - NAMED} more" if len(new) > NAMED else ""
        what = f"{len(new)} character{'s' if len(new) > 1 else ''} of {name}"
        listing = f"{', '.join(listed)}{more}" + (f"; it has {', '.join(known)}" if known else "")
        if tokenizer.unknown == "strict":
            raise UserError(
                f"{what} {'are' if len(new) > 1 else 'is'} new to the model: {listing}; "
                "give them ids with models.extend_vocab=true, or "
                f"{'write what it has' if known else 'remove them from the text'}"
            )
        become = "<unk>" if tokenizer.unknown == "unk" else "their bytes"
        logger.info(f"alphabet  {what} become {become}: {listing}")
    return tokenizer


def _counts(scans: Mapping[str, Scan]) -> Counter[str]:
    """Character -> occurrences over all splits."""
    counts: Counter[str] = Counter()
    for found in scans.values():
        counts.update(found.counts)
    return counts


def cut(
    array: np.ndarray, validation_size: float, test_size: float, tokenizer: CharTokenizer
) -> tuple[np.ndarray, np.ndarray | None, np.ndarray | None]:
    """Contiguous (train, validation, test); a split of size 0 is None.

    Sizes are fractions below 1 or counts of ids. With fractions, train is the first
    `int(n * (1 - validation - test))` ids, which for 0.1 is nanoGPT's `int(n * 0.9)`.

    Raises:
        UserError: if nothing is left for training.
    """
    n = len(array)
    middle = tokenizer.processor.boundary(array, _before(n, validation_size, test_size))
    last = tokenizer.processor.boundary(array, _before(n, test_size))
    if middle < 1:
        raise UserError(
            f"data.validation_size={validation_size} and data.test_size={test_size} leave nothing of {n} "
            "characters for training; make them smaller"
        )
    validation = array[middle:last] if validation_size else None
    return array[:middle], validation, array[last:] if test_size else None


def _before(n: int, *sizes: float) -> int:
    """How many of n ids lie before splits of these sizes at the end."""
    fractions = sum(size for size in sizes if size < 1)
    counts = int(sum(size for size in sizes if size >= 1))
    # Rounded, because 1 - 0.05 - 0.05 falls just short of 0.9.
    return int(n * round(1 - fractions, 12)) - counts


def _long_enough(corpus: Corpus, args: DataArguments) -> None:
    """Refuses a corpus whose splits don't fill a window, naming the largest block size that works."""
    train, validation, test = corpus.train, corpus.validation, corpus.test
    assert isinstance(train, np.ndarray)
    if test is not None and len(test) < 2:
        raise UserError(
            f"data.test_size={args.test_size} of {args.shown} is {len(test)} characters, of which none can "
            "be predicted; make it larger, or 0"
        )
    # Shuffled windows start at a random phase, so one window needs the room of two.
    room = len(train) - 1 if args.order == "random" else len(train) // 2
    largest = room if validation is None else min(room, len(validation) - 1)
    if largest >= args.block_size:
        return
    sizes = f"{len(train):,} characters for training"
    if validation is not None:
        sizes += f" and {len(validation):,} for validation"
    way_out = f"the largest data.block_size that works is {largest}" if largest > 0 else "give a longer text"
    if room >= args.block_size:
        way_out = f"make data.validation_size larger, or {way_out}"
    raise UserError(f"{args.shown} has {sizes}, too few for data.block_size={args.block_size}; {way_out}")


def _something_to_learn(train: np.ndarray, args: DataArguments) -> None:
    """Refuses a text of one character again and again, which any model predicts with a loss of 0."""
    for start in range(0, len(train), 1 << 20):
        if (train[start : start + (1 << 20)] != train[0]).any():
            return
    raise UserError(
        f"the training text of {args.shown} is one and the same character {len(train)} times over, or has "
        "none that the alphabet knows: there is nothing to learn"
    )


def _without_effect(args: DataArguments, source: Source) -> None:
    """Refuses settings that decide nothing about this source."""
    for name in ("text_column", "encoding", "separator"):
        value = getattr(args, name)
        if name not in source.uses and value != getattr(DataArguments, name):
            raise UserError(
                f"data.{name}={value} has no effect on {args.shown}, which is read as "
                f"{getattr(source, 'format', args.source)}; leave it out"
            )


def _streamed(args: DataArguments, source: Source, tokenizer: CharTokenizer | None) -> Corpus:
    own = {
        split: find_source(args, name)
        for split, name in (("validation", args.validation_split), ("test", args.test_split))
        if name
    }
    tokenizer, train, validation, test = open_stream(args, source, own, tokenizer)
    return Corpus(
        tokenizer=tokenizer,
        train=train,
        validation=validation,
        test=test,
        name=args.label,
        fingerprint=hashlib.sha256(repr((source.signature(), len(tokenizer))).encode()).hexdigest()[:16],
        n_units=None,
        documents=source.documents,
    )
