"""What only a configuration has rules for, and the rules of a model's config in the words of its keys."""

from __future__ import annotations

import copy
import re
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from craft.config.fields import START
from craft.utils.errors import UserError
from craft.utils.masking import masked
from craft.utils.settings import Field, yaml_word

if TYPE_CHECKING:
    from transformers import PreTrainedConfig

IGNORED: dict[str, str] = {
    **dict.fromkeys(
        ("id2label", "label2id", "problem_type", "is_encoder_decoder", "chunk_size_feed_forward"),
        "craft's models predict the next character and nothing else",
    ),
    "return_dict": "craft's models return transformers' outputs",
}
"""Fields of every model's config that have no effect in training, and why."""

OVERRULES: dict[str, dict[str, Any]] = {
    "training.per_device_train_batch_size": {"training.global_batch_size": None},
    "training.num_train_epochs": {"training.max_steps": -1},
    "training.lr_scheduler_type": {"training.lr_scheduler_kwargs": None},
    "data.source": {"data.language": None},
    "training.eval_strategy=no": {"training.load_best_model_at_end": False},
    "training.save_strategy=no": {"training.load_best_model_at_end": False},
    "data.validation_size=0": {"training.eval_strategy": "no", "training.load_best_model_at_end": False},
}
"""What typing the first takes back where a file has set it: the same said in two ways, or made impossible."""


def check_effect(section: str, field: Field, value: Any) -> None:
    """Refuses what would be accepted and have no effect, and secrets, which would be saved.

    Raises:
        UserError: with what to do instead.
    """
    name = f"{section}.{field.name}"
    if section == "models" and field.name in IGNORED and value not in (None, field.default):
        why = IGNORED[field.name]
        raise UserError(f"{name}={yaml_word(value)} has no effect in craft: {why}; leave it out")
    if name == "training.hub_token" and value:
        raise UserError(f"{name} would be saved with the run; set the environment variable HF_TOKEN instead")
    if masked(value) != value:
        raise UserError(
            f"{name} holds a token or password, which would be saved with the run and shared with it; take "
            "it out (they are read from the environment, or the login of hf)"
        )


def model_config(models: Mapping[str, Any]) -> PreTrainedConfig:
    """The config that a section `models` describes; what is null there is left to its class.

    Raises:
        UserError: with what the class says of a value, or of several.
    """
    from huggingface_hub.errors import StrictDataclassError
    from transformers import AutoConfig

    import craft.models  # noqa: F401  (makes craft's classes known to AutoConfig)

    given = {name: value for name, value in models.items() if value is not None and name not in START}
    try:
        return AutoConfig.for_model(**copy.deepcopy(given))  # it fills mappings up
    except (StrictDataclassError, ValueError, TypeError, KeyError) as error:
        cause = error.__cause__ or error
        sentence = " ".join(str(cause.args[0] if cause.args else cause).split()).rstrip(".")
        if field := re.match(r"Validation error for field '(\w+)'", str(error)):
            sentence = f"models.{field[1]}={yaml_word(given.get(field[1]))}: {sentence}"
        else:
            names = re.sub(rf"(?<![\w.])({'|'.join(given)})(?=[=.])", r"models.\1", sentence)
            sentence = names if names != sentence else f"models: {sentence}"
        raise UserError(sentence) from error
