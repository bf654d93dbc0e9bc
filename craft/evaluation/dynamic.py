"""`dynamic`: a model that goes on learning while it is scored, each stretch of text after it was predicted.

Krause, Kahembwe, Murray and Renals, Dynamic Evaluation of Neural Sequence Models, ICML 2018, arXiv
1709.07432: steps along the gradient of each stretch, divided by the root mean square that gradients had on
the training text. The rate is found on the end of the training text, never on the split that is scored.
Dynamic figures are no better or worse than static ones but of another kind: never in one column with them.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn.functional import cross_entropy

from craft.data.facts import split_facts
from craft.evaluation.figures import block_variance, by_stretch
from craft.evaluation.protocols import check_protocol
from craft.evaluation.scores import Evaluation, check_text
from craft.utils.terminal import progress_bar
from craft.utils.units import unit_of

RATES = (1e-5, 3e-5, 1e-4, 3e-4, 1e-3)
SEARCHED = 10_000
"""Ids of the end of the training text, on which a rate is found."""
MEASURED = 50
"""Stretches of the training text, on which gradients are measured."""


def evaluate_dynamic(
    model: Any,
    train: np.ndarray,
    ids: np.ndarray,
    *,
    block_size: int,
    tokenizer: Any,
    protocol: str = "dynamic",
    split: str = "validation",
    dataset: str = "",
    seed: int | None = None,
) -> Evaluation:
    """The score of a model over a text from which it learns as it reads, and the rate at which it does.

    Args:
        model: a `LanguageModel`; its weights stay as they are.
        train: ids [n] of the text it was trained on.
        ids: those that are predicted, from left to right in one pass.
        block_size: ids of a stretch of a recurrent model, twice those of another one, which sees the stretch
            before its own, too.
        protocol: "dynamic", or with the rate to learn at, see `protocols.is_dynamic`.
        seed: that the model was trained with.

    Returns:
        With the rate in its protocol.

    Raises:
        UserError: as `evaluate_split`.
    """
    unit = unit_of(tokenizer)
    check_text(model, ids, split, unit)
    check_protocol("blocks", model, block_size)
    reader = Reader(model, block_size)
    scales = reader.scales(train[: MEASURED * block_size + 1])
    typed = protocol.partition("-")[2]
    rate = float(typed) if typed else reader.best_rate(train[-SEARCHED:], scales)
    pieces = []
    with progress_bar(len(ids) - 1, unit.plural) as bar:
        for piece in reader.costs(ids, rate, scales):
            pieces.append(piece)
            bar.update(len(piece))
    costs = torch.cat(pieces).double()
    predicted = np.asarray(ids[1:])
    nats, counts = by_stretch(costs)
    return Evaluation(
        protocol=f"dynamic-{rate:g}",
        split=split,
        nats=float(costs.sum()),
        variance=block_variance(nats, counts),
        predictions=len(costs),
        units=int(tokenizer.id_units[predicted].sum()),
        bytes=int(tokenizer.id_bytes[predicted].sum()) if unit.has_bytes else None,
        correct=reader.correct,
        block_size=block_size,
        dataset=dataset,
        sha256=split_facts(ids, tokenizer)["sha256"],
        unit=unit.name,
        seed=seed,
        stretches=np.stack([nats, counts]),
    )


class Reader:
    """Reads a text from left to right by a copy of a model.

    Attributes:
        correct: how many ids of the text that was read last were the likeliest.
    """

    def __init__(self, model: Any, block_size: int) -> None:
        self.start = model
        self.carries = bool(model.carries_state)
        self.length = block_size if self.carries else max(1, block_size // 2)
        self.correct = 0

    def best_rate(self, ids: np.ndarray, scales: Sequence[Tensor]) -> float:
        """The rate by which a text costs least; they are tried until the text costs more again."""
        best, least = 0.0, math.inf
        for rate in RATES:
            nats = sum(float(costs.sum()) for costs in self.costs(ids, rate, scales))
            if not nats < least:  # also where it is NaN
                break
            best, least = rate, nats
        return best

    def costs(self, ids: np.ndarray, rate: float, scales: Sequence[Tensor]) -> Iterator[Tensor]:
        """Nats of the predictions of each stretch, [stretch], before the model learnt from it."""
        model = self._copy()
        weights = list(model.parameters())
        for costs in self._losses(model, ids):
            yield costs.detach().cpu()
            model.zero_grad()
            costs.mean().backward()
            with torch.no_grad():
                for weight, scale in zip(weights, scales, strict=True):
                    if weight.grad is not None:
                        weight -= rate * weight.grad / scale

    def scales(self, ids: np.ndarray) -> list[Tensor]:
        """For each weight the root mean square of its gradients on a text, and the mean of all of these, so
        that what hardly ever learnt doesn't leap."""
        model = self._copy()
        squares, stretches = [torch.zeros_like(weight) for weight in model.parameters()], 0
        for costs in self._losses(model, ids):
            stretches += 1
            model.zero_grad()
            costs.mean().backward()
            for square, weight in zip(squares, model.parameters()):
                if weight.grad is not None:
                    square += weight.grad.square()
        roots = [(square / stretches).sqrt() for square in squares]
        mean = sum(float(root.sum()) for root in roots) / sum(root.numel() for root in roots)
        return [root + max(mean, 1e-12) for root in roots]

    def _copy(self) -> Any:
        model = copy.deepcopy(self.start)
        model.eval()  # without dropout
        for module in model.modules():
            if hasattr(
                module, "weight_ih_l0"
            ):  # a recurrent cell: cuDNN keeps gradients in training mode alone
                module.train()
        return model

    def _losses(self, model: Any, ids: np.ndarray) -> Iterator[Tensor]:
        """The nats of each stretch, which gradients may flow back through."""
        self.correct, state = 0, None
        for begin in range(0, len(ids) - 1, self.length):
            end = min(begin + self.length, len(ids) - 1)
            first = begin if self.carries else max(0, begin - self.length)
            part = torch.from_numpy(np.asarray(ids[first : end + 1]).astype(np.int64)).to(model.device)
            outputs = model(input_ids=part[None, :-1], past_key_values=state, use_cache=self.carries)
            if self.carries:
                state = model.state_from_tensors(model.state_tensors(outputs.past_key_values))
            logits, wanted = outputs.logits[0, begin - first :].float(), part[1 + begin - first :]
            self.correct += int((logits.argmax(dim=-1) == wanted).sum())
            yield cross_entropy(logits, wanted, reduction="none")
