"""A source to splits of ids.

`load_corpus(args)` finds the source, trains the tokenizer on it (or takes the one given), prepares the ids
once, and cuts them into train, validation and test.
"""

from __future__ import annotations

import hashlib
from collections import Counter
from dataclasses import dataclass

import numpy as np

from craft.data.arguments import SHARED, DataArguments
from craft.data.base import BaseDataset
from craft.data.cache import Cache
from craft.data.char_dataset import CharDataset
from craft.data.finding import find_source
from craft.data.lookalikes import suggest_look_alikes, with_code_points
from craft.data.prepare import content_key, ids, scan
from craft.data.sources import Files, Source
from craft.data.stream_splits import open_stream
from craft.data.streaming import StreamDataset, TextStream
from craft.data.tokenization import ByteTokenizer, CharTokenizer
from craft.utils.errors import UserError
from craft.utils.logging import get_logger
from craft.utils.settings import yaml_word

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
    sources = {"train": find_source(args)}
    if tokenizer is None or extend is not None:  # a text that is scored takes the settings of another run
        _refuse_without_effect(args, sources["train"])
    for split, name in (("validation", args.validation_split), ("test", args.test_split)):
        if name and args.source == "hub":
            sources[split] = find_source(args, name)
    if args.streaming:
        return _stream(args, sources, tokenizer)
    cache = Cache(args.cache_dir)
    scans = {split: scan(source, cache) for split, source in sources.items()}
    for split, found in scans.items():
        if not found.counts:
            raise UserError(f"data.path={args.shown} is empty (its {split} split)", code="text-missing")
    counts: Counter[str] = Counter()
    for found in scans.values():
        counts.update(found.counts)
    if tokenizer is None:
        tokenizer = _new_tokenizer(args, counts)
    elif extend:
        tokenizer = tokenizer.extended(counts)
    elif extend is not None:
        _check_known(tokenizer, counts, args.shown)
    whole = {split: ids(source, scans[split], tokenizer, cache) for split, source in sources.items()}
    # The dataset's own splits are kept; those it doesn't have are cut from the end of its train split.
    validation_size = 0 if "validation" in whole else args.validation_size
    test_size = 0 if "test" in whole else args.test_size
    train, validation, test = cut(whole["train"], validation_size, test_size, tokenizer)
    keys = [content_key(found, tokenizer) for found in scans.values()]
    sizes = [validation_size, test_size, *([SHARED] if len(whole["train"]) > SHARED else [])]
    return Corpus(
        tokenizer=tokenizer,
        train=train,
        validation=whole.get("validation", validation),
        test=whole.get("test", test),
        name=args.label,
        fingerprint=hashlib.sha256(repr((keys, *sizes)).encode()).hexdigest()[:16],
        n_units=sum(n * (len(c.encode()) if tokenizer.unit == "byte" else 1) for c, n in counts.items()),
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
    for split, needed in (("validation", args.block_size + 1), ("test", 2)):
        held_out = getattr(corpus, split)
        if held_out is not None and len(held_out) < needed:
            raise UserError(
                f"the {split} split of {args.shown} has {len(held_out)} characters, too few for "
                f"data.block_size={args.block_size}; make data.{split}_size larger, or data.block_size at "
                f"most {len(held_out) - 1}",
                code="text-short",
            )
    if isinstance(corpus.train, np.ndarray):
        if (corpus.train[: 1 << 20] == corpus.train[0]).all():
            raise UserError(
                f"the training text of {args.shown} is one and the same character over and over, or has none "
                "that the alphabet knows: there is nothing to learn",
                code="data-invalid",
            )
        return CharDataset(corpus.train, args.block_size, global_batch_size, seed, order, lookahead)
    if order == "streams":
        raise UserError(
            "data.streaming=true reads the corpus from front to back, but carried state needs many places "
            "of it at once: set data.streaming=false or training.carry_state=false",
            code="setting-conflict",
        )
    return StreamDataset(corpus.train, args.block_size, global_batch_size, seed, args.lanes, lookahead)


def cut(
    array: np.ndarray, validation_size: float, test_size: float, tokenizer: CharTokenizer
) -> tuple[np.ndarray, np.ndarray | None, np.ndarray | None]:
    """Contiguous (train, validation, test); a split of size 0 is None.

    Sizes are fractions below 1 or counts of ids. With fractions, train is the first
    `int(n * (1 - validation - test))` ids, which for 0.1 is nanoGPT's `int(n * 0.9)`; of a long text they are
    those of `SHARED` ids.

    Raises:
        UserError: if nothing is left for training.
    """

    def before(*sizes: float) -> int:
        """How many ids lie before splits of these sizes at the end, moved to the end of a character."""
        fractions = sum(size for size in sizes if size < 1)
        counts = int(sum(size for size in sizes if size >= 1))
        # Rounded, because 1 - 0.05 - 0.05 falls just short of 0.9.
        shared = min(len(array), SHARED)
        rest = len(array) - shared + int(shared * round(1 - fractions, 12))
        return tokenizer.processor.boundary(array, rest - counts)

    middle, last = before(validation_size, test_size), before(test_size)
    if middle < 1:
        raise UserError(
            f"data.validation_size={validation_size} and data.test_size={test_size} leave nothing of "
            f"{len(array)} characters for training; make them smaller",
            code="text-short",
        )
    validation = array[middle:last] if validation_size else None
    return array[:middle], validation, array[last:] if test_size else None


def _new_tokenizer(args: DataArguments, counts: Counter[str]) -> CharTokenizer:
    """The tokenizer of `args` over the characters of all splits (as nanoGPT's, which sees the whole text)."""
    if args.tokenizer == "byte":
        return ByteTokenizer.create()
    return CharTokenizer.from_counts(counts, args.unknown, args.min_frequency, args.max_vocab_size)


def _check_known(tokenizer: CharTokenizer, counts: Counter[str], name: str) -> None:
    """Says which characters of a text a trained model doesn't know.

    Raises:
        UserError: if they have no id under its policy `strict`.
    """
    new = sorted(tokenizer.unseen(counts), key=lambda char: -counts[char])
    listed = [
        f"{with_code_points(char)} {counts[char]:,} times{suggest_look_alikes(char, tokenizer.alphabet)}"
        for char in new[:NAMED]
    ]
    what = f"{len(new)} characters of {name} are new to the model: {'; '.join(listed)}"
    if new and tokenizer.unknown == "strict":
        raise UserError(f"{what}; give them ids with models.extend_vocab=true", code="character-unknown")
    if new:
        logger.info(f"alphabet  {what}; they become {'<unk>' if tokenizer.unknown == 'unk' else 'bytes'}")


def _refuse_without_effect(args: DataArguments, source: Source) -> None:
    """Refuses settings that decide nothing about these files."""
    for name in ("text_column", "encoding", "separator"):
        value = getattr(args, name)
        if isinstance(source, Files) and name not in source.uses and value != getattr(DataArguments, name):
            raise UserError(
                f"data.{name}={yaml_word(value)} has no effect on {args.shown}, which is read as "
                f"{source.format}; leave it out",
                code="setting-no-effect",
            )


def _stream(args: DataArguments, sources: dict[str, Source], tokenizer: CharTokenizer | None) -> Corpus:
    source, own = sources["train"], {split: found for split, found in sources.items() if split != "train"}
    tokenizer, train, held_out = open_stream(args, source, own, tokenizer)
    return Corpus(
        tokenizer=tokenizer,
        train=train,
        validation=held_out.get("validation"),
        test=held_out.get("test"),
        name=args.label,
        fingerprint=hashlib.sha256(repr((source.signature(), len(tokenizer))).encode()).hexdigest()[:16],
        n_units=None,
        documents=source.documents,
    )
