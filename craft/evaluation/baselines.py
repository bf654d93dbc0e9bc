"""What a text needs without a model: is a trained one any good?

    uniform     every id of the text as likely as any other
    N-gram      the N - 1 ids before tell the next one; interpolated by Witten and Bell: where a context was
                followed by many different ids, those behind shorter contexts count more. Distributions are
                proper: they sum to one over the ids of the text. A 1-gram counts ids alone.
    gzip, …     how many bytes a packer adds for the split behind the training text; unlike all others it goes
                on learning while it reads the split

All are nats and bits of the same predictions that a model makes: every id of a split but the first. Witten
and Bell, IEEE Transactions on Information Theory 37 (1991), method C; Chen and Goodman, TR-10-98 (1998).
"""

from __future__ import annotations

import bz2
import gzip
import lzma
import math
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

from craft.data.facts import CHUNK, split_facts, utf8_pieces
from craft.data.loaders import Corpus
from craft.evaluation.figures import bits_per_unit, block_variance, by_stretch
from craft.utils.errors import UserError
from craft.utils.units import unit_named, unit_of

ORDERS = 8
PPMD_ORDER = 6
PACKED_AT_ONCE = 2
"""Texts: xz takes 0.7 GB for one."""
ZSTD_LEVEL, ZSTD_WINDOW = 19, 27
"""A window of 128 MiB, or of all there is."""


@dataclass(frozen=True)
class Baseline:
    """What the predictions of a split cost by a method without a model.

    Args:
        name: "uniform", "5-gram", "xz -9", …
        nats: of all predictions together.
        variance: of `nats`, as an `Evaluation` has it; None for a packer, whose predictions nobody sees.
        units, bytes: of which there are so many, in what is counted and in UTF-8.
    """

    name: str
    split: str
    nats: float
    variance: float | None
    predictions: int
    units: int
    bytes: int
    dataset: str
    sha256: str
    unit: str = "character"

    @property
    def plural(self) -> str:
        return unit_named(self.unit).plural

    def figures(self) -> dict[str, float]:
        """What is compared, by the names of metrics."""
        unit = unit_named(self.unit)
        return {
            unit.nats: self.nats / self.units,
            unit.metric: bits_per_unit(self.nats, self.units),
            "bits_per_byte": bits_per_unit(self.nats, self.bytes),
        }

    def to_dict(self) -> dict[str, Any]:
        """Plain data for JSON, with the names that an `Evaluation` has."""
        plain = asdict(self)
        del plain["name"], plain["unit"], plain["units"]
        error = None if self.variance is None else math.sqrt(self.variance) / self.units
        figures = {**self.figures(), "standard_error": error}
        return {"baseline": self.name, **plain, self.plural: self.units, **figures}


def check_split(split: str) -> None:
    """Refuses a split that baselines have counted.

    Raises:
        UserError: for "train" and "all".
    """
    if split in ("train", "all"):
        raise UserError(
            f"baselines are trained on the training split, so --split {split} can't be scored by them; "
            "choose --split validation or test",
            code="setting-conflict",
        )


def baselines_of(corpus: Corpus, held_out: np.ndarray, split: str, orders: int = ORDERS) -> list[Baseline]:
    """What a split costs without a model: uniform, by n-grams of 1 to `orders` ids, packed.

    Args:
        corpus: its training split is what n-grams count and packers have read.
        held_out: ids [n] of the split.

    Raises:
        UserError: for a corpus that is streamed.
    """
    if not isinstance(corpus.train, np.ndarray):
        raise UserError(
            f"{corpus.name} is streamed, and baselines read all of its training text; set "
            "data.streaming=false",
            code="setting-conflict",
        )
    train, tokenizer, predicted = corpus.train, corpus.tokenizer, np.asarray(held_out[1:])
    facts: dict[str, Any] = {
        "split": split,
        "predictions": len(predicted),
        "units": int(tokenizer.id_units[predicted].sum()),
        "bytes": int(tokenizer.id_bytes[predicted].sum()),
        "dataset": corpus.name,
        "sha256": split_facts(held_out, tokenizer)["sha256"],
        "unit": unit_of(tokenizer).name,
    }
    found = []
    names = ["uniform", *(f"{n}-gram" for n in range(1, orders + 1))]
    for name, nats in zip(names, ngram_nats(train, held_out, orders), strict=True):
        variance = block_variance(*by_stretch(nats))
        found.append(Baseline(name, nats=float(nats.sum()), variance=variance, **facts))
    for name, size in _packed(train, held_out, tokenizer).items():
        found.append(Baseline(name, nats=8 * math.log(2) * size, variance=None, **facts))
    return found


