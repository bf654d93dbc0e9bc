"""`torch.compile` chosen by itself: in runs that are long enough, if steps that are tried get faster."""

from __future__ import annotations

import os
import shutil
from typing import Any

import torch
from accelerate.utils import TorchDynamoPlugin

from craft.data.cache import Cache
from craft.training.distributed.agreement import on_rank0_broadcast
from craft.training.time_budget import keep_setting
from craft.training.trial import step_seconds
from craft.utils.logging import get_logger

logger = get_logger(__name__)

LONG = 600.0
"""Seconds of training from which on it is tried: compiling takes 20 to 50 of them, unless it is cached."""
FEWEST_STEPS = 200
"""A run of fewer isn't worth the steps that are tried; its steps aren't alike yet."""
LEAST_GAIN = 0.1
"""By which share of a step compiled ones must be faster."""
COMPILERS = ("g++", "clang++", "cl")
BACKEND = "inductor"


def choose_compilation(trainer: Any) -> None:
    """Decides `torch_compile` where it is None, before a run begins, and keeps a measured answer with it."""
    args, checkpointer = trainer.args, trainer.checkpointer
    if args.torch_compile is not None:
        return
    set_compilation(trainer, False)
    if checkpointer.resumed is not None:
        kept = checkpointer.progress()["settings"].get("training.torch_compile")
        set_compilation(trainer, bool(kept))
    elif can_compile(trainer) and (faster := _is_faster(trainer)) is not None:
        set_compilation(trainer, faster)
        keep_setting(trainer, "torch_compile", faster)


def can_compile(trainer: Any) -> bool:
    """Whether a compiler is there, and the model one that it takes as a whole."""
    args = trainer.args
    if args.device.type == "cpu":
        compiler = shutil.which(os.environ.get("CXX", "")) or any(map(shutil.which, COMPILERS))
    else:
        compiler = args.device.type == "cuda" and torch.cuda.get_device_capability(args.device) >= (7, 0)
    others = trainer.is_fsdp_enabled or args.auto_find_batch_size or args.gradient_checkpointing
    return bool(compiler) and trainer.model._can_compile_fullgraph and not others


def set_compilation(trainer: Any, on: bool) -> None:
    """Lets transformers and accelerate compile what they prepare from now on, or not."""
    args = trainer.args
    args.torch_compile, args.torch_compile_backend = on, BACKEND if on else None
    trainer.accelerator.state.dynamo_plugin = TorchDynamoPlugin(backend=BACKEND if on else "no")
    if on:
        prepare_compiler()


def prepare_compiler() -> None:
    """Lets what can't be compiled be run as it is, and keeps what was compiled for the runs that follow."""
    torch._dynamo.config.suppress_errors = True
    os.environ.setdefault("TORCHINDUCTOR_CACHE_DIR", str(Cache().root / "compiled"))


def _is_faster(trainer: Any) -> bool | None:
    """Whether compiled steps are; None for a run that is too short to ask."""
    extent = trainer.budget.extent()
    steps, seconds = on_rank0_broadcast(lambda: extent)
    if steps < FEWEST_STEPS or seconds < LONG:
        return None
    eager = step_seconds(trainer)
    if steps * eager < LONG:
        return None
    set_compilation(trainer, True)
    compiled = step_seconds(trainer)
    faster = compiled < (1 - LEAST_GAIN) * eager
    logger.info(
        f"compiled  {'yes' if faster else 'no'}: a step takes {1000 * compiled:.0f} ms, and "
        f"{1000 * eager:.0f} ms without torch.compile"
    )
    return faster
