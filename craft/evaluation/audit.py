"""Is a figure one? Checks of a model, and of how it was scored, that nobody can pass who cheats.

A figure means something if what it adds up are costs of a distribution over the alphabet, fixed before the
character that it predicts was seen. Each check here is one way in which that may be untrue; it is tried on a
stated part of the text, by the calls that scoring makes.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from importlib.util import find_spec
from typing import Any

import numpy as np
import torch
from torch import Tensor

from craft.data.facts import utf8_pieces
from craft.evaluation.coder import parts_of
from craft.evaluation.compress import compress, read_header, split
from craft.evaluation.dynamic import RATES, Reader
from craft.evaluation.protocols import context_of, reads_on
from craft.evaluation.scores import Evaluation, evaluate_split, judge
from craft.utils.errors import CraftError
from craft.utils.units import unit_of

SUM_TOLERANCE, NATS_TOLERANCE = 1e-4, 1e-3
"""How far a sum of probabilities may lie from 1, and by how much a cost may change that should stay."""
WINDOWS, LONGEST = 8, 256
"""How many windows of the text are tried, of at most how many ids."""
COMPRESSED, STREAMS = 20_000, 8
"""Bytes that are compressed, in so many pieces."""
SIZE_TOLERANCE = 0.01
"""By how much a payload may exceed the figure: rounding, and what ends it."""


@dataclass(frozen=True)
class Check:
    """What was checked and found; `passed` is None where it wasn't done."""

    name: str
    passed: bool | None
    found: str

    def __str__(self) -> str:
        verdict = {True: "ok", False: "FAILED", None: "not done"}[self.passed]
        return f"audit  {self.name:<13} {verdict:<9} {self.found}"


def passed(checks: Sequence[Check]) -> bool:
    """Whether all passed that were done."""
    return all(check.passed is not False for check in checks)


def to_dict(checks: Sequence[Check]) -> dict[str, Any]:
    """Plain data for JSON."""
    return {"passed": passed(checks), "checks": [asdict(check) for check in checks]}


def audit(
    model: Any, tokenizer: Any, ids: np.ndarray, evaluations: Sequence[Evaluation], block_size: int
) -> Iterator[Check]:
    """Checks a model and the figures that it got.

    Args:
        model: a `LanguageModel` in evaluation mode; it stays as it is.
        ids: [n] of the split that was scored, n >= 2.
        evaluations: the figures.
        block_size: ids of a window.
    """
    random = np.random.default_rng(0)
    size = min(block_size, LONGEST, len(ids) - 1)
    starts = np.linspace(0, len(ids) - 1 - size, WINDOWS).astype(np.int64)
    windows = torch.from_numpy(np.asarray(ids)[starts[:, None] + np.arange(size)].astype(np.int64))

    def draw(like: Tensor) -> Tensor:
        """As many ids by chance."""
        return torch.from_numpy(random.integers(0, len(tokenizer), like.shape))

    yield _sums(model, windows)
    yield _future(model, windows, draw)
    yield _other_rows(model, windows, draw)
    yield _memory(model, windows, draw)
    yield _labels(model, np.asarray(ids), starts, size, draw)
    yield _dynamic(model, np.asarray(ids), size, draw)
    yield _counts(tokenizer, ids, evaluations)
    yield _compression(model, tokenizer, ids)


def _read(model: Any, windows: Tensor, carry: bool = False) -> Tensor:
    """Logits [B, T, V] as scoring asks for them, in two parts where a state is carried."""
    state, found = None, []
    with torch.inference_mode():
        for part in windows.to(model.device).chunk(1 + carry, dim=1):
            outputs = model(input_ids=part, past_key_values=state, use_cache=carry)
            state = outputs.past_key_values if carry else None
            found.append(outputs.logits)
        return torch.cat(found, dim=1)


def _difference(one: Tensor, other: Tensor) -> float:
    """By how many nats the cost of any id changes at the most, from logits [..., V] to others."""
    one, other = (logits.float().log_softmax(dim=-1) for logits in (one, other))
    return float((one - other).nan_to_num(nan=0.0).abs().max()) if one.numel() else 0.0


