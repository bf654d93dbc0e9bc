"""`torch.compile` chosen by itself: in long runs on a CPU, if steps that are tried get faster.

Accelerate compiles what it prepares, by its `dynamo_plugin`. That one belongs to the process, so each run
sets its own before it begins.
"""

from __future__ import annotations

import math
import os
import shutil
from typing import Any

import torch
from accelerate.utils import DynamoBackend, TorchDynamoPlugin

from craft.data.cache import Cache
from craft.training.time_budget import keep_setting
from craft.training.trial import TRIAL_SECONDS, step_seconds
from craft.utils.logging import get_logger

logger = get_logger(__name__)

MIN_SECONDS = 600.0
"""Of a run, for compiled steps to be tried: compiling took 20 to 32 where nothing was cached."""
MIN_STEPS = 200
"""Of a run, for any steps to be tried."""
MIN_GAIN = 0.1
"""The share of a step's time that compiling must save."""
COMPILERS = ("g++", "clang++", "cl")
BACKEND = "inductor"


def choose_compilation(trainer: Any) -> None:
    """Sets what the run compiles: as its arguments or Accelerate's say, else as is measured now or was when
    it began."""
    given: TorchDynamoPlugin = trainer.dynamo_plugin
    trainer.accelerator.state.dynamo_plugin = given
    if trainer.args.torch_compile is not None or given.backend != DynamoBackend.NO:
        return
    checkpointer = trainer.checkpointer
    if checkpointer.resumed is not None:
        settings = checkpointer.progress()["settings"]
        backend = settings.get("training.torch_compile") and settings.get("training.torch_compile_backend")
    else:
        backend = BACKEND if _can_be_tried(trainer) and _is_faster(trainer) else None
    if backend:
        _compile_with(trainer, backend)
        keep_setting(trainer, "torch_compile", True)


def settings(trainer: Any) -> dict[str, Any]:
    """What is compared when a run is resumed, by full name."""
    backend = trainer.accelerator.state.dynamo_plugin.backend
    on = backend != DynamoBackend.NO
    return {
        "training.torch_compile": on,
        "training.torch_compile_backend": backend.value.lower() if on else None,
    }


def prepare_compiler() -> None:
    """Lets what can't be compiled be run as it is, and keeps what was compiled for the runs that follow."""
    torch._dynamo.config.suppress_errors = True
    os.environ.setdefault("TORCHINDUCTOR_CACHE_DIR", str(Cache().root / "compiled"))


def _compile_with(trainer: Any, backend: str) -> None:
    prepare_compiler()
    trainer.accelerator.state.dynamo_plugin = TorchDynamoPlugin(backend=backend)


def _can_be_tried(trainer: Any) -> bool:
    """Whether the run is one process on a CPU with a compiler, of a model that is compiled as a whole."""
    args = trainer.args
    unsupported = trainer.is_fsdp_enabled or args.auto_find_batch_size or args.gradient_checkpointing
    if args.world_size > 1 or args.device.type != "cpu" or unsupported:
        return False
    found = any(map(shutil.which, (os.environ.get("CXX", ""), *COMPILERS)))
    return found and getattr(trainer.model, "_can_compile_fullgraph", False)


def _is_faster(trainer: Any) -> bool:
    """Whether the run is long enough to be compiled, and a compiled step faster."""
    if trainer.budget.seconds < MIN_SECONDS:
        return False
    steps = math.inf if trainer.budget.is_open else trainer.budget.total_steps()
    if steps < MIN_STEPS:
        return False
    if steps < math.inf and steps * step_seconds(trainer, measured=0) < MIN_SECONDS:
        return False  # as nearly every run, which should not wait for more than a few steps
    eager = step_seconds(trainer, TRIAL_SECONDS)
    not_compiled = trainer.accelerator.state.dynamo_plugin
    _compile_with(trainer, BACKEND)
    try:
        compiled = step_seconds(trainer, TRIAL_SECONDS)
    except Exception as error:  # of a compiler, or for want of memory: the run goes without it
        logger.warning(f"torch.compile failed here and is left out ({type(error).__name__})")
        return False
    finally:
        trainer.accelerator.state.dynamo_plugin = not_compiled
    faster = compiled <= (1 - MIN_GAIN) * eager
    logger.info(
        f"compiled  {'yes' if faster else 'no'}: a step takes {1000 * compiled:.0f} ms, and "
        f"{1000 * eager:.0f} ms without torch.compile"
    )
    return faster
