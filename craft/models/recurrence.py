"""One layer of an LSTM over a stretch of text, in whatever way the stretch is to be read.

Special here: padding never touches the state, texts packed behind one another don't see each other, one step
costs a fraction of what nn.LSTM takes for it, and exporters find a loop. The weights are those of nn.LSTM.
Hub-safe: copied beside the weights by `save_pretrained`.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import nn
from torch._higher_order_ops.scan import scan

_UNROLLED = 32  # steps that a compiler may read one by one; longer stretches stay with PyTorch's own kernel
_SHUT = 1e4  # far beyond where a sigmoid is 0 or 1 exactly, in every floating-point type


def lay_apart(texts: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Where the characters of packed texts go, numbered in their row by `texts` [B, T] from 0.

    Before each text but the first there is a step that empties the state: a further input closes all gates.
    So a row costs its characters and its texts; one with fewer of these begins with empty steps.

    Returns:
        The places of the characters [B, T], and which of all steps [B, T + most texts - 1] are the emptying.
    """
    batch, steps = texts.shape
    most = int(texts.max())
    places = torch.arange(steps, device=texts.device) + texts + most - texts[:, -1:]
    empty = torch.ones(batch, steps + most, dtype=torch.bool, device=texts.device).scatter(1, places, False)
    return places, empty