def packers() -> dict[str, Callable[[bytes], bytes]]:
    """Those of the standard library, and those whose packages are installed (the extra `baselines`)."""
    found: dict[str, Callable[[bytes], bytes]] = {
        "gzip -9": lambda text: gzip.compress(text, 9, mtime=0),
        "bzip2 -9": lambda text: bz2.compress(text, 9),
        "xz -9": lambda text: lzma.compress(text, preset=9),
    }
    with suppress(ImportError):
        import zstandard

        settings = zstandard.ZstdCompressionParameters.from_level(
            ZSTD_LEVEL, window_log=ZSTD_WINDOW, enable_ldm=True
        )
        # A compressor of its own for each text: it may not be used by two threads.
        found["zstd -19 --long"] = lambda text: zstandard.ZstdCompressor(
            compression_params=settings
        ).compress(text)
    with suppress(ImportError):
        import pyppmd

        def ppmd(text: bytes) -> bytes:
            encoder = pyppmd.Ppmd7Encoder(PPMD_ORDER, min(1 << 30, (1 << 26) + 16 * len(text)))
            return encoder.encode(text) + encoder.flush()  # type: ignore[no-any-return]

        found["ppmd"] = ppmd
    return found


def _size(pack: Callable[[bytes], bytes], text: bytes) -> int:
    return len(pack(text))


def _packed(train: np.ndarray, held_out: np.ndarray, tokenizer: Any) -> dict[str, int]:
    """Bytes that each packer adds for a text behind another one. They let threads run beside them."""
    first, second = (b"".join(utf8_pieces(ids, tokenizer)) for ids in (train, held_out))
    with ThreadPoolExecutor(PACKED_AT_ONCE) as pool:
        jobs = {
            name: [pool.submit(_size, pack, text) for text in (first + second, first)]
            for name, pack in packers().items()
        }
        return {name: whole.result() - history.result() for name, (whole, history) in jobs.items()}


def ngram_nats(train: np.ndarray, held_out: np.ndarray, orders: int) -> Iterator[np.ndarray]:
    """Nats of each prediction of a text but its first id: uniform, then by n-grams of 1, 2, … `orders` ids.

    The n-grams of all orders are the beginnings of the longest ones, so these are sorted once, and what
    begins alike lies side by side. Memory: 13 bytes for each id of the training text, 21 where it has more
    than 255 different ones.
    """
    known, read, size = _renumbered(train, held_out)
    chances = np.full(len(read) - 1, 1 / size)
    yield -np.log(chances)
    padded = np.concatenate([known, np.zeros(orders - 1, known.dtype)])
    grams, keys = _grams(padded, len(known), orders)
    del known, padded
    keys.sort()
    is_new = np.zeros(len(grams), bool)  # whether the first n ids aren't those of the row before
    is_new[0] = True
    kinds = np.empty(len(grams), np.int32)
    # Between which rows the grams lie that begin with the n ids before each id, n = 0 at first.
    low, high = np.zeros(len(read) + 1, np.int64), np.full(len(read) + 1, len(grams))
    for n in range(1, orders + 1):
        column = grams[:, n - 1]
        is_new[1:] |= column[1:] != column[:-1]
        np.cumsum(is_new, out=kinds)
        begin, end = low[:-1], high[:-1]
        first = column[np.minimum(begin, len(grams) - 1)]
        begin = begin + ((first == 0) & (begin < end))  # at its end the training text goes no further
        rows, wanted = _grams(read, len(begin), orders, n)
        low = np.searchsorted(keys, wanted)
        rows[:, n:] = np.iinfo(rows.dtype).max
        high = np.searchsorted(keys, wanted, side="right")
        inside = begin < end
        if n == 1:
            inside[0] = False  # the first id is not predicted
        begin, end = begin[inside], end[inside]
        kind = kinds[end - 1] - kinds[begin] + 1
        at = np.flatnonzero(inside) + n - 2
        chances[at] = ((high - low)[inside] + kind * chances[at]) / (end - begin + kind)
        yield -np.log(chances)


