"""What a person sees of the steps: a line each time that something is logged."""

from __future__ import annotations

import time
from datetime import timedelta
from typing import Any

from transformers import TrainerCallback

from craft.training.losses import RESERVED
from craft.utils.common import human
from craft.utils.logging import get_logger

logger = get_logger(__name__)


class Progress(TrainerCallback):
    """Logs loss, speed and the time that is left, which counts evaluations and saves as they were so far."""

    def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        self.first_step, self.first_second = state.global_step, time.monotonic()

    def on_log(self, args: Any, state: Any, control: Any, logs: Any = None, **kwargs: Any) -> None:
        if not state.is_world_process_zero or not logs or "loss" not in logs:
            return
        parts = [f"loss {logs['loss']:.3f}"]
        for name, value in logs.items():  # of language models, by their unit
            if name.startswith("bits_per_"):
                parts.append(f"{value:.3f} {name.replace('_per_', '/')}")
            elif name.endswith("s_per_second"):
                parts.append(f"{human(value)} {name.replace('_per_second', '/s')}")
            elif isinstance(value, float) and name not in RESERVED:  # an auxiliary loss
                parts.append(f"{name} {value:.3f}")
        done, left = state.global_step - self.first_step, state.max_steps - state.global_step
        if done and left:
            seconds = int((time.monotonic() - self.first_second) / done * left)
            parts.append(f"{timedelta(seconds=seconds)} left")
        width = len(f"{state.max_steps:,}")
        logger.info(f"step {state.global_step:>{width},}/{state.max_steps:,}  {'  '.join(parts)}")
