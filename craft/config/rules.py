"""What types can't say of single settings: ranges, choices, words; and the names that other programs use."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from craft.config.sources import CRAFT, Field, constant, dynamo_backends, enums, yaml_word
from craft.utils.common import UserError, did_you_mean, parsed_stride
from craft.utils.encodings import wrong_encoding
from craft.utils.labels import wrong_language, wrong_licence
from craft.utils.masking import masked

Locate = Callable[[str], str]
Range = tuple[str, Callable[[float], bool]]

COUNT: Range = ("at least 1", lambda x: x >= 1)
NATURAL: Range = ("0 or more", lambda x: x >= 0)
POSITIVE: Range = ("above 0", lambda x: x > 0)
FRACTION: Range = ("at least 0 and below 1", lambda x: 0 <= x < 1)
PROPER: Range = ("above 0 and below 1", lambda x: 0 < x < 1)
STEPS: Range = (
    "above 0: a whole number, or a fraction below 1",
    lambda x: 0 < x < 1 or (x >= 1 and x == int(x)),
)
SHARE: Range = (
    "0 or more: a fraction below 1, or a whole number of characters",
    lambda x: 0 <= x < 1 or (x >= 1 and x == int(x)),
)

RANGES: dict[str, dict[str, Range]] = {
    "models": {
        **dict.fromkeys(
            ("vocab_size", "hidden_size", "num_hidden_layers", "num_attention_heads", "num_key_value_heads"),
            COUNT,
        ),
        **dict.fromkeys(
            ("intermediate_size", "head_dim", "max_position_embeddings", "sliding_window"), COUNT
        ),
        **dict.fromkeys(("bos_token_id", "eos_token_id", "pad_token_id"), NATURAL),
        **dict.fromkeys(
            ("initializer_range", "norm_eps", "layer_norm_eps", "rope_theta", "attention_scale"), POSITIVE
        ),
    },
    "data": {
        **dict.fromkeys(("block_size", "min_frequency", "max_vocab_size"), COUNT),
        **dict.fromkeys(("validation_size", "test_size"), SHARE),
    },
    "training": {
        **dict.fromkeys(
            ("learning_rate", "muon_learning_rate", "num_train_epochs", "adam_epsilon"), POSITIVE
        ),
        **dict.fromkeys(("logging_steps", "eval_steps", "save_steps"), STEPS),
        **dict.fromkeys(
            ("per_device_train_batch_size", "per_device_eval_batch_size", "global_batch_size"), COUNT
        ),
        **dict.fromkeys(
            ("gradient_accumulation_steps", "save_total_limit", "early_stopping_patience"), COUNT
        ),
        **dict.fromkeys(("ddp_timeout", "torch_empty_cache_steps"), COUNT),
        **dict.fromkeys(
            ("weight_decay", "warmup_steps", "max_grad_norm", "sample_chars", "eval_delay"), NATURAL
        ),
        "seed": ("0 to 4294967295", lambda x: 0 <= x < 2**32),
        **dict.fromkeys(("adam_beta1", "adam_beta2", "muon_momentum", "label_smoothing_factor"), FRACTION),
        "ema_decay": PROPER,
        "skip_nonfinite_batches": NATURAL,
        "stall_seconds": POSITIVE,
        "max_steps": ("at least 1, or -1 to count epochs", lambda x: x >= 1 or x == -1),
    },
}

METRICS = constant(CRAFT / "training" / "arguments.py", "METRICS")

CHOICES: dict[str, tuple[str, ...]] = {
    "precision": constant(CRAFT / "training" / "precision.py", "PRECISIONS"),
    "optim": ("muon", *enums()["OptimizerNames"]),
    "metric_for_best_model": (*METRICS, *(f"eval_{name}" for name in METRICS)),
    **dict.fromkeys(
        ("log_level", "log_level_replica"),
        ("detail", "debug", "info", "warning", "error", "critical", "passive"),
    ),
    "ddp_backend": ("nccl", "gloo", "mpi", "ccl", "hccl", "cncl", "mccl"),
    "torch_compile_backend": dynamo_backends(),
    "torch_compile_mode": ("default", "reduce-overhead", "max-autotune", "max-autotune-no-cudagraphs"),
    "dtype": ("float32", "bfloat16", "float16"),
    "attn_implementation": (
        "eager",
        "sdpa",
        "flex_attention",
        "flash_attention_2",
        "flash_attention_3",
        "flash_attention_4",
    ),
}
"""Where a field says `str` and means one of a few words."""

PROTOCOLS = ("auto", "blocks", "stateful", "sliding-32")
"""The last stands for all of its kind."""

MAPPINGS = ("lr_scheduler_kwargs", "gradient_checkpointing_kwargs", "activation_checkpointing_kwargs")
"""Training fields that also allow `str`, by which transformers means JSON: here they are YAML."""

_LOADER = "craft cuts windows from memory-mapped ids in the process that trains; leave it out"
_EVALUATION = "evaluations sum up float32 predictions as they are made; leave it out"
_STAGES = "'craft train' trains and evaluates, 'craft evaluate' only evaluates"
_ORDER = "set data.order=shuffled or data.order=random"

_RESUME = "craft saves on signals and resumes exactly in its own way; leave it out"
_LANGUAGE = "craft's models predict the next character and nothing else; leave it out"

IGNORED: dict[str, str] = {
    **dict.fromkeys(
        ("enable_jit_checkpoint", "ignore_data_skip", "restore_callback_states_from_checkpoint"), _RESUME
    ),
    **dict.fromkeys(
        ("id2label", "label2id", "problem_type", "is_encoder_decoder", "chunk_size_feed_forward"), _LANGUAGE
    ),
    "return_dict": "craft's models return transformers' outputs; leave it out",
    **dict.fromkeys(
        ("dataloader_num_workers", "dataloader_prefetch_factor", "dataloader_persistent_workers"), _LOADER
    ),
    **dict.fromkeys(("dataloader_multiprocessing_context", "dataloader_in_order"), _LOADER),
    **dict.fromkeys(("dataloader_pin_memory", "remove_unused_columns", "label_names"), _LOADER),
    "dataloader_drop_last": "every batch is full, and data.order decides which windows it holds",
    "train_sampling_strategy": _ORDER,
    "length_column_name": _ORDER,
    "data_seed": "training.seed decides the order of the data as well",
    "resume_from_checkpoint": "write craft resume RUN_DIR",
    **dict.fromkeys(
        ("prediction_loss_only", "eval_do_concat_batches", "eval_use_gather_object"), _EVALUATION
    ),
    **dict.fromkeys(("eval_accumulation_steps", "include_for_metrics", "batch_eval_metrics"), _EVALUATION),
    **dict.fromkeys(("bf16_full_eval", "fp16_full_eval"), _EVALUATION),
    **dict.fromkeys(("do_train", "do_eval", "do_predict"), _STAGES),
}
"""Fields of transformers that have no effect on craft's trainer and models, and what to do instead."""

