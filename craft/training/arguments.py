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
import sys
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

import torch
import torch.distributed as dist
import transformers
from accelerate.utils import DynamoBackend
from huggingface_hub.dataclasses import validated_field
from transformers.training_args import OptimizerNames

from craft.training import requirements
from craft.training.distributed import rendezvous
from craft.training.precision import PRECISIONS, Hardware, choose_precision
from craft.utils import launch
from craft.utils.common import PROTOCOL_NAMES, did_you_mean, is_protocol
from craft.utils.errors import UserError
from craft.utils.labels import LICENCE
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
    yaml_word,
)
from craft.utils.units import UNITS

logger = get_logger(__name__)

METRICS = ("loss", *(unit.metric for unit in UNITS.values()), "perplexity", "accuracy")
"""What evaluations log, with `eval_` before it; bits by the unit of the model."""
WINDOWS = 8
"""Per device, where no batch size is given."""
FOLLOWS_EVALUATIONS = ("reduce_lr_on_plateau", "greedy")
"""Schedules whose learning rate depends on what evaluations give."""


def user_optimizer(name: str) -> type[torch.optim.Optimizer] | None:
    """The optimizer class of a dotted name, if its module is imported: a saved run can't import anything."""
    module, _, cls = name.rpartition(".")
    found = getattr(sys.modules.get(module), cls, None)
    return found if isinstance(found, type) and issubclass(found, torch.optim.Optimizer) else None


def check_optimizer(name: str) -> None:
    """The validator of the name of an optimizer."""
    known = ("muon", *(optimizer.value for optimizer in OptimizerNames))
    if name in known or user_optimizer(name):
        return
    if module := name.rpartition(".")[0]:
        raise ValueError(f"is no loaded class of torch.optim.Optimizer; give --plugin {module}")
    raise ValueError(f"isn't an optimizer{did_you_mean(name, known)}; use one of {', '.join(known)}")


