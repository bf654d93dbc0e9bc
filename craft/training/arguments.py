"""`CraftTrainingArguments`: Hugging Face's TrainingArguments plus what we need, minus its traps.

Whatever could train something else than what was asked for (a precision that the device lacks, eight
processes that don't know of each other, a batch that can't be divided) is refused here, before anything is
loaded: rules of single values beside their fields and in `LIMITS`, of several in `check_training`, of this
machine in requirements.py.
"""

from __future__ import annotations

import functools
import inspect
import os
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

import torch
import torch.distributed as dist
import transformers
from accelerate.utils import DynamoBackend
from huggingface_hub.dataclasses import validated_field
from transformers.optimization import TYPE_TO_SCHEDULER_FUNCTION
from transformers.trainer_utils import SchedulerType
from transformers.training_args import OptimizerNames

from craft.training import requirements
from craft.training.callbacks import wandb
from craft.training.distributed import rendezvous
from craft.training.precision import ASKED, LAUNCHED, PRECISIONS, Hardware, choose_precision
from craft.utils import launch
from craft.utils.common import did_you_mean, parsed_stride
from craft.utils.errors import UserError
from craft.utils.labels import wrong_licence
from craft.utils.logging import get_logger
from craft.utils.paths import typed_setting
from craft.utils.settings import (
    COUNT,
    FRACTION,
    NATURAL,
    POSITIVE,
    Field,
    Validator,
    check_type,
    check_values,
    fields_of,
    must,
    validators,
    word,
    yaml_word,
)
from craft.utils.units import UNITS

logger = get_logger(__name__)

METRICS = ("loss", *(unit.metric for unit in UNITS.values()), "perplexity", "accuracy")
"""What evaluations log, with `eval_` before it; bits by the unit of the model."""
WINDOWS = 8
"""Per device, where no batch size is given."""


def wrong_protocol(name: str, where: str) -> str:
    """What to say of a word that names no protocol of evaluation; empty if it does."""
    if name in ("auto", "blocks", "stateful") or parsed_stride(name):
        return ""
    near = did_you_mean(name, ("auto", "blocks", "stateful", "sliding-32"))
    return (
        f"{where}{name!r} isn't a protocol{near}; use auto, blocks, stateful, or sliding-N such as sliding-32"
    )


