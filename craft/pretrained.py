"""Where a run that starts from a trained model gets its tokenizer and its weights."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from craft.config.pretrained import architecture, refuse_conflicts
from craft.sharing.trust import trusted
from craft.utils.errors import UserError
from craft.utils.logging import get_logger
from craft.utils.outputs import resolve

if TYPE_CHECKING:
    from transformers import PreTrainedModel

    from craft.data.tokenization import CharTokenizer

logger = get_logger(__name__)


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
    return load_tokenizer(saved[0] if saved else start_folder(models))


def start_folder(models: Mapping[str, Any]) -> Path:
    """The folder of the model to start from, fetched if it is on the Hub.

    Raises:
        UserError, Failed: see `craft.sharing.trust.trusted`.
    """
    return trusted(resolve(models["init_from"]), models.get("init_revision"))


def saved_tokenizers(resume: str | Path | None) -> list[Path]:
    """The folders of a run to resume that hold a tokenizer, the newest first; none if it was stopped before
    its first checkpoint, so that it starts again."""
    if resume is None:
        return []
    from craft.training.checkpointing.folders import checkpoints

    folders = [Path(resume), *checkpoints(Path(resume))]
    return [folder for folder in folders if (folder / "tokenizer.json").is_file()]


def starting_model(models: Mapping[str, Any], tokenizer: CharTokenizer) -> PreTrainedModel:
    """The trained model, in float32, with a row of embedding and head for every id of `tokenizer`.

    New rows are drawn around the mean of the old ones; these stay as they are, and so do their logits.

    Raises:
        UserError: if it can't be loaded, or isn't the model that the run was composed for.
    """
    from craft.inference import load

    folder, name = start_folder(models), models["init_from"]
    # It may have changed since the run was composed, or be another one of that name.
    refuse_conflicts(name, architecture(folder / "config.json", name), models)
    free = {key: models[key] for key in models if "dropout" in key or key == "attn_implementation"}
    given = {key: value for key, value in free.items() if value is not None}
    model, known = load(folder, dtype="float32", **given)
    if tokenizer.alphabet[: len(known.alphabet)] != known.alphabet:
        raise UserError(f"models.init_from={name} has another alphabet by now; start the run again")
    if len(tokenizer) > len(known):
        model.resize_token_embeddings(len(tokenizer))
        new = tokenizer.alphabet[len(known.alphabet) :]
        logger.info(f"alphabet  {len(new)} new: {' '.join(repr(char)[1:-1] for char in new[:40])}")
    return model.cpu()