@dataclass
class CraftTrainingArguments(transformers.TrainingArguments):
    """Arguments of one training run: every field of `transformers.TrainingArguments`, and these.

    Args:
        precision: "auto" | "fp32" | "bf16" | "fp16"; see `craft.training.precision`. The trainer, which
            knows the model, settles it; `bf16` and `fp16` follow from it.
        optim: any name of Hugging Face; "muon": Muon on the matrices inside the blocks, AdamW on the rest;
            or "my_module.MyOptimizer", a class of a module that is imported (by `--plugin my_module`).
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
        max_minutes: how long the run takes, from the start of its process to the end of scoring and saving;
            the number of steps follows from the speed of the machine, instead of `max_steps`.
        time_plan: the steps that followed from it, as pairs (step, steps in all from there on); a run that
            has it takes them, however long that takes.
        torch_compile: None measures on this machine whether a compiled step is faster, in runs of ten minutes
            and more of a transformer on a CPU.
        skip_nonfinite_batches: how many batches of the run may be left out because their loss or gradient
            isn't finite; 0 stops at the first.
        stall_seconds: a step that takes so long, and ten times longer than usual, is worth a line in the
            log; None for none.
        hub_license: the licence for the model card, as an identifier of the Hub (`apache-2.0`, `cc-by-4.0`);
            without it the card says that none is stated.
        eval_chars: how many characters (or other units) of the validation split are scored while training,
            counted from its beginning, at every evaluation the same ones; None for all of it. Once trained,
            all of it is.
        eval_protocol: "blocks" | "stateful" | "sliding-N" | "nanogpt-sampled" | "auto" (stateful for
            recurrent models, else blocks).
        eval_protocols: by which the finished model is scored, too, besides its natural protocol.

    Raises:
        UserError: for a value that can't be trained with on this machine.
    """

    precision: str = "auto"
    per_device_train_batch_size: int | None = None  # type: ignore[assignment]  # else 8 looks like no choice
    optim: str = validated_field(check_optimizer, default="adamw_torch_fused")
    muon_learning_rate: float = validated_field(POSITIVE, default=0.02)
    muon_momentum: float = validated_field(FRACTION, default=0.9)
    global_batch_size: int | None = validated_field(COUNT, default=None)
    carry_state: bool = True
    ema_decay: float | None = validated_field(
        must("be above 0 and below 1; 0.999 is usual", lambda x: 0 < x < 1), default=None
    )
    early_stopping_patience: int | None = validated_field(COUNT, default=None)
    sample_chars: int = validated_field(NATURAL, default=200)
    sample_prompt: str | None = None
    hub_license: str | None = validated_field(LICENCE, default=None)
    eval_protocol: str = validated_field(
        must(f"be auto, {PROTOCOL_NAMES}", lambda x: x == "auto" or is_protocol(x)),
        default="auto",
    )
    eval_protocols: list[str] | None = validated_field(
        must(f"be a list of {PROTOCOL_NAMES}", lambda x: all(map(is_protocol, x))), default=None
    )
    eval_chars: int | None = validated_field(COUNT, default=200_000)
    max_minutes: float | None = validated_field(POSITIVE, default=None)
    time_plan: list[list[int]] | None = validated_field(requirements.TIME_PLAN, default=None)
    skip_nonfinite_batches: int = validated_field(NATURAL, default=0)
    stall_seconds: float | None = validated_field(POSITIVE, default=60.0)
    # Hugging Face's fields with other defaults: it would log a loss of 0 for NaN, keep all checkpoints,
    # look for unused parameters in every step, draw its own bar, name the project after itself, wait half
    # an hour for a process that is gone, and compile only when told to.
    logging_nan_inf_filter: bool = False
    save_total_limit: int | None = 2
    torch_compile: bool | None = None
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
        # Hugging Face knows its own optimizers alone, and couples "keep the best" to equal save and
        # evaluation steps; our trainer saves at every new best. Both are hidden from its checks.
        rows, self.per_device_train_batch_size = self.per_device_train_batch_size, WINDOWS
        if self.max_minutes or self.time_plan:
            self.max_steps = self.time_plan[0][1] if self.time_plan else 1  # until the run is planned
        optim, keep_best = self.optim, self.load_best_model_at_end  # type: ignore[has-type]
        foreign = optim == "muon" or user_optimizer(optim) is not None
        if foreign:
            self.optim = "adamw_torch_fused"
        self.load_best_model_at_end = False
        if self.eval_strategy != "no" and not self.metric_for_best_model:  # type: ignore[has-type]
            self.metric_for_best_model = "loss"
        if self.metric_for_best_model and self.greater_is_better is None:  # type: ignore[has-type]
            self.greater_is_better = self.compared_metric == "accuracy"
        if launch.world_size() == 1:
            self.ddp_backend = None  # of a run that had several processes, or was to have them
        # NCCL's own watchdog ends the process without a word of who is missing: it comes after ours.
        self.ddp_timeout += 2 * rendezvous.MARGIN
        with requirements.library_errors():
            super().__post_init__()
        self.ddp_timeout -= 2 * rendezvous.MARGIN
        self.load_best_model_at_end = keep_best
        if foreign:
            self.optim = optim
        self.precision_reason = ""
        self._check_world()
        if self.global_batch_size is None:
            self.global_batch_size = (rows or WINDOWS) * self.shares
        self.per_device_train_batch_size = self.global_batch_size // self.shares

    def settle_precision(self) -> None:
        """Decides `precision` on this machine; `bf16`, `fp16` and `mixed_precision` follow.

        Raises:
            UserError: see `choose_precision`.
        """
        if self.precision_reason:  # settled before; "asked for" would hide why
            return
        name, reason = choose_precision(self.precision, hardware=Hardware.detect(self.use_cpu))
        self.precision, self.precision_reason = name, reason
        self.bf16, self.fp16 = name == "bf16", name == "fp16"
        self.mixed_precision = {"fp32": "no"}.get(name, name)

    @property
    def compared_metric(self) -> str:
        """`metric_for_best_model` without the `eval_` that may stand before it; empty for none."""
        return (self.metric_for_best_model or "").removeprefix("eval_")

    def is_better(self, value: float, best: float | None) -> bool:
        """Whether a value of `compared_metric` is better than the best one so far, if there is one."""
        return best is None or (value > best if self.greater_is_better else value < best)

    @property
    def shares(self) -> int:
        """Into how many micro-batches the global batch is cut: processes x accumulation steps."""
        return self.world_size * self.gradient_accumulation_steps

    def _prepare_devices(self) -> None:
        """Chooses the CPU where there is nothing else; joins several CPU processes, with a time limit."""
        world, asked = launch.world_size(), requirements.asked_for_cpu(vars(self))
        self.use_cpu = requirements.on_cpu(vars(self))
        if self.use_cpu and world > 1:
            if not asked:
                raise UserError(
                    f"{world} processes were launched for GPUs, but this machine has none, so each would "
                    "train by itself; launch one process, or set ACCELERATE_USE_CPU=true for CPU processes",
                    code="launch-invalid",
                )
            os.environ["ACCELERATE_USE_CPU"] = "true"  # read when the trainer creates its Accelerator
            if not dist.is_initialized():
                rendezvous.join(self.ddp_timeout)

    def _check_world(self) -> None:
        launched = launch.world_size()
        if launched != self.world_size:
            raise UserError(
                f"{launched} processes were launched, but this one sees a world of {self.world_size}: each "
                "would train by itself; use 'accelerate launch --multi_gpu --num_processes N' on a machine "
                "with N GPUs, or set ACCELERATE_USE_CPU=true for CPU processes",
                code="launch-invalid",
            )
        rendezvous.start_heartbeat(self.ddp_timeout)
        if self.n_gpu > 1:
            logger.warning(
                f"{self.n_gpu} GPUs are visible and one is used; for all of them run "
                f"'accelerate launch --multi_gpu --num_processes {self.n_gpu} -m craft.train …'"
            )
            self._n_gpu = 1


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
    "logging_nan_inf_filter": (must("be false: it would log a loss of 0 for NaN", lambda x: not x),),
    "max_steps": (must("be at least 1, or -1 to count epochs", lambda x: x >= 1 or x == -1),),
}
"""Rules of values for transformers' fields, which it takes as they are and fails later."""

