"""Running out of memory: the size of a micro-batch that fits, and what to say where not even one window does.

Smaller micro-batches are more accumulation steps of the same global batch. Their gradients add up, since the
loss is a sum over the predictions of the global batch, divided by their number.
"""

from __future__ import annotations

from typing import Any

import torch
from accelerate.utils.memory import clear_device_cache, should_reduce_batch_size

from craft.training.checkpointing.parts import Generators, StepSnapshot
from craft.training.distributed.agreement import raise_on_all_ranks
from craft.utils.errors import TrainingFailed
from craft.utils.logging import get_logger

logger = get_logger(__name__)


def is_out_of_memory(error: Exception) -> bool:
    """Whether an exception says that memory is short, on whatever device."""
    return isinstance(error, torch.OutOfMemoryError | MemoryError) or should_reduce_batch_size(error)


def set_micro_batch_size(trainer: Any, rows: int) -> None:
    """Cuts the global batch into micro-batches of so many windows."""
    args = trainer.args
    args.gradient_accumulation_steps = args.global_batch_size // (args.world_size * rows)
    args.per_device_train_batch_size = trainer._train_batch_size = rows


def find_batch_size_once(trainer: Any) -> None:
    """Where that is asked for, halves the micro-batch until a forward and backward pass fits, in all
    processes alike.

    Raises:
        TrainingFailed: if not even one window fits.
    """
    if not trainer.finds_batch_size:
        return
    args, trainer.finds_batch_size = trainer.args, False
    while trainer.stop.max_over_ranks(int(not raise_on_all_ranks(lambda: _fits(trainer)))):
        clear_device_cache(garbage_collection=True)
        if args.train_batch_size == 1:
            raise TrainingFailed(out_of_memory_message(trainer), code="out-of-memory")
        set_micro_batch_size(trainer, _about_half(args.train_batch_size))
        logger.warning(
            f"out of memory: micro-batches of {args.train_batch_size} windows from now on, in "
            f"{args.gradient_accumulation_steps} accumulation steps; the global batch of "
            f"{args.global_batch_size} stays"
        )


def _fits(trainer: Any) -> bool:
    """Whether the first micro-batch fits, beside what training keeps of the weights."""
    args, before = trainer.args, StepSnapshot(trainer)
    weights = sum(p.numel() * p.element_size() for p in trainer.model.parameters() if p.requires_grad)
    # Two numbers of the optimizer, an average, and the gradients that processes exchange.
    copies = 2 + (args.ema_decay is not None) + (args.world_size > 1)
    trainer.model.train()
    try:
        with Generators(args.device).preserved():
            batch = trainer._prepare_inputs(next(iter(trainer.get_train_dataloader())))
            size = copies * weights if args.device.type == "cuda" else 0
            reserved = torch.empty(size, dtype=torch.uint8, device=args.device)
            with trainer.accelerator.autocast():
                loss = trainer.compute_loss(trainer.model, batch, num_items_in_batch=1)
            loss.backward()
            del reserved
        return True
    except (RuntimeError, MemoryError) as error:
        if not is_out_of_memory(error):
            raise
        return False
    finally:
        before.rollback()


def _about_half(rows: int) -> int:
    """The largest divisor of a number of windows above 1 that is at most half of it."""
    return next(n for n in range(rows // 2, 0, -1) if rows % n == 0)


def out_of_memory_message(trainer: Any) -> str:
    """What to say of a run that is out of memory, perhaps although a size was found that had fitted."""
    args, rows = trainer.args, trainer.args.train_batch_size
    step = max(trainer.state.global_step, trainer.checkpointer.resumed_step)
    advice = "make data.block_size or the model smaller, or use training.precision=bf16"
    if rows > 1:
        half = _about_half(rows)
        steps = args.gradient_accumulation_steps * rows // half
        search = "" if args.auto_find_batch_size else "training.auto_find_batch_size=true, or "
        advice = (
            f"set {search}training.gradient_accumulation_steps={steps} ({half} windows at once); the global "
            f"batch of {args.global_batch_size} stays"
        )
    return (
        f"out of memory after step {step:,} with {rows} windows at once; "
        f"{advice}; in an evaluation lower training.per_device_eval_batch_size="
        f"{args.per_device_eval_batch_size}; {trainer.checkpointer.describe_last_good()}"
    )
