"""A model as a function of tensors alone: ids and what was remembered in, logits and what is remembered out.

    LSTM         input_ids [B, T], state.{n}.hidden and state.{n}.cell [B, H]
                 -> logits [B, T, V], next_state.{n}.hidden and next_state.{n}.cell
    transformer  input_ids [B, T], position_ids [B, T], past_key_values.{n}.key and .value [B, heads, P, size]
                 -> logits [B, T, V], present.{n}.key and present.{n}.value [B, heads, P + T, size]

B, T and P are free. A text starts with a state of zeros, or with P = 0 and positions from 0. A transformer
with a sliding window looks no further back than that, so its oldest keys and values may be dropped.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.export import Dim


class Past:
    """Keys and values that are given: as much of transformers' Cache as one forward pass asks for."""

    def __init__(self, tensors: tuple[Tensor, ...]) -> None:
        self.tensors = list(tensors)

    def get_seq_length(self, layer_idx: int = 0) -> int:
        return self.tensors[0].shape[2]

    def update(self, keys: Tensor, values: Tensor, layer_idx: int, **kwargs: Any) -> tuple[Tensor, Tensor]:
        for place, new in ((2 * layer_idx, keys), (2 * layer_idx + 1, values)):
            self.tensors[place] = torch.cat([self.tensors[place], new], dim=2)
        return self.tensors[2 * layer_idx], self.tensors[2 * layer_idx + 1]


class RecurrentStep(nn.Module):
    """A model that carries a state; `inputs` and `outputs` name what goes in and comes out, in order."""

    def __init__(self, model: Any) -> None:
        super().__init__()
        self.model = model
        self.inputs = ["input_ids", *(f"state.{name}" for name in model.state_names)]
        self.outputs = ["logits", *(f"next_state.{name}" for name in model.state_names)]

    def forward(self, input_ids: Tensor, *state: Tensor) -> tuple[Tensor, ...]:
        cache = self.model.state_from_tensors(list(state))
        outputs = self.model(input_ids=input_ids, past_key_values=cache, use_cache=True)
        return outputs.logits, *self.model.state_tensors(outputs.past_key_values)

    def start(self, batch: int) -> dict[str, Tensor]:
        """What is remembered before the first character."""
        return {name: torch.zeros(batch, self.model.config.hidden_size) for name in self.inputs[1:]}

    def example(self) -> tuple[tuple[Tensor, ...], Any]:
        """Inputs to trace with, and their free dimensions; 0 and 1 would be taken for constants."""
        batch, length = Dim("batch", min=1), Dim("length", min=1)
        states = tuple(self.start(2).values())
        ids = torch.zeros(2, 5, dtype=torch.long)
        return (ids, *states), ({0: batch, 1: length}, tuple({0: batch} for _ in states))


class AttentionStep(nn.Module):
    """A model that remembers keys and values; otherwise as `RecurrentStep`."""

    def __init__(self, model: Any) -> None:
        super().__init__()
        self.model = model
        parts = [f"{n}.{part}" for n in range(model.config.num_hidden_layers) for part in ("key", "value")]
        self.inputs = ["input_ids", "position_ids", *(f"past_key_values.{part}" for part in parts)]
        self.outputs = ["logits", *(f"present.{part}" for part in parts)]

    def forward(self, input_ids: Tensor, position_ids: Tensor, *past: Tensor) -> tuple[Tensor, ...]:
        cache: Any = Past(past)
        before, length = past[0].shape[2], input_ids.shape[1]
        queries = torch.arange(length, device=input_ids.device)[:, None] + before
        distance = queries - torch.arange(before + length, device=input_ids.device)[None]
        visible = distance >= 0
        if window := self.model.config.sliding_window:
            visible = visible & (distance < window)
        dtype = self.model.dtype
        mask = torch.zeros_like(visible, dtype=dtype).masked_fill(~visible, torch.finfo(dtype).min)
        outputs = self.model(
            input_ids=input_ids,
            position_ids=position_ids,
            attention_mask=mask[None, None],
            past_key_values=cache,
            use_cache=True,
        )
        return outputs.logits, *cache.tensors

    def start(self, batch: int, length: int = 0) -> dict[str, Tensor]:
        config = self.model.config
        shape = (batch, config.num_key_value_heads, length, config.head_dim)
        return {name: torch.zeros(shape) for name in self.inputs[2:]}

    def example(self) -> tuple[tuple[Tensor, ...], Any]:
        batch, length, before = Dim("batch", min=1), Dim("length", min=1), Dim("past", min=0)
        past = tuple(self.start(2, 3).values())
        ids, free = torch.zeros(2, 5, dtype=torch.long), {0: batch, 1: length}
        shapes = (free, free, tuple({0: batch, 2: before} for _ in past))
        return (ids, ids + torch.arange(3, 8), *past), shapes


Step = RecurrentStep | AttentionStep
