"""The state of an LSTM layer as a transformers cache layer.

Special here: importing this file makes DynamicCache and StaticCache build it for the layer type "char_lstm",
so that everything transformers does with caches it does with a recurrent state.
Hub-safe: copied beside the weights by `save_pretrained`.
"""

from __future__ import annotations

from typing import Any

import torch
from transformers.cache_utils import STATIC_LAYER_TYPE_MAPPING, CacheLayerMixin

LAYER_TYPE = "char_lstm"


class LSTMCacheLayer(CacheLayerMixin):
    """h and c of one layer as `keys` and `values` of shape [B, 1, 1, H]: beam reordering is inherited."""

    _layer_type = LAYER_TYPE  # registers the class for DynamicCache
    supports_early_init = False

    def __init__(self, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.cumulative_length = 0

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
        return key_states, value_states

    def get_mask_sizes(self, query_length: int) -> tuple[int, int]:
        return self.cumulative_length + query_length, 0

    def get_seq_length(self) -> int:
        return self.cumulative_length

    def get_max_length(self) -> int:
        return -1


STATIC_LAYER_TYPE_MAPPING[LAYER_TYPE] = LSTMCacheLayer
