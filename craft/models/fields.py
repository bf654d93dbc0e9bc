"""Validators of fields that may be left open (null), which transformers' `interval` doesn't take.

Hub-safe: copied beside the weights by `save_pretrained`.
"""

from huggingface_hub.dataclasses import as_validated_field


@as_validated_field
def optional_count(value: int | None) -> None:
    """A whole number from 1, or null."""
    if value is not None and value < 1:
        raise ValueError(f"Value must be at least 1 or null, got {value}.")


@as_validated_field
def optional_id(value: int | None) -> None:
    """An id of the vocabulary, from 0, or null."""
    if value is not None and value < 0:
        raise ValueError(f"Value must be 0 or more, or null, got {value}.")


@as_validated_field
def optional_positive(value: float | None) -> None:
    """A number above 0, or null."""
    if value is not None and value <= 0:
        raise ValueError(f"Value must be greater than 0 or null, got {value}.")
