"""Bytes of a model in training, for messages about memory."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from torch import Tensor, nn

STATE_SIZES = {"adafactor": 0.1, "8bit": 0.5, "4bit": 0.25, "lion": 1, "adagrad": 1, "rmsprop": 1, "sgd": 0}
"""Of an optimizer, as multiples of the parameters' size; the others keep two moments of every parameter."""


@dataclass(frozen=True)
class Sizes:
    """Bytes of a model in training.

    Args:
        parameters: the weights, tied ones once, and buffers.
        trainable: the part of them that has gradients.
        optimizer: its state, once it has taken a step.
        average: a second copy of the weights.
    """

    parameters: int
    trainable: int
    optimizer: int
    average: int

    @classmethod
    def of(cls, model: nn.Module, optim: str, average: bool) -> Sizes:
        buffers = sum(_size(buffer) for buffer in model.buffers())
        weights = list(model.parameters())
        trained = [p for p in weights if p.requires_grad]
        if optim == "muon":  # one buffer for the matrices inside the blocks, two moments for the rest
            of_muon: Any = getattr(model, "muon_blocks", lambda name: 0)
            named = [(name, p) for name, p in model.named_parameters() if p.requires_grad]
            state = sum(_size(p) * (1 if p.ndim == 2 and of_muon(name) else 2) for name, p in named)
        else:
            share = next((share for name, share in STATE_SIZES.items() if name in optim), 2)
            state = int(share * sum(_size(p) for p in trained))
        total = sum(_size(p) for p in weights)
        return cls(total + buffers, sum(_size(p) for p in trained), state, total if average else 0)


def bytes_text(size: float) -> str:
    """`13_400_000 -> '13.4 MB'`."""
    for limit, name in ((1e9, "GB"), (1e6, "MB"), (1e3, "kB")):
        if size >= limit:
            return f"{size / limit:.1f} {name}"
    return f"{size:.0f} bytes"


def _size(tensor: Tensor | Any) -> int:
    return int(tensor.numel() * tensor.element_size())
