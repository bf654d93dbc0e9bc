"""What only a configuration has rules for: secrets, and several sections together.

Rules about one section belong to the class that receives it; here those of a model's config are called, in
the words of its keys.
"""

from __future__ import annotations

import copy
import re
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from craft.config.fields import INIT_FIELDS
from craft.utils.common import is_protocol, parsed_stride
from craft.utils.errors import Code, UserError, one_line
from craft.utils.masking import masked
from craft.utils.settings import yaml_word

if TYPE_CHECKING:
    from transformers import PreTrainedConfig

Values = Mapping[str, Any]


def refuse_secret(name: str, value: Any) -> None:
    """Refuses a setting that holds a token, which would be saved with the run.

    Raises:
        UserError: with where tokens are read from.
    """
    if (name == "training.hub_token" and value) or masked(value) != value:
        raise UserError(
            f"{name} holds a token or password, which would be saved with the run and shared with it; take "
            "it out (HF_TOKEN, or the login of hf, is read instead)",
            code="secret",
        )


def model_config(models: Values) -> PreTrainedConfig:
    """The config that a section `models` describes; what is null there is left to its class.

    Raises:
        UserError: with what the class says of a value, or of several.
    """
    from huggingface_hub.errors import StrictDataclassError
    from transformers import AutoConfig

    import craft.models  # noqa: F401  (makes craft's classes known to AutoConfig)

    given = {name: value for name, value in models.items() if value is not None and name not in INIT_FIELDS}
    try:
        return AutoConfig.for_model(**copy.deepcopy(given))  # it fills mappings up
    except (StrictDataclassError, ValueError, TypeError, KeyError) as error:
        cause = error.__cause__ or error
        sentence = one_line(cause.args[0] if cause.args else cause)
        if field := re.match(r"Validation error for field '(\w+)'", str(error)):
            sentence = f"models.{field[1]}={yaml_word(given.get(field[1]))}: {sentence}"
        else:
            names = re.sub(rf"(?<![\w.])({'|'.join(given)})(?=[=.])", r"models.\1", sentence)
            sentence = names if names != sentence else f"models: {sentence}"
        raise UserError(sentence, code="setting-value") from error


def check_sections(models: Values, data: Values, training: Values, recurrent: bool) -> None:
    """Refuses what is impossible together in sections that are valid alone.

    Args:
        recurrent: whether the model carries a state from window to window.

    Raises:
        UserError: with the way out.
    """

    def refuse(sentence: str, code: Code = "setting-conflict") -> None:
        raise UserError(sentence, code=code)

    start, model_type = models.get("init_from"), f"models.model_type={models['model_type']}"
    for name in ("init_revision", "extend_vocab"):
        if models.get(name) and not start:
            refuse(
                f"models.{name}={yaml_word(models[name])} is about a trained model to start from; name it "
                "with models.init_from, or leave it out",
                "setting-no-effect",
            )
    if models.get("extend_vocab") and data["streaming"]:
        refuse(
            "models.extend_vocab=true must know the characters of the text beforehand, which "
            "data.streaming=true doesn't; set data.streaming=false"
        )
    longest, block = models.get("max_position_embeddings"), data["block_size"]
    if longest and longest < block and not recurrent:
        way_out = f"set data.block_size={longest}" if start else "leave it null to follow the window"
        refuse(f"models.max_position_embeddings={longest} is shorter than data.block_size={block}; {way_out}")
    evaluates = training["eval_strategy"]
    if evaluates != "no" and not data["validation_size"] and not data["validation_split"]:
        refuse(
            f"data.validation_size=0 leaves no validation split, which training.eval_strategy={evaluates} "
            "needs; set it above 0, or training.eval_strategy=no"
        )
    if data["streaming"] and recurrent and training["carry_state"]:
        refuse(
            "data.streaming=true can't feed a model that carries its state from window to window; "
            "set data.streaming=false, or training.carry_state=false"
        )
    timed = training.get("max_minutes") or training.get("time_plan")
    if data["streaming"] and training["max_steps"] < 1 and not timed:
        refuse("data.streaming=true has no length to count epochs by; set training.max_steps or max_minutes")
    for name in ("gradient_checkpointing", "activation_checkpointing"):
        if training.get(name) and recurrent:
            refuse(
                f"training.{name}=true does not work with {model_type}: it drops the recurrent state; lower "
                "training.per_device_train_batch_size to save memory"
            )
    for protocol in filter(is_protocol, (training["eval_protocol"], *(training.get("eval_protocols") or ()))):
        name = "eval_protocol" if protocol == training["eval_protocol"] else "eval_protocols"
        if (parsed_stride(protocol) or 0) > block:
            refuse(
                f"training.{name}={protocol} moves on by more than a window of data.block_size={block}; "
                f"use sliding-{max(1, block // 2)}"
            )
    if models.get("attn_implementation") == "flex_attention" and not recurrent:
        from craft.training import requirements

        if requirements.on_cpu(training):
            refuse(
                "models.attn_implementation=flex_attention can't be trained with on a CPU; use sdpa or eager",
                "machine-unable",
            )
