"""Rules about several sections of a run; those about one belong to the class that receives it."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from craft.utils.common import parsed_stride

Values = Mapping[str, Any]


def complaints(models: Values, data: Values, training: Values, recurrent: bool) -> Iterator[str]:
    """What is wrong with sections that are valid alone, as sentences with the way out.

    Args:
        recurrent: whether the model carries a state from window to window.
    """
    start, model_type = models.get("init_from"), f"models.model_type={models['model_type']}"
    if models.get("init_revision") and not start:
        yield (
            "models.init_revision picks a version of a trained model on the Hub; name it with "
            "models.init_from, or leave it out"
        )
    if models.get("extend_vocab") and not start:
        yield (
            "models.extend_vocab=true adds characters to those of a trained model; name it with "
            "models.init_from, or leave it out (a new model knows every character of its text)"
        )
    if models.get("extend_vocab") and data["streaming"]:
        yield (
            "models.extend_vocab=true must know the characters of the text beforehand, which "
            "data.streaming=true doesn't; set data.streaming=false"
        )

    longest, block = models.get("max_position_embeddings"), data["block_size"]
    if longest and longest < block and not recurrent:
        if start:
            yield (
                f"data.block_size={block} is longer than the context of models.init_from={start}; "
                f"set data.block_size={longest}"
            )
        yield (
            f"models.max_position_embeddings={longest} is shorter than data.block_size={block}; "
            "leave it null to follow the window"
        )

    evaluates = training["eval_strategy"]
    if evaluates != "no" and not data["validation_size"] and not data["validation_split"]:
        yield (
            f"data.validation_size=0 leaves no validation split, which training.eval_strategy={evaluates} "
            "needs; set it above 0, or training.eval_strategy=no"
        )
    if data["streaming"] and recurrent and training["carry_state"]:
        yield (
            "data.streaming=true can't feed a model that carries its state from window to window; "
            "set data.streaming=false, or training.carry_state=false"
        )
    if data["streaming"] and training["max_steps"] < 1:
        yield "data.streaming=true has no length to count epochs by; set training.max_steps"

    for name in ("gradient_checkpointing", "activation_checkpointing"):
        if training.get(name) and recurrent:
            yield (
                f"training.{name}=true does not work with {model_type}: it drops the recurrent state; lower "
                "training.per_device_train_batch_size to save memory"
            )

    protocol = training["eval_protocol"]
    if protocol == "stateful" and not recurrent:
        yield (
            f"training.eval_protocol=stateful needs a recurrent model, and {model_type} carries no state; "
            "use blocks, sliding-N or auto"
        )
    if (parsed_stride(protocol) or 0) > block:
        yield (
            f"training.eval_protocol={protocol} moves on by more than a window of data.block_size={block}; "
            f"use sliding-{max(1, block // 2)}"
        )
    yield from _attention(models.get("attn_implementation"), training, recurrent)


def _attention(name: str | None, training: Values, recurrent: bool) -> Iterator[str]:
    """Of transformers' ways to compute attention, those that can be trained with here."""
    from craft.training import requirements

    if not name or recurrent:
        return
    written = f"models.attn_implementation={name}"
    if name.startswith("flash_attention_"):
        package = {"flash_attention_2": "flash_attn", "flash_attention_3": "flash_attn_interface"}.get(name)
        if package is None or not requirements.installed(package):
            what = f"the package {package}" if package else "a version of transformers that knows it"
            yield f"{written} needs {what}, which isn't installed; use sdpa, or leave it out"
    if name == "flex_attention" and requirements.on_cpu(training):
        yield f"{written} can't be trained with on a CPU; use sdpa or eager, or leave it out"
