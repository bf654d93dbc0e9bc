"""Reads a text by a cell: a window at once, padded or not, one character at a time, in an exported graph.

Design: any cell is read by one loop, which exporters find as a loop, and padding never touches the
state. For the standard cell PyTorch's kernels do the same, faster.
"""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor
from torch._higher_order_ops.scan import scan

from .cells import State, is_fused

_UNROLLED = 32  # steps that a compiler may read one by one; longer stretches stay out of its reach


class Padding(NamedTuple):
    """Which characters of a batch are real, [B, T], and how kernels read them (see `padded_chunks`)."""

    real: Tensor
    chunks: list[tuple[Tensor, Tensor]] | None = None


def run_cell(cell: Any, hidden: Tensor, state: State | None, padding: Padding | None) -> tuple[Tensor, State]:
    """`hidden` [B, T, H] and the state before it (None: zeros) -> outputs [B, T, H] and the state after it.

    Padding has no output; a row of nothing else keeps its state.
    """
    hook = getattr(cell, "_hf_hook", None)
    if hook is not None:  # of Accelerate, which loads offloaded weights when their module is called
        hook.pre_forward(cell)
    weight = cell.weight_ih_l0
    if state is None:
        state = tuple(weight.new_zeros(hidden.shape[0], cell.hidden_size) for _ in cell.state_names)
    state = tuple(part.to(weight.dtype) for part in state)
    if isinstance(hidden.shape[1], torch.SymInt):  # in torch.export, of any length
        output, state = _scan(cell, hidden, state, padding)
    elif prefers_loop(hidden.shape[1]):
        output, state = _loop(cell, hidden, state, padding)
    else:
        output, state = _run_uncompiled(cell, hidden, state, padding)
    if hook is not None:
        hook.post_forward(cell, None)
    return output, state


def prefers_loop(steps: int) -> bool:
    """Whether the loop reads so much whatever the cell: no kernel is worth it, or a compiler unrolls it."""
    return steps == 1 or (torch.compiler.is_compiling() and steps <= _UNROLLED)


def project(cell: Any, hidden: Tensor) -> Tensor:
    """[..., H] -> [..., gates * H], what `cell` is given."""
    return F.linear(hidden, cell.weight_ih_l0, cell.bias_ih_l0)


def _masked_step(cell: Any, projected: Tensor, state: State, real: Tensor | None) -> tuple[Tensor, State]:
    output, after = cell(projected, state)
    if not isinstance(after, tuple) or len(after) != len(state):
        count = len(after) if isinstance(after, tuple) else type(after).__name__
        raise ValueError(
            f"{type(cell).__name__}.forward must return (output, state), the state a tuple of {len(state)} "
            f"tensors ({', '.join(cell.state_names)}), got {count}"
        )
    if real is not None:
        output = output.masked_fill(~real, 0)
        after = tuple(torch.where(real, new, old) for new, old in zip(after, state))
    return output, after


def _loop(cell: Any, hidden: Tensor, state: State, padding: Padding | None) -> tuple[Tensor, State]:
    outputs, steps = [], hidden.shape[1]
    masks = [None] * steps if padding is None else padding.real[..., None].unbind(1)
    for projected, real in zip(project(cell, hidden).unbind(1), masks):
        output, state = _masked_step(cell, projected, state, real)
        outputs.append(output)
    return torch.stack(outputs, dim=1), state


def _scan(cell: Any, hidden: Tensor, state: State, padding: Padding | None) -> tuple[Tensor, State]:
    """The loop as torch.export keeps it, instead of unrolling it to its example's length."""
    inputs = [project(cell, hidden)]
    if padding is not None:
        inputs.append(padding.real[..., None])

    def step(carry: list[Tensor], inputs: list[Tensor]) -> tuple[list[Tensor], Tensor]:
        projected, real = (*inputs, None)[:2]
        output, after = _masked_step(cell, projected, tuple(carry), real)
        return list(after), output.clone()

    after, outputs = scan(step, [part.contiguous() for part in state], inputs, dim=1)
    return outputs, tuple(after)


@torch.compiler.disable(
    reason=f"a recurrent layer is compiled in one graph only up to {_UNROLLED} characters"
)
def _run_uncompiled(cell: Any, hidden: Tensor, state: State, padding: Padding | None) -> tuple[Tensor, State]:
    """Out of reach of compilers: they would write out every step, for minutes."""
    if not is_fused(cell):
        return _loop(cell, hidden, state, padding)
    if padding is None or padding.chunks is None:
        return _kernel(cell, hidden, state)
    characters = hidden.flatten(0, 1)
    out = torch.zeros_like(characters)
    for rows, places in padding.chunks:
        outputs, after = _kernel(cell, characters[places], tuple(part[rows] for part in state))
        out = out.index_copy(0, places.flatten(), outputs.flatten(0, 1).to(out.dtype))
        state = tuple(old.index_copy(0, rows, new.to(old.dtype)) for old, new in zip(state, after))
    return out.view_as(hidden), state


@torch.compiler.disable(reason="lengths decide how padded texts are read")
def padded_chunks(real: Tensor) -> list[tuple[Tensor, Tensor]]:
    """How kernels, which know no padding, read rows of unequal lengths in few calls and no step too many.

    A length is a sum of powers of two. So all rows whose length holds 2^k are read that far side by side,
    from the largest power to the smallest, each going on where it was.

    Returns:
        For each call its rows, [n], and the places of their next characters in the flat batch, [n, 2^k].
    """
    characters, lengths = real.flatten().nonzero()[:, 0], real.sum(dim=1)
    at, chunks = lengths.cumsum(0) - lengths, []
    for power in reversed(range(int(lengths.max()).bit_length())):
        rows = (lengths >> power & 1).nonzero()[:, 0]
        if len(rows):
            steps = torch.arange(2**power, device=at.device)
            chunks.append((rows, characters[at[rows, None] + steps]))
            at[rows] += 2**power
    return chunks


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


def check_kernel(cell_class: Any, config: Any) -> None:
    """Compares a cell that is marked `fused` with PyTorch's kernels, on two rows of three characters.

    Raises:
        ValueError: if its `forward` computes something else.
    """
    config = copy.copy(config)
    config.hidden_size = 4
    # On the CPU, wherever the model is, and without a random number of the run that follows.
    with torch.device("cpu"), torch.no_grad(), torch.random.fork_rng(devices=[]):
        cell = cell_class(config).float()
        for parameter in cell.parameters():
            parameter.copy_(torch.arange(1.0, parameter.numel() + 1).sin().view_as(parameter))
        hidden = torch.arange(24.0).cos().view(2, 3, 4).float()
        state = tuple(hidden[:, n] for n in range(2))
        if not torch.allclose(
            _loop(cell, hidden, state, None)[0], _kernel(cell, hidden, state)[0], atol=1e-3
        ):
            raise ValueError(
                f"{cell_class.__name__}.forward isn't what PyTorch's kernels compute, which are used in its "
                f"place: delete the line `fused` of {cell_class.__name__}"
            )


def one_step(cell: Any) -> Callable[[Tensor, State], tuple[Tensor, State]]:
    """How to read one character at a time: x [B, H] and the state -> the output and the state after it.

    The standard cell's weights are copied, so that a step is one matrix product; its state is overwritten.
    """
    if not is_fused(cell):
        return lambda x, state: _masked_step(cell, project(cell, x), state, None)
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
