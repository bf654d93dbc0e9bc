"""After the last step: the weights that a run ends with, and how it leaves when it is asked to stop."""

from __future__ import annotations

from pathlib import Path
from typing import Any, NoReturn

from transformers import TrainerState
from transformers.trainer_utils import SaveStrategy, TrainOutput

from craft.training.callbacks.best import patience_is_over
from craft.training.checkpointing import folders
from craft.training.checkpointing.checkpointer import is_resumable
from craft.training.distributed.agreement import on_rank0_broadcast
from craft.training.distributed.sharding import unshard
from craft.utils.logging import get_logger
from craft.utils.stopping import TrainingInterrupted

logger = get_logger(__name__)


def save(trainer: Any, trial: Any = None) -> None:
    """Saves a checkpoint outside the loop of transformers, which does the same."""
    trainer._save_checkpoint(trainer.model_wrapped, trial)
    trainer.control = trainer.callback_handler.on_save(trainer.args, trainer.state, trainer.control)


def save_if_new(trainer: Any, trial: Any = None) -> None:
    """Saves a checkpoint of this step, unless there is one."""
    if trainer.checkpointer.saved_step != trainer.state.global_step:
        save(trainer, trial)


def stop_training(trainer: Any, evaluation_due: bool = False) -> NoReturn:
    """Ends training as a signal asked, with a checkpoint of this step.

    Args:
        evaluation_due: the evaluation of this step was interrupted; a resumed run does it first.

    Raises:
        TrainingInterrupted: in all processes.
    """
    step, args, checkpointer = trainer.state.global_step, trainer.args, trainer.checkpointer
    trainer.evaluation_due = evaluation_due
    if args.save_only_model and not trainer.is_fsdp_enabled:
        args.save_only_model, checkpointer.saved_step = False, None  # what is stopped is to go on
    if step:
        save_if_new(trainer)
        logger.info(f"stopped at step {step:,} and saved; {checkpointer.recovery_hint()}")
    else:
        logger.info("stopped before the first step; nothing is lost")
    trainer.control = trainer.callback_handler.on_train_end(trainer.args, trainer.state, trainer.control)
    trainer.is_in_train = False
    trainer.uploads.finish()
    raise TrainingInterrupted(trainer.stop.exit_code)


def finish_weights(trainer: Any, trial: Any) -> None:
    """Saves the last checkpoint; leaves the model with the best weights, their average, or the last."""
    if trainer.args.save_strategy != SaveStrategy.NO:
        save_if_new(trainer, trial)
    unshard(trainer)
    trainer.ema.settle()
    load_best(trainer)


def load_best(trainer: Any) -> None:
    """Gives the model the best weights, if that is wanted and they are there and undamaged."""
    best = on_rank0_broadcast(lambda: best_checkpoint(trainer))  # the main process knows it
    if not trainer.args.load_best_model_at_end or best is None:
        return
    if why := on_rank0_broadcast(lambda: folders.damage(Path(best))):
        logger.warning(f"the best checkpoint, {best}, is damaged ({why}): the last weights are kept")
        trainer.state.best_global_step = None
    else:
        folders.load_weights(Path(best), trainer.model)


def best_checkpoint(trainer: Any) -> str | None:
    """The folder of the best checkpoint, if there is one."""
    best = trainer.state.best_global_step
    folder = folders.checkpoint_dir(trainer.checkpointer.run_dir, best or -1)
    return str(folder) if best and folder.is_dir() else None


def restore_finished_run(trainer: Any, state: TrainerState) -> TrainOutput:
    """Leaves the model as the finished run left it, and says so."""
    trainer.state, checkpoint = state, trainer.checkpointer.resumed
    folders.load_weights(checkpoint, trainer.model)
    load_best(trainer)
    setting = "early_stopping_patience" if patience_is_over(trainer.args, state) else "max_steps"
    logger.info(
        f"this run is finished: {checkpoint} is at step {state.global_step:,}; "
        f"a larger training.{setting} would train on"
    )
    trainer._total_loss_scalar = 0.0
    if is_resumable(checkpoint):
        trainer.checkpointer.load("loss")
        trainer.checkpointer.load_rank_parts(["running_loss"])  # since the step that was logged last
        trainer._total_loss_scalar += trainer._tr_loss.item()
    loss = trainer._total_loss_scalar / max(1, state.global_step)
    return TrainOutput(state.global_step, loss, {"train_loss": loss})
