"""The state of a recurrent layer as a transformers cache layer.

Special here: importing this file makes DynamicCache and StaticCache build it for the layer type below, so
that everything transformers does with caches it does with a recurrent state. However much was read, both
kinds hold the state after it and no more; they differ in whether an update replaces the tensor.
Hub-safe: copied beside the weights by `save_pretrained`.
"""

from __future__ import annotations

from typing import Any

import torch
from transformers.cache_utils import (
    DYNAMIC_LAYER_TYPE_MAPPING,
    STATIC_LAYER_TYPE_MAPPING,
    CacheLayerMixin,
)

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
        self.keys, self.values = self._kept(key_states), value_states
        self.cumulative_length += steps
        return self.keys, self.values

    def _kept(self, states: torch.Tensor) -> torch.Tensor:
        return states

    def get_mask_sizes(self, query_length: int) -> tuple[int, int]:
        return self.cumulative_length + query_length, 0

    def get_seq_length(self) -> int:
        return self.cumulative_length

    def get_max_length(self) -> int:
        return -1

    def batch_repeat_interleave(self, repeats: int) -> None:
        """Every row `repeats` times over."""
        if self.is_initialized:
            self.keys, self.values = (t.repeat_interleave(repeats, 0) for t in (self.keys, self.values))

    def batch_select_indices(self, indices: torch.Tensor) -> None:
        """Keep these rows only."""
        if self.is_initialized:
            self.keys, self.values = self.keys[indices], self.values[indices]

    def crop(self, *args: Any) -> None:
        """Refused: what was read can't be taken back out of a state."""
        raise ValueError(
            "the state of a CharLSTM can't be rolled back to an earlier character: copy the cache "
            "(copy.deepcopy) where you may want to return to, or read the text again"
        )


class StaticStateCacheLayer(StateCacheLayer):
    """The same at a fixed address, overwritten in place: for compiled decoding, not for training."""

    is_compileable = True

    def __init__(self, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.cumulative_length = torch.tensor(0)  # as an int it would be compiled anew for every character

    def lazy_initialization(self, key_states: torch.Tensor, value_states: torch.Tensor) -> None:
        super().lazy_initialization(key_states, value_states)
        self.keys = torch.zeros_like(key_states)
        self.cumulative_length = self.cumulative_length.to(self.device)
        if not torch.compiler.is_compiling():
            for tensor in (self.keys, self.cumulative_length):
                torch._dynamo.mark_static_address(tensor)

    def _kept(self, states: torch.Tensor) -> torch.Tensor:
        return self.keys.copy_(states)


STATIC_LAYER_TYPE_MAPPING[LAYER_TYPE] = StaticStateCacheLayer
DYNAMIC_LAYER_TYPE_MAPPING[LAYER_TYPE] = StateCacheLayer  # which the subclass, too, registered itself for
