"""The parts of the transformer: norms, rotary positions, attention, MLP, and the block they make.

Design: one attention class serves every backend of transformers, grouped queries and QK-norm; a linear
layer carries its initial standard deviation, so that initialisation is decided where the layer is made.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import nn
from transformers.cache_utils import Cache
from transformers.modeling_layers import GradientCheckpointingLayer
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS
from transformers.models.llama.modeling_llama import (
    LlamaRotaryEmbedding,
    eager_attention_forward,
)

from .elementwise import RMSNorm, relu2, rms_norm, rotate, sin_for_rotate

ACTIVATIONS = {"relu2": relu2, "gelu": F.gelu, "swiglu": F.silu}


def make_norm(config: Any) -> nn.Module:
    """The norm before a half block, over the last dimension (hidden_size)."""
    size, eps = config.hidden_size, config.norm_eps
    if config.norm == "rmsnorm":
        return RMSNorm(size, eps=eps, elementwise_affine=config.norm_weight)
    return nn.LayerNorm(size, eps=eps, elementwise_affine=config.norm_weight, bias=config.bias)


def make_linear(config: Any, inputs: int, outputs: int, residual: bool = False) -> nn.Linear:
    """A linear layer that knows its initial standard deviation; `residual`: it adds to the stream."""
    layer: Any = nn.Linear(inputs, outputs, bias=config.bias)
    if config.initializer_range is None:
        layer.init_std = 0.0 if residual and config.zero_init else 0.5 * inputs**-0.5
    else:
        depth = 2 * config.num_hidden_layers if residual else 1
        layer.init_std = config.initializer_range * depth**-0.5
    return layer


class RotaryEmbedding(LlamaRotaryEmbedding):
    """cos and sin of the angles at given positions; transformers' scaled variants by `rope_parameters`."""

    def rotations(
        self, hidden: torch.Tensor, position_ids: torch.Tensor
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """cos and sin as `rotate` takes them, [B, T, 1, head_dim]."""
        cos, sin = self(hidden, position_ids)
        return cos[:, :, None], sin_for_rotate(sin)[:, :, None]

    @staticmethod
    def compute_default_rope_parameters(config: Any, **kwargs: Any) -> tuple[torch.Tensor, float]:
        """theta ** (-2i / head_dim), and no scaling of the attention."""
        exponents = torch.arange(0, config.head_dim, 2, dtype=torch.float) / config.head_dim
        return config.rope_parameters["rope_theta"] ** -exponents, 1.0


class Attention(nn.Module):
    """Causal self-attention with grouped queries, optional QK-norm and rotary positions."""

    is_causal = True

    def __init__(self, config: Any, layer_idx: int) -> None:
        super().__init__()
        self.config = config
        self.layer_idx = layer_idx
        self.head_dim = config.head_dim
        self.num_key_value_groups = config.num_attention_heads // config.num_key_value_heads
        self.scaling = config.attention_scale
        queries = config.num_attention_heads * config.head_dim
        shared = config.num_key_value_heads * config.head_dim
        self.q_proj = make_linear(config, config.hidden_size, queries)
        self.k_proj = make_linear(config, config.hidden_size, shared)
        self.v_proj = make_linear(config, config.hidden_size, shared)
        self.o_proj = make_linear(config, queries, config.hidden_size, residual=True)

    def forward(
        self,
        hidden_states: torch.Tensor,
        position_embeddings: tuple[torch.Tensor, torch.Tensor] | None = None,
        attention_mask: torch.Tensor | None = None,
        past_key_values: Cache | None = None,
        **kwargs: Any,
    ) -> tuple[torch.Tensor, torch.Tensor | None]:
        """[B, T, hidden_size] -> the same, and the weights [B, heads, T, T'] where the backend gives them."""
        shape = hidden_states.shape[:-1]
        query, key, value = (
            proj(hidden_states).view(*shape, -1, self.head_dim)
            for proj in (self.q_proj, self.k_proj, self.v_proj)
        )
        # Heads change places with characters only afterwards: here every row lies in one piece.
        if self.config.qk_norm:
            query, key = (rms_norm(x, self.config.norm_eps) for x in (query, key))
        if position_embeddings is not None:
            query, key = (rotate(x, *position_embeddings) for x in (query, key))
        query, key, value = (x.transpose(1, 2) for x in (query, key, value))
        if past_key_values is not None:
            key, value = past_key_values.update(key, value, self.layer_idx, kwargs=kwargs)
        backend = self.config._attn_implementation
        out, weights = ALL_ATTENTION_FUNCTIONS.get_interface(backend, eager_attention_forward)(
            self,
            query,
            key,
            value,
            attention_mask,
            dropout=self.config.dropout if self.training else 0.0,
            scaling=self.scaling,
            sliding_window=self.config.sliding_window,
            **kwargs,
        )
        return self.o_proj(out.reshape(*shape, -1).contiguous()), weights


class MLP(nn.Module):
    """down(activation(up(x))), or for "swiglu" down(silu(gate(x)) * up(x))."""

    def __init__(self, config: Any) -> None:
        super().__init__()
        self.activation: Any = ACTIVATIONS[config.mlp]
        self.up_proj = make_linear(config, config.hidden_size, config.intermediate_size)
        self.down_proj = make_linear(config, config.intermediate_size, config.hidden_size, residual=True)
        gated = config.mlp == "swiglu"
        self.gate_proj = make_linear(config, config.hidden_size, config.intermediate_size) if gated else None

    def activate(self, up: torch.Tensor, gate: torch.Tensor | None = None) -> torch.Tensor:
        """What `down_proj` reads, of what the other projections made, [..., intermediate_size]."""
        return self.activation(up) if gate is None else self.activation(gate) * up

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        gate = None if self.gate_proj is None else self.gate_proj(x)
        return self.down_proj(self.activate(self.up_proj(x), gate))


class TransformerLayer(GradientCheckpointingLayer):
    """x + attention(norm(x)), then x + mlp(norm(x))."""

    def __init__(self, config: Any, layer_idx: int) -> None:
        super().__init__()
        self.input_layernorm = make_norm(config)
        self.self_attn = Attention(config, layer_idx)
        self.post_attention_layernorm = make_norm(config)
        self.mlp = MLP(config)
        self.dropout = nn.Dropout(config.dropout)

    def forward(self, hidden_states: torch.Tensor, **kwargs: Any) -> torch.Tensor:
        attended, _ = self.self_attn(self.input_layernorm(hidden_states), **kwargs)
        hidden_states = hidden_states + self.dropout(attended)
        return hidden_states + self.dropout(self.mlp(self.post_attention_layernorm(hidden_states)))