def _unchanged(name: str, worst: float, what: str) -> Check:
    return Check(name, worst <= NATS_TOLERANCE, f"{what} changes a cost by {worst:.1e} nats at the most")


def _sums(model: Any, windows: Tensor) -> Check:
    """The costs of all ids that might stand in a place must be those of a distribution."""
    logits = _read(model, windows).flatten(0, 1)
    places = min(len(logits), max(16, 2**28 // logits.shape[-1] ** 2))
    logits, total = logits[:places], 0.0
    for alternative in range(logits.shape[-1]):
        targets = torch.full((places,), alternative, device=logits.device)
        total = total + judge(logits, targets)[0].double().neg().exp()
    worst = float((torch.as_tensor(total) - 1).abs().max())
    found = f"over the alphabet they sum to 1 within {worst:.1e}, at {places:,} places"
    return Check("probabilities", worst <= SUM_TOLERANCE, found)  # NaN is no less


def _future(model: Any, windows: Tensor, draw: Any) -> Check:
    """What stands behind a place, turned around or drawn by chance, must not change what is said there."""
    length, worst = windows.shape[1], 0.0
    places = {int(length * share) for share in (0, 0.25, 0.5, 0.75)} | {length - 2}
    for carry in {False, bool(model.carries_state)}:
        base = _read(model, windows, carry)
        for end in (place + 1 for place in places if 0 <= place < length - 1):
            for tail in (windows[:, end:].flip(1), draw(windows[:, end:])):
                changed = _read(model, torch.cat([windows[:, :end], tail], dim=1), carry)
                worst = max(worst, _difference(base[:, :end], changed[:, :end]))
    return _unchanged("future", worst, "what stands later in a window")


def _other_rows(model: Any, windows: Tensor, draw: Any) -> Check:
    """The windows beside one hold what it is to predict."""
    base, worst = _read(model, windows), 0.0
    for row in (0, len(windows) // 2, len(windows) - 1):
        changed = draw(windows)
        changed[row] = windows[row]
        worst = max(worst, _difference(base[row], _read(model, changed)[row]))
    return _unchanged("other rows", worst, "what else is in the batch")


def _memory(model: Any, windows: Tensor, draw: Any) -> Check:
    """A text may be read several times: before its own score, and by several protocols."""
    unseen = draw(windows)
    first, again = _read(model, unseen), _read(model, unseen)
    return _unchanged("memory", _difference(first, again), "having read a text before")


def _labels(model: Any, ids: np.ndarray, starts: np.ndarray, size: int, draw: Any) -> Check:
    """What it is told to be right must not change what it says, nor its own loss be another than the cost."""
    ahead = min(model.lookahead, len(ids) - size)
    if ahead < model.lookahead:
        return Check("labels", None, "the text is shorter than a window")
    places = np.minimum(starts, len(ids) - size - ahead)[:, None] + np.arange(size + ahead)
    batch = model.make_batch(torch.from_numpy(ids[places].astype(np.int64)).to(model.device))
    others = {key: draw(told).to(told) for key, told in batch.items() if key != "input_ids"}
    with torch.inference_mode():
        plain, told = model(input_ids=batch["input_ids"]).logits, model(**batch)
        worst = max(
            _difference(plain, logits) for logits in (told.logits, model(**{**batch, **others}).logits)
        )
        if model.lookahead == 1:  # else its loss is of more than the next id
            nats = judge(plain.flatten(0, 1), batch["shift_labels"].flatten())[0].mean()
            own = told.loss - sum((getattr(told, "auxiliary_losses", None) or {}).values())
            worst = max(worst, float((own - nats).abs().nan_to_num(nan=math.inf)))
    return _unchanged("labels", worst, "being told what is right, or its own way to count,")


def _dynamic(model: Any, ids: np.ndarray, size: int, draw: Any) -> Check:
    """A stretch must be scored before the model learns from it: how it ends changes neither what was said
    before nor what that cost."""
    reader = Reader(model, size)
    text = ids[: 3 * reader.length + 1].astype(np.int64)
    place = min(reader.length + reader.length // 2, len(text) - 1)
    changed = np.concatenate([text[:place], draw(torch.from_numpy(text[place:])).numpy()])
    scales, said = reader.scales(text), []
    hook = model.register_forward_hook(  # which the copy that learns has, too
        lambda _, args, given, outputs: said.append((given["input_ids"], outputs.logits.detach())),
        with_kwargs=True,
    )
    try:
        costs, other = (torch.cat(list(reader.costs(each, RATES[-1], scales))) for each in (text, changed))
    finally:
        hook.remove()
    worst = float((costs - other)[: place - 1].abs().nan_to_num(nan=math.inf).max()) if place > 1 else 0.0
    alike = 1 + (place - 1) // reader.length  # stretches before which both have learnt the same
    for (seen, one), (seen_then, two) in list(zip(said, said[len(said) // 2 :]))[:alike]:
        same = int((seen == seen_then).all(dim=0).cumprod(dim=0).sum())
        worst = max(worst, _difference(one[:, :same], two[:, :same]))
    return _unchanged("dynamic", worst, "what a stretch ends with, while learning,")


def _counts(tokenizer: Any, ids: np.ndarray, evaluations: Sequence[Evaluation]) -> Check:
    """Figures are divided by what is there, counted here in the text itself."""
    shown = np.frombuffer(b"".join(utf8_pieces(np.asarray(ids[1:]), tokenizer)), np.uint8)
    unit = unit_of(tokenizer)
    # In UTF-8 a character has one byte that doesn't go on from another.
    by_bytes = not tokenizer.alphabet and unit.name != "character"
    true = len(shown) if by_bytes else int(((shown & 0xC0) != 0x80).sum())
    whole = [each for each in evaluations if each.protocol != "nanogpt-sampled"]  # which counts some often
    # An unknown character is shown by three bytes and counts as one.
    size = len(shown) - 2 * int((np.asarray(ids[1:]) == tokenizer.unk_token_id).sum())
    right = all(
        (each.units, each.predictions) == (true, len(ids) - 1) and each.bytes in (size, None)
        for each in whole
    )
    counted = ", ".join(f"{each.units:,}" for each in whole) or "none"
    return Check("counts", right, f"{true:,} {unit.plural} are predicted, and counted: {counted}")


def _compression(model: Any, tokenizer: Any, ids: np.ndarray) -> Check:
    """The figure, cashed in."""
    if find_spec("constriction") is None:
        return Check("compression", None, "needs pip install 'craft-lm[compress]'")
    text = b"".join(utf8_pieces(np.asarray(ids[:COMPRESSED]), tokenizer))[:COMPRESSED]
    coded = split(text, tokenizer)[0]
    streams = min(STREAMS, max(1, len(coded) // 2))
    try:
        packed = compress(model, tokenizer, text, streams=streams)  # which decompresses and compares
    except CraftError as error:
        return Check("compression", False, str(error))
    header, rest = read_header(packed)
    payload = len(rest) - header.aside
    found, right = f"{len(text):,} bytes came back from {payload:,}", True
    if reads_on(model) and not header.window and len(coded) >= 2 * streams:
        window = min(LONGEST, context_of(model) or LONGEST)
        pieces = np.split(coded, np.cumsum(parts_of(len(coded), streams))[:-1])
        scored = [evaluate_split(model, p, protocol="stateful", block_size=window, streams=1) for p in pieces]
        bits = sum(each.nats for each in scored) / math.log(2) + streams * math.log2(len(tokenizer))
        right = 8 * payload <= bits * (1 + SIZE_TOLERANCE) + 64
        found += f"; {math.ceil(bits / 8):,} by the figure of its {streams} pieces"
    return Check("compression", right, found)
