"""Refuses data on which training would silently be nonsense, before the first step and whoever made them.

A plain training loop accepts an empty loader, windows without targets and ids outside of the vocabulary; it
ends with a loss of 0 and a message of success.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from craft.data.tokenization import CharTokenizer, load_tokenizer
from craft.utils.errors import UserError

IDS_AT_ONCE = 1 << 24
MAX_IDS = 1 << 27
"""Ids that are looked at one by one; of longer texts this many, in evenly spaced stretches."""


def check_alphabet(checkpoint: Path, tokenizer: Any) -> None:
    """Refuses a checkpoint whose ids mean other characters.

    Raises:
        UserError: with what to do instead.
    """
    if not isinstance(tokenizer, CharTokenizer):
        return
    if load_tokenizer(checkpoint).get_vocab() != tokenizer.get_vocab():
        raise UserError(
            f"can't resume from {checkpoint}: it was trained with another alphabet than this text's; "
            "put the old text back, or start a new run",
            code="run-changed",
        )


def check_data(dataset: Any, eval_ids: Any, args: Any, model: Any) -> None:
    """Looks at the model, the training windows and the validation ids.

    Args:
        dataset: follows `craft.data.base.BaseDataset`.
        eval_ids: 1-D ids, or None.
        model: follows the `LanguageModel` protocol.

    Raises:
        UserError: for a model that refuses to be trained, and for data that can't be learnt from, or not as
            the arguments say.
    """
    check_model(model)
    vocab_size = model.config.vocab_size
    missing = [name for name in ("batch", "block_size", "global_batch_size") if not hasattr(dataset, name)]
    if missing:
        raise UserError(
            f"train_dataset is a {type(dataset).__name__} without {', '.join(missing)}: windows of a text "
            "are cut by craft.data.char_dataset.CharDataset(ids, block_size, global_batch, seed)",
            code="data-invalid",
        )
    if dataset.global_batch_size != args.global_batch_size:
        raise UserError(
            f"train_dataset has a global batch of {dataset.global_batch_size}, training.global_batch_size is "
            f"{args.global_batch_size}; they must be the same",
            code="setting-conflict",
        )
    steps = getattr(dataset, "steps_per_epoch", None)
    if steps is not None and steps < 1:
        raise UserError(
            f"train_dataset has fewer windows than a global batch of {args.global_batch_size}: no step would "
            "be trained; lower training.global_batch_size or data.block_size",
            code="text-short",
        )
    row = args.process_index * args.train_batch_size
    check_window(dataset, vocab_size, row, getattr(model, "lookahead", 1))
    check_ids(getattr(dataset, "ids", None), vocab_size, "the training text")
    if args.eval_strategy != "no":
        if eval_ids is None or len(eval_ids) < 2:
            raise UserError(
                "there is no validation text to evaluate on; set data.validation_size above 0 or "
                "training.eval_strategy=no",
                code="text-missing",
            )
        check_ids(eval_ids, vocab_size, "the validation text")
    order = getattr(dataset, "order", None)
    if model.carries_state and args.carry_state and order != "streams":
        raise UserError(
            f"a carried state needs data in parallel streams, not in order {order!r}; "
            "set training.carry_state=false",
            code="setting-conflict",
        )


def check_model(model: Any) -> None:
    """Asks a model whether its code is what would be trained. Code that an older craft saved doesn't know."""
    try:
        getattr(model, "check_before_training", lambda: None)()
    except ValueError as error:
        raise UserError(f"models: {error}", code="setting-value") from error


def check_window(dataset: Any, vocab_size: int, row: int = 0, lookahead: int = 1) -> None:
    """A window of the first step: whole numbers, two at least, all in the vocabulary.

    Args:
        row: of the global batch. A process takes its own first one: of a stream it would have to read others
            for this alone.
    """
    window = np.asarray(dataset.batch(0, 0, np.arange(row, row + 1)))
    expected = (1, dataset.block_size + lookahead)
    if window.shape != expected or dataset.block_size < 1:
        raise UserError(
            f"a window of train_dataset has the shape {window.shape}, not {expected}: block_size="
            f"{dataset.block_size} (at least 1) and {lookahead} more, which are predicted",
            code="data-invalid",
        )
    check_ids(window.reshape(-1), vocab_size, "the training text")


def check_ids(ids: Any, vocab_size: int, what: str) -> None:
    """Refuses ids that a model doesn't have, which a CPU answers with `index out of range in self`."""
    if ids is None:
        return
    ids = np.asarray(ids)
    if ids.ndim != 1 or not np.issubdtype(ids.dtype, np.integer):
        raise UserError(
            f"{what} must be a 1-D array of whole numbers, not {ids.dtype} of shape {ids.shape}",
            code="data-invalid",
        )
    if np.issubdtype(ids.dtype, np.unsignedinteger) and np.iinfo(ids.dtype).max < vocab_size:
        return
    pieces = -(-len(ids) // IDS_AT_ONCE)
    for piece in range(0, pieces, -(-len(ids) // MAX_IDS)):
        part = ids[piece * IDS_AT_ONCE : (piece + 1) * IDS_AT_ONCE]
        for bad in (int(part.min()), int(part.max())):
            if not 0 <= bad < vocab_size:
                raise UserError(
                    f"{what} holds the id {bad}, but the model's vocabulary ends at {vocab_size - 1}: encode "
                    "it with the model's own tokenizer",
                    code="data-invalid",
                )
