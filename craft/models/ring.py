"""Fast decoding for the transformer: keys and values in a ring buffer of the last `size` characters.

Design: per layer one matrix product makes query, key and value; rotary pairs are laid side by side, so
that rotating them is one complex product; grouped queries are rows of one small attention.
"""

from __future__ import annotations

import copy
from dataclasses import dataclass, replace
from typing import Any

import torch
import torch.nn.functional as F
from torch import nn

from .elementwise import rms_norm

_ROTATIONS_AT_ONCE = 512  # rotary angles are computed for this many positions at a time


@dataclass(slots=True)
class _Layer:
    """What a layer needs for one character, at hand without the look-ups of modules and configs, which would
    take a tenth of its time."""

    norm: nn.Module
    qkv: torch.Tensor
    qkv_bias: torch.Tensor | None
    out: Any
    mlp_norm: nn.Module
    mlp: Any
    down: Any
    keys: torch.Tensor
    values: torch.Tensor


class Ring:
    """Decoding state of a transformer after a prefill; position p lives in slot p % size.

    Rows that were joined have positions of their own, `offsets` behind `length`. All of them write to the
    same slot, and each sees as many slots back as it has characters.

    Args:
        model: the backbone; its attention weights are copied here, so a later training step does not show.
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
        self.qk_eps = config.norm_eps if config.qk_norm else None
        self.scale = config.attention_scale
        pairs = torch.arange(self.dim, device=first.device)
        values_from = (self.heads + self.shared) * self.dim
        rows = torch.arange(values_from + self.shared * self.dim, device=first.device)
        if self.rotary:
            # Rotary pairs (i, i + dim/2) side by side, in queries and keys alike: products stay the same.
            pairs = pairs.view(2, -1).t().flatten()
            rows[:values_from] = rows[:values_from].view(-1, self.dim)[:, pairs].flatten()
        self.layers: list[_Layer] = []
        for layer, cached in zip(model.layers, cache.layers):
            projections = (layer.self_attn.q_proj, layer.self_attn.k_proj, layer.self_attn.v_proj)
            weight = torch.cat([p.weight for p in projections])[rows]
            bias = torch.cat([p.bias for p in projections])[rows] if config.bias else None
            kept = cached.keys.shape[2]
            slots = torch.arange(self.length - kept, self.length, device=first.device) % self.size
            keys, values = (
                t.new_zeros(*t.shape[:2], self.size, self.dim) for t in (cached.keys, cached.values)
            )
            keys[:, :, slots] = cached.keys[..., pairs]
            values[:, :, slots] = cached.values
            norms, out = (layer.input_layernorm, layer.post_attention_layernorm), layer.self_attn.o_proj
            down = layer.mlp.down_proj
            self.layers.append(
                _Layer(norms[0], weight, bias, out, norms[1], layer.mlp.inner, down, keys, values)
            )

    def _set_offsets(self, offsets: list[int], device: Any) -> None:
        self.offsets, self.offset_column = offsets, torch.tensor(offsets, device=device)[:, None]
        self.rotations_from, self.rotations = 0, torch.empty(len(offsets), 0)

    def take(self, rows: list[int]) -> Ring:
        """The state of these rows."""
        taken = copy.copy(self)
        taken._set_offsets([self.offsets[row] for row in rows], self.offset_column.device)
        taken.layers = [replace(x, keys=x.keys[rows], values=x.values[rows]) for x in self.layers]
        return taken

    def join(self, others: list[Ring]) -> Ring:
        """One state for the rows of this one and then those of the others."""
        rings, joined = (self, *others), copy.copy(self)
        joined.length = max(self.length, *(ring.length for ring in others))
        shifts = [joined.length - ring.length for ring in rings]
        offsets = [row + shift for ring, shift in zip(rings, shifts) for row in ring.offsets]
        joined._set_offsets(offsets, self.offset_column.device)

        def side_by_side(which: str, n: int) -> torch.Tensor:
            return torch.cat([getattr(r.layers[n], which).roll(s, dims=2) for r, s in zip(rings, shifts)])

        joined.layers = [
            replace(layer, keys=side_by_side("keys", n), values=side_by_side("values", n))
            for n, layer in enumerate(self.layers)
        ]
        return joined

    @torch.inference_mode()  # an eighth less time than `no_grad` for the small tensors of one character
    def advance(self, model: Any, ids: torch.Tensor) -> torch.Tensor:
        """Read one character per row, ids [B]: its last hidden state [B, hidden_size], normed."""
        dim, heads, shared = self.dim, self.heads, self.shared
        both = heads + shared
        slot, filled = self.length % self.size, min(self.length + 1, self.size)
        seen = None
        if self.length - max(self.offsets) + 1 < filled:
            ages = (self.length - torch.arange(filled, device=ids.device)) % self.size
            seen = (ages <= self.length - self.offset_column)[:, None, None]
        hidden = model.embed_tokens(ids)
        if self.rotary:
            rotation = self._rotation(model, hidden)
        else:
            hidden = hidden + model.embed_positions.weight[self.length]
        self.length += 1
        for layer in self.layers:
            keys, values = layer.keys, layer.values
            qkv = F.linear(layer.norm(hidden), layer.qkv, layer.qkv_bias).view(-1, both + shared, dim)
            query_key, value = qkv[:, :both], qkv[:, both:]
            if self.qk_eps is not None:
                query_key = rms_norm(query_key, self.qk_eps)
            if self.rotary:
                rotated = torch.view_as_complex(query_key.float().unflatten(-1, (-1, 2))) * rotation
                query_key = torch.view_as_real(rotated).flatten(-2).to(value.dtype)
            keys[:, :, slot] = query_key[:, heads:]
            values[:, :, slot] = value
            attended = F.scaled_dot_product_attention(
                query_key[:, :heads].unflatten(1, (shared, -1)),
                keys[:, :, :filled],
                values[:, :, :filled],
                attn_mask=seen,
                scale=self.scale,
            )
            hidden = _add_linear(hidden, attended.reshape(len(hidden), -1), layer.out)
            hidden = _add_linear(hidden, layer.mlp(layer.mlp_norm(hidden)), layer.down)
        return model.norm(hidden)

    def _rotation(self, model: Any, like: torch.Tensor) -> torch.Tensor:
        """e^(i angle) of the present position of each row, [B, 1, head_dim / 2]."""
        if self.length >= self.rotations_from + self.rotations.shape[1]:
            start = self.rotations_from = self.length
            places = torch.arange(start, start + _ROTATIONS_AT_ONCE, device=like.device)
            positions = places - self.offset_column
            cos, sin = (t[..., : self.dim // 2] for t in model.rotary_emb(like.float(), positions))
            self.rotations = torch.complex(cos, sin)
        return self.rotations[:, self.length - self.rotations_from, None]


def _add_linear(hidden: torch.Tensor, x: torch.Tensor, linear: nn.Linear) -> torch.Tensor:
    """hidden + linear(x), in one product where there is no bias."""
    if linear.bias is not None:
        hidden = hidden + linear.bias
    return torch.addmm(hidden, x, linear.weight.t())
