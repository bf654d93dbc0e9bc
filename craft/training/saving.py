"""What a checkpoint of a run holds, and how it is written.

model.safetensors, config.json, tokenizer …   a model that any Hugging Face tool opens (with `ema_decay`: the
                                              average, which is what was evaluated)
training_weights.safetensors                  with `ema_decay`: the weights that training goes on with
optimizer.safetensors                         states of optimizer, schedule and loss scaler, see `trees`
rank_{r}.safetensors                          per process: generators, the running loss, carried states
trainer_state.json, progress.json             step, history; time, loss and averages so far, the W&B run,
                                              the settings that decide the weights
craft_run.yaml, training_args.json            the run; its arguments as plain text
manifest.json                                 sizes and hashes of all these, written last

No file is a pickle. Under FSDP only the model is saved, whole, gathered from all processes.
"""

from __future__ import annotations

import json
from collections import defaultdict
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import yaml
from safetensors import SafetensorError
from safetensors.torch import save_file
from torch import nn
from transformers.trainer_callback import ExportableState

from craft.sharing.card import write_card
from craft.sharing.record import STATE
from craft.training import checkpoints, disk
from craft.training.agreement import together
from craft.training.arguments import CraftTrainingArguments
from craft.training.distributed import among_peers, is_communication
from craft.training.ema import WeightAverage
from craft.training.generators import generator_states
from craft.training.logging import Stopwatch
from craft.training.memory import is_out_of_memory
from craft.training.pulse import first_line
from craft.training.sending import SendingTrainer
from craft.training.settings import environment
from craft.training.trees import save_tree
from craft.utils.common import TrainingFailed
from craft.utils.logging import get_logger
from craft.utils.outputs import RUN_CONFIG

logger = get_logger(__name__)

RAW_WEIGHTS = "training_weights.safetensors"
OPTIMIZER = "optimizer.safetensors"
PROGRESS = "progress.json"
ARGUMENTS = "training_args.json"


def rank_file(rank: int) -> str:
    return f"rank_{rank}.safetensors"


