"""The state of a recurrent layer as a transformers cache layer.

Design: importing this file makes DynamicCache and StaticCache build it for the layer type below, so
that everything transformers does with caches it does with a recurrent state. However much was read, the layer
holds the state after it and no more.
"""

from __future__ import annotations

from typing import Any

import torch
from transformers.cache_utils import STATIC_LAYER_TYPE_MAPPING, CacheLayerMixin

LAYER_TYPE = "recurrent_state"


class StateCacheLayer(CacheLayerMixin):
    """All state tensors of one layer, [B, how many, H], as `keys`; `values` are empty. What transformers does
    with the rows of keys and values (reorder, offload, reset) is inherited."""

    _layer_type = LAYER_TYPE  # registers the class for DynamicCache
    supports_early_init = False
    cumulative_length: Any = 0

    @property
    def state(self) -> tuple[torch.Tensor, ...] | None:
        """The state tensors, each [B, H]; None before the first update."""
        return self.keys.unbind(1) if self.is_initialized else None

    def lazy_initialization(self, key_states: torch.Tensor, value_states: torch.Tensor) -> None:
        self.dtype, self.device = key_states.dtype, key_states.device
        self.is_initialized = True

    def update(
        self, key_states: torch.Tensor, value_states: torch.Tensor, steps: int = 1, **kwargs: Any
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Replace the state after `steps` characters (padding included, as generate() counts columns)."""
        if not self.is_initialized:
            self.lazy_initialization(key_states, value_states)
        self.keys, self.values = key_states, value_states
        self.cumulative_length += steps
        return self.keys, self.values

    def get_mask_sizes(self, query_length: int) -> tuple[int, int]:
        return self.cumulative_length + query_length, 0

    def get_seq_length(self) -> int:
        return self.cumulative_length

    def get_max_length(self) -> int:
        return -1


STATIC_LAYER_TYPE_MAPPING[LAYER_TYPE] = StateCacheLayer
