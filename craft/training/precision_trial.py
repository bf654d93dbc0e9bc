"""A small step in the precision that was asked for, beside one in float32, before anything is written."""

from __future__ import annotations

import copy
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch

from craft.training.memory import few
from craft.utils.hardware import try_format
from craft.utils.logging import get_logger

logger = get_logger(__name__)

TRIAL = 1e9
"""Floating-point operations of the step in which a precision is tried: some 10 ms on two cores."""


def try_precision(trainer: Any) -> None:
    """Tries a precision that somebody asked for; one that the hardware suggested needs no trial.

    Raises:
        UserError: if this machine or model can't take it.
    """
    wanted, way_out = trainer.args.precision_wanted, "use training.precision=fp32, or auto"
    weights = getattr(trainer.model, "dtype", torch.float32)
    if weights in (torch.bfloat16, torch.float16):
        wanted, way_out = f"models.dtype={str(weights)[6:]}", "use models.dtype=float32"
    if not wanted or trainer.is_fsdp_enabled or trainer.is_deepspeed_enabled:  # parts can't step yet
        return
    with trainer.step_state.preserved():  # a loader draws a random number
        batch = trainer._prepare_inputs(next(iter(trainer.get_train_dataloader())))
    size = TRIAL * batch["input_ids"].numel() / max(1.0, float(trainer.floating_point_ops(batch)))
    batch = few(batch, int(size))
    exact = trainer.model if weights == torch.float32 else copy.deepcopy(trainer.model).float()

    def step(model: Any, context: AbstractContextManager[Any]) -> None:
        with trainer.step_state.preserved():
            with context:
                loss = trainer.compute_loss(model, dict(batch), num_items_in_batch=1)
            loss.backward()

    warning = try_format(
        wanted,
        lambda: step(trainer.model, trainer.accelerator.autocast()),
        lambda: step(exact, nullcontext()),
        way_out,
    )
    if warning and trainer.is_world_process_zero():
        logger.warning(warning)
