"""Before the first step: whether a run may go on from its checkpoint, and whether its folder is free."""

from __future__ import annotations

from contextlib import ExitStack
from typing import Any

from transformers import TrainerState
from transformers.trainer_utils import IntervalStrategy

from craft.sharing.record import METRICS_FILE, STATE
from craft.training.callbacks.best import patience_is_over
from craft.training.checkpointing import disk, folders, resume_rules
from craft.training.checkpointing.checkpointer import is_resumable, only_weights
from craft.training.logging import MetricsFile
from craft.utils.claims import claimed
from craft.utils.errors import UserError
from craft.utils.logging import get_logger

logger = get_logger(__name__)


def validate_resume(trainer: Any, planned_steps: int, allow_changes: bool) -> TrainerState | None:
    """Compares a run with the checkpoint it goes on from, if any.

    Returns:
        The state of a run that has nothing left to train.

    Raises:
        UserError: for settings that changed, or a folder with checkpoints of another run.
    """
    args, checkpointer = trainer.args, trainer.checkpointer
    checkpoint = checkpointer.resumed
    if checkpoint is None:
        if any(folders.checkpoints(trainer.run_dir)):
            raise UserError(
                f"{trainer.run_dir} holds checkpoints of another run; resume it or choose another folder"
            )
        return None
    trainer.changes, trainer.schedule_moves = resume_rules.check_resume(
        checkpoint, checkpointer.progress(), trainer.settings, args, allow=allow_changes
    )
    state = TrainerState.load_from_json(str(checkpoint / STATE))
    if is_resumable(checkpoint):
        checkpointer.load("evaluation")
    due = trainer.evaluation_due and args.eval_strategy != IntervalStrategy.NO
    if not due and (state.global_step >= planned_steps or patience_is_over(args, state)):
        return state
    if not is_resumable(checkpoint):
        raise UserError(only_weights(checkpoint))
    logger.info(f"resuming from {checkpoint} at step {state.global_step:,}")
    if left := folders.abandoned(trainer.run_dir, state.global_step):
        names = ", ".join(folder.name for folder in left)
        belong, them = ("are", "they are") if len(left) > 1 else ("is", "it is")
        logger.warning(
            f"{names} {belong} from a branch this resume abandons; {them} deleted after the next good "
            "checkpoint"
        )
    args.eval_on_start = False
    checkpointer.saved_step = state.global_step
    return None


def lock_run_dir(trainer: Any, planned_steps: int, locks: ExitStack) -> None:
    """Makes the run's folder this process' until `locks` are released, and opens its files.

    Raises:
        UserError: if the disk is too small, or another process trains there.
    """
    args, run_dir = trainer.args, trainer.run_dir
    best = args.eval_strategy != IntervalStrategy.NO
    disk.check_room(
        run_dir,
        trainer.sizes.checkpoint(args.save_only_model),
        keep=args.save_total_limit,
        best=best,
        saves=disk.planned_saves(args, planned_steps) + best,
        sent=trainer.uploads.copies,
        existing=sum(disk.folder_bytes(c) for c in folders.checkpoints(run_dir)),
    )
    run_dir.mkdir(parents=True, exist_ok=True)
    locks.enter_context(claimed(run_dir))
    with disk.writing(METRICS_FILE, run_dir, trainer.checkpointer.recovery_hint):
        folders.clear_leftovers(run_dir)
        MetricsFile(run_dir).start(trainer.checkpointer.resumed_step or 0)
        trainer.wandb.begin()