@dataclass
class CraftTrainingArguments(transformers.TrainingArguments):
    """Arguments of one training run: every field of `transformers.TrainingArguments`, and these.

    Args:
        precision: "auto" | "fp32" | "bf16" | "fp16"; see `craft.training.precision`. The trainer, which
            knows the model, settles it; `bf16` and `fp16` follow from it.
        optim: any name of Hugging Face, or "muon": Muon on the matrices inside the blocks, AdamW on the
            rest.
        muon_learning_rate: peak learning rate of Muon's matrices; `learning_rate` is AdamW's.
        muon_momentum: Nesterov momentum of Muon.
        global_batch_size: windows per optimizer step over all processes and accumulation steps; derives
            `per_device_train_batch_size` (8 if neither is given), so that a run means the same on one
            device and on eight.
        carry_state: recurrent models keep their state from one window to the next (truncated
            backpropagation through time); False starts every window from zero.
        ema_decay: decay of an exponential moving average of the weights, which is evaluated and exported.
        early_stopping_patience: stop after so many evaluations without a better one.
        sample_chars: characters (ids) generated and logged at every evaluation; 0 for none.
        sample_prompt: what the sample starts from; by default a line break.
        ddp_timeout: seconds after which a process that other ones wait for counts as lost.
        skip_nonfinite_batches: how many batches of the run may be left out because their loss or gradient
            isn't finite; 0 stops at the first.
        stall_seconds: a step that takes so long, and ten times longer than usual, is worth a line in the
            log; None for none.
        hub_license: the licence for the model card, as an identifier of the Hub (`apache-2.0`, `cc-by-4.0`);
            without it the card says that none is stated.
        eval_chars: how many characters (or other units) of the validation split are scored while training,
            counted from its beginning, at every evaluation the same ones; None for all of it. Once trained,
            all of it is.
        eval_protocol: "blocks" | "stateful" | "sliding-N" | "auto" (stateful for recurrent models).

    Raises:
        UserError: for a value that can't be trained with on this machine.
    """

    precision: str = "auto"
    per_device_train_batch_size: int | None = None  # type: ignore[assignment]  # else 8 looks like no choice
    optim: str = "adamw_torch_fused"
    muon_learning_rate: float = validated_field(POSITIVE, default=0.02)
    muon_momentum: float = validated_field(FRACTION, default=0.95)
    global_batch_size: int | None = validated_field(COUNT, default=None)
    carry_state: bool = True
    ema_decay: float | None = validated_field(
        must("be above 0 and below 1; 0.999 is usual", lambda x: 0 < x < 1), default=None
    )
    early_stopping_patience: int | None = validated_field(COUNT, default=None)
    sample_chars: int = validated_field(NATURAL, default=200)
    sample_prompt: str | None = None
    hub_license: str | None = validated_field(word(wrong_licence), default=None)
    eval_protocol: str = validated_field(word(wrong_protocol), default="auto")
    eval_chars: int | None = validated_field(COUNT, default=200_000)
    skip_nonfinite_batches: int = validated_field(NATURAL, default=0)
    stall_seconds: float | None = validated_field(POSITIVE, default=60.0)
    # Hugging Face's fields with other defaults: it would log a loss of 0 for NaN, keep all checkpoints,
    # look for unused parameters in every step, draw its own bar, name the project after itself and wait half
    # an hour for a process that is gone.
    logging_nan_inf_filter: bool = False
    save_total_limit: int | None = 2
    ddp_find_unused_parameters: bool | None = False
    disable_tqdm: bool | None = True
    report_to: str | list[str] | None = "none"
    project: str = "craft"
    ddp_timeout: int = 600

    def __post_init__(self) -> None:
        launch.check()
        self.output_dir = typed_setting(self.output_dir, "training.output_dir=")  # type: ignore[has-type]
        check_training(vars(self))
        self._prepare_devices()
        for name in ("bf16", "fp16"):  # other words for `precision`, which is kept
            if getattr(self, name):
                self.precision = name
                setattr(self, name, False)
        # Hugging Face knows no Muon, and couples "keep the best" to equal save and evaluation steps, which
        # our trainer doesn't need (it saves at every new best): both are hidden from its checks.
        rows, self.per_device_train_batch_size = self.per_device_train_batch_size, WINDOWS
        optim, keep_best = self.optim, self.load_best_model_at_end  # type: ignore[has-type]
        self.optim = "adamw_torch_fused" if optim == "muon" else optim
        self.load_best_model_at_end = False
        if _value(self.eval_strategy) != "no" and not self.metric_for_best_model:  # type: ignore[has-type]
            self.metric_for_best_model = "loss"
        if self.metric_for_best_model and self.greater_is_better is None:  # type: ignore[has-type]
            self.greater_is_better = self.metric_for_best_model.removeprefix("eval_") == "accuracy"
        if launch.world_size() == 1:
            self.ddp_backend = None  # of a run that had several processes, or was to have them
        # NCCL's own watchdog ends the process without a word of who is missing: it comes after ours.
        self.ddp_timeout += 2 * rendezvous.MARGIN
        try:
            super().__post_init__()
        except (ValueError, TypeError, KeyError, OSError, ImportError) as error:
            raise UserError(f"training: {' '.join(str(error).split())}") from error
        self.ddp_timeout -= 2 * rendezvous.MARGIN
        self.load_best_model_at_end = keep_best
        if optim == "muon":
            self.optim = optim
        self.precision_reason = self.precision_wanted = ""
        self._check_world()
        self._derive_batch_size(rows)
        if "wandb" in (self.report_to or []) and self.process_index == 0:
            wandb.check()

    def settle_precision(self) -> None:
        """Decides `precision` on this machine; `bf16`, `fp16`, `mixed_precision` follow, and
        `precision_wanted`: the words of whoever asked for less than float32, else nothing.

        Raises:
            UserError: see `choose_precision`.
        """
        if self.precision_reason:  # settled before; "asked for" would hide why
            return
        name, reason = choose_precision(self.precision, hardware=Hardware.detect(self.on_cpu))
        self.precision, self.precision_reason = name, reason
        if name != "fp32" and reason in (ASKED, LAUNCHED):
            self.precision_wanted = f"{'training.precision' if reason == ASKED else reason}={name}"
        self.bf16, self.fp16 = name == "bf16", name == "fp16"
        self.mixed_precision = {"fp32": "no"}.get(name, name)

    @property
    def on_cpu(self) -> bool:
        return self.use_cpu or launch.flag("ACCELERATE_USE_CPU")

    @property
    def shares(self) -> int:
        """Into how many micro-batches the global batch is cut: processes x accumulation steps."""
        return self.world_size * self.gradient_accumulation_steps

    def _prepare_devices(self) -> None:
        """Chooses the CPU where there is nothing else; joins several CPU processes, with a time limit."""
        world = launch.world_size()
        if not self.on_cpu and not torch.accelerator.is_available():
            if world > 1:
                raise UserError(
                    f"{world} processes were launched for GPUs, but this machine has none, so each would "
                    "train by itself; launch one process, or set ACCELERATE_USE_CPU=true for CPU processes"
                )
            self.use_cpu = True
            if (wanted := os.environ.get("CUDA_VISIBLE_DEVICES", "")) not in ("", "-1"):
                logger.warning(f"CUDA_VISIBLE_DEVICES={wanted} is no GPU that torch can use: the CPU is used")
        if not self.on_cpu:
            return
        self.use_cpu = True
        if world > 1:
            os.environ["ACCELERATE_USE_CPU"] = "true"  # read when the trainer creates its Accelerator
            if not dist.is_initialized():
                rendezvous.join(self.ddp_timeout)

    def _check_world(self) -> None:
        launched = launch.world_size()
        if launched != self.world_size:
            raise UserError(
                f"{launched} processes were launched, but this one sees a world of {self.world_size}: each "
                "would train by itself; use 'accelerate launch --multi_gpu --num_processes N' on a machine "
                "with N GPUs, or set ACCELERATE_USE_CPU=true for CPU processes"
            )
        rendezvous.start_heartbeat(self.ddp_timeout)
        if self.n_gpu > 1:
            logger.warning(
                f"{self.n_gpu} GPUs are visible and one is used; for all of them run "
                f"'accelerate launch --multi_gpu --num_processes {self.n_gpu} -m craft.train …'"
            )
            self._n_gpu = 1

    def _derive_batch_size(self, rows: int | None) -> None:
        """From `global_batch_size`, or the other way round from the `rows` that were given per device."""
        if self.global_batch_size is None:
            self.global_batch_size = (WINDOWS if rows is None else rows) * self.shares
        self.per_device_train_batch_size = self.global_batch_size // self.shares
        if rows not in (None, self.per_device_train_batch_size):
            raise UserError(
                f"training.per_device_train_batch_size={rows} contradicts training.global_batch_size="
                f"{self.global_batch_size} (with {self.world_size} processes x "
                f"{self.gradient_accumulation_steps} accumulation steps that is "
                f"{self.per_device_train_batch_size} per device); give one of them"
            )


