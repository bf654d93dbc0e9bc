"""What a resume may change: which settings decide the weights, and which of them differ from a checkpoint's.

A run that goes on under other settings ends with weights that no run from the start would give. What only
decides how often something is logged, evaluated, saved or reported may change, and so may the number of steps
if it grows: that is how a finished run trains on.
"""

from __future__ import annotations

import hashlib
import json
import platform
from collections.abc import Mapping
from dataclasses import MISSING, fields
from pathlib import Path
from typing import Any

import numpy as np
import torch

from craft.training.arguments import FOLLOWS_EVALUATIONS, IGNORED
from craft.utils.errors import UserError
from craft.utils.logging import get_logger
from craft.utils.settings import yaml_word

logger = get_logger(__name__)

FREE_PREFIXES = ("log", "trackio_", "eval_", "save_", "hub_", "dataloader_")
# fmt: off
FREE = {
    *IGNORED,
    # where it is written, and what of it
    "output_dir", "disable_tqdm", "report_to", "run_name", "project", "include_num_input_tokens_seen",
    "skip_memory_metrics", "debug", "stall_seconds", "push_to_hub",
    # evaluations and samples
    "sample_chars", "sample_prompt", "per_device_eval_batch_size", "metric_for_best_model",
    "greater_is_better", "load_best_model_at_end", "early_stopping_patience",
    # the machine
    "use_cpu", "local_rank", "accelerator_config", "parallelism_config", "ddp_find_unused_parameters",
    "ddp_bucket_cap_mb", "ddp_broadcast_buffers", "ddp_static_graph", "ddp_backend", "ddp_timeout", "fsdp",
    "fsdp_config", "deepspeed", "torch_empty_cache_steps", "use_cache", "auto_find_batch_size",
    "skip_nonfinite_batches", "eval_protocols",
    # said in another form: as the number of steps, `global_batch_size`, `precision`
    "num_train_epochs", "max_steps", "max_minutes", "time_plan", "per_device_train_batch_size",
    "bf16", "fp16",
}
# fmt: on
"""Training arguments that don't decide the weights. Every other field is compared, a new one too."""
WITH_EVALUATIONS = {
    *("eval_strategy", "eval_steps", "eval_delay", "eval_protocol", "eval_chars", "metric_for_best_model"),
}
"""Are compared where the learning rate follows the evaluations."""
LENGTH_INDEPENDENT_SCHEDULES = ("constant", "constant_with_warmup", *FOLLOWS_EVALUATIONS)
"""Schedules that are the same for any number of steps."""
PER_PROCESS = {"training.gradient_accumulation_steps", "training.average_tokens_across_devices"}
"""How a global batch is shared out; compared if the number of processes is the same."""
FREE_OF_MODEL = {
    *("transformers_version", "architectures", "dtype", "_name_or_path", "auto_map", "id2label", "label2id"),
    *("output_hidden_states", "output_attentions", "return_dict", "problem_type", "use_cache"),
    *("pad_token_id", "bos_token_id", "eos_token_id"),
}
"""What a model's config holds beside its shape."""
FREE_OF_DATA = {"cache_dir", "name"}
"""Of the `data` section, what is never compared."""
WINDOW_SETTINGS = {"data.block_size", "data.order", "data.streaming"}
"""How windows are cut from a text: always compared. The text is compared by its ids; the rest of the section
is only named, if they differ, as what may have made another text."""
DESCRIPTIVE_SETTINGS = {"data.path", "data.language"}
"""Isn't compared of a stream either, whose ids aren't known, so that all the rest of its section is."""

STEPS, TEXT = "training.max_steps", "the text"
SAMPLED = 1 << 16

Changes = dict[str, tuple[Any, Any]]


def training_settings(args: Any, planned_steps: int) -> dict[str, Any]:
    """The training arguments that decide the weights, by full name."""
    decisive = WITH_EVALUATIONS if args.lr_scheduler_type in FOLLOWS_EVALUATIONS else set()
    values, names = args.to_dict(), [field.name for field in fields(args)]
    names = [n for n in names if n in decisive or not (n in FREE or n.startswith(FREE_PREFIXES))]
    return _as_json({**{f"training.{name}": values.get(name) for name in names}, STEPS: planned_steps})


def model_settings(model: Any) -> dict[str, Any]:
    config = {k: v for k, v in model.config.to_dict().items() if k not in FREE_OF_MODEL}
    config["attention"] = getattr(model.config, "_attn_implementation", None)
    return _as_json({f"models.{name}": value for name, value in config.items()})


def data_settings(dataset: Any, text: str | None, section: Mapping[str, Any]) -> dict[str, Any]:
    """Of the data: the windows, the text as a fingerprint, and what is written about both.

    Args:
        text: a fingerprint of the text as ids; None if it isn't known.
        section: the `data` section of the run, to name what made another text of it.
    """
    written = {f"data.{name}": value for name, value in section.items() if name not in FREE_OF_DATA}
    cut = {"data.block_size": dataset.block_size, "data.order": getattr(dataset, "order", None)}
    return _as_json({**written, **({TEXT: text} if text else {}), **cut})


