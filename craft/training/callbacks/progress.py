"""What a person sees of the steps: a live bar on a terminal, plain lines in a pipe and in the log file."""

from __future__ import annotations

import logging
import sys
import time
from datetime import timedelta
from typing import Any

from transformers import TrainerCallback

from craft.utils.common import human
from craft.utils.logging import get_logger

logger = get_logger(__name__)


class Progress(TrainerCallback):
    """What a person sees of the steps: a live bar on a terminal, plain lines in a pipe.

    The time that is left counts evaluations and saves as they were so far.
    """

    def __init__(self) -> None:
        self.bar: Any = None
        self.first_step = 0
        self.filters: list[tuple[logging.Handler, logging.Filter]] = []

    def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        self.first_step, self.first_second = state.global_step, time.monotonic()
        if not state.is_world_process_zero or not sys.stderr.isatty():
            return
        from rich.console import Console
        from rich.progress import BarColumn, TextColumn
        from rich.progress import Progress as Bar

        self.bar = Bar(
            TextColumn("{task.completed:,}/{task.total:,}"),
            BarColumn(bar_width=None),
            TextColumn("{task.description}"),
            console=Console(stderr=True),
            transient=True,
            refresh_per_second=4,
        )
        self.task = self.bar.add_task("", total=state.max_steps, completed=state.global_step)
        self.bar.start()
        # What the bar shows needs no line of its own, except in the log file.
        hide = logging.Filter()
        hide.filter = lambda record: not getattr(record, "on_bar", False)  # type: ignore[method-assign]
        for handler in logging.getLogger("craft").handlers:
            if not isinstance(handler, logging.FileHandler):
                handler.addFilter(hide)
                self.filters.append((handler, hide))

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        if self.bar is not None:
            self.bar.update(self.task, completed=state.global_step)

    def on_log(self, args: Any, state: Any, control: Any, logs: Any = None, **kwargs: Any) -> None:
        if not state.is_world_process_zero or not logs or "loss" not in logs:
            return
        parts = [f"loss {logs['loss']:.3f}"]
        for name, value in logs.items():  # of language models, by their unit
            if name.startswith("bits_per_"):
                parts.append(f"{value:.3f} {name.replace('_per_', '/')}")
            elif name.endswith("s_per_second"):
                parts.append(f"{human(value)} {name.replace('_per_second', '/s')}")
        done, left = state.global_step - self.first_step, state.max_steps - state.global_step
        if done and left:
            seconds = int((time.monotonic() - self.first_second) / done * left)
            parts.append(f"{timedelta(seconds=seconds)} left")
        width = len(f"{state.max_steps:,}")
        line = "  ".join(parts)
        logger.info(f"step {state.global_step:>{width},}/{state.max_steps:,}  {line}", extra={"on_bar": True})
        if self.bar is not None:
            self.bar.update(self.task, description=line)

    def close(self) -> None:
        """Takes the bar away, however training ended."""
        if self.bar is not None:
            self.bar.stop()
            self.bar = None
        for handler, hide in self.filters:
            handler.removeFilter(hide)
        self.filters = []