_STEPS = must(
    "be above 0: a whole number, or a fraction below 1",
    lambda x: 0 < x < 1 or (x >= 1 and x == int(x)),
)

LIMITS: dict[str, tuple[Validator, ...]] = {
    **dict.fromkeys(("learning_rate", "num_train_epochs", "adam_epsilon"), (POSITIVE,)),
    **dict.fromkeys(("logging_steps", "eval_steps", "save_steps"), (_STEPS,)),
    **dict.fromkeys(("per_device_train_batch_size", "per_device_eval_batch_size"), (COUNT,)),
    **dict.fromkeys(("gradient_accumulation_steps", "save_total_limit"), (COUNT,)),
    **dict.fromkeys(("ddp_timeout", "torch_empty_cache_steps"), (COUNT,)),
    **dict.fromkeys(("weight_decay", "warmup_steps", "max_grad_norm", "eval_delay"), (NATURAL,)),
    **dict.fromkeys(("adam_beta1", "adam_beta2", "label_smoothing_factor"), (FRACTION,)),
    "seed": (must("lie from 0 to 4294967295", lambda x: 0 <= x < 2**32),),
    "max_steps": (must("be at least 1, or -1 to count epochs", lambda x: x >= 1 or x == -1),),
}
"""Rules of values for transformers' fields, which it takes as they are and fails later."""

CHOICES: dict[str, tuple[str, ...]] = {
    "precision": PRECISIONS,
    "optim": ("muon", *(name.value for name in OptimizerNames)),
    "metric_for_best_model": (*METRICS, *(f"eval_{name}" for name in METRICS)),
    "torch_compile_backend": tuple(backend.value.lower() for backend in DynamoBackend),
    "torch_compile_mode": ("default", "reduce-overhead", "max-autotune", "max-autotune-no-cudagraphs"),
}
"""Where a field says `str` and means one of a few words."""

MAPPINGS = ("lr_scheduler_kwargs", "gradient_checkpointing_kwargs", "activation_checkpointing_kwargs")
"""Fields that also allow `str`, by which transformers means JSON: here they are YAML."""

_LOADER = "craft cuts windows from memory-mapped ids in the process that trains; leave it out"
_EVALUATION = "evaluations sum up float32 predictions as they are made; leave it out"
_STAGES = "'craft train' trains and evaluates, 'craft evaluate' only evaluates"
_ORDER = "set data.order=shuffled or data.order=random"
_RESUME = "craft saves on signals and resumes exactly in its own way; leave it out"

