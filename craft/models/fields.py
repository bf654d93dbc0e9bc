"""Validators of fields that may be left open (null), which transformers' `interval` doesn't take."""

from collections.abc import Callable
from typing import Any

from huggingface_hub.dataclasses import as_validated_field


def optional(min: int, exclude_min: bool = False) -> Callable[..., Any]:
    """A field that is null or a number from `min` on."""

    @as_validated_field
    def in_range(value: float | None) -> None:
        if value is not None and (value < min or (exclude_min and value == min)):
            bound = f"greater than {min}" if exclude_min else f"at least {min}"
            raise ValueError(f"Value must be {bound} or null, got {value}.")

    return in_range
