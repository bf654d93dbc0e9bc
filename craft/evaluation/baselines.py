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
from dataclasses import dataclass
from typing import Any

import numpy as np

from craft.data.facts import split_facts, utf8_pieces
from craft.data.loaders import Corpus
from craft.evaluation.figures import bits_per_unit
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
        units, bytes: of which there are so many, in what is counted and in UTF-8.
    """

    name: str
    split: str
    nats: float
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
        plain = {"baseline": self.name, "split": self.split, "nats": self.nats, "bytes": self.bytes}
        counts = {self.plural: self.units}
        return {**plain, **counts, "dataset": self.dataset, "sha256": self.sha256, **self.figures()}


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
        "units": int(tokenizer.id_units[predicted].sum()),
        "bytes": int(tokenizer.id_bytes[predicted].sum()),
        "dataset": corpus.name,
        "sha256": split_facts(held_out, tokenizer)["sha256"],
        "unit": unit_of(tokenizer).name,
    }
    names = ["uniform", *(f"{n}-gram" for n in range(1, orders + 1))]
    costs = dict(zip(names, ngram_nats(train, held_out, orders), strict=True))
    for name, size in _packed(train, held_out, tokenizer).items():
        costs[name] = 8 * math.log(2) * size
    return [Baseline(name, nats=nats, **facts) for name, nats in costs.items()]


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


def ngram_nats(train: np.ndarray, held_out: np.ndarray, orders: int) -> Iterator[float]:
    """Nats of all predictions of a text but its first id: uniform, then by n-grams of 1, 2, … `orders` ids.

    Every n-gram gets a number, its rank among those of the training text, so that an (n + 1)-gram is a pair
    of numbers, whatever the size of the alphabet. Memory: about 85 bytes for each id of the training text.
    """
    alphabet = np.union1d(train, held_out)
    known, read = (np.searchsorted(alphabet, ids) for ids in (train, held_out))
    size = len(alphabet)
    chances = np.full(len(read) - 1, 1 / size)
    yield float(-np.log(chances).sum())
    # Of each place, the rank of the ids before it; -1 where these are new, or there are none.
    before, before_read = np.zeros(len(known), np.int64), np.zeros(len(read), np.int64)
    contexts = 1
    for _ in range(orders):
        seen = np.flatnonzero(before >= 0)
        if not len(seen):  # a text of fewer ids
            yield float(-np.log(chances).sum())
            continue
        ranks, grams, counts = _ranked(before[seen] * size + known[seen])
        prefix = grams // size
        totals = np.bincount(prefix, counts, contexts)
        kinds = np.bincount(prefix, minlength=contexts)
        wanted = before_read * size + read
        at = np.minimum(np.searchsorted(grams, wanted), len(grams) - 1)
        same = (grams[at] == wanted) & (before_read >= 0)
        context = before_read[1:]
        inside = (context >= 0) & (kinds[context] > 0)  # at its end the training text goes no further
        count = np.where(same, counts[at], 0)[1:][inside]
        total, kind = totals[context[inside]], kinds[context[inside]]
        chances[inside] = (count + kind * chances[inside]) / (total + kind)
        yield float(-np.log(chances).sum())
        after = np.full(len(known), -1, np.int64)
        after[seen] = ranks
        before[1:], before[0] = after[:-1], -1
        before_read[1:], before_read[0] = np.where(same, at, -1)[:-1], -1
        contexts = len(grams)


def _ranked(keys: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """(rank of each key among the different ones, these in order, how often each is there)."""
    order = np.argsort(keys)
    ordered = keys[order]
    is_new = np.empty(len(keys), bool)
    is_new[:1], is_new[1:] = True, ordered[1:] != ordered[:-1]
    different = ordered[is_new]
    del ordered
    ranks = np.empty(len(keys), np.int32)
    ranks[order] = np.cumsum(is_new, dtype=np.int32) - 1
    counts = np.diff(np.append(np.flatnonzero(is_new), len(keys)))
    return ranks, different, counts


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