CHOICES: dict[str, tuple[str, ...]] = {
    "precision": PRECISIONS,
    "metric_for_best_model": (*METRICS, *(f"eval_{name}" for name in METRICS)),
    "torch_compile_backend": tuple(backend.value.lower() for backend in DynamoBackend),
    "torch_compile_mode": ("default", "reduce-overhead", "max-autotune", "max-autotune-no-cudagraphs"),
}
"""Where a field says `str` and means one of a few words."""

MAPPINGS = ("lr_scheduler_kwargs", "gradient_checkpointing_kwargs", "activation_checkpointing_kwargs")
"""Fields that also allow `str`, by which transformers means JSON: here they are YAML."""

IGNORED = (
    # loaders: craft cuts windows from memory-mapped ids in the process that trains
    *("dataloader_num_workers", "dataloader_prefetch_factor", "dataloader_persistent_workers"),
    *("dataloader_multiprocessing_context", "dataloader_in_order", "dataloader_pin_memory"),
    *("dataloader_drop_last", "remove_unused_columns", "label_names"),
    # the order of the data: data.order and training.seed
    *("train_sampling_strategy", "length_column_name", "data_seed"),
    # evaluation: float32 predictions are summed up as they are made
    *("prediction_loss_only", "eval_do_concat_batches", "eval_use_gather_object", "eval_accumulation_steps"),
    *("include_for_metrics", "batch_eval_metrics", "bf16_full_eval", "fp16_full_eval"),
    # resuming: craft resume
    *("enable_jit_checkpoint", "ignore_data_skip", "restore_callback_states_from_checkpoint"),
    "resume_from_checkpoint",
    # stages: craft train, craft evaluate; kernels for other people's models
    *("do_train", "do_eval", "do_predict", "use_liger_kernel"),
)
"""Fields of transformers that have no effect on craft's trainer."""


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
    for name in IGNORED:
        if values.get(name) not in (None, [], known[name].default if name in known else None):
            raise UserError(
                f"training.{name}={yaml_word(values[name])} has no effect in craft, which cuts windows, "
                "evaluates and resumes in its own way; leave it out",
                code="setting-no-effect",
            )
    for rule in (_batch, _evaluations, *requirements.RULES):
        rule(values)


def _batch(values: Mapping[str, Any]) -> None:
    batch, rows = values["global_batch_size"], values["per_device_train_batch_size"]
    accumulation, world = values["gradient_accumulation_steps"], launch.world_size()
    if not batch:
        return
    shares, what = accumulation * world, f"training.global_batch_size={batch}"
    if batch % shares:
        below = batch // shares * shares
        near = " or ".join(str(n) for n in (below, below + shares) if n)
        raise UserError(
            f"{what} can't be divided among {world} processes x training.gradient_accumulation_steps="
            f"{accumulation} = {shares}; use {near}",
            code="setting-conflict",
        )
    if rows not in (None, batch // shares):
        raise UserError(
            f"training.per_device_train_batch_size={rows} contradicts {what}, which is {batch // shares} for "
            "each process and accumulation step; give one of them",
            code="setting-conflict",
        )


def _evaluations(values: Mapping[str, Any]) -> None:
    """What follows evaluations needs some, and the best model a checkpoint."""
    follows = {name: values[name] for name in ("load_best_model_at_end", "early_stopping_patience")}
    if values["lr_scheduler_type"] in FOLLOWS_EVALUATIONS:
        follows["lr_scheduler_type"] = values["lr_scheduler_type"]
    needs = {
        "eval_strategy": follows,
        "save_strategy": {"load_best_model_at_end": follows["load_best_model_at_end"]},
    }
    for strategy, settings in needs.items():
        for name, value in settings.items():
            if value and values[strategy] == "no":
                raise UserError(
                    f"training.{name}={yaml_word(value)} needs training.{strategy}=steps, not no",
                    code="setting-conflict",
                )