@torch.compiler.disable(reason=f"an LSTM is compiled in one graph only up to {_UNROLLED} characters")
def _kernel(
    read: torch.Tensor, state: tuple[torch.Tensor, ...], weights: list[torch.Tensor], training: bool
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """PyTorch's own loop, out of reach of compilers: they would write out every step, for minutes."""
    if read.device.type == "cpu" and torch.is_autocast_enabled("cpu"):
        # Autocast would send these to oneDNN in its format, also where oneDNN has no LSTM of that format.
        # Tensors that have the format already go there only if it has one, and the result is the same.
        dtype = torch.get_autocast_dtype("cpu")
        read, state = read.to(dtype), tuple(part.to(dtype) for part in state)
        weights = [weight.to(dtype) for weight in weights]
    return torch.lstm(read, state, weights, True, 1, 0.0, training, False, True)


class Recurrence(nn.RNNBase):
    """One LSTM layer that also reads around padding, apart from text to text, and step by step.

    A module, since whatever fetches weights when a module is called (Accelerate's hooks) knows no other time;
    not an nn.LSTM, since torch.compile refuses every one of those unless it is told otherwise.
    """

    def __init__(self, input_size: int, hidden_size: int) -> None:
        super().__init__("LSTM", input_size, hidden_size, batch_first=True)

    def forward(  # type: ignore[override]
        self,
        hidden: torch.Tensor,
        state: tuple[torch.Tensor, ...] | None = None,
        mask: torch.Tensor | None = None,
        texts: tuple[torch.Tensor, torch.Tensor] | None = None,
    ) -> tuple[torch.Tensor, tuple[torch.Tensor, ...]]:
        """`hidden` [B, T, H] and the state before it (h, c) [1, B, H] -> [B, T, H] and the state after it.

        Args:
            mask: [B, T], false where there is padding.
            texts: what `lay_apart` makes of packed ones; excludes the other two.
        """
        steps = hidden.shape[1]
        if texts is not None:
            return self._apart(hidden, *texts)
        if isinstance(steps, torch.SymInt):  # in torch.export, of any length
            return self._scanned(hidden, mask, state)
        if steps == 1 or (torch.compiler.is_dynamo_compiling() and steps <= _UNROLLED):
            return self._step_by_step(hidden, mask, state)
        if mask is not None:
            return self._padded(hidden, mask, state)
        state = self._empty(hidden.shape[0]) if state is None else state
        return self._by_kernel(hidden, state, self.all_weights[0])

    def _step_by_step(
        self, hidden: torch.Tensor, mask: torch.Tensor | None, state: tuple[torch.Tensor, ...] | None
    ) -> tuple[torch.Tensor, tuple[torch.Tensor, ...]]:
        """By the cell: for one step a fraction of what nn.LSTM costs on a CPU, and compilers can read it."""
        zeros = hidden.new_zeros(hidden.shape[0], hidden.shape[2], dtype=self.all_weights[0][0].dtype)
        h, c = (t[0] for t in state) if state is not None else (zeros, zeros)
        outputs = []
        for t in range(hidden.shape[1]):
            after = torch.lstm_cell(hidden[:, t], [h, c], *self.all_weights[0])
            if mask is not None:
                real = mask[:, t, None]
                after = [torch.where(real, new, old) for new, old in zip(after, (h, c))]
            h, c = after
            outputs.append(h if mask is None else h * real)
        return torch.stack(outputs, dim=1), (h, c)

    def _scanned(
        self, hidden: torch.Tensor, mask: torch.Tensor | None, state: tuple[torch.Tensor, ...] | None
    ) -> tuple[torch.Tensor, tuple[torch.Tensor, ...]]:
        """By a scan, which torch.export keeps as a loop; nn.LSTM it would unroll to its example's length."""
        w_ih, w_hh, b_ih, b_hh = self.all_weights[0]
        zeros = hidden.new_zeros(hidden.shape[0], hidden.shape[2])
        start = [state[0][0], state[1][0]] if state is not None else [zeros, zeros.clone()]
        inputs = [F.linear(hidden, w_ih, b_ih + b_hh)]
        if mask is not None:
            inputs.append(mask[..., None])

        def step(carry: list[torch.Tensor], read: list[torch.Tensor]) -> tuple[list[torch.Tensor], Any]:
            i, f, g, o = (read[0] + carry[0] @ w_hh.t()).chunk(4, dim=-1)
            c = f.sigmoid() * carry[1] + i.sigmoid() * g.tanh()
            out = h = o.sigmoid() * c.tanh()
            if mask is not None:
                out = h * read[1]
                h, c = torch.where(read[1], h, carry[0]), torch.where(read[1], c, carry[1])
            return [h, c], out.clone()

        (h, c), outputs = scan(step, start, inputs, dim=1)
        return outputs, (h[None], c[None])

    def _padded(
        self, hidden: torch.Tensor, mask: torch.Tensor, state: tuple[torch.Tensor, ...] | None
    ) -> tuple[torch.Tensor, tuple[torch.Tensor, ...]]:
        """Run over the real characters only, wherever the padding is; a row without any keeps its state.

        The real characters come first, in their order. Behind them a further input closes the input gate and
        opens the forget gate, so that c stays as it is; h is that at the last real character. Unlike packed
        sequences that waits for no lengths, and exporters can read it.
        """
        batch, steps, width = hidden.shape
        state = self._empty(batch) if state is None else state
        lengths = mask.sum(dim=1)
        places = torch.where(mask, mask.cumsum(1), lengths[:, None] + mask.logical_not().cumsum(1)) - 1
        index = places[..., None].expand(-1, -1, width)
        ended = torch.arange(steps, device=mask.device) >= lengths[:, None]
        read = torch.zeros_like(hidden).scatter(1, index, hidden)
        out, (_, c) = self._gated(read, ended, (-_SHUT, _SHUT, 0.0, 0.0), state)
        last = (lengths - 1).clamp(min=0)[:, None, None].expand(-1, -1, width)
        h = torch.where(lengths[:, None] > 0, out.gather(1, last)[:, 0], state[0][0])
        return out.masked_fill(ended[..., None], 0).gather(1, index), (h[None], c)

    def _apart(
        self, hidden: torch.Tensor, places: torch.Tensor, empty: torch.Tensor
    ) -> tuple[torch.Tensor, tuple[torch.Tensor, ...]]:
        """Texts packed behind one another, laid out by `lay_apart`, each from an empty state."""
        batch, _, width = hidden.shape
        index = places[..., None].expand(-1, -1, width)
        read = hidden.new_zeros(batch, empty.shape[1], width).scatter(1, index, hidden)
        out, state = self._gated(read, empty, (-_SHUT, -_SHUT, 0.0, 0.0), self._empty(batch))
        return out.gather(1, index), state

    def _gated(
        self,
        read: torch.Tensor,
        extra: torch.Tensor,
        gates: tuple[float, ...],
        state: tuple[torch.Tensor, ...],
    ) -> tuple[torch.Tensor, tuple[torch.Tensor, ...]]:
        """PyTorch's kernel where `extra` [B, T], true or false, is a further input with those weights on the
        input, forget, cell and output gates."""
        w_ih, w_hh, b_ih, b_hh = self.all_weights[0]
        column = torch.tensor(gates, dtype=w_ih.dtype, device=w_ih.device).repeat_interleave(self.hidden_size)
        weights = [torch.cat([w_ih, column[:, None]], dim=1), w_hh, b_ih, b_hh]
        read = torch.cat([read, extra[..., None].to(read.dtype)], dim=2)
        return self._by_kernel(read, state, weights)

    def _by_kernel(
        self, read: torch.Tensor, state: tuple[torch.Tensor, ...], weights: list[torch.Tensor]
    ) -> tuple[torch.Tensor, tuple[torch.Tensor, ...]]:
        out, h, c = _kernel(read, state, weights, self.training)
        return out, (h, c)

    def _empty(self, batch: int) -> tuple[torch.Tensor, torch.Tensor]:
        w_ih = self.all_weights[0][0]
        return w_ih.new_zeros(1, batch, self.hidden_size), w_ih.new_zeros(1, batch, self.hidden_size)
