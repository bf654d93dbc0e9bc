"""How a run continues from a checkpoint: exactly, or not without being told to.

Everything that was saved is put back before the first step: weights, optimizer, schedule, generators, the
sums and states in between. Where a setting that decides the weights has changed, nothing is.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file
from torch import Tensor
from transformers.trainer_callback import ExportableState

from craft.training import checkpoints
from craft.training.generators import restore_generators
from craft.training.saving import OPTIMIZER, PROGRESS, RAW_WEIGHTS, SavingTrainer, rank_file
from craft.training.settings import STEPS, Changes, differences, environment, listed, schedule_moves
from craft.training.trees import load_tree
from craft.utils.common import UserError
from craft.utils.history import read_history
from craft.utils.logging import get_logger

logger = get_logger(__name__)


class ResumingTrainer(SavingTrainer):
    """The part of `Trainer` that reads checkpoints back.

    Attributes:
        resumed: the checkpoint that this process continues.
        changes: the decisive settings that changed since it was written, and were allowed to.
    """

    def __init__(self, **kwargs: Any) -> None:
        self.resumed: Path | None = None
        self.changes: Changes = {}
        self._schedule_moves = False
        super().__init__(**kwargs)

    # ---- Which checkpoint, and whether it fits

    def find(self, resume: str | Path | bool | None) -> Path | None:
        """The whole checkpoint that `resume` asks for: a folder, True for the run directory, None for none.

        A run that was killed before its first checkpoint starts again.

        Raises:
            UserError: if there is none.
        """
        if resume is None or resume is False:
            return None
        where = self.run_dir if resume is True else Path(resume)
        if read_history(where) and not any(checkpoints.checkpoints(where)):
            logger.info(f"{where} was stopped before its first checkpoint: it starts at step 0 again")
            return None
        checkpoint = checkpoints.find_checkpoint(where)
        if (checkpoint / "optimizer.pt").exists():
            raise UserError(
                f"can't resume from {checkpoint}: its state is a pickle (optimizer.pt), which craft neither "
                "writes nor reads, for it could run anything; load it as a model and start a new run"
            )
        return checkpoint

    def check_settings(self, allow: bool) -> None:
        """Compares the decisive settings with those of the resumed checkpoint.

        Raises:
            UserError: with all that changed, unless that is allowed.
        """
        assert self.resumed is not None
        progress = self.progress_at(self.resumed)
        old = progress["settings"]
        same_world = progress["processes"] == self.args.world_size
        self.changes = differences(old, self.settings, same_world=same_world)
        self._schedule_moves = bool(self.changes) or schedule_moves(old, self.settings)
        name, what = self.resumed.name, listed(self.changes)
        if self.changes and not allow:
            raise UserError(
                f"{self.run_dir} can't go on exactly, for settings changed since {name}: {what}; put them "
                "back, or go on all the same with --allow-changes, which is recorded in the run"
            )
        if self.changes:
            logger.warning(f"going on from {name} with other settings, as allowed: {what}")
        elif self._schedule_moves:
            logger.info(
                f"training.max_steps {old.get(STEPS)} → {self.settings[STEPS]}: from here on the learning "
                "rate follows the longer schedule, so this isn't the run that had it from the start"
            )
        here, there = environment(self.args.device), progress["environment"]
        moved = {key: (there.get(key), here[key]) for key in here if there.get(key) != here[key]}
        if moved:
            logger.info(f"{listed(moved)}: the data and all states are the same, bits may differ")

    def progress_at(self, checkpoint: Path) -> dict[str, Any]:
        return json.loads((checkpoint / PROGRESS).read_text(encoding="utf-8"))  # type: ignore[no-any-return]

    # ---- What is put back

    def raw_weights(self) -> dict[str, Tensor] | None:
        """The weights to train on with, where the resumed checkpoint's model holds their average."""
        path = self.resumed / RAW_WEIGHTS if self.resumed is not None else None
        if path is None or not path.is_file():
            return None
        # Several processes on a CPU call it cpu:0, which load_file doesn't know.
        return {name: tensor.to(self.args.device) for name, tensor in load_file(path).items()}

    def restore_progress(self) -> None:
        """Takes over the running sums and carried states, once the loop has reset them."""
        if self.resumed is None:
            return
        progress = self.progress_at(self.resumed)
        self.state.compute_steps(self.args, self.state.max_steps)  # how often things happen may have changed
        self.watch.resume(progress["elapsed"])
        self._total_loss_scalar = progress["total_loss"]
        self._globalstep_last_logged = progress["last_logged_step"]
        self.evaluation_due = progress["evaluation_due"]
        self._initial_global_step = 0  # the mean loss at the end is that of the whole run
        if self.state.best_global_step:  # the run may have been moved to another folder
            best = checkpoints.checkpoint_dir(self.run_dir, self.state.best_global_step)
            self.state.best_model_checkpoint = str(best) if best.is_dir() else None
        ranks = range(progress["processes"])
        saved = [load_tree(self.resumed / rank_file(rank)) for rank in ranks]
        if progress["processes"] != self.args.world_size:
            logger.info(
                f"{progress['processes']} processes go on as {self.args.world_size}: exact but for dropout"
            )
        self.load_rank_states(saved)

    def load_rank_states(self, per_rank: list[dict[str, Any]]) -> None:
        """The inverse of `rank_state`, from the states of all processes that wrote the checkpoint."""
        if len(per_rank) == self.args.world_size:
            running = per_rank[self.args.process_index]["running_loss"]
        else:  # what is logged is the mean over processes
            running = torch.stack([saved["running_loss"] for saved in per_rank]).mean(dim=0)
        self._tr_loss = running.to(self.args.device)

    def _load_rng_state(self, checkpoint: str | None) -> None:
        file = Path(checkpoint or ".") / rank_file(self.args.process_index)
        if file.is_file():  # not for a process that the saved run didn't have
            restore_generators(load_tree(file)["generators"], self.args.device)

    def _load_optimizer_and_scheduler(self, checkpoint: str | None) -> None:
        if checkpoint is None:
            return
        fresh = [dict(group) for group in self.optimizer.param_groups]
        rates = list(getattr(self.lr_scheduler, "base_lrs", []))
        states = load_tree(Path(checkpoint) / OPTIMIZER)
        if "training.optim" in self.changes:
            logger.warning("the optimizer is another one: it starts without what the old one had learnt")
        else:
            self.optimizer.load_state_dict(states["optimizer"])
        if "training.lr_scheduler_type" in self.changes:
            self.lr_scheduler.last_epoch = states["scheduler"]["last_epoch"]
        else:
            self.lr_scheduler.load_state_dict(states["scheduler"])
        if self._schedule_moves:
            self._apply(fresh, rates)

    def _apply(self, fresh: list[dict[str, Any]], rates: list[float]) -> None:
        """Makes the new settings count: a loaded state brings the old ones with it."""
        for group, new in zip(self.optimizer.param_groups, fresh):
            group.update({key: value for key, value in new.items() if key not in ("params", "lr")})
        schedule: Any = getattr(self.lr_scheduler, "scheduler", self.lr_scheduler)
        if not rates or not hasattr(schedule, "lr_lambdas"):
            return
        schedule.base_lrs = rates
        steps = schedule.last_epoch
        for group, rate, factor in zip(self.optimizer.param_groups, rates, schedule.lr_lambdas):
            group["lr"] = rate * factor(steps)
        schedule._last_lr = [group["lr"] for group in self.optimizer.param_groups]

    def _load_scaler(self, checkpoint: str | None) -> None:
        if checkpoint is None or self.accelerator.scaler is None:
            return
        if state := load_tree(Path(checkpoint) / OPTIMIZER)["scaler"]:
            self.accelerator.scaler.load_state_dict(state)

    def _load_callback_state(self) -> None:
        """Gives the callbacks of this run what those of the saved one knew, by class and order."""
        for name, saved in self.state.stateful_callbacks.items():
            mine = [c for c in self.callback_handler.callbacks if type(c).__name__ == name]
            for callback, state in zip(mine, saved if isinstance(saved, list) else [saved]):
                if isinstance(callback, ExportableState):
                    for attribute, value in state.get("attributes", {}).items():
                        setattr(callback, attribute, value)

    def _load_from_checkpoint(self, resume_from_checkpoint: str, model: Any = None) -> None:
        try:
            super()._load_from_checkpoint(resume_from_checkpoint, model)
        except RuntimeError as error:
            if "size mismatch" not in str(error):
                raise
            raise UserError(
                f"{resume_from_checkpoint} has weights of other shapes than this model; put models.* back as "
                "they were, or start a new run"
            ) from error

    def _issue_warnings_after_load(self, load_result: Any) -> None:
        """As in transformers, but tied weights aren't missing for being saved once."""
        saved_once = {name for name, _ in self.model.named_parameters()}
        every_name = {name for name, _ in self.model.named_parameters(remove_duplicate=False)}
        tied = every_name - saved_once
        load_result.missing_keys[:] = [name for name in load_result.missing_keys if name not in tied]
        super()._issue_warnings_after_load(load_result)