def _renumbered(train: np.ndarray, held_out: np.ndarray) -> tuple[np.ndarray, np.ndarray, int]:
    """Both texts in the numbers from 1 on, in as few bytes as they take, and how many numbers there are."""
    used = np.zeros(1 + max(int(train.max()), int(held_out.max())), bool)
    pieces = [[ids[at : at + CHUNK] for at in range(0, len(ids), CHUNK)] for ids in (train, held_out)]
    for piece in (*pieces[0], *pieces[1]):
        used[piece] = True
    size = int(used.sum())
    numbers = np.cumsum(used).astype(np.min_scalar_type(size))
    known, read = (np.concatenate([numbers[piece] for piece in each]) for each in pieces)
    return known, read, size


def _grams(ids: np.ndarray, count: int, orders: int, n: int | None = None) -> tuple[np.ndarray, np.ndarray]:
    """The first `n` ids (all `orders`) from each of `count` places on, then zeros, [count, orders]; and the
    same memory as keys in their order, [count]: numbers of 64 bits, which are sorted fastest, or bytes."""
    number = ids.dtype.itemsize == 1 and orders <= 8
    width = 8 if number else orders
    grams = np.zeros((count, width), ids.dtype if number else ids.dtype.newbyteorder(">"))
    columns = grams[:, ::-1] if number else grams
    for place in range(orders if n is None else n):
        columns[:, place] = ids[place : place + count]
    return columns, grams.view("<u8" if number else f"S{width * ids.dtype.itemsize}")[:, 0]


def in_order(found: Sequence[Baseline], models: Sequence[Any] = ()) -> str:
    """Baselines and models, the dearest first, as text for 80 columns.

    Args:
        models: `Evaluation`s of the same split.
    """
    names = list(found[0].figures())
    rows = [(each.name, each.figures()) for each in found]
    rows += [(f"model, {each.protocol}", each.figures()) for each in models]
    rows.sort(key=lambda row: -row[1][names[0]])
    width = max(len(name) for name, _ in rows)
    head = "  ".join(["".ljust(width), *(name.replace("_per_", "/").rjust(10) for name in names)])
    lines = [
        "  ".join([name.ljust(width), *(f"{figures[key]:10.4f}" for key in names)]) for name, figures in rows
    ]
    return "\n".join([head, *lines])


def between(found: Sequence[Baseline], bits: float) -> str:
    """In words, among which baselines a model of so many bits per unit lies."""
    label = {each.name: each.figures()[unit_named(each.unit).metric] for each in found}
    grams = {name: value for name, value in label.items() if name.endswith("-gram")}
    worse = [name for name, value in grams.items() if value >= bits]
    better = [name for name, value in grams.items() if value < bits]
    packed = min((name for name in label if name not in grams and name != "uniform"), key=label.__getitem__)

    def shown(name: str) -> str:
        return f"{'an' if name.startswith('8') else 'a'} {name} ({grams[name]:.2f})"

    if not better:
        place = f"better than every n-gram; the best is {shown(min(grams, key=grams.__getitem__))}"
    elif not worse:
        place = f"worse than {shown(max(grams, key=grams.__getitem__))}"
    else:
        low, high = min(worse, key=grams.__getitem__), max(better, key=grams.__getitem__)
        place = f"between {shown(low)} and {shown(high)}"
    return f"{place}; {packed} needs {label[packed]:.2f}"
