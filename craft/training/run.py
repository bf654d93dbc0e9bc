"""`run_training`: the loop of transformers in a frame that refuses, locks, listens and ends well."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import torch
from transformers.trainer_utils import TrainOutput

from craft.training.checkpointing.checkpointer import Checkpointer
from craft.training.distributed.agreement import on_rank0_broadcast, raise_on_all_ranks
from craft.training.distributed.rendezvous import peer_failure_context
from craft.training.ending import restore_finished_run
from craft.training.memory import is_out_of_memory
from craft.training.resuming import lock_run_dir, validate_resume
from craft.utils.errors import TrainingFailed, UserError
from craft.utils.logging import get_logger
from craft.utils.stopping import TrainingInterrupted

logger = get_logger(__name__)

Loop = Callable[..., TrainOutput]
"""`transformers.Trainer.train`, bound to the trainer."""


def run_training(
    trainer: Any, loop: Loop, resume: str | Path | bool | None, allow_changes: bool, **kwargs: Any
) -> TrainOutput:
    """What `craft.training.base.Trainer.train` promises."""
    args = trainer.args
    if resume and trainer.is_fsdp_enabled:
        raise UserError(
            "a sharded run (FSDP) can't be resumed exactly; start a new run from the weights of its last "
            "checkpoint with models.init_from=RUN/checkpoint-N, or launch without --use_fsdp"
        )
    if trainer.model is None:  # the trial before this one gave its model back
        trainer.model = trainer.call_model_init(kwargs.get("trial"))
    trainer.checkpointer = Checkpointer(
        trainer.run_dir,
        trainer.shared_parts(),
        trainer.rank_parts(),
        keep=args.save_total_limit,
        varying=("stopwatch", "wandb"),
        rank=args.process_index,
        world=args.world_size,
    )
    trainer.checkpointer.resumed = on_rank0_broadcast(lambda: trainer.find_checkpoint(resume))
    planned = trainer.set_initial_training_values(args, trainer.get_train_dataloader())[-1]
    if planned < 1:
        raise UserError(f"{planned} steps would be trained; set training.max_steps")
    trainer.settings = trainer.decisive_settings(planned)
    trainer.changes, trainer.schedule_moves, trainer.evaluation_due = {}, False, False
    trainer.guard.skipped, trainer.micro_batches.parts = 0, 1  # another trial may have trained before
    finished = raise_on_all_ranks(lambda: validate_resume(trainer, planned, allow_changes))
    if finished is not None:
        return restore_finished_run(trainer, finished)
    with ExitStack() as locks:
        on_rank0_broadcast(lambda: lock_run_dir(trainer, planned, locks))
        return _guarded(trainer, loop, **kwargs)


def _guarded(trainer: Any, loop: Loop, **kwargs: Any) -> TrainOutput:
    # The same seed in all processes would drop the same units everywhere.
    torch.manual_seed(trainer.args.seed + trainer.args.process_index)
    try:
        with trainer.stop.listening(), peer_failure_context(trainer.checkpointer.recovery_hint):
            result = _loop(trainer, loop, **kwargs)
            trainer.stop.raise_deferred()
            trainer.uploads.finish()
            if trainer.stop.requested:  # after the last step; all is saved
                logger.info(trainer.checkpointer.once_trained())
                raise TrainingInterrupted(trainer.stop.exit_code)
            return result
    except (TrainingFailed, TrainingInterrupted) as end:
        trainer.wandb.finish(exit_code=1 if isinstance(end, TrainingFailed) else 0)
        raise
    finally:
        trainer.watch.pause()
        trainer.uploads.queue.leave()
        trainer.watchdog.close()
        # Autocast and compilation end with training; it may be prepared again.
        trainer.model_wrapped = trainer.model
        for attribute in ("forward", "_is_accelerate_prepared"):
            trainer.model.__dict__.pop(attribute, None)


def _loop(trainer: Any, loop: Loop, **kwargs: Any) -> TrainOutput:
    # Transformers' own search for a batch size would start the run anew.
    trainer.micro_batches.searching = trainer.args.auto_find_batch_size
    try:
        with hidden(trainer.args, auto_find_batch_size=False):
            return loop(str(trainer.resumed) if trainer.resumed else None, **kwargs)
    except (RuntimeError, MemoryError) as error:
        if not is_out_of_memory(error):
            raise
    raise TrainingFailed(trainer.micro_batches.explain(), code="out-of-memory")


@contextmanager
def hidden(args: Any, **values: Any) -> Iterator[None]:
    """Inside, arguments that craft obeys itself have values with which transformers does nothing."""
    wanted = {name: getattr(args, name) for name in values}
    for name, value in values.items():
        setattr(args, name, value)
    try:
        yield
    finally:
        for name, value in wanted.items():
            setattr(args, name, value)
