"""`Trainer` and `LanguageModelTrainer`: transformers' Trainer, made safe to interrupt and to resume.

`Trainer` trains any `PreTrainedModel`; of language it only compares alphabets on resuming. What it adds is a
part of the checkpoints (`checkpointing`), a callback (`callbacks`) or a function; it joins them. A save: a
callback sets `control.should_save`, the loop calls `Trainer._save_checkpoint`, this calls
`Checkpointer.save`, which writes what `shared_parts` and `rank_parts` name.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import torch
import transformers
from torch.distributed.checkpoint.stateful import Stateful
from torch.utils.data import DataLoader
from transformers import PrinterCallback, TrainerCallback
from transformers.trainer_utils import TrainOutput
from transformers.utils.logging import disable_progress_bar

from craft.data.char_dataset import train_loader
from craft.training import compilation, memory, model_files, optimization, precision, run, sanity, signals
from craft.training.arguments import CraftTrainingArguments
from craft.training.callbacks import best, ema, lifecycle, nonfinite, progress, stall, uploads, wandb
from craft.training.callbacks.time_plan import TimePlan
from craft.training.carried_state import CarriedState
from craft.training.checkpointing import folders, parts, resume_rules
from craft.training.checkpointing.checkpointer import Checkpointer
from craft.training.distributed import sharding
from craft.training.distributed.agreement import raise_on_all_ranks
from craft.training.ending import best_checkpoint, finish_weights
from craft.training.evaluation import Validation
from craft.training.logging import UnitCounts, write_event
from craft.training.losses import AuxiliaryLosses, without_label_shift
from craft.training.requirements import library_errors
from craft.training.time_budget import TimeBudget
from craft.utils.errors import UserError


class Trainer(transformers.Trainer):
    """A `transformers.Trainer` whose runs can be killed at any moment and continued bit for bit.

    Args:
        model: a `PreTrainedModel`.
        args: its `output_dir` is the run directory.
        run_config: the resolved run, saved beside the weights.
        callbacks: called after craft's own, so with all restored that a resumed run restores.
        **kwargs: as for `transformers.Trainer`, such as `optimizers=(optimizer, scheduler)`.

    Attributes:
        on_run_validated: called in the main process when training is about to start and nothing was refused;
            if it fails, no process trains.
        settings: those that decide the weights of the run in training, see `decisive_settings`.
        changes: which of them differ from the checkpoint that it goes on from.
        settings_moved: whether those of optimizer and schedule aren't the checkpoint's but this run's.
    """

    args: CraftTrainingArguments
    model: Any
    is_fsdp_enabled: bool

    def __init__(
        self,
        model: Any,
        args: CraftTrainingArguments,
        *,
        run_config: dict[str, Any] | None = None,
        callbacks: Sequence[TrainerCallback] | None = None,
        **kwargs: Any,
    ) -> None:
        args.settle_precision()
        precision.suit_attention(model, args.precision, on_cpu=args.use_cpu)
        precision.try_precision(model, args)
        sharding.check_sharding(model, args)
        self.model_class = type(model)  # sharding changes it
        args.use_cache = getattr(model.config, "use_cache", False)  # saved so with the model
        if args.torch_compile:
            compilation.prepare_compiler()
        with library_errors():
            super().__init__(model=model, args=args, **kwargs)
        self.dynamo_plugin = self.accelerator.state.dynamo_plugin  # by the arguments or Accelerate's
        if self.optimizer is not None:  # given by the caller: compared on resuming as a named one
            args.optim = f"{type(self.optimizer).__module__}.{type(self.optimizer).__qualname__}"
        args.save_only_model |= self.is_fsdp_enabled  # what an exact resume needs is in parts
        self.run_config = run_config or {}
        self.own_parts: dict[str, Stateful] = {}
        self.on_run_validated: Callable[[], None] = lambda: None
        self.settings: dict[str, Any] = {}
        self.changes: resume_rules.Changes = {}
        self.settings_moved = self.evaluation_due = self.finds_batch_size = False
        self.grad_norm: Any = None
        self.watch, self.stop = parts.Stopwatch(), signals.StopRequest()
        self._tr_loss = torch.zeros(())  # transformers makes its own when it trains
        self.ema, self.guard = ema.EmaCallback(self), nonfinite.NonFiniteGuard(self)
        self.uploads, self.wandb = uploads.UploadCheckpoints(self), wandb.WandbRun(self)
        self.watchdog, self.budget = stall.Watchdog(args.stall_seconds), TimeBudget(self)
        self.checkpointer = Checkpointer(self.run_dir, {}, {}, args.save_total_limit)
        if args.disable_tqdm:
            disable_progress_bar()  # also of "Writing model shards" at every checkpoint
        self.pop_callback(PrinterCallback)
        own = (self.ema, lifecycle.Lifecycle(self), self.uploads, self.guard, best.KeepBest(self))
        shown = (TimePlan(self.budget), progress.Progress(), self.watchdog)
        for callback in (*own, *shown, *(callbacks or ())):
            self.add_callback(callback)

    @property
    def run_dir(self) -> Path:
        return Path(self.args.output_dir)

    @property
    def resumed(self) -> Path | None:
        """The checkpoint that this process continues."""
        return self.checkpointer.resumed

    def shared_parts(self) -> dict[str, Stateful]:
        """What a checkpoint keeps beside the model and is the same in all processes, by name."""
        return {
            "optimization": optimization.Optimization(self),
            "ema": self.ema,
            "loss": parts.Attributes(self, "_total_loss_scalar", "_globalstep_last_logged"),
            "evaluation": parts.Attributes(self, "evaluation_due"),
            "accumulation": parts.Attributes(self.args, "gradient_accumulation_steps"),
            "skipped_batches": parts.Attributes(self.guard, "skipped"),
            "stopwatch": self.watch,
            "time_budget": self.budget,
            "wandb": self.wandb,
            "callbacks": parts.CallbackStates(self),
            **self.own_parts,
        }

    def register(self, name: str, part: Stateful) -> None:
        """Keeps an object of yours in checkpoints, the same in all processes.

        Args:
            part: its `state_dict()` is a tree of dicts, lists, numbers, text and tensors; a resumed run calls
                `load_state_dict()` before `on_train_begin` of your callbacks.

        Raises:
            UserError: if there is a part of this name.
        """
        if name in self.shared_parts():
            raise UserError(f"checkpoints already hold a part {name!r}; choose another name", code="usage")
        self.own_parts[name] = part

    def rank_parts(self) -> dict[str, parts.RankStateful]:
        """What a checkpoint keeps of each process, by name."""
        return {
            "running_loss": parts.RunningLoss(self),
            "generators": parts.Generators(self.args.device),
        }

    def decisive_settings(self, planned_steps: int) -> dict[str, Any]:
        """What decides the weights, by name; kept in every checkpoint and compared on resuming."""
        settings = resume_rules.training_settings(self.args, planned_steps)
        return settings | compilation.settings(self) | resume_rules.model_settings(self.model)

    def train(  # type: ignore[override]
        self, resume_from_checkpoint: Any = None, *, allow_changes: bool = False, **kwargs: Any
    ) -> TrainOutput:
        """Trains to the end, or until a signal. `model` then holds what should be exported: the best weights
        with `load_best_model_at_end`, otherwise the average with `ema_decay`, otherwise the last.

        Args:
            resume_from_checkpoint: a run directory (its newest whole checkpoint), a `checkpoint-N` folder,
                or True for `args.output_dir`.
            allow_changes: go on although settings changed that decide the weights; recorded in the run.

        Raises:
            TrainingInterrupted: (a SystemExit) after SIGTERM, SIGUSR1 or Ctrl-C, with a checkpoint saved.
            Failed: the disk is full; as `TrainingFailed`, a number isn't finite or memory is short.
            UserError: nothing to resume from, settings that changed, a disk that is too small.
        """
        return run.run_training(self, super().train, resume_from_checkpoint, allow_changes, **kwargs)

    # ---- Private methods of transformers, each for want of a public place

    def _finalize_training(self, trial: Any, num_train_samples: Any, start_time: float) -> TrainOutput:
        # Callbacks at the end are to see the weights, and metrics the time, of the whole run.
        finish_weights(self, trial)
        self.watch.pause()
        result = super()._finalize_training(trial, num_train_samples, start_time - self.watch.before)
        self.state.best_model_checkpoint = best_checkpoint(self)  # transformers would have deleted others
        return result

    def _get_grad_norm(self, model: Any, grad_norm: Any = None) -> Any:
        # No callback is told the norm of the gradient.
        self.grad_norm = super()._get_grad_norm(model, grad_norm)
        return self.grad_norm

    def _save_checkpoint(self, model: Any, trial: Any) -> None:
        # Transformers writes into the folder that readers look at, file by file, with pickles.
        self.guard.check()
        self.watch.pause()
        self.store_flos()
        self.checkpointer.run_dir = Path(self._get_output_dir(trial))
        self.checkpointer.save(
            self.state.global_step,
            lambda folder: model_files.write_trainer_state(self, folder),
            {"settings": self.settings, "environment": resume_rules.environment(self.args.device)},
            only_model=self.args.save_only_model,
            spared={self.state.best_global_step, *self.uploads.steps},
        )
        self.watch.run()

    def _load_from_checkpoint(self, resume_from_checkpoint: str, model: Any = None) -> None:
        # Transformers reads pickles too, and takes tied weights, which are saved once, for missing ones.
        folders.load_weights(Path(resume_from_checkpoint), self.model if model is None else model)

    def _load_optimizer_and_scheduler(self, checkpoint: str | None) -> None:
        # Transformers would unpickle them.
        if checkpoint is not None:
            self.checkpointer.load("optimization")

    def _load_rng_state(self, checkpoint: str | None) -> None:
        # Only the loop knows when: after the batches that are skipped in the resumed epoch.
        if checkpoint is not None:
            self.checkpointer.load_rank_parts(["generators"])

    # ---- Public methods of transformers

    def create_accelerator_and_postprocess(self) -> None:
        super().create_accelerator_and_postprocess()
        sharding.shard_on_cpu(self)

    def get_train_dataloader(self) -> DataLoader:
        """As in transformers, which asks for it when all is ready, in micro-batches that fit into memory."""
        memory.find_batch_size_once(self)
        return super().get_train_dataloader()

    def create_optimizer(self, model: Any = None) -> torch.optim.Optimizer:
        """As in transformers, plus Muon and classes of the user."""
        with library_errors():
            optimization.choose_optimizer(self, self.model if model is None else model)
            return super().create_optimizer(model)

    def get_decay_parameter_names(self, model: torch.nn.Module) -> list[str]:
        return optimization.decay_parameter_names(model)

    def create_scheduler(self, num_training_steps: int, optimizer: Any = None) -> Any:
        """As in transformers, with defaults for what its schedules demand; it follows the time plans."""
        return optimization.create_scheduler(self, super().create_scheduler, num_training_steps, optimizer)

    def set_initial_training_values(self, args: Any, dataloader: DataLoader) -> Any:
        """As in transformers, with room for a run that grows."""
        return self.budget.with_spare_epochs(super().set_initial_training_values(args, dataloader))

    def save_model(self, output_dir: str | None = None, _internal_call: bool = False) -> None:
        """Writes model, tokenizer, run and arguments (as JSON, without secrets); all processes come here."""
        with sharding.gathered_model(self):
            if self.args.should_save:
                model_files.write_model(self, Path(output_dir or self.args.output_dir))
        if self.args.push_to_hub and not _internal_call:
            self.push_to_hub(commit_message="Model save", revision=self.args.hub_revision)

    def log(self, logs: dict[str, Any], start_time: float | None = None) -> None:
        """As in transformers, and into `metrics.jsonl`."""
        logs.setdefault("elapsed", round(self.watch.total(), 3))
        logs.setdefault("wall", round(self.budget.elapsed(), 3))
        if self.guard.skipping:
            logs.pop("grad_norm", None)  # of the batch that was left out
        super().log(logs, start_time)
        if self.is_world_process_zero():
            write_event(self, logs)

    def init_hf_repo(self, token: str | None = None, private: bool | None = None) -> None:
        """Makes the repository before training, so that a wrong name or token is told at once."""
        self.hub_model_id = uploads.open_run_repo(self.args)

    def push_to_hub(self, commit_message: str = "End of training", **kwargs: Any) -> str | None:
        """Uploads the model as it is now, with its card; returns the address of the commit (on rank 0)."""
        if self.hub_model_id is None:
            self.init_hf_repo()
        return self.uploads.push_now(commit_message, kwargs.get("revision"))


class LanguageModelTrainer(Trainer):
    """Trains a `LanguageModel` on windows of ids, and scores it over the whole validation text.

    Windows hold T + 1 ids, so all T predictions count: the loss is the exact mean over the predictions of the
    global batch, whatever the number of processes and accumulation steps. More arguments are `Trainer`'s.

    Args:
        model: follows the `LanguageModel` protocol. None with `model_init`, which makes one for each trial
            of `hyperparameter_search`.
        train_dataset: `CharDataset` or `StreamDataset`; order "streams" for models that carry their state.
        eval_ids: the validation text as ids, or None.
        tokenizer: for samples, what is counted, and to be saved with the model.
        block_size: window of evaluations; by default that of training.
        text: a fingerprint of the training text; by default made from its ids.
    """

    def __init__(
        self,
        model: Any,
        args: CraftTrainingArguments,
        train_dataset: Any,
        eval_ids: np.ndarray | None,
        tokenizer: Any,
        *,
        block_size: int | None = None,
        text: str | None = None,
        **kwargs: Any,
    ) -> None:
        model_init = kwargs.pop("model_init", None)
        if model is None:
            self.model_init = model_init
            model = super().call_model_init()
        raise_on_all_ranks(lambda: sanity.check_data(train_dataset, eval_ids, args, model))
        self.carries_state = bool(model.carries_state and args.carry_state)
        data = {"train_dataset": train_dataset, "eval_dataset": eval_ids, "processing_class": tokenizer}
        super().__init__(model, args, **data, **kwargs)
        self.model_init = model_init
        self.tokenizer, self.text = tokenizer, text
        self._set_up_model(model)
        smoother: Any = self.label_smoother
        self.label_smoother: Any = None if smoother is None else without_label_shift(smoother)
        self.validation = Validation(self, tokenizer, block_size or train_dataset.block_size)
        self.units = UnitCounts(self)
        for callback in (self.validation, self.units):
            self.add_callback(callback)

    def call_model_init(self, trial: Any = None) -> Any:
        """The fresh model of a trial of `hyperparameter_search`."""
        model = super().call_model_init(trial)
        precision.suit_attention(model, self.args.precision, on_cpu=self.args.use_cpu)
        self._set_up_model(model)
        return model

    def _set_up_model(self, model: Any) -> None:
        """Gives a new model the tokenizer's special ids, and starts its state and auxiliary losses anew."""
        for config in (model.config, model.generation_config):  # as transformers would, with a warning
            for name in ("pad_token_id", "bos_token_id", "eos_token_id"):
                setattr(config, name, getattr(self.tokenizer, name))
        self.carried, self.auxiliary = CarriedState(model, self.args), AuxiliaryLosses(self)

    def rank_parts(self) -> dict[str, parts.RankStateful]:
        own: dict[str, Any] = {"auxiliary_losses": self.auxiliary}
        if self.carries_state:
            own["carried_state"] = self.carried
        if hasattr(self.train_dataset, "load_rank_states"):  # a stream
            own["data_position"] = self.train_dataset
        return {**super().rank_parts(), **own}

    def decisive_settings(self, planned_steps: int) -> dict[str, Any]:
        text = self.text or resume_rules.fingerprint(self.train_dataset)
        data = resume_rules.data_settings(self.train_dataset, text, self.run_config.get("data") or {})
        return {**super().decisive_settings(planned_steps), **data}

    def get_train_dataloader(self) -> DataLoader:
        """This process' micro-batches, in an order that depends on seed, epoch and step alone."""
        memory.find_batch_size_once(self)
        args, data = self.args, self.train_dataset
        cut = (args.train_batch_size, args.gradient_accumulation_steps)
        return train_loader(data, *cut, args.process_index, args.world_size, self.model.make_batch)

    def get_batch_samples(
        self, epoch_iterator: Iterator[Any], num_batches: int, device: torch.device
    ) -> tuple[list[Any], int]:
        """The micro-batches of a step, and the predictions of the global batch; all windows are full."""
        # None if training ends before this step: transformers looks at `should_training_stop` after one.
        wanted = 0 if self.control.should_training_stop else num_batches
        batches = list(islice(epoch_iterator, wanted))
        # Gradients are averaged over processes, which transformers undoes in the first case only.
        sharers = self.args.world_size if self.args.average_tokens_across_devices else 1
        return batches, sum(map(self.model.count_predictions, batches)) * sharers

    def compute_loss(
        self, model: Any, inputs: dict[str, Any], return_outputs: bool = False, num_items_in_batch: Any = None
    ) -> Any:
        """Passes the carried state on, and keeps for the log what of the loss has a name of its own."""
        step, slot = inputs.pop("step_in_epoch"), inputs.pop("micro_step")
        inputs["use_cache"] = self.carries_state
        if self.carries_state:
            inputs["past_key_values"] = self.carried.before(slot, step)
        loss, outputs = super().compute_loss(model, inputs, True, num_items_in_batch)
        ends_step = slot == self.args.gradient_accumulation_steps - 1
        self.auxiliary.add(outputs.get("auxiliary_losses"), ends_step)
        if self.carries_state:
            self.carried.after(slot, outputs["past_key_values"])
        return (loss, outputs) if return_outputs else loss

    def evaluate(
        self, eval_dataset: Any = None, ignore_keys: Any = None, metric_key_prefix: str = "eval"
    ) -> dict[str, float]:
        """Scores a text (by default the validation split) in float32, logs it, and writes a sample."""
        return self.validation.run(eval_dataset, metric_key_prefix)

    def log(self, logs: dict[str, Any], start_time: float | None = None) -> None:
        """Adds what only a language model can say: bits per unit, units seen and per second."""
        self.units.add_to(logs)
        super().log(logs, start_time)
