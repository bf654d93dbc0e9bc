"""Reads a stretch of text by a cell: whole, padded, packed, one character at a time, in an exported graph.

Special here: any cell is read by one loop, which exporters find as a loop; padding never touches the state
and packed texts don't see each other. For the standard cell PyTorch's kernels do the same, faster.
Hub-safe: copied beside the weights by `save_pretrained`.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor
from torch._higher_order_ops.scan import scan

from .cells import State, is_fused

_UNROLLED = 32  # steps that a compiler may read one by one; longer stretches stay out of its reach


class Layout(NamedTuple):
    """Of a batch that isn't plain: `real` [B, T] is false where there is padding, `begins` [B, T] true where
    a text begins behind another one. The rest is `packed_layout`'s, for kernels."""

    real: Tensor | None = None
    begins: Tensor | None = None
    chunks: list[tuple[Tensor, Tensor]] | None = None
    last: Tensor | None = None


def read(cell: Any, hidden: Tensor, state: State | None, layout: Layout) -> tuple[Tensor, State]:
    """`hidden` [B, T, H] and the state before it (None: zeros) -> outputs [B, T, H] and the state after it.

    Padding has no output; a row of nothing else keeps its state.
    """
    hook = getattr(cell, "_hf_hook", None)
    if hook is not None:  # Accelerate fetches weights when their module is called, and a step is too late
        hook.pre_forward(cell)
    weight = cell.weight_ih_l0
    if state is None:
        state = tuple(weight.new_zeros(hidden.shape[0], cell.hidden_size) for _ in cell.state_names)
    state = tuple(part.to(weight.dtype) for part in state)
    if isinstance(hidden.shape[1], torch.SymInt):  # in torch.export, of any length
        way = _scanned
    else:
        way = _loop if in_steps(hidden.shape[1]) else _long
    output, state = way(cell, hidden, state, layout)
    if hook is not None:
        hook.post_forward(cell, None)
    return output, state


def in_steps(steps: int) -> bool:
    """Whether the loop reads so much whatever the cell: no kernel is worth it, or a compiler unrolls it."""
    return steps == 1 or (torch.compiler.is_compiling() and steps <= _UNROLLED)


def project(cell: Any, hidden: Tensor) -> Tensor:
    """[..., H] -> [..., gates * H], what `cell` is given."""
    return F.linear(hidden, cell.weight_ih_l0, cell.bias_ih_l0)


def _advance(
    cell: Any, projected: Tensor, state: State, real: Tensor | None, begins: Tensor | None
) -> tuple[Tensor, State]:
    if begins is not None:
        state = tuple(part.masked_fill(begins, 0) for part in state)
    output, after = cell(projected, state)
    if real is not None:
        output = output.masked_fill(~real, 0)
        after = tuple(torch.where(real, new, old) for new, old in zip(after, state))
    return output, after


def _loop(cell: Any, hidden: Tensor, state: State, layout: Layout) -> tuple[Tensor, State]:
    steps, outputs = hidden.shape[1], []
    columns = [[None] * steps if part is None else part[..., None].unbind(1) for part in layout[:2]]
    for projected, real, begins in zip(project(cell, hidden).unbind(1), *columns):
        output, state = _advance(cell, projected, state, real, begins)
        outputs.append(output)
    return torch.stack(outputs, dim=1), state


def _scanned(cell: Any, hidden: Tensor, state: State, layout: Layout) -> tuple[Tensor, State]:
    """The loop as torch.export keeps it, instead of unrolling it to its example's length."""
    inputs = [project(cell, hidden)]
    if layout.real is not None:
        inputs.append(layout.real[..., None])

    def step(carry: list[Tensor], inputs: list[Tensor]) -> tuple[list[Tensor], Tensor]:
        projected, real = (*inputs, None)[:2]
        output, after = _advance(cell, projected, tuple(carry), real, None)
        return list(after), output.clone()

    after, outputs = scan(step, [part.contiguous() for part in state], inputs, dim=1)
    return outputs, tuple(after)


