"""`CraftTrainingArguments`: Hugging Face's TrainingArguments plus what we need, minus its traps.

Every field is annotated simply and has a literal default, because the configuration reads names, types and
defaults from this source without importing it. Whatever could train something else than what was asked for
(a precision that the device lacks, eight processes that don't know of each other, a batch that can't be
divided) is refused here, before anything is loaded.
"""

from __future__ import annotations

import os
from dataclasses import dataclass
from typing import Any

import torch
import torch.distributed as dist
import transformers
from transformers.trainer_utils import SchedulerType
from transformers.training_args import OptimizerNames

from craft.training.callbacks import wandb
from craft.training.distributed import rendezvous
from craft.training.precision import ASKED, LAUNCHED, PRECISIONS, Hardware, choose_precision
from craft.utils import launch
from craft.utils.common import UserError, did_you_mean, parsed_stride
from craft.utils.labels import wrong_licence
from craft.utils.logging import get_logger
from craft.utils.paths import typed_setting

logger = get_logger(__name__)

METRICS = ("loss", "bits_per_char", "bits_per_byte", "perplexity", "accuracy")
"""What every evaluation logs, with `eval_` before it."""
WINDOWS = 8
"""Per device, where no batch size is given."""


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
        sample_chars: characters generated and logged at every evaluation; 0 for none.
        sample_prompt: what the sample starts from; by default a line break.
        ddp_timeout: seconds after which a process that other ones wait for counts as lost.
        skip_nonfinite_batches: how many batches of the run may be left out because their loss or gradient
            isn't finite; 0 stops at the first.
        stall_seconds: a step that takes so long, and ten times longer than usual, is worth a line in the
            log; None for none.
        hub_license: the licence for the model card, as an identifier of the Hub (`apache-2.0`, `cc-by-4.0`);
            without it the card says that none is stated.
        eval_chars: how many characters of the validation split are scored while training, counted from its
            beginning, at every evaluation the same ones; None for all of it. Once trained, all of it is.
        eval_protocol: "blocks" | "stateful" | "sliding-N" | "auto" (stateful for recurrent models).

    Raises:
        UserError: for a value that can't be trained with on this machine.
    """

    precision: str = "auto"
    per_device_train_batch_size: int | None = None  # type: ignore[assignment]  # else 8 looks like no choice
    optim: str = "adamw_torch_fused"
    muon_learning_rate: float = 0.02
    muon_momentum: float = 0.95
    global_batch_size: int | None = None
    carry_state: bool = True
    ema_decay: float | None = None
    early_stopping_patience: int | None = None
    sample_chars: int = 200
    sample_prompt: str | None = None
    hub_license: str | None = None
    eval_protocol: str = "auto"
    eval_chars: int | None = 200_000
    skip_nonfinite_batches: int = 0
    stall_seconds: float | None = 60.0
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
        self._check_names()
        self._check_ranges()
        self._prepare_devices()
        self._translate_precision_flags()
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

    def _check_names(self) -> None:
        choices = {
            "precision": PRECISIONS,
            "optim": ["muon", *(name.value for name in OptimizerNames)],
            "lr_scheduler_type": [name.value for name in SchedulerType],
            "metric_for_best_model": [*METRICS, *(f"eval_{name}" for name in METRICS)],
        }
        for key, known in choices.items():
            value = str(_value(getattr(self, key)))
            if value not in known and getattr(self, key) is not None:
                near = did_you_mean(value, known) or f"; use one of {', '.join(known[:12])}"
                raise UserError(f"training.{key}={value!r} isn't known{near}")
        if self.hub_license is not None and (
            wrong := wrong_licence(self.hub_license, "training.hub_license=")
        ):
            raise UserError(wrong)
        protocol = self.eval_protocol
        if protocol not in ("auto", "blocks", "stateful") and not parsed_stride(protocol):
            near = did_you_mean(protocol, ("auto", "blocks", "stateful", "sliding-32"))
            raise UserError(
                f"training.eval_protocol={protocol!r} isn't a protocol{near}; "
                "use auto, blocks, stateful or sliding-N"
            )

    def _check_ranges(self) -> None:
        if self.ema_decay is not None and not 0 < self.ema_decay < 1:
            raise UserError(f"training.ema_decay={self.ema_decay} must lie between 0 and 1; 0.999 is usual")
        counts = ("early_stopping_patience", "eval_chars", "global_batch_size", "gradient_accumulation_steps")
        for key in (*counts, "per_device_train_batch_size"):
            value = getattr(self, key)
            if value is not None and value < 1:
                raise UserError(f"training.{key}={value} must be at least 1")
        if self.early_stopping_patience and _value(self.eval_strategy) == "no":
            raise UserError(
                "training.early_stopping_patience needs evaluations; set training.eval_strategy=steps"
            )
        if self.load_best_model_at_end and _value(self.save_strategy) == "no":  # type: ignore[has-type]
            raise UserError(
                "training.load_best_model_at_end=true needs checkpoints, and training.save_strategy=no keeps "
                "none; set training.load_best_model_at_end=false or training.save_strategy=steps"
            )

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

    def _translate_precision_flags(self) -> None:
        """Hugging Face's `bf16=True` and `fp16=True` are other words for `precision`; one of them is kept."""
        for name in ("bf16", "fp16"):
            if getattr(self, name):
                if self.precision not in ("auto", name):
                    raise UserError(
                        f"training.{name}=true contradicts training.precision={self.precision}; keep one"
                    )
                self.precision = name
                setattr(self, name, False)

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
        if self.global_batch_size % self.shares:
            below = self.global_batch_size // self.shares * self.shares
            near = " or ".join(str(n) for n in (below, below + self.shares) if n)
            raise UserError(
                f"training.global_batch_size={self.global_batch_size} can't be divided among "
                f"{self.world_size} processes x {self.gradient_accumulation_steps} accumulation steps = "
                f"{self.shares}; use {near}"
            )
        self.per_device_train_batch_size = self.global_batch_size // self.shares
        if rows not in (None, self.per_device_train_batch_size):
            raise UserError(
                f"training.per_device_train_batch_size={rows} contradicts training.global_batch_size="
                f"{self.global_batch_size} (with {self.world_size} processes x "
                f"{self.gradient_accumulation_steps} accumulation steps that is "
                f"{self.per_device_train_batch_size} per device); give one of them"
            )


def _value(choice: Any) -> Any:
    return getattr(choice, "value", choice)
