"""The model of a run: new, or the one that it starts from."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from craft.config.fields import START
from craft.config.rules import model_config
from craft.pretrained import starting_model
from craft.utils.common import SAMPLE_CHARACTERS, TEMPERATURE
from craft.utils.errors import UserError

if TYPE_CHECKING:
    from transformers import PreTrainedModel

    from craft.data.tokenization import CharTokenizer


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
        UserError: if its configuration class refuses a value, or `vocab_size` isn't the tokenizer's.
    """
    from transformers import GenerationConfig

    special = {name: getattr(tokenizer, name) for name in ("pad_token_id", "bos_token_id", "eos_token_id")}
    if fields.get("init_from") and not resumed:
        model = starting_model(fields, tokenizer)
    else:
        own = {key: value for key, value in fields.items() if key not in START}
        model = new_model({**special, **own}, tokenizer, block_size)
    # A text in one piece never shows the model where a text ends, so it shouldn't say so either.
    never = [tokenizer.pad_token_id, tokenizer.bos_token_id, tokenizer.unk_token_id]
    never += [] if documents else [tokenizer.eos_token_id]
    model.generation_config = GenerationConfig(
        max_new_tokens=SAMPLE_CHARACTERS,
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
    from transformers import AutoModelForCausalLM

    fields = {key: value for key, value in fields.items() if value is not None}
    fields = {"max_position_embeddings": block_size, "vocab_size": len(tokenizer), **fields}
    config = model_config(fields)
    for name in ("bos_token_id", "eos_token_id", "pad_token_id"):
        if (id_ := getattr(config, name, None)) is not None and not 0 <= id_ < len(tokenizer):
            raise UserError(
                f"models.{name}={id_} isn't among the ids of the text's alphabet, 0 to {len(tokenizer) - 1}; "
                "leave it null to follow the text"
            )
    if len(tokenizer) != config.vocab_size:
        raise UserError(
            f"models.vocab_size={config.vocab_size} isn't the size of the text's alphabet, {len(tokenizer)} "
            "ids with special tokens; leave it null to follow the text"
        )
    try:
        model = AutoModelForCausalLM.from_config(config)
    except (ValueError, KeyError, ImportError) as error:
        raise UserError(f"models: {' '.join(str(error).split())}") from error
    if model.carries_state:
        model.config.max_position_embeddings = None  # its window is no limit of a state, nor of generate()
    return model
