"""Where a run that starts from a trained model gets its tokenizer and its weights."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from craft.utils.common import UserError
from craft.utils.logging import get_logger
from craft.utils.outputs import resolve

if TYPE_CHECKING:
    from transformers import PreTrainedModel

    from craft.data.tokenization import CharTokenizer

logger = get_logger(__name__)

RUN_KEYS = ("init_from", "extend_vocab")
"""What the section `models` holds beside the fields of the model's config."""


def starting_tokenizer(models: Mapping[str, Any], resume: str | Path | None) -> CharTokenizer | None:
    """The tokenizer to go on with, None for a new one.

    A resumed run takes it from its checkpoint, where it is as it was extended; the model that the run once
    started from may be gone.

    Raises:
        UserError: if there is none.
    """
    if not models.get("init_from"):
        return None
    from craft.data.tokenization import load_tokenizer

    saved = saved_tokenizers(resume)
    return load_tokenizer(saved[0] if saved else resolve(models["init_from"]))


def saved_tokenizers(resume: str | Path | None) -> list[Path]:
    """The folders of a run to resume that hold a tokenizer, the newest first; none if it was stopped before
    its first checkpoint, so that it starts again."""
    if resume is None:
        return []
    from craft.training.checkpoints import checkpoints

    folders = [Path(resume), *checkpoints(Path(resume))]
    return [folder for folder in folders if (folder / "tokenizer.json").is_file()]


def starting_model(models: Mapping[str, Any], tokenizer: CharTokenizer) -> PreTrainedModel:
    """The trained model, in float32, with a row of embedding and head for every id of `tokenizer`.

    New rows are drawn around the mean of the old ones; these stay as they are, and so do their logits.

    Raises:
        UserError: if it can't be loaded, or isn't the model that the run was composed for.
    """
    from craft.inference import load

    own = {key: value for key, value in models.items() if key not in (*RUN_KEYS, "model_type")}
    freely = {key: own.pop(key) for key in list(own) if "dropout" in key or key == "attn_implementation"}
    model, known = load(models["init_from"], **{k: v for k, v in freely.items() if v is not None})
    config = model.config
    differ = [
        f"models.{key}={value} (it has {getattr(config, key)})"
        for key, value in {"model_type": models["model_type"], **own}.items()
        if value is not None and key != "vocab_size" and getattr(config, key, value) != value
    ]
    if differ:
        raise UserError(
            f"models.init_from={models['init_from']} isn't the model that this run was composed for: "
            f"{' and '.join(differ)}; leave them out to take the model as it is"
        )
    if len(tokenizer) > len(known):
        model.resize_token_embeddings(len(tokenizer))
        new = tokenizer.alphabet[len(known.alphabet) :]
        logger.info(f"alphabet  {len(new)} new: {' '.join(repr(char)[1:-1] for char in new[:40])}")
    return model.float().cpu()