def fingerprint(dataset: Any) -> str | None:
    """Of the ids of a dataset: their number, and a sample that costs milliseconds whatever it is; None for a
    stream."""
    ids = getattr(dataset, "ids", None)
    if ids is None:
        return None
    stride = max(1, len(ids) // SAMPLED)
    digest = hashlib.sha256(str(len(ids)).encode())
    for part in (ids[:SAMPLED], ids[-SAMPLED:], ids[::stride][:SAMPLED]):
        digest.update(np.asarray(part).astype(np.int64).tobytes())
    return digest.hexdigest()[:16]


def environment(device: torch.device) -> dict[str, str]:
    """Where the bits were computed: they are promised to be equal only where these are."""
    name = torch.cuda.get_device_name(device) if device.type == "cuda" else platform.machine()
    return {
        "torch": torch.__version__,
        "device": f"{device.type} ({name})",
        "threads": str(torch.get_num_threads()),
    }


def differences(
    old: Mapping[str, Any],
    new: Mapping[str, Any],
    *,
    same_world: bool,
    defaults: Mapping[str, Any] | None = None,
) -> Changes:
    """What changed, as name -> (old, new), so that the run can't go on exactly.

    Args:
        same_world: whether the number of processes is the same.
        defaults: what a run had before craft knew a setting.
    """
    old = {**(defaults or {}), **old}
    another_text = TEXT in old and TEXT in new and old[TEXT] != new[TEXT]

    def counts(name: str) -> bool:
        if name == STEPS:  # a longer run goes on
            return moves_schedule(old, new) and new[STEPS] < (old.get(STEPS) or 0)
        if name.startswith("data.") and name not in WINDOW_SETTINGS:
            return another_text or (bool(new.get("data.streaming")) and name not in DESCRIPTIVE_SETTINGS)
        if name in PER_PROCESS and not same_world:
            return False
        return name in new or not name.startswith("training.")  # else it is an argument of an older craft

    changed = (name for name in {**old, **new} if old.get(name) != new.get(name) and counts(name))
    return {name: (old.get(name), new.get(name)) for name in changed}


def moves_schedule(old: Mapping[str, Any], new: Mapping[str, Any]) -> bool:
    """Whether another number of steps, though allowed, bends the curve of the learning rate."""
    schedule = new["training.lr_scheduler_type"]
    return old.get(STEPS) != new.get(STEPS) and schedule not in LENGTH_INDEPENDENT_SCHEDULES


def check_resume(
    checkpoint: Path, progress: Mapping[str, Any], settings: Mapping[str, Any], args: Any, *, allow: bool
) -> tuple[Changes, bool]:
    """Compares the settings that decide the weights with those of the checkpoint that a run goes on from.

    Args:
        progress: the checkpoint's `progress.json`.
        settings: of this run.
        allow: whether they may differ.

    Returns:
        What changed; and whether the settings of optimizer and schedule are taken from this run and not from
        the checkpoint, since something changed or the learning rate follows a longer curve from here on.

    Raises:
        UserError: with all that changed, unless that is allowed.
    """
    old, same_world = progress["settings"], progress["processes"] == args.world_size
    defaults = _as_json({f"training.{f.name}": f.default for f in fields(args) if f.default is not MISSING})
    changes = differences(old, settings, same_world=same_world, defaults=defaults)
    moves = bool(changes) or moves_schedule(old, settings)
    name, what = checkpoint.name, describe_changes(changes)
    if changes and not allow:
        raise UserError(
            f"{checkpoint.parent} can't go on exactly, for settings changed since {name}: {what}; put them "
            "back, or go on all the same with --allow-changes, which is recorded in the run",
            code="run-changed",
        )
    if changes:
        logger.warning(f"going on from {name} with other settings, as allowed: {what}")
    elif moves:
        logger.info(
            f"training.max_steps {old.get(STEPS)} → {settings[STEPS]}: from here on the learning "
            "rate follows the longer schedule, so this isn't the run that had it from the start"
        )
    if not same_world:
        logger.info(f"{progress['processes']} processes go on as {args.world_size}: exact but for dropout")
    here, there = environment(args.device), progress["environment"]
    moved = {key: (there.get(key), here[key]) for key in here if there.get(key) != here[key]}
    if moved:
        logger.info(f"{describe_changes(moved)}: the data and all states are the same, bits may differ")
    return changes, moves


def describe_changes(changes: Changes) -> str:
    """`training.seed 42 → 7, data.block_size 64 → 128`."""
    return ", ".join(f"{name} {yaml_word(old)} → {yaml_word(new)}" for name, (old, new) in changes.items())


def _as_json(values: dict[str, Any]) -> dict[str, Any]:
    """As they come back from a file, so that like is compared with like."""
    read: dict[str, Any] = json.loads(json.dumps(values, default=str))
    return read