IGNORED: dict[str, str] = {
    **dict.fromkeys(("enable_jit_checkpoint", "ignore_data_skip"), _RESUME),
    "restore_callback_states_from_checkpoint": _RESUME,
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
"""Fields of transformers that have no effect on craft's trainer, and what to do instead."""


def own_fields() -> list[str]:
    """craft's own fields, and those of transformers to which it gives another default."""
    return list(inspect.get_annotations(CraftTrainingArguments))


@functools.cache
def training_fields() -> dict[str, Field]:
    """The keys of the section `training`."""
    found = fields_of(CraftTrainingArguments)
    found |= {name: found[name].of(*words) for name, words in CHOICES.items()}
    for name in found.keys() & MAPPINGS:
        found[name] = replace(found[name], types=tuple(kind for kind in found[name].types if kind != "str"))
    return found


def check_training(values: Mapping[str, Any]) -> None:
    """Everything that can be said of the settings of a training without the text and the model.

    Args:
        values: all fields by name.

    Raises:
        UserError: at the first rule that is broken.
    """
    own, known = own_fields(), training_fields()
    values = {
        name: check_type("training", known[name], value)
        if name in known and (name in own or known[name].choices)
        else value
        for name, value in values.items()
    }
    check_values("training", {**LIMITS, **validators(CraftTrainingArguments)}, values)
    for name, instead in IGNORED.items():
        if values.get(name) not in (None, [], known[name].default if name in known else None):
            raise UserError(f"training.{name}={yaml_word(values[name])} has no effect in craft: {instead}")
    for rule in (_batch, _evaluations, _schedule, *requirements.RULES):
        rule(values)


def _batch(values: Mapping[str, Any]) -> None:
    batch, parts, world = (
        values["global_batch_size"],
        values["gradient_accumulation_steps"],
        launch.world_size(),
    )
    if batch and batch % (shares := parts * world):
        below = batch // shares * shares
        near = " or ".join(str(n) for n in (below, below + shares) if n)
        raise UserError(
            f"training.global_batch_size={batch} can't be divided among {world} processes x "
            f"training.gradient_accumulation_steps={parts} = {shares}; use {near}"
        )


def _evaluations(values: Mapping[str, Any]) -> None:
    """What follows evaluations needs some, and the best model a checkpoint."""
    for name in ("load_best_model_at_end", "early_stopping_patience"):
        if values[name] and values["eval_strategy"] == "no":
            raise UserError(
                f"training.{name}={yaml_word(values[name])} needs evaluations; set "
                "training.eval_strategy=steps and training.eval_steps"
            )
    if values["load_best_model_at_end"] and values["save_strategy"] == "no":
        raise UserError(
            "training.load_best_model_at_end=true needs checkpoints, and training.save_strategy=no keeps "
            "none; set training.load_best_model_at_end=false or training.save_strategy=steps"
        )
    schedule = values["lr_scheduler_type"]
    if schedule in ("reduce_lr_on_plateau", "greedy") and values["eval_strategy"] == "no":
        raise UserError(
            f"training.lr_scheduler_type={schedule} follows evaluations; set training.eval_strategy=steps"
        )


def schedule_arguments(schedule: str) -> set[str] | None:
    """The keys of `lr_scheduler_kwargs` that a schedule takes; None if it takes any."""
    parameters = inspect.signature(TYPE_TO_SCHEDULER_FUNCTION[SchedulerType(schedule)]).parameters
    if any(parameter.kind is parameter.VAR_KEYWORD for parameter in parameters.values()):
        return None
    return set(parameters) - {"optimizer", "num_warmup_steps", "num_training_steps", "last_epoch"}


def _schedule(values: Mapping[str, Any]) -> None:
    schedule, extra = values["lr_scheduler_type"], values["lr_scheduler_kwargs"]
    taken = schedule_arguments(schedule) if isinstance(extra, dict) and extra else None
    unknown = [] if taken is None else [name for name in extra if name not in taken]
    if taken is None or not unknown:
        return
    what = (
        f"takes {', '.join(sorted(taken))}" if taken else "takes none: set training.lr_scheduler_kwargs=null"
    )
    raise UserError(
        f"unknown training.lr_scheduler_kwargs.{unknown[0]}{did_you_mean(unknown[0], taken)}; "
        f"training.lr_scheduler_type={schedule} {what}"
    )


def _value(choice: Any) -> Any:
    return getattr(choice, "value", choice)
