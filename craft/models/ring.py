"""Fast decoding for the transformer: keys and values in a ring buffer of the last `size` characters.

Design: per layer one matrix product makes query, key and value; rotary pairs are laid side by side, so
that rotating them is one complex product; grouped queries are rows of one small attention. Small weights are
copied as [inputs, outputs] and keys kept as [head_dim, size], the layouts in which a CPU multiplies few rows
fastest.
"""

from __future__ import annotations

import copy
import math
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import torch
from torch import nn

from .elementwise import rms_norm_formula

SMALL = 1 << 17  # weights of a matrix; copying larger ones for a prompt takes longer than they save
_ROTATIONS_AT_ONCE = 512  # rotary angles are computed for this many positions at a time


class PackedLinear:
    """Some linear layers with the same input as one: x [B, inputs] -> [B, outputs].

    Args:
        rows: in which order their outputs are wanted.
    """

    def __init__(self, *layers: nn.Linear, rows: torch.Tensor | None = None) -> None:
        weight = layers[0].weight if len(layers) == 1 else torch.cat([layer.weight for layer in layers])
        weight = (weight if rows is None else weight[rows]).t()
        self.weight = weight.contiguous() if weight.numel() <= SMALL else weight
        has_bias = layers[0].bias is not None
        bias = torch.cat([layer.bias for layer in layers]) if has_bias else None
        self.bias = bias if bias is None or rows is None else bias[rows]

    def __call__(self, x: torch.Tensor) -> torch.Tensor:
        return torch.mm(x, self.weight) if self.bias is None else torch.addmm(self.bias, x, self.weight)

    def add_to(self, hidden: torch.Tensor, x: torch.Tensor) -> torch.Tensor:
        """hidden + what it makes of x."""
        if self.bias is not None:
            hidden = hidden + self.bias
        return torch.addmm(hidden, x, self.weight)


@dataclass(slots=True)
class _Layer:
    """What a layer needs for one character, at hand without the look-ups of modules and configs, which would
    take a tenth of its time."""

    norm: Any
    qkv: PackedLinear
    out: PackedLinear
    mlp_norm: Any
    up: PackedLinear
    activate: Any
    down: PackedLinear
    keys: torch.Tensor  # [B * shared heads, head_dim, size]
    values: torch.Tensor  # [B * shared heads, size, head_dim]


