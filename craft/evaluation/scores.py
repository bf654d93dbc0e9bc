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
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.distributed as dist
from torch import Tensor
from torch.nn.functional import nll_loss

from craft.data.base import release_pages
from craft.data.facts import split_facts
from craft.evaluation.figures import (
    BINS,
    bits_per_unit,
    block_variance,
    calibration_error,
    confidence_bins,
    perplexity,
    stretch_length,
)
from craft.evaluation.protocols import Rows, check_protocol, rows_of
from craft.utils.errors import UserError
from craft.utils.terminal import progress_bar
from craft.utils.units import Unit, unit_named, unit_of

LARGEST_LOGITS = 2**26  # elements of one batch of logits, 256 MiB in float32


@dataclass(frozen=True)
class Evaluation:
    """Sums over all predictions of a text, and the figures that follow from them.

    Args:
        protocol: "blocks", "sliding-N", "stateful", "nanogpt-sampled" or "dynamic-RATE".
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
        calibration_error: see `figures.calibration_error`; None where it wasn't taken.
        seed: that the model was trained with, if it is known.
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
    calibration_error: float | None = None
    seed: int | None = None
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
        return bits_per_unit(self.nats, self.units)

    @property
    def perplexity(self) -> float:
        return perplexity(self.nats, self.predictions)

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
            found["bits_per_byte"] = bits_per_unit(self.nats, self.bytes)
        more = ("perplexity", "accuracy", "standard_error")
        found |= {name: getattr(self, name) for name in more}
        if self.calibration_error is not None:
            found["calibration_error"] = self.calibration_error
        return found

    def to_dict(self) -> dict[str, Any]:
        """Everything above as plain numbers, for JSON, by names that follow from the unit."""
        counts = asdict(self)
        del counts["unit"], counts["calibration_error"], counts["stretches"]
        if self.bytes is None:
            del counts["bytes"]
        plural = unit_named(self.unit).plural
        return {plural if key == "units" else key: value for key, value in counts.items()} | self.figures()


def score(
    model: Any,
    tokenizer: Any,
    ids: np.ndarray,
    protocols: Sequence[str],
    seed: int | None = None,
    **settings: Any,
) -> list[Evaluation]:
    """Scores of a model over a whole text with its hash, one for each protocol.

    Args:
        seed: that the model was trained with.
        **settings: as for `evaluate_split`, which raises the same.
    """
    sha256 = split_facts(ids, tokenizer)["sha256"]
    settings.update(tokenizer=tokenizer, progress=True)
    found = (evaluate_split(model, ids, protocol=each, **settings) for each in protocols)
    return [replace(evaluation, sha256=sha256, seed=seed) for evaluation in found]


def save_scores(
    evaluations: Sequence[Evaluation],
    model: str | None,
    file: Path,
    baselines: Sequence[Any] = (),
    audit: dict[str, Any] | None = None,
) -> None:
    """Writes the figures of a model, and what is compared with them, as JSON.

    Args:
        model: the folder or Hub id that was scored; None where only baselines are.
        audit: what `craft.evaluation.audit.to_dict` says, if they were audited.
    """
    file.parent.mkdir(parents=True, exist_ok=True)
    scores: dict[str, Any] = {"model": model, "evaluations": [each.to_dict() for each in evaluations]}
    if baselines:
        scores["baselines"] = [each.to_dict() for each in baselines]
    if audit is not None:
        scores["audit"] = audit
    file.write_text(json.dumps(scores, indent=2) + "\n", encoding="utf-8")


def table(evaluations: Sequence[Evaluation]) -> str:
    """Evaluations of one split as text for 80 columns: what was scored, then a line for each protocol."""
    first, unit = evaluations[0], unit_named(evaluations[0].unit)
    hidden = ("standard_error", "calibration_error")  # the latter for want of room
    nats, *others = (name for name in first.figures() if name not in hidden)
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
    progress: bool = False,
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
        streams: for "stateful": in how many stretches the text is read side by side, each after what
            precedes it, so that figures are those of a single pass up to rounding: of a transformer after all
            that its layers reach, of a recurrent model after `WARM_UP` predictions; 1 reads strictly in one
            pass. By default `parallel_streams`.
        rank, world: this process' share of the windows; sums are added up over all processes.
        stopped: asked before every piece of work; once it is true the rest is left, and the sums are worth
            nothing.
        progress: show a bar where scoring takes long and stderr is a terminal.

    Raises:
        UserError: if the text is too short, or the protocol is unknown or not for this model.
    """
    unit = unit_of(tokenizer)
    predictions = check_text(model, ids, split, unit)
    check_protocol(protocol, model, block_size)
    rows = rows_of(protocol, predictions, block_size, model, batch_size, streams)
    per_row = min(rows.length, block_size) * model.config.vocab_size
    share = -(-len(rows.starts) // world)
    batch_size = max(1, min(batch_size, LARGEST_LOGITS // per_row, share))
    stretch = stretch_length(predictions)
    # What `_parts` takes apart. On the CPU: not every device knows float64.
    sums = torch.zeros(3 + 3 * BINS + 2 * -(-predictions // stretch), dtype=torch.float64)
    counts = (None, None) if tokenizer is None else (tokenizer.id_units, tokenizer.id_bytes)
    tables = [None if table is None else torch.as_tensor(np.asarray(table)) for table in counts]
    device = model.device.type
    dtype = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}[precision]
    scored = int((rows.last - rows.first).sum())
    bar = progress_bar(scored // world, unit.plural, shown=progress and rank == 0)
    was_training = model.training
    model.eval()
    try:
        with bar, torch.inference_mode(), torch.autocast(device, dtype, enabled=precision != "fp32"):
            for begin in range(rank * batch_size, len(rows.starts), world * batch_size):
                part = slice(begin, begin + batch_size)
                for count in _score(model, ids, rows, part, block_size, tables, sums, stretch, stopped):
                    bar.update(count)
    finally:
        model.train(was_training)
    if world > 1:
        sums = sums.to(model.device)  # where the processes can add them up
        dist.all_reduce(sums)
    total, bins, (nats, counts) = _parts(sums)
    correct, units, size = total.tolist()
    return Evaluation(
        protocol=protocol,
        split=split,
        nats=float(nats.sum()),
        variance=block_variance(nats.cpu(), counts.cpu()),
        predictions=round(float(counts.sum())),
        units=round(units),
        bytes=round(size) if unit.has_bytes else None,
        correct=round(correct),
        block_size=block_size,
        dataset=dataset,
        unit=unit.name,
        calibration_error=calibration_error(bins.cpu().numpy()),
        stretches=torch.stack([nats, counts]).cpu().numpy(),
    )


def _parts(sums: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """What `sums` is made of: [3], correct ones, units and bytes; [3, BINS], see `confidence_bins`;
    [2, stretches], nats and counts."""
    total, bins, stretches = sums.tensor_split([3, 3 + 3 * BINS])
    return total, bins.unflatten(0, (3, -1)), stretches.unflatten(0, (2, -1))


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
) -> Iterator[int]:
    """Reads some rows from left to right, `chunk` ids at a time, and adds what they score to `sums`; yields
    how many predictions that was."""
    total, bins, by_stretch = _parts(sums)
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
        logits, known = outputs.logits[scored.to(model.device)], targets.to(model.device)
        nats, confidence, right = (each.cpu() for each in judge(logits, known))
        bins += torch.from_numpy(confidence_bins(confidence.numpy(), right.numpy()))
        nats = nats.double()
        counts = [len(nats) if table is None else table[targets].sum() for table in tables]
        total += torch.stack([torch.as_tensor(count).double() for count in (right.sum(), *counts)])
        at = torch.from_numpy(place)[scored] // stretch
        by_stretch.index_add_(1, at, torch.stack([nats, torch.ones_like(nats)]))
        yield len(nats)


def judge(logits: Tensor, ids: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Of ids [n] and logits [n, V]: the nats that the ids cost, the probabilities of the likeliest ids, and
    whether these are the right ones."""
    logs = logits.float().log_softmax(dim=-1)
    likeliest, guesses = logs.max(dim=-1)
    return nll_loss(logs, ids, reduction="none"), likeliest.exp(), guesses == ids