@torch.compiler.disable(
    reason=f"a recurrent layer is compiled in one graph only up to {_UNROLLED} characters"
)
def _long(cell: Any, hidden: Tensor, state: State, layout: Layout) -> tuple[Tensor, State]:
    """Out of reach of compilers: they would write out every step, for minutes."""
    if not is_fused(cell):
        return _loop(cell, hidden, state, layout)
    if layout.chunks is None:
        return _kernel(cell, hidden, state)
    if layout.last is not None:
        state = tuple(part.new_zeros(int(layout.last[-1]) + 1, part.shape[1]) for part in state)
    characters = hidden.flatten(0, 1)
    out = torch.zeros_like(characters)
    for texts, places in layout.chunks:
        read, after = _kernel(cell, characters[places], tuple(part[texts] for part in state))
        out = out.index_copy(0, places.flatten(), read.flatten(0, 1).to(out.dtype))
        state = tuple(old.index_copy(0, texts, new.to(old.dtype)) for old, new in zip(state, after))
    return out.view_as(hidden), state if layout.last is None else tuple(part[layout.last] for part in state)


@torch.compiler.disable(reason="lengths decide how padded and packed texts are read")
def packed_layout(real: Tensor | None, begins: Tensor | None) -> Layout:
    """How kernels, which know no padding, read texts of unequal lengths in few calls and no step too many.

    A length is a sum of powers of two. So all texts whose length holds 2^k are read that far side by side,
    from the largest power to the smallest, each going on where it was.

    Returns:
        `chunks`: which texts are read together, [n], and the places of their next characters, [n, 2^k].
        `last`: of texts behind one another the last one of each row, [B].
    """
    if begins is None:  # a text is what is real of a row
        assert real is not None
        texts, last = torch.arange(len(real), device=real.device)[:, None].expand(real.shape)[real], None
        characters, count = real.flatten().nonzero()[:, 0], len(real)
    else:
        rows = torch.cat([torch.ones_like(begins[:, :1]), begins[:, 1:]], dim=1)
        texts = rows.flatten().cumsum(0) - 1
        last = texts.view_as(begins)[:, -1]
        characters, count = torch.arange(len(texts), device=texts.device), int(last[-1]) + 1
    lengths = texts.bincount(minlength=count)
    read, chunks = lengths.cumsum(0) - lengths, []
    for power in reversed(range(int(lengths.max()).bit_length())):
        together = (lengths >> power & 1).nonzero()[:, 0]
        if len(together):
            steps = torch.arange(2**power, device=read.device)
            chunks.append((together, characters[read[together, None] + steps]))
            read[together] += 2**power
    return Layout(real, begins, chunks, last)


def _kernel(cell: Any, hidden: Tensor, state: State) -> tuple[Tensor, State]:
    """PyTorch's own loop over whole windows."""
    weights, state = cell.all_weights[0], tuple(part[None] for part in state)
    if hidden.device.type == "cpu" and torch.is_autocast_enabled("cpu"):
        # Autocast would send these to oneDNN in its format, also where oneDNN has no LSTM of that format.
        # Tensors that have the format already go there only if it has one, and the result is the same.
        dtype = torch.get_autocast_dtype("cpu")
        hidden, state = hidden.to(dtype), tuple(part.to(dtype) for part in state)
        weights = [weight.to(dtype) for weight in weights]
    out, h, c = torch.lstm(hidden, state, weights, True, 1, 0.0, cell.training, False, True)
    return out, (h[0], c[0])


def one_step(cell: Any) -> Callable[[Tensor, State], tuple[Tensor, State]]:
    """How to read one character at a time: x [B, H] and the state -> the output and the state after it.

    The standard cell's weights are copied, so that a step is one matrix product; its state is overwritten.
    """
    if not is_fused(cell):
        return lambda x, state: cell(project(cell, x), state)
    w_ih, w_hh, b_ih, b_hh = cell.all_weights[0]
    i, f, g, o = torch.cat([torch.cat([w_ih, w_hh], dim=1), (b_ih + b_hh)[:, None]], dim=1).chunk(4)
    weight, width = torch.cat([i, f, o, g]).t().contiguous(), cell.hidden_size
    weight, bias = weight[:-1], weight[-1]

    def step(x: Tensor, state: State) -> tuple[Tensor, State]:
        hidden, c = state
        gates = torch.addmm(bias, torch.cat((x, hidden), dim=1), weight)
        ifo = gates[:, : 3 * width].sigmoid_()
        c = c.mul_(ifo[:, width : 2 * width]).addcmul_(ifo[:, :width], gates[:, 3 * width :].tanh_())
        hidden = c.tanh().mul_(ifo[:, 2 * width :])
        return hidden, (hidden, c)

    return step
