"""Ranges and choices of single settings, which types can't say, and the names that other programs use."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

from craft.config.sources import Field, Kind, enums, yaml_word
from craft.utils.common import UserError

Locate = Callable[[str], str]
Range = tuple[str, Callable[[float], bool]]

COUNT: Range = ("at least 1", lambda x: x >= 1)
NATURAL: Range = ("0 or more", lambda x: x >= 0)
POSITIVE: Range = ("above 0", lambda x: x > 0)
FRACTION: Range = ("at least 0 and below 1", lambda x: 0 <= x < 1)
PROPER: Range = ("above 0 and below 1", lambda x: 0 < x < 1)

RANGES: dict[str, dict[str, Range]] = {
    "models": {
        **dict.fromkeys(
            ("vocab_size", "hidden_size", "num_hidden_layers", "num_attention_heads", "num_key_value_heads"),
            COUNT,
        ),
        **dict.fromkeys(
            ("intermediate_size", "head_dim", "max_position_embeddings", "sliding_window"), COUNT
        ),
        **dict.fromkeys(
            ("initializer_range", "norm_eps", "layer_norm_eps", "rope_theta", "attention_scale"), POSITIVE
        ),
    },
    "data": {
        **dict.fromkeys(("block_size", "min_frequency", "max_vocab_size"), COUNT),
        **dict.fromkeys(("validation_size", "test_size"), NATURAL),
    },
    "training": {
        **dict.fromkeys(
            ("learning_rate", "muon_learning_rate", "num_train_epochs", "adam_epsilon"), POSITIVE
        ),
        **dict.fromkeys(("logging_steps", "eval_steps", "save_steps"), POSITIVE),
        **dict.fromkeys(
            ("per_device_train_batch_size", "per_device_eval_batch_size", "global_batch_size"), COUNT
        ),
        **dict.fromkeys(
            ("gradient_accumulation_steps", "save_total_limit", "early_stopping_patience"), COUNT
        ),
        **dict.fromkeys(("eval_accumulation_steps", "dataloader_prefetch_factor", "ddp_timeout"), COUNT),
        **dict.fromkeys(("torch_empty_cache_steps",), COUNT),
        **dict.fromkeys(
            ("weight_decay", "warmup_steps", "max_grad_norm", "seed", "data_seed", "sample_chars"), NATURAL
        ),
        **dict.fromkeys(("dataloader_num_workers", "eval_delay"), NATURAL),
        **dict.fromkeys(("adam_beta1", "adam_beta2", "muon_momentum", "label_smoothing_factor"), FRACTION),
        "ema_decay": PROPER,
        "max_steps": ("at least 1, or -1 to count epochs", lambda x: x >= 1 or x == -1),
    },
}

CHOICES: dict[str, dict[str, tuple[str, ...]]] = {
    "training": {
        "precision": ("auto", "fp32", "bf16", "fp16"),
        "optim": ("muon", *enums()["OptimizerNames"]),
    },
    "char_transformer": {
        "mlp": ("relu2", "gelu", "swiglu"),
        "norm": ("rmsnorm", "layernorm"),
        "position": ("rope", "learned"),
    },
    "char_lstm": {"layer_norm": ("each", "head", "none")},
}
"""Where a class says `str` and means one of a few words; by section, or by type of model."""

FROM_DATA = ("vocab_size", "max_position_embeddings", "bos_token_id", "eos_token_id", "pad_token_id")
"""Fields of a model that follow from the data wherever the YAML leaves them open."""

OVERRULES: dict[str, dict[str, Any]] = {
    "training.per_device_train_batch_size": {"training.global_batch_size": None},
    "training.num_train_epochs": {"training.max_steps": -1},
    "training.lr_scheduler_type": {"training.lr_scheduler_kwargs": None},
    "training.eval_strategy=no": {"training.load_best_model_at_end": False},
    "data.validation_size=0": {"training.eval_strategy": "no", "training.load_best_model_at_end": False},
}
"""What typing the first takes back where a file has set it: the same said in two ways, or made impossible."""

OTHER_NAMES = {
    "lr": "learning_rate",
    "batch_size": "per_device_train_batch_size",
    "max_iters": "max_steps",
    "steps": "max_steps",
    "epochs": "num_train_epochs",
    "eval_interval": "eval_steps",
    "log_interval": "logging_steps",
    "warmup_iters": "warmup_steps",
    "warmup_ratio": "warmup_steps",
    "beta1": "adam_beta1",
    "beta2": "adam_beta2",
    "grad_clip": "max_grad_norm",
    "optimizer": "optim",
    "n_layer": "num_hidden_layers",
    "n_layers": "num_hidden_layers",
    "num_layers": "num_hidden_layers",
    "n_head": "num_attention_heads",
    "n_heads": "num_attention_heads",
    "num_heads": "num_attention_heads",
    "n_embd": "hidden_size",
    "d_model": "hidden_size",
    "rnn_size": "hidden_size",
    "context": "block_size",
    "context_length": "block_size",
    "seq_length": "block_size",
    "seq_len": "block_size",
    "text": "path",
    "file": "path",
}
"""What other programs call the same thing; used for suggestions only."""


def with_choices(owner: str, fields: dict[str, Field]) -> dict[str, Field]:
    """The fields of a section or type of model with `CHOICES` in place of plain text."""
    for name, words in CHOICES.get(owner, {}).items():
        kinds = fields[name].kinds if name in fields else ()
        if any(kind.name == "str" for kind in kinds):
            others = tuple(kind for kind in kinds if kind.name != "str")
            fields[name] = replace(fields[name], kinds=(Kind("choice", words), *others))
    return fields


def check_range(section: str, key: str, value: Any, locate: Locate) -> None:
    """Refuses a number outside the range of its key."""
    if isinstance(value, bool) or not isinstance(value, int | float):
        return
    limit = RANGES[section].get(key)
    if limit is None and section == "models" and "dropout" in key:
        limit = FRACTION
    if limit is not None and not limit[1](value):
        name = f"{section}.{key}"
        raise UserError(f"{name}={yaml_word(value)}{locate(name)} is out of range; it must be {limit[0]}")
