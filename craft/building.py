"""The model of a run: new, or the trained one that it starts from, whose tokenizer it keeps."""

from __future__ import annotations

import copy
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from craft.config.fields import INIT_FIELDS, section_of
from craft.config.pretrained import architecture, refuse_conflicts
from craft.config.rules import model_config
from craft.config.upstream import CONTEXT
from craft.sharing.trust import trusted
from craft.utils.common import SAMPLE_CHARACTERS, TEMPERATURE, human
from craft.utils.errors import Code, UserError, one_line
from craft.utils.logging import get_logger
from craft.utils.outputs import resolve

if TYPE_CHECKING:
    from transformers import PreTrainedModel

    from craft.data.arguments import DataArguments
    from craft.data.base import BaseDataset
    from craft.data.loaders import Corpus
    from craft.data.tokenization import CharTokenizer
    from craft.training.arguments import CraftTrainingArguments

logger = get_logger(__name__)

BYTES_PER_WEIGHT = 16
"""In training: itself, its gradient and two averages."""


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
    return load_tokenizer(saved[0] if saved else _start_folder(models))


def saved_tokenizers(resume: str | Path | None) -> list[Path]:
    """The folders of a run to resume that hold a tokenizer, the newest first; none if it was stopped before
    its first checkpoint, so that it starts again."""
    if resume is None:
        return []
    from craft.training.checkpointing.folders import checkpoints

    folders = [Path(resume), *checkpoints(Path(resume))]
    return [folder for folder in folders if (folder / "tokenizer.json").is_file()]


def _start_folder(models: Mapping[str, Any]) -> Path:
    """The folder of the model to start from, fetched if it is on the Hub."""
    return trusted(resolve(models["init_from"]), models.get("init_revision"))


def build_model(
    fields: dict[str, Any],
    tokenizer: CharTokenizer,
    block_size: int,
    documents: bool,
    resumed: bool = False,
) -> PreTrainedModel:
    """A model that fits the tokenizer and the window: new, or the one that `init_from` names.

    Args:
        documents: whether the text shows where a text ends.
        resumed: its weights come from a checkpoint, so `init_from` need not be there any more.

    Raises:
        UserError: if its configuration class refuses a value.
    """
    from transformers import GenerationConfig

    special = {name: getattr(tokenizer, name) for name in ("pad_token_id", "bos_token_id", "eos_token_id")}
    if fields.get("init_from") and not resumed:
        model = starting_model(fields, tokenizer)
    else:
        own = {key: value for key, value in fields.items() if key not in INIT_FIELDS}
        model = new_model({**own, **special}, tokenizer, block_size)
    # A text in one piece never shows the model where a text ends, so it shouldn't say so either.
    never = [tokenizer.pad_token_id, tokenizer.bos_token_id, tokenizer.unk_token_id]
    never += [] if documents else [tokenizer.eos_token_id]
    # The generate() of others may end in an error behind the last position.
    context = None if section_of("models", fields).own else getattr(model.config, CONTEXT, None)
    model.generation_config = GenerationConfig(
        **({"max_length": context} if context else {"max_new_tokens": SAMPLE_CHARACTERS}),
        do_sample=True,
        temperature=TEMPERATURE,
        top_k=0,
        use_cache=True,
        suppress_tokens=never,
        **special,
    )
    return model


def new_model(fields: dict[str, Any], tokenizer: CharTokenizer, block_size: int) -> PreTrainedModel:
    """A model with fresh weights; what `fields` leave open follows from the tokenizer and the window."""
    import torch
    from transformers import AutoModelForCausalLM

    from craft.models.hf_auto import with_objective

    fields = {key: value for key, value in fields.items() if value is not None}
    section = section_of("models", fields)
    # The window is no limit of a state, nor of generate() then.
    if not section.carries_state and CONTEXT in section.fields:
        fields = {CONTEXT: block_size, **fields}
    config = model_config({**fields, "vocab_size": len(tokenizer)})
    try:
        with torch.device("meta"):
            weights = AutoModelForCausalLM.from_config(copy.deepcopy(config)).num_parameters()
        check_memory(config.model_type, weights)
        return with_objective(AutoModelForCausalLM.from_config(config))  # type: ignore[no-any-return]
    except UserError:
        raise
    except Exception as error:
        # Classes of transformers answer sizes that don't go together in any way; of others that is a fault.
        if section.own and not isinstance(error, (ValueError, KeyError, ImportError)):
            raise
        code: Code = "package-missing" if isinstance(error, ImportError) else "setting-value"
        raise UserError(f"models: {one_line(error)}", code=code) from error


def check_memory(model_type: str, weights: int) -> None:
    """Refuses a model that can't be held, as transformers' default sizes often are.

    Raises:
        UserError: with what it takes.
    """
    import psutil
    import torch

    needed = weights * (4 if torch.accelerator.is_available() else BYTES_PER_WEIGHT)
    free = psutil.virtual_memory().available
    if needed > free:
        raise UserError(
            f"models: a {model_type} of {human(weights)} weights needs {needed / 1e9:.1f} GB of memory, and "
            f"{free / 1e9:.1f} are free; set models.hidden_size, models.num_hidden_layers or others smaller",
            code="machine-unable",
        )


def training_windows(
    model: PreTrainedModel, corpus: Corpus, data: DataArguments, args: CraftTrainingArguments
) -> BaseDataset:
    """What a model is trained on: streams of the text if it carries its state, else windows in the order of
    `data`."""
    from craft.data.loaders import train_dataset

    assert args.global_batch_size is not None  # the arguments derive it
    order = "streams" if model.carries_state and args.carry_state else data.order
    return train_dataset(corpus, data, args.global_batch_size, args.seed, order, model.lookahead)


def starting_model(models: Mapping[str, Any], tokenizer: CharTokenizer) -> PreTrainedModel:
    """The trained model, in float32, with a row of embedding and head for every id of `tokenizer`.

    New rows are drawn around the mean of the old ones; these stay as they are, and so do their logits.

    Raises:
        UserError: if it can't be loaded, or isn't the model that the run was composed for.
    """
    from craft.inference import load

    folder, name = _start_folder(models), models["init_from"]
    # It may have changed since the run was composed, or be another one of that name.
    refuse_conflicts(name, architecture(folder / "config.json", name), models)
    free = {key: models[key] for key in models if "dropout" in key or key == "attn_implementation"}
    given = {key: value for key, value in free.items() if value is not None}
    model, known = load(folder, dtype="float32", **given)
    if tokenizer.alphabet[: len(known.alphabet)] != known.alphabet:
        raise UserError(
            f"models.init_from={name} has another alphabet by now; start the run again", code="model-mismatch"
        )
    if len(tokenizer) > len(known):
        model.resize_token_embeddings(len(tokenizer))
        new = tokenizer.alphabet[len(known.alphabet) :]
        logger.info(f"alphabet  {len(new)} new: {' '.join(repr(char)[1:-1] for char in new[:40])}")
    return model.cpu()
