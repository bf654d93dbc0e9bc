"""Settings that are valid alone and impossible together.

Each rule of `RULES` gets the run and returns nothing, or the key to point at and a sentence with the way out.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from craft.config import requirements
from craft.config.sources import rope_types, scheduler_arguments, yaml_word
from craft.utils.common import UserError, did_you_mean, parsed_stride

Complaint = tuple[str, str] | None

READ_BY = {
    **dict.fromkeys(("config_name", "revision", "split"), ("hub",)),
    **dict.fromkeys(("encoding", "errors", "exclude", "format", "separator"), ("files",)),
    "text_column": ("files", "hub"),
}
"""Fields of the data that only some sources look at."""


@dataclass(frozen=True)
class Parts:
    """The three sections of a run with the defaults of their classes, and whether its model is recurrent.

    Attributes:
        stated: fields of the data that were set to something else than their default.
    """

    models: Mapping[str, Any]
    data: Mapping[str, Any]
    training: Mapping[str, Any]
    recurrent: bool
    stated: frozenset[str] = frozenset()

    @property
    def carried(self) -> bool:
        """Whether the state of one window starts the next."""
        return self.recurrent and self.training["carry_state"]

    @property
    def on_cpu(self) -> bool:
        return self.training["use_cpu"] or not requirements.accelerator_present()


def check(parts: Parts, locate: Callable[[str], str]) -> None:
    """Refuses sections that don't go together.

    Args:
        locate: says where a key was written.

    Raises:
        UserError: at the first rule that is broken.
    """
    for rule in RULES:
        if complaint := rule(parts):
            key, sentence = complaint
            raise UserError(f"{sentence}{locate(key)}")


def _start(run: Parts) -> Complaint:
    if run.models.get("init_revision") and not run.models.get("init_from"):
        return (
            "models.init_revision",
            "models.init_revision picks a version of a trained model on the Hub; name it with "
            "models.init_from, or leave it out",
        )
    if run.models.get("extend_vocab") and not run.models.get("init_from"):
        return (
            "models.extend_vocab",
            "models.extend_vocab=true adds characters to those of a trained model; name it with "
            "models.init_from, or leave it out (a new model knows every character of its text)",
        )
    if run.models.get("extend_vocab") and run.data["streaming"]:
        return (
            "models.extend_vocab",
            "models.extend_vocab=true must know the characters of the text beforehand, which "
            "data.streaming=true doesn't; set data.streaming=false",
        )
    return None


def _heads(run: Parts) -> Complaint:
    hidden, heads = run.models.get("hidden_size"), run.models.get("num_attention_heads")
    kv_heads, head_dim = run.models.get("num_key_value_heads"), run.models.get("head_dim")
    if not hidden or not heads:
        return None
    if not head_dim and hidden % heads:
        return (
            "models.hidden_size",
            f"models.hidden_size={hidden} must be a multiple of models.num_attention_heads={heads}",
        )
    if kv_heads and heads % kv_heads:
        return (
            "models.num_key_value_heads",
            f"models.num_attention_heads={heads} must be a multiple of models.num_key_value_heads={kv_heads}",
        )
    size = head_dim or hidden // heads
    rotary = run.models.get("position") == "rope"
    if size % 2 and rotary:
        return (
            "models.head_dim" if head_dim else "models.num_attention_heads",
            f"models.hidden_size={hidden} / models.num_attention_heads={heads} is {size} a head; "
            "rotary positions need an even number",
        )
    return None


def _context(run: Parts) -> Complaint:
    longest, block = run.models.get("max_position_embeddings"), run.data["block_size"]
    if longest and longest < block and not run.recurrent:
        if start := run.models.get("init_from"):
            return (
                "data.block_size",
                f"data.block_size={block} is longer than the context of models.init_from={start}; "
                f"set data.block_size={longest}",
            )
        return (
            "models.max_position_embeddings",
            f"data.block_size={block} is longer than models.max_position_embeddings={longest}; "
            "leave the latter null to follow it",
        )
    return None


def _rope(run: Parts) -> Complaint:
    given, key = run.models.get("rope_parameters"), "models.rope_parameters"
    if not isinstance(given, dict) or not given:
        return None
    kinds, parameters = rope_types()
    for name in given:
        if name not in parameters:
            return f"{key}.{name}", f"unknown key '{key}.{name}'{did_you_mean(str(name), parameters)}"
    kind = given.get("rope_type", "default")
    if kind not in kinds:
        hint = did_you_mean(str(kind), kinds)
        return (
            f"{key}.rope_type",
            f"unknown {key}.rope_type={yaml_word(kind)}{hint} (there are {', '.join(kinds)})",
        )
    return None


def _splits(run: Parts) -> Complaint:
    sizes = {name: run.data[f"{name}_size"] for name in ("validation", "test")}
    if all(size < 1 for size in sizes.values()) and sum(sizes.values()) >= 1:
        total = f"data.validation_size={sizes['validation']} and data.test_size={sizes['test']}"
        return "data.test_size", f"{total} leave nothing to train on; their sum must be below 1"
    evaluates = run.training["eval_strategy"] != "no"
    if evaluates and not sizes["validation"] and not run.data["validation_split"]:
        return (
            "data.validation_size",
            f"training.eval_strategy={run.training['eval_strategy']} needs a validation split, but "
            "data.validation_size=0; set it above 0, or training.eval_strategy=no",
        )
    return None


def _source(run: Parts) -> Complaint:
    from craft.data.arguments import without_alphabet

    source = run.data["source"]
    if not run.data["path"]:
        ways = {
            "files": "craft train my.txt, or data.path=my.txt",
            "hub": "data.path=USER/DATASET",
            "builtin": "data.path=NAME",
        }
        return "data.path", f"data.source={source} needs a path: {ways[source]}"
    for key in ("validation_split", "test_split"):
        if run.data[key] and source != "hub":
            size = key.replace("split", "size")
            return (
                f"data.{key}",
                f"data.{key} names a split of a dataset (data.source=hub); texts are cut by data.{size}",
            )
    for key, sources in READ_BY.items():
        if key in run.stated and source not in sources:
            written = f"data.{key}={yaml_word(run.data[key])}"
            return f"data.{key}", f"{written} has no effect with data.source={source}; leave it out"
    streaming = run.data["streaming"]
    if "lanes" in run.stated and not streaming:
        lanes = run.data["lanes"]
        return "data.lanes", f"data.lanes={lanes} has no effect without data.streaming=true; leave it out"
    if streaming and run.carried:
        return (
            "data.streaming",
            "data.streaming=true can't feed a model that carries its state from window to window; "
            "set data.streaming=false, or training.carry_state=false",
        )
    if streaming and run.training["max_steps"] < 1:
        return (
            "data.streaming",
            "data.streaming=true has no length to count epochs by; set training.max_steps",
        )
    return without_alphabet(run.data)


def _precision(run: Parts) -> Complaint:
    precision = run.training["precision"]
    for flag in ("fp16", "bf16"):
        if run.training[flag] and precision not in ("auto", flag):
            return (
                f"training.{flag}",
                f"training.{flag}=true contradicts training.precision={precision}; keep the latter",
            )
    if run.training["fp16"] and run.training["bf16"]:
        return (
            "training.fp16",
            "training.fp16=true and training.bf16=true exclude each other; set training.precision instead",
        )
    if (precision == "fp16" or run.training["fp16"]) and run.on_cpu:
        written = "training.precision=fp16" if precision == "fp16" else "training.fp16=true"
        why = "training.use_cpu=true" if run.training["use_cpu"] else "this machine has none"
        return "training.precision", f"{written} needs a GPU and {why}; use training.precision=auto"
    return None


def _checkpointing(run: Parts) -> Complaint:
    for key in ("gradient_checkpointing", "activation_checkpointing"):
        if run.training.get(key) and run.recurrent:
            return (
                f"training.{key}",
                f"training.{key}=true does not work with models.model_type={run.models['model_type']}: "
                "it drops the recurrent state; lower training.per_device_train_batch_size to save memory",
            )
    return None


def _best_model(run: Parts) -> Complaint:
    evaluates = run.training["eval_strategy"]
    for key in ("load_best_model_at_end", "early_stopping_patience"):
        if run.training[key] and evaluates == "no":
            written = f"training.{key}={yaml_word(run.training[key])}"
            return (
                f"training.{key}",
                f"{written} needs evaluations; set training.eval_strategy=steps and training.eval_steps",
            )
    return None


def _batch(run: Parts) -> Complaint:
    batch, parts = run.training["global_batch_size"], run.training["gradient_accumulation_steps"]
    if batch and batch % parts:
        return (
            "training.global_batch_size",
            f"training.global_batch_size={batch} must be a multiple of "
            f"training.gradient_accumulation_steps={parts}",
        )
    return None


def _schedule(run: Parts) -> Complaint:
    schedule, extra = run.training["lr_scheduler_type"], run.training["lr_scheduler_kwargs"]
    if schedule in ("reduce_lr_on_plateau", "greedy") and run.training["eval_strategy"] == "no":
        return (
            "training.lr_scheduler_type",
            f"training.lr_scheduler_type={schedule} follows evaluations; set training.eval_strategy=steps",
        )
    taken = scheduler_arguments(schedule) if isinstance(extra, dict) and extra else None
    unknown = [] if taken is None else [key for key in extra if key not in taken]
    if taken is None or not unknown:
        return None
    what = (
        f"takes {', '.join(sorted(taken))}" if taken else "takes none: set training.lr_scheduler_kwargs=null"
    )
    return (
        "training.lr_scheduler_kwargs",
        f"unknown training.lr_scheduler_kwargs.{unknown[0]}{did_you_mean(unknown[0], taken)}; "
        f"training.lr_scheduler_type={schedule} {what}",
    )


def _protocol(run: Parts) -> Complaint:
    protocol, block = run.training["eval_protocol"], run.data["block_size"]
    if protocol == "stateful" and not run.recurrent:
        return (
            "training.eval_protocol",
            f"training.eval_protocol=stateful needs a recurrent model, and models.model_type="
            f"{run.models['model_type']} carries no state; use blocks, sliding-N or auto",
        )
    if (parsed_stride(str(protocol)) or 0) > block:
        return (
            "training.eval_protocol",
            f"training.eval_protocol={protocol} moves on by more than a window of data.block_size={block}; "
            f"use sliding-{max(1, block // 2)}",
        )
    return None


RULES = (
    _start,
    _source,
    _splits,
    _heads,
    _context,
    _rope,
    _precision,
    _checkpointing,
    _best_model,
    _batch,
    _schedule,
    _protocol,
    *requirements.RULES,
)
