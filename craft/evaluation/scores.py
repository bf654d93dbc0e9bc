"""How well a model predicts a whole text: nats and bits per character (or other unit), perplexity, accuracy.

A figure means little without its protocol, so every `Evaluation` carries one. All but nanoGPT's estimate
predict every target of the text exactly once; they differ in how much of the text before it the model may see
(`protocols.py`). A text of n ids has n - 1 targets: nothing predicts its first. Sums are divided by what
the predicted ids stand for (a character may take several ids, an id several bytes), never by a count of
something else. What that is, the tokenizer says (`craft.utils.units`).
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.distributed as dist
from torch import Tensor

from craft.data.base import release_pages
from craft.data.facts import split_facts
from craft.evaluation.protocols import (
    Rows,
    check_protocol,
    parallel_streams,
    rows_of,
)
from craft.utils.errors import UserError
from craft.utils.units import Unit, unit_named, unit_of

STRETCH, FEWEST_STRETCHES = 1000, 50
"""Predictions of a stretch of text for the standard error, fewer where there would be too few stretches."""
LARGEST_LOGITS = 2**26  # elements of one batch of logits, 256 MiB in float32


@dataclass(frozen=True)
class Evaluation:
    """Sums over all predictions of a text, and the figures that follow from them.

    Args:
        protocol: "blocks", "sliding-N", "stateful" or "nanogpt-sampled".
        split: "validation", "test", …
        nats: summed negative log-likelihood.
        variance: of `nats`, from how stretches of the text differ; see `block_variance`.
        predictions: how many ids were predicted.
        units: how many units (characters) they stand for.
        bytes: how many UTF-8 bytes they stand for; None where the unit isn't text.
        correct: how many times the likeliest id was the right one.
        block_size: the window.
        dataset: name of the text.
        sha256: of the text in UTF-8, if it was taken.
        unit: the name of what is counted.
        stretches: [2, stretches] nats and predictions of each stretch of the text, for `comparison.py`; not
            in `to_dict`.

    Counts and figures have the names of `to_dict` as attributes too: `characters` and `bits_per_char`, or of
    bytes `bytes` and `bits_per_byte`.
    """

    protocol: str
    split: str
    nats: float
    variance: float
    predictions: int
    units: int
    bytes: int | None
    correct: int
    block_size: int
    dataset: str = ""
    sha256: str = ""
    unit: str = "character"
    stretches: np.ndarray | None = field(default=None, repr=False, compare=False)

    def __getattr__(self, name: str) -> Any:
        if not name.startswith("_") and name in (found := self.to_dict()):
            return found[name]
        raise AttributeError(f"{type(self).__name__} has no {name!r}")

    @property
    def nats_per_unit(self) -> float:
        return self.nats / self.units

    @property
    def bits_per_unit(self) -> float:
        return self.nats_per_unit / math.log(2)

    @property
    def perplexity(self) -> float:
        """Per prediction: among how many equally likely ids the model hesitates."""
        return math.exp(min(self.nats / self.predictions, 700.0))

    @property
    def accuracy(self) -> float:
        """Share of predictions whose likeliest id was right."""
        return self.correct / self.predictions

    @property
    def standard_error(self) -> float:
        """Of `nats_per_unit`: how far scores over other texts of this kind and length lie apart. It counts
        that neighbouring predictions depend on each other, not that training runs differ."""
        return math.sqrt(self.variance) / self.units

    def figures(self) -> dict[str, float]:
        """What is compared, by the names of metrics."""
        unit = unit_named(self.unit)
        found = {unit.nats: self.nats_per_unit, unit.metric: self.bits_per_unit}
        if self.bytes is not None:
            found["bits_per_byte"] = self.nats / self.bytes / math.log(2)
        more = ("perplexity", "accuracy", "standard_error")
        return found | {name: getattr(self, name) for name in more}

    def to_dict(self) -> dict[str, Any]:
        """Everything above as plain numbers, for JSON, by names that follow from the unit."""
        counts = asdict(self)
        del counts["unit"], counts["stretches"]
        if self.bytes is None:
            del counts["bytes"]
        plural = unit_named(self.unit).plural
        return {plural if key == "units" else key: value for key, value in counts.items()} | self.figures()


def score(
    model: Any, tokenizer: Any, ids: np.ndarray, protocols: Sequence[str], **settings: Any
) -> list[Evaluation]:
    """Scores of a model over a whole text with its hash, one for each protocol.

    Args:
        **settings: as for `evaluate_split`, which raises the same.
    """
    sha256 = split_facts(ids, tokenizer)["sha256"]
    found = (evaluate_split(model, ids, protocol=each, tokenizer=tokenizer, **settings) for each in protocols)
    return [replace(evaluation, sha256=sha256) for evaluation in found]


def save_scores(
    evaluations: Sequence[Evaluation], model: str | None, file: Path, baselines: Sequence[Any] = ()
) -> None:
    """Writes the figures of a model, and what is compared with them, as JSON.

    Args:
        model: the folder or Hub id that was scored; None where only baselines are.
    """
    file.parent.mkdir(parents=True, exist_ok=True)
    scores: dict[str, Any] = {"model": model, "evaluations": [each.to_dict() for each in evaluations]}
    if baselines:
        scores["baselines"] = [each.to_dict() for each in baselines]
    file.write_text(json.dumps(scores, indent=2) + "\n", encoding="utf-8")


def table(evaluations: Sequence[Evaluation]) -> str:
    """Evaluations of one split as text for 80 columns: what was scored, then a line for each protocol."""
    first, unit = evaluations[0], unit_named(evaluations[0].unit)
    nats, *others = (name for name in first.figures() if name != "standard_error")
    forms = dict.fromkeys((nats, "standard_error", *others), ".4f") | {"perplexity": ".3f", "accuracy": ".2%"}
    head = ("protocol", *(name.replace("_per_", "/").replace("standard_error", "±") for name in forms))
    rows = [
        (e.protocol, *(format(e.figures()[name], form) for name, form in forms.items())) for e in evaluations
    ]
    widths = [max(len(row[i]) for row in (head, *rows)) for i in range(len(head))]
    lines = [
        "  ".join([row[0].ljust(widths[0]), *(cell.rjust(w) for cell, w in zip(row[1:], widths[1:]))])
        for row in (head, *rows)
    ]
    whole = next((e for e in evaluations if e.protocol != "nanogpt-sampled"), first)
    scored = f"{whole.units:,} predicted {unit.plural}"
    return "\n".join([", ".join(filter(None, (first.dataset, f"{first.split} split", scored))), *lines])


def evaluate_split(
    model: Any,
    ids: np.ndarray,
    *,
    protocol: str = "blocks",
    block_size: int,
    batch_size: int = 64,
    tokenizer: Any = None,
    split: str = "validation",
    dataset: str = "",
    precision: str = "fp32",
    streams: int | None = None,
    rank: int = 0,
    world: int = 1,
    stopped: Callable[[], bool] = bool,
) -> Evaluation:
    """Predicts every id of a text but the first, once; by "nanogpt-sampled" as often as windows hold it.

    Args:
        model: a `LanguageModel`, on its device; its training mode is restored.
        ids: int [n], n >= 2.
        block_size: the window; for "stateful" the chunk in which the text is read (no effect on the
            result).
        batch_size: windows (or streams) side by side.
        tokenizer: says what is counted: its `unit`, and how many units and bytes each id stands for; by
            default each is one character of one byte.
        precision: "fp32", or "bf16" | "fp16" to read under autocast.
        streams: for "stateful": in how many stretches the text is read side by side, each after `WARM_UP`
            predictions of what precedes it, after which the state of a trained model is that of a single
            pass up to rounding; 1 reads strictly in one pass. By default as many as `batch_size`, if the text
            is long enough.
        rank, world: this process' share of the windows; sums are added up over all processes.
        stopped: asked before every piece of work; once it is true the rest is left, and the sums are worth
            nothing.

    Raises:
        UserError: if the text is too short, or the protocol is unknown or not for this model.
    """
    unit = unit_of(tokenizer)
    predictions = check_text(model, ids, split, unit)
    carries = bool(getattr(model, "carries_state", False))
    context = getattr(model.config, "max_position_embeddings", None)
    check_protocol(protocol, carries_state=carries, block_size=block_size, context=context)
    rows = rows_of(protocol, predictions, block_size, streams or parallel_streams(predictions, batch_size))
    per_row = min(rows.length, block_size) * model.config.vocab_size
    batch_size = max(1, min(batch_size, LARGEST_LOGITS // per_row))
    stretch = stretch_length(predictions)
    # Correct ones, units, bytes; nats and counts by stretch. On the CPU: not every device knows float64.
    sums = torch.zeros(3 + 2 * -(-predictions // stretch), dtype=torch.float64)
    counts = (None, None) if tokenizer is None else (tokenizer.id_units, tokenizer.id_bytes)
    tables = [None if table is None else torch.as_tensor(np.asarray(table)) for table in counts]
    device = model.device.type
    dtype = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}[precision]
    was_training = model.training
    model.eval()
    try:
        with torch.inference_mode(), torch.autocast(device, dtype, enabled=precision != "fp32"):
            for begin in range(rank * batch_size, len(rows.starts), world * batch_size):
                part = slice(begin, begin + batch_size)
                _score(model, ids, rows, part, block_size, tables, sums, stretch, stopped)
    finally:
        model.train(was_training)
    if world > 1:
        sums = sums.to(model.device)  # where the processes can add them up
        dist.all_reduce(sums)
    correct, units, size = sums[:3].tolist()
    nats, counts = sums[3:].unflatten(0, (2, -1))
    return Evaluation(
        protocol=protocol,
        split=split,
        nats=float(nats.sum()),
        variance=block_variance(nats, counts),
        predictions=round(float(counts.sum())),
        units=round(units),
        bytes=round(size) if unit.has_bytes else None,
        correct=round(correct),
        block_size=block_size,
        dataset=dataset,
        unit=unit.name,
        stretches=torch.stack([nats, counts]).cpu().numpy(),
    )


def check_text(model: Any, ids: np.ndarray, split: str, unit: Unit) -> int:
    """How many predictions of a text a model makes.

    Raises:
        UserError: if there are none.
    """
    if len(ids) < 2:
        raise UserError(
            f"the {split} split has {len(ids)} {unit.plural} and the first can't be predicted; add text",
            code="text-short",
        )
    if getattr(model, "lookahead", 1) < 1:
        raise UserError(
            f"a {type(model).__name__} predicts no next {unit.name}, so no text can be scored by it",
            code="model-mismatch",
        )
    return len(ids) - 1


def stretch_length(predictions: int) -> int:
    """Of how many predictions the stretches are from which the standard error is taken."""
    return max(1, min(STRETCH, predictions // FEWEST_STRETCHES))


def _score(
    model: Any,
    ids: np.ndarray,
    rows: Rows,
    part: slice,
    chunk: int,
    tables: list[Tensor | None],
    sums: Tensor,
    stretch: int,
    stopped: Callable[[], bool],
) -> None:
    """Reads some rows from left to right, `chunk` ids at a time, and adds what they score to `sums`."""
    total, by_stretch = sums[:3], sums[3:].unflatten(0, (2, -1))
    starts, first, last = rows.starts[part, None], rows.first[part, None], rows.last[part, None]
    state, length = None, int((last - starts).max())
    for begin in range(0, length, chunk):
        if stopped():
            return
        place = starts + np.arange(begin, min(begin + chunk, length))
        scored = torch.from_numpy((first <= place) & (place < last))
        # Places behind the end of a row (or of the text) read something, which nothing scored depends on.
        read = np.minimum(place, len(ids) - 2)
        inputs, targets = (torch.from_numpy(np.asarray(ids[at]).astype(np.int64)) for at in (read, read + 1))
        release_pages(ids)
        carry = chunk < length
        outputs = model(input_ids=inputs.to(model.device), past_key_values=state, use_cache=carry)
        state = outputs.past_key_values if carry else None
        targets = targets[scored]
        logits, known = outputs.logits[scored.to(model.device)].float(), targets.to(model.device)
        nats = torch.nn.functional.cross_entropy(logits, known, reduction="none").cpu().double()
        counts = [len(nats) if table is None else table[targets].sum() for table in tables]
        right = (logits.argmax(dim=-1) == known).sum().cpu()
        total += torch.stack([torch.as_tensor(count).double() for count in (right, *counts)])
        at = torch.from_numpy(place)[scored] // stretch
        by_stretch.index_add_(1, at, torch.stack([nats, torch.ones_like(nats)]))


def block_variance(nats: Tensor, counts: Tensor) -> float:
    """The variance of the sum of `nats`, taken for what independent stretches of a text came to.

    Neighbouring predictions depend on each other, whole stretches hardly do. A block bootstrap, which draws
    stretches with replacement, tends to it (Davison and Hinkley, Bootstrap Methods, 1997, 8.2.3).

    Args:
        nats, counts: [stretches], of how many predictions.
    """
    used = counts > 0
    stretches = int(used.sum())
    if stretches < 2:
        return 0.0
    residuals = (nats - counts * (nats.sum() / counts.sum()))[used]
    return float(residuals.square().sum()) * stretches / (stretches - 1)
