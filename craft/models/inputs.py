"""Arguments that a forward pass takes in either of two forms."""

from __future__ import annotations

import inspect
from typing import Any

import torch
from torch import nn
from transformers.cache_utils import Cache
from transformers.masking_utils import create_causal_mask

RENAMED = "cache" in inspect.signature(create_causal_mask).parameters
"""Whether this transformers says `cache` instead of `past_key_values`: it does from 5.24 on."""


def embed(table: nn.Module, ids: torch.Tensor | None, embeds: torch.Tensor | None) -> torch.Tensor:
    """The embeddings [B, T, C] of exactly one of `ids` [B, T] and ready-made `embeds`."""
    if (ids is None) == (embeds is None):
        raise ValueError("give exactly one of input_ids and inputs_embeds")
    return table(ids) if embeds is None else embeds


def either_cache(past_key_values: Any, cache: Any, kwargs: Any) -> Any:
    """The cache, by whichever of its names it was given.

    Before 5.24 `cache` was the paged one of `generate_batch` alone. The attention backends fill that, so it
    goes on to them, in `kwargs`.
    """
    if cache is None or RENAMED or isinstance(cache, Cache):
        return past_key_values if cache is None else cache
    kwargs["cache"] = cache
    return past_key_values
