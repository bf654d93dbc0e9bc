"""Rules about several sections of a run; those about one belong to the class that receives it."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from craft.utils.common import UserError, parsed_stride


@dataclass(frozen=True)
class Parts:
    """The three sections of a run with the defaults of their classes, and whether its model is recurrent."""

    models: Mapping[str, Any]
    data: Mapping[str, Any]
    training: Mapping[str, Any]
    recurrent: bool


def check(run: Parts) -> None:
    """Refuses sections that don't go together.

    Raises:
        UserError: at the first rule that is broken.
    """
    for rule in (_start, _context, _validation, _streaming, _recurrence, _protocol, _attention):
        for complaint in rule(run):
            raise UserError(complaint)


def _start(run: Parts) -> Iterator[str]:
    named = run.models.get("init_from")
    if run.models.get("init_revision") and not named:
        yield (
            "models.init_revision picks a version of a trained model on the Hub; name it with "
            "models.init_from, or leave it out"
        )
    if run.models.get("extend_vocab") and not named:
        yield (
            "models.extend_vocab=true adds characters to those of a trained model; name it with "
            "models.init_from, or leave it out (a new model knows every character of its text)"
        )
    if run.models.get("extend_vocab") and run.data["streaming"]:
        yield (
            "models.extend_vocab=true must know the characters of the text beforehand, which "
            "data.streaming=true doesn't; set data.streaming=false"
        )


def _context(run: Parts) -> Iterator[str]:
    longest, block = run.models.get("max_position_embeddings"), run.data["block_size"]
    if run.recurrent or not longest or longest >= block:
        return
    if start := run.models.get("init_from"):
        yield (
            f"data.block_size={block} is longer than the context of models.init_from={start}; "
            f"set data.block_size={longest}"
        )
    yield (
        f"models.max_position_embeddings={longest} is shorter than data.block_size={block}; "
        "leave it null to follow the window"
    )


def _validation(run: Parts) -> Iterator[str]:
    evaluates = run.training["eval_strategy"]
    if evaluates != "no" and not run.data["validation_size"] and not run.data["validation_split"]:
        yield (
            f"data.validation_size=0 leaves no validation split, which training.eval_strategy={evaluates} "
            "needs; set it above 0, or training.eval_strategy=no"
        )


def _streaming(run: Parts) -> Iterator[str]:
    if not run.data["streaming"]:
        return
    if run.recurrent and run.training["carry_state"]:
        yield (
            "data.streaming=true can't feed a model that carries its state from window to window; "
            "set data.streaming=false, or training.carry_state=false"
        )
    if run.training["max_steps"] < 1:
        yield "data.streaming=true has no length to count epochs by; set training.max_steps"


def _recurrence(run: Parts) -> Iterator[str]:
    for name in ("gradient_checkpointing", "activation_checkpointing"):
        if run.training.get(name) and run.recurrent:
            yield (
                f"training.{name}=true does not work with models.model_type={run.models['model_type']}: "
                "it drops the recurrent state; lower training.per_device_train_batch_size to save memory"
            )


def _protocol(run: Parts) -> Iterator[str]:
    protocol, block = run.training["eval_protocol"], run.data["block_size"]
    if protocol == "stateful" and not run.recurrent:
        yield (
            "training.eval_protocol=stateful needs a recurrent model, and models.model_type="
            f"{run.models['model_type']} carries no state; use blocks, sliding-N or auto"
        )
    if (parsed_stride(str(protocol)) or 0) > block:
        yield (
            f"training.eval_protocol={protocol} moves on by more than a window of data.block_size={block}; "
            f"use sliding-{max(1, block // 2)}"
        )


def _attention(run: Parts) -> Iterator[str]:
    """Of transformers' ways to compute attention, those that can be trained with here."""
    from craft.training import requirements

    name = run.models.get("attn_implementation")
    if not name or run.recurrent:
        return
    written = f"models.attn_implementation={name}"
    if name.startswith("flash_attention_"):
        package = {"flash_attention_2": "flash_attn", "flash_attention_3": "flash_attn_interface"}.get(name)
        if package is None or not requirements.installed(package):
            what = f"the package {package}" if package else "a version of transformers that knows it"
            yield f"{written} needs {what}, which isn't installed; use sdpa, or leave it out"
    if name == "flex_attention" and requirements.on_cpu(run.training):
        yield f"{written} can't be trained with on a CPU; use sdpa or eager, or leave it out"