FROM_DATA = ("vocab_size", "max_position_embeddings", "bos_token_id", "eos_token_id", "pad_token_id")
"""Fields of a model that follow from the data wherever the YAML leaves them open."""

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
    "device": "use_cpu",
    "out_dir": "output_dir",
    "text": "path",
    "file": "path",
}
"""What other programs call the same thing; used for suggestions only."""


def check_effect(section: str, field: Field, value: Any, locate: Locate) -> None:
    """Refuses what would be accepted and have no effect.

    Raises:
        UserError: with what to do instead.
    """
    if field.name in IGNORED and value not in (None, [], field.default):
        name = f"{section}.{field.name}"
        raise UserError(
            f"{name}={yaml_word(value)}{locate(name)} has no effect in craft: {IGNORED[field.name]}"
        )


def check_range(section: str, key: str, value: Any, locate: Locate) -> None:
    """Refuses a number outside the range of its key.

    Raises:
        UserError: with the range.
    """
    if isinstance(value, bool) or not isinstance(value, int | float):
        return
    limit = RANGES[section].get(key)
    if limit is None and section == "models" and "dropout" in key:
        limit = FRACTION
    if limit is not None and not limit[1](value):
        name = f"{section}.{key}"
        raise UserError(f"{name}={yaml_word(value)}{locate(name)} is out of range; it must be {limit[0]}")


def check_word(section: str, key: str, value: Any, locate: Locate) -> None:
    """Refuses words that name no language, licence or protocol, and secrets, which would be saved.

    Raises:
        UserError: with what to write instead, as far as that is known.
    """
    name = f"{section}.{key}"
    wrong = ""
    if name == "training.hub_token" and value:
        wrong = f"{name} would be saved with the run; set the environment variable HF_TOKEN instead"
    elif masked(value) != value:
        wrong = (
            f"{name} holds a token or password, which would be saved with the run and shared with it; take "
            "it out (they are read from the environment, or the login of hf)"
        )
    elif name == "data.encoding" and value is not None:
        wrong = wrong_encoding(value, f"{name}=")
    elif name == "data.language" and value is not None:
        wrong = wrong_language(value, f"{name}=")
    elif name == "training.hub_license" and value is not None:
        wrong = wrong_licence(value, f"{name}=")
    elif name == "training.eval_protocol" and value not in PROTOCOLS and not parsed_stride(value):
        wrong = (
            f"unknown {name}={value}{did_you_mean(value, PROTOCOLS)} (there are auto, blocks, stateful and "
            "sliding-N, for example sliding-32)"
        )
    if wrong:
        raise UserError(f"{wrong}{locate(name)}")