class Ring:
    """Decoding state of a transformer after a prefill; position p lives in slot p % size.

    Rows that were joined have positions of their own, `offsets` behind `length`. All of them write to the
    same slot, and each sees as many slots back as it has characters.

    Args:
        model: the backbone; small weights of its layers are copied here, so a later training step does not
            show in them.
        cache: keys and values of the prompt, as `generate` keeps them (a sliding window: the last size - 1).
        length: how many characters of the prompt were read.
    """

    def __init__(self, model: Any, cache: Any, length: int) -> None:
        config, first = model.config, cache.layers[0].keys
        self.size: int = config.sliding_window or config.max_position_embeddings
        self.length = length
        self._set_offsets([0] * len(first), first.device)
        self.heads, self.shared = config.num_attention_heads, config.num_key_value_heads
        self.dim, self.rotary = config.head_dim, config.position == "rope"
        self.scale = config.attention_scale
        self.projections = 1 if model.layers[0].mlp.gate_proj is None else 2
        pairs = torch.arange(self.dim, device=first.device)
        values_from = (self.heads + self.shared) * self.dim
        rows = torch.arange(values_from + self.shared * self.dim, device=first.device)
        if self.rotary:
            # Rotary pairs (i, i + dim/2) side by side, in queries and keys alike: products stay the same.
            pairs = pairs.view(2, -1).t().flatten()
            rows[:values_from] = rows[:values_from].view(-1, self.dim)[:, pairs].flatten()
        self.no_mask = first.new_zeros(1, 1, 1)
        self.precise = torch.promote_types(first.dtype, torch.float32)
        eps = first.new_full((), config.norm_eps, dtype=self.precise)
        rms_norm = partial(rms_norm_formula, eps=eps)
        self.qk_norm = rms_norm if config.qk_norm else None
        plain = config.norm == "rmsnorm" and not config.norm_weight

        def norm(module: nn.Module) -> Any:
            return rms_norm if plain else module

        self.norm, self.layers = norm(model.norm), []
        for layer, cached in zip(model.layers, cache.layers):
            attention, mlp = layer.self_attn, layer.mlp
            kept = cached.keys.shape[2]
            slots = torch.arange(self.length - kept, self.length, device=first.device) % self.size
            all_heads = len(first) * self.shared
            keys, values = (
                first.new_zeros(all_heads, self.dim, self.size),
                first.new_zeros(all_heads, self.size, self.dim),
            )
            keys[..., slots] = cached.keys[..., pairs].mT.flatten(0, 1)
            values[:, slots] = cached.values.flatten(0, 1)
            self.layers.append(
                _Layer(
                    norm=norm(layer.input_layernorm),
                    qkv=PackedLinear(attention.q_proj, attention.k_proj, attention.v_proj, rows=rows),
                    out=PackedLinear(attention.o_proj),
                    mlp_norm=norm(layer.post_attention_layernorm),
                    up=PackedLinear(*(p for p in (mlp.up_proj, mlp.gate_proj) if p is not None)),
                    activate=mlp.activate,
                    down=PackedLinear(mlp.down_proj),
                    keys=keys,
                    values=values,
                )
            )

    def _set_offsets(self, offsets: list[int], device: Any) -> None:
        self.offsets, self.offset_column = offsets, torch.tensor(offsets, device=device)[:, None]
        self.rotations_from, self.rotations = 0, torch.empty(len(offsets), 0)

    def take(self, rows: list[int]) -> Ring:
        """The state of these rows."""
        taken = copy.copy(self)
        taken._set_offsets([self.offsets[row] for row in rows], self.offset_column.device)
        heads = [row * self.shared + head for row in rows for head in range(self.shared)]
        taken.layers = [replace(x, keys=x.keys[heads], values=x.values[heads]) for x in self.layers]
        return taken

    def join(self, others: list[Ring]) -> Ring:
        """One state for the rows of this one and then those of the others."""
        rings, joined = (self, *others), copy.copy(self)
        joined.length = max(self.length, *(ring.length for ring in others))
        shifts = [joined.length - ring.length for ring in rings]
        offsets = [row + shift for ring, shift in zip(rings, shifts) for row in ring.offsets]
        joined._set_offsets(offsets, self.offset_column.device)

        def side_by_side(tensors: list[torch.Tensor], dim: int) -> torch.Tensor:
            return torch.cat([tensor.roll(shift, dim) for tensor, shift in zip(tensors, shifts)])

        joined.layers = [
            replace(
                layers[0],
                keys=side_by_side([layer.keys for layer in layers], 2),
                values=side_by_side([layer.values for layer in layers], 1),
            )
            for layers in zip(*(ring.layers for ring in rings))
        ]
        return joined

    @torch.inference_mode()  # an eighth less time than `no_grad` for the small tensors of one character
    def advance(self, model: Any, ids: torch.Tensor) -> torch.Tensor:
        """Read one character per row, ids [B]: its last hidden state [B, hidden_size], normed."""
        dim, heads, shared = self.dim, self.heads, self.shared
        both = heads + shared
        slot, filled = self.length % self.size, min(self.length + 1, self.size)
        # What is added to the products of queries and keys: -inf hides a slot.
        mask = self.no_mask
        if self.length - max(self.offsets) + 1 < filled:
            ages = (self.length - torch.arange(filled, device=ids.device)) % self.size
            mask = torch.zeros(len(ids), 1, filled, dtype=mask.dtype, device=ids.device)
            mask[ages > self.length - self.offset_column[:, None]] = -math.inf
            mask = mask.repeat_interleave(shared, dim=0)
        hidden = model.embed_tokens(ids)
        if self.rotary:
            rotation = self._rotation(model, hidden)
        else:
            hidden = hidden + model.embed_positions.weight[self.length]
        self.length += 1
        for layer in self.layers:
            keys, values = layer.keys, layer.values
            qkv = layer.qkv(layer.norm(hidden)).view(-1, both + shared, dim)
            query_key, value = qkv.narrow(1, 0, both), qkv.narrow(1, both, shared)
            if self.qk_norm is not None:
                query_key = self.qk_norm(query_key)
            if self.rotary:
                pairs = torch.view_as_complex(query_key.float().view(-1, both, dim // 2, 2))
                query_key = torch.view_as_real(pairs * rotation).view(-1, both, dim).to(value.dtype)
            keys.select(2, slot).copy_(query_key.narrow(1, heads, shared).reshape(-1, dim))
            values.select(1, slot).copy_(value.reshape(-1, dim))
            if filled < self.size:
                keys, values = keys.narrow(2, 0, filled), values.narrow(1, 0, filled)
            # All heads that share a key are rows of one product.
            query = query_key.narrow(1, 0, heads).reshape(-1, heads // shared, dim)
            products = torch.baddbmm(mask, query, keys, alpha=self.scale)
            weights = products.softmax(-1, dtype=self.precise).to(value.dtype)
            attended = torch.bmm(weights, values).view(-1, heads * dim)
            hidden = layer.out.add_to(hidden, attended)
            projected = layer.up(layer.mlp_norm(hidden)).chunk(self.projections, dim=-1)
            inner = layer.activate(*projected)
            hidden = layer.down.add_to(hidden, inner)
        return self.norm(hidden)

    def _rotation(self, model: Any, like: torch.Tensor) -> torch.Tensor:
        """e^(i angle) of the present position of each row, [B, 1, head_dim / 2]."""
        if self.length >= self.rotations_from + self.rotations.shape[1]:
            start = self.rotations_from = self.length
            places = torch.arange(start, start + _ROTATIONS_AT_ONCE, device=like.device)
            positions = places - self.offset_column
            cos, sin = (t[..., : self.dim // 2] for t in model.rotary_emb(like.float(), positions))
            self.rotations = torch.complex(cos, sin)
        return self.rotations[:, self.length - self.rotations_from, None]
