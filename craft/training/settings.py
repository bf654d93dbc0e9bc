"""Which settings decide the weights, and what changed in them since a checkpoint was written.

A run that goes on under other settings ends with weights that no run from the start would give. What only
decides how often something is logged, evaluated, saved or reported is free to change, and so is a larger
number of steps: it is how a finished run trains on.
"""

from __future__ import annotations

import hashlib
import json
import platform
from collections.abc import Mapping
from typing import Any

import numpy as np
import torch

DECISIVE = (
    *("precision", "seed", "full_determinism", "tf32", "ignore_data_skip", "carry_state", "ema_decay"),
    *("global_batch_size", "gradient_accumulation_steps", "average_tokens_across_devices"),
    *("learning_rate", "lr_scheduler_type", "lr_scheduler_kwargs", "warmup_steps", "max_grad_norm"),
    *("optim", "optim_args", "optim_target_modules", "weight_decay", "muon_learning_rate", "muon_momentum"),
    *("adam_beta1", "adam_beta2", "adam_epsilon", "label_smoothing_factor", "neftune_noise_alpha"),
    *("activation_checkpointing", "gradient_checkpointing", "use_liger_kernel"),
    *("torch_compile", "torch_compile_backend", "torch_compile_mode"),
)
"""Of the training arguments. The number of steps is looked at apart."""
WITH_EVALUATIONS = (
    *("eval_strategy", "eval_steps", "eval_delay", "eval_protocol", "eval_chars", "metric_for_best_model"),
)
"""Decisive where the learning rate follows the evaluations."""
PER_PROCESS = ("training.gradient_accumulation_steps", "training.average_tokens_across_devices")
"""How a global batch is shared out; it changes with the number of processes, which is free."""
FOLLOWS_EVALUATIONS = ("reduce_lr_on_plateau", "greedy")
KNOWS_NO_END = ("constant", "constant_with_warmup", *FOLLOWS_EVALUATIONS)
"""Schedules that are the same for any number of steps."""
NOT_OF_THE_MODEL = (
    *("transformers_version", "architectures", "dtype", "_name_or_path", "auto_map", "id2label", "label2id"),
    *("output_hidden_states", "output_attentions", "return_dict", "problem_type", "use_cache"),
    *("pad_token_id", "bos_token_id", "eos_token_id"),
)
"""What a model's config holds beside its shape."""
CUT = ("data.block_size", "data.order", "data.streaming")
"""How windows are cut from a text, beside the text itself."""
OF_A_STREAM = (
    *("data.lanes", "data.validation_size", "data.test_size", "data.validation_split", "data.test_split"),
    *("data.split", "data.text_column", "data.encoding", "data.separator"),
    *("data.config_name", "data.revision"),
)
"""A stream has no fingerprint of its ids: what decides them is compared as it is written."""
NOT_OF_THE_TEXT = ("cache_dir", "name")

SAMPLED = 1 << 16

STEPS, TEXT = "training.max_steps", "the text"

Changes = dict[str, tuple[Any, Any]]


def training_settings(args: Any, planned_steps: int) -> dict[str, Any]:
    """The decisive ones of the arguments, by full name."""
    values = args.to_dict()
    follows = values["lr_scheduler_type"] in FOLLOWS_EVALUATIONS
    names = [*DECISIVE, *(WITH_EVALUATIONS if follows else ())]
    found = {f"training.{name}": values.get(name) for name in names}
    return _plain({**found, STEPS: planned_steps})


def model_settings(model: Any) -> dict[str, Any]:
    config = {k: v for k, v in model.config.to_dict().items() if k not in NOT_OF_THE_MODEL}
    config["attention"] = getattr(model.config, "_attn_implementation", None)
    return _plain({f"models.{name}": value for name, value in config.items()})


def data_settings(dataset: Any, text: str | None, section: Mapping[str, Any]) -> dict[str, Any]:
    """Of the data: the windows, the text as a fingerprint, and what is written about both.

    Args:
        text: a fingerprint of the text as ids; None if it isn't known.
        section: the `data` section of the run, to name what made another text of it.
    """
    written = {f"data.{name}": value for name, value in section.items() if name not in NOT_OF_THE_TEXT}
    known = {TEXT: text} if text else {}
    cut = {"data.block_size": dataset.block_size, "data.order": getattr(dataset, "order", None)}
    return _plain({**written, **known, **cut})


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


def differences(old: Mapping[str, Any], new: Mapping[str, Any], *, same_world: bool) -> Changes:
    """What changed, as name -> (old, new), so that the run can't go on exactly."""
    changed: Changes = {
        name: (old.get(name), new.get(name))
        for name in dict.fromkeys([*old, *new])
        if old.get(name) != new.get(name)
    }
    if not same_world:
        changed = {name: pair for name, pair in changed.items() if name not in PER_PROCESS}
    if TEXT not in changed or None in changed[TEXT]:  # the same text may lie elsewhere, or be named otherwise
        cut = (*CUT, *OF_A_STREAM) if new.get("data.streaming") else CUT
        changed = {
            name: pair for name, pair in changed.items() if not name.startswith("data.") or name in cut
        }
    before, after = changed.get(STEPS, (0, 0))
    if before is None or after >= before or new["training.lr_scheduler_type"] in KNOWS_NO_END:
        changed.pop(STEPS, None)
    return changed


def schedule_moves(old: Mapping[str, Any], new: Mapping[str, Any]) -> bool:
    """Whether another number of steps, though allowed, bends the curve of the learning rate."""
    return old.get(STEPS) != new[STEPS] and new["training.lr_scheduler_type"] not in KNOWS_NO_END


def listed(changes: Changes) -> str:
    """`training.seed 42 → 7, data.block_size 64 → 128`."""
    return ", ".join(f"{name} {_word(old)} → {_word(new)}" for name, (old, new) in changes.items())


def _word(value: Any) -> str:
    return value if isinstance(value, str) else json.dumps(value)


def _plain(values: dict[str, Any]) -> dict[str, Any]:
    """As they come back from JSON, so that comparing with what was saved compares like with like."""
    plain: dict[str, Any] = json.loads(json.dumps(values, default=str))
    return plain
