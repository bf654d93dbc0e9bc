"""What a recurrent layer does at one character: the cell, which is there to be edited or replaced.

All else follows from it: training, padding, packed texts, the carried state and its cache, beam search,
decoding and export (recurrence.py).
"""

from __future__ import annotations

from typing import Any, ClassVar

import torch
import torch.nn.functional as F
from torch import nn

State = tuple[torch.Tensor, ...]
"""What a layer remembers, each tensor [B, H]."""


class Cell(nn.Module):
    """The base of a cell. It holds the weights that read the input, a subclass its recurrent weights.

    All of them start uniform within ±1/sqrt(hidden_size), modules inside a cell as `_init_weights` of
    char_lstm.py says.

    Attributes:
        gates: how many gates of `hidden_size` the input is projected to.
        state_names: what the state tensors are called, in order.
        forget_gate: the index, from 0, of the gate to whose initial bias the config's `forget_bias` is added.
    """

    gates: ClassVar[int] = 1
    state_names: ClassVar[tuple[str, ...]] = ("hidden",)
    forget_gate: ClassVar[int | None] = None

    def __init__(self, config: Any) -> None:
        super().__init__()
        self.hidden_size = width = config.hidden_size
        self.weight_ih_l0 = nn.Parameter(torch.empty(self.gates * width, width))
        self.bias_ih_l0 = nn.Parameter(torch.empty(self.gates * width))

    def forward(self, projected: torch.Tensor, state: State) -> tuple[torch.Tensor, State]:
        """One character of each row.

        Args:
            projected: [B, gates * H], W_ih x + b, computed for the whole window at once.
            state: one tensor [B, H] for each of `state_names`; zeros where a text begins.

        Returns:
            `(output, state)`: the output [B, H], which the next layer reads, and the state after it, a tuple
            of one tensor [B, H] for each of `state_names`. Each read begins with it in the weights' format.
        """
        raise NotImplementedError


class LSTMCell(nn.RNNBase):
    """The standard cell, with the protocol of `Cell`; a subclass may add weights and replace `forward`.

    nn.RNNBase makes the weights, as those of an nn.LSTM: `weight_ih_l0`, `weight_hh_l0` [4H, H] and
    `bias_ih_l0`, `bias_hh_l0` [4H], the gates i, f, g, o one after the other.
    """

    gates: ClassVar[int] = 4
    state_names: ClassVar[tuple[str, ...]] = ("hidden", "cell")
    forget_gate: ClassVar[int | None] = 1
    fused = True  # PyTorch's kernels compute the `forward` below: delete this line if you edit that

    def __init__(self, config: Any) -> None:
        if self.gates != 4:
            name = type(self).__name__
            raise ValueError(f"{name} has gates={self.gates}, an LSTMCell weights for 4: derive from Cell")
        super().__init__("LSTM", config.hidden_size, config.hidden_size, batch_first=True)

    def forward(self, projected: torch.Tensor, state: State) -> tuple[torch.Tensor, State]:  # type: ignore[override]
        hidden, cell = state
        gates = projected + F.linear(hidden, self.weight_hh_l0, self.bias_hh_l0)
        i, f, g, o = gates.chunk(4, dim=-1)
        cell = f.sigmoid() * cell + i.sigmoid() * g.tanh()
        hidden = o.sigmoid() * cell.tanh()
        return hidden, (hidden, cell)


def is_fused(cell: nn.Module) -> bool:
    """Whether PyTorch's kernels may be used: for the standard cell itself, not for what derives from it."""
    return "fused" in vars(type(cell))