class SavingTrainer(SendingTrainer):
    """The part of `Trainer` that writes checkpoints.

    Attributes:
        saved_step: the step of the last checkpoint it wrote.
        written: the steps of all that the main process wrote since training started or went on.
        average: the moving average of the weights, in training with `ema_decay`.
        watch: time spent in training.
        wandb_id: the W&B run.
        evaluation_due: a signal interrupted the evaluation of this step.
        settings: what decides the weights, see `settings`; by name.
    """

    args: CraftTrainingArguments
    run_config: dict[str, Any]
    optimizer: Any
    control: Any
    resumed: Path | None

    def __init__(self, **kwargs: Any) -> None:
        self.saved_step: int | None = None
        self.written: list[int] = []
        self.average: WeightAverage | None = None
        self.wandb_id: str | None = None
        self.evaluation_due = False
        self.settings: dict[str, Any] = {}
        self.watch = Stopwatch()
        super().__init__(**kwargs)

    @property
    def resumed_step(self) -> int | None:
        """The step that the run went on from."""
        return checkpoints.step_of(self.resumed) if self.resumed else None

    @property
    def sizes(self) -> disk.Sizes:
        """Bytes of weights, gradients, optimizer and average."""
        return disk.Sizes.of(self.model, str(self.args.optim), self.args.ema_decay is not None)

    @property
    def last_good(self) -> str:
        """For error messages: the newest good checkpoint and how to go on from it."""
        good = checkpoints.last_good(self.run_dir)
        return f"last good checkpoint: {good or 'none yet'}"

    def _save_checkpoint(self, model: nn.Module, trial: Any) -> None:
        """Writes `checkpoint-{step}` so that it appears whole or not at all, and removes old ones.

        Raises:
            TrainingFailed: in all processes, if the disk or the memory of one of them has no room.
        """
        self.watch.pause()
        step, run_dir = self.state.global_step, Path(self._get_output_dir(trial))
        staging, main = checkpoints.staging_dir(run_dir, step), self.is_world_process_zero()

        def begin() -> None:
            checkpoints.discard(staging)
            staging.mkdir(parents=True)

        def finish() -> None:
            checkpoints.publish(staging, step)
            self.written.append(step)
            checkpoints.rotate(
                run_dir,
                self.args.save_total_limit,
                self.state.best_global_step,
                written=self.written,
                resumed=self.resumed_step,
            )

        def write() -> None:
            self._write(staging, run_dir)

        for stage in (begin, write, finish) if main else (_nothing, write, _nothing):
            try:
                with among_peers(self.way_out):
                    together(partial(self._explained, stage, step))
            except Exception:
                if main:
                    checkpoints.discard(staging)
                raise
        self.saved_step = step
        if self.sends_checkpoints:
            self.send_checkpoint(checkpoints.checkpoint_dir(run_dir, step))
        self.watch.run()

    def _explained(self, stage: Callable[[], None], step: int) -> None:
        """Does a part of saving; what a disk or a memory without room makes of it becomes a sentence."""
        try:
            stage()
        except Exception as error:
            if is_communication(error):
                raise
            name, where = f"checkpoint-{step}", f" (process {self.args.process_index})"
            trouble = first_line(error) + (where if self.args.world_size > 1 else "")
            if is_out_of_memory(error):
                raise TrainingFailed(
                    f"out of memory while {name} was written ({trouble}); {self.last_good}; make room in "
                    f"memory; {self.way_out()}"
                ) from error
            # Rust has words where Python has a class: a tokenizer that can't be written.
            if not isinstance(error, OSError | SafetensorError) and "(os error" not in str(error):
                raise
            needed = self.sizes.checkpoint(self.args.save_only_model)
            raise TrainingFailed(
                f"{name} can't be written to {self.run_dir} ({trouble}): it needs about {needed:,} bytes and "
                f"{disk.free_bytes(self.run_dir):,} bytes are free there; {self.last_good}; make room; "
                f"{self.way_out()}"
            ) from error

    def _write(self, folder: Path, run_dir: Path) -> None:
        main = self.is_world_process_zero()
        self.store_flos()
        if self.average is None:
            self.save_model(str(folder), _internal_call=True)
        else:
            if main:
                raw = {name: p.detach().contiguous() for name, p in self.average.parameters.items()}
                save_file(raw, folder / RAW_WEIGHTS)
            with self.average.applied():
                self.save_model(str(folder), _internal_call=True)
        if not self.args.save_only_model:
            self._save_optimizer_and_scheduler(str(folder))
            save_tree(self.rank_state(), folder / rank_file(self.args.process_index))
        if not main:
            return
        (folder / PROGRESS).write_text(json.dumps(self.progress_state(), indent=1), encoding="utf-8")
        if self.state.best_global_step:
            best = checkpoints.checkpoint_dir(run_dir, self.state.best_global_step)
            self.state.best_model_checkpoint = str(best)
        states = defaultdict(list)
        for callback in [*self.callback_handler.callbacks, self.control]:
            if isinstance(callback, ExportableState):
                states[type(callback).__name__].append(callback.state())
        self.state.stateful_callbacks = dict(states)
        self.state.save_to_json(str(folder / STATE))

    def _save_optimizer_and_scheduler(self, output_dir: str) -> None:
        states = {
            "optimizer": self.optimizer.state_dict(),
            "scheduler": self.lr_scheduler.state_dict(),
            "scaler": None,
        }
        if self.accelerator.scaler is not None:
            states["scaler"] = self.accelerator.scaler.state_dict()
        if self.args.should_save:
            save_tree(states, Path(output_dir) / OPTIMIZER)

    def progress_state(self) -> dict[str, Any]:
        """What all processes know alike and a resumed run needs, beside the state of transformers."""
        return {
            "elapsed": self.watch.total(),
            "total_loss": self._total_loss_scalar,
            "last_logged_step": self._globalstep_last_logged,
            "average_updates": self.average.updates if self.average is not None else 0,
            "evaluation_due": self.evaluation_due,
            "wandb_id": self.wandb_id,
            "processes": self.args.world_size,
            "settings": self.settings,
            "environment": environment(self.args.device),
        }

    def rank_state(self) -> dict[str, Any]:
        """What this process alone knows and a resumed run needs."""
        return {"running_loss": self._tr_loss, "generators": generator_states(self.args.device)}

    def _save(self, output_dir: str | None = None, state_dict: dict[str, Any] | None = None) -> None:
        """Model, tokenizer, run and arguments: as JSON (without secrets), where transformers would pickle."""
        if not self.args.should_save:
            return
        folder = Path(output_dir or self.args.output_dir)
        folder.mkdir(parents=True, exist_ok=True)
        self.accelerator.unwrap_model(self.model).save_pretrained(str(folder), state_dict=state_dict)
        if self.processing_class is not None:
            self.processing_class.save_pretrained(str(folder))
        if self.run_config:
            text = yaml.safe_dump(self.run_config, sort_keys=False, allow_unicode=True)
            (folder / RUN_CONFIG).write_text(text, encoding="utf-8")
        (folder / ARGUMENTS).write_text(self.args.to_json_string() + "\n", encoding="utf-8")
        write_card(folder, self.run_dir.name)

    def way_out(self) -> str:
        """How to go on after a failure or a signal."""
        good = checkpoints.last_good(self.run_dir)
        if good is None:
            return "nothing was saved yet"
        if not is_resumable(good):
            return only_weights(good)
        return f"go on from the last checkpoint with: craft resume {self.run_dir}"

    def once_trained(self) -> str:
        """What is left of a run that is trained, and ends before its model is made."""
        if any(checkpoints.checkpoints(self.run_dir)):
            return f"the run is trained; 'craft resume {self.run_dir}' makes the model of it"
        return "the run is trained, but training.save_strategy=no kept nothing of it"


def is_resumable(checkpoint: Path) -> bool:
    """Whether a checkpoint holds more than the weights."""
    return (checkpoint / OPTIMIZER).is_file()


def only_weights(checkpoint: Path) -> str:
    """Why a checkpoint can't be resumed from, and what can be done with it."""
    return (
        f"{checkpoint} holds weights alone (training.save_only_model=true, or FSDP) and can't be resumed "
        f"from; start a new run from them with models.init_from={checkpoint}"
    )


def _nothing() -> None:
    """The part of a process that has none."""
