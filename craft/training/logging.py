"""Where the numbers of a run go: `metrics.jsonl`, lines on the terminal and in the log, a live bar, and one
JSON object per logged step on standard output where a program reads it."""

from __future__ import annotations

import json
import logging
import math
import os
import sys
import time
from pathlib import Path
from typing import Any

from transformers import TrainerCallback

from craft.sharing.record import METRICS_FILE
from craft.utils.common import human, human_time
from craft.utils.files import replace_text
from craft.utils.logging import get_logger

logger = get_logger(__name__)


class MetricsFile:
    """One JSON object per event in the run directory, each with its `step`. For the main process alone."""

    def __init__(self, run_dir: Path) -> None:
        self.path = run_dir / METRICS_FILE

    def start(self, step: int) -> None:
        """Forgets what lies beyond `step`, which a resumed run does again: no event is there twice."""
        kept = [line for line in self._lines() if json.loads(line)["step"] <= step] if step else []
        self.path.parent.mkdir(parents=True, exist_ok=True)
        replace_text(self.path, "".join(line + "\n" for line in kept))

    def write(self, event: dict[str, Any]) -> None:
        """Appends an event; numbers that JSON doesn't know (NaN, infinity) become null."""
        known = {key: _finite(value) for key, value in event.items()}
        with self.path.open("a", encoding="utf-8") as file:
            file.write(json.dumps(known, ensure_ascii=False) + "\n")

    def _lines(self) -> list[str]:
        """All whole lines; a killed process may have left half of one."""
        if not self.path.is_file():
            return []
        return [line for line in self.path.read_text(encoding="utf-8").split("\n") if _is_event(line)]


def read_metrics(run_dir: Path) -> list[dict[str, Any]]:
    """The events of a run, in order."""
    return [json.loads(line) for line in MetricsFile(run_dir)._lines()]


class Stopwatch:
    """Seconds spent in training, without what was spent evaluating and saving.

    Attributes:
        before: what earlier processes of the same run spent.
    """

    def __init__(self) -> None:
        self.elapsed = 0.0
        self.before = 0.0
        self._since: float | None = None
        self._lap = 0.0

    def resume(self, elapsed: float) -> None:
        """Counts on from what an earlier process of the same run had counted."""
        self.before = self.elapsed = self._lap = elapsed

    def run(self) -> None:
        if self._since is None:
            self._since = time.perf_counter()

    def pause(self) -> None:
        self.elapsed, self._since = self.total(), None

    def total(self) -> float:
        """Seconds so far, also those of the processes that this one continues."""
        return self.elapsed + (time.perf_counter() - self._since if self._since is not None else 0.0)

    def lap(self) -> float:
        """Seconds since the last lap."""
        now = self.total()
        lap, self._lap = now - self._lap, now
        return lap


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
        if "bits_per_char" in logs:  # of language models
            parts.append(f"{logs['bits_per_char']:.3f} bits/char")
        if "chars_per_second" in logs:
            parts.append(f"{human(logs['chars_per_second'])} chars/s")
        done, left = state.global_step - self.first_step, state.max_steps - state.global_step
        if done and left:
            seconds = (time.monotonic() - self.first_second) / done * left
            parts.append(f"{human_time(seconds)} left")
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


class StepLines(TrainerCallback):
    """For programs that read along: on standard output a JSON object per logged step, `FINAL` at the end.

    A line has `step` and `loss` and what else was logged at that step; an evaluation at the same step adds
    its `eval_…` figures to it. On a terminal, where a person reads, nothing is written. A reader that goes
    away (a closed pipe, a full disk) costs a warning, not the run.
    """

    def __init__(self) -> None:
        self.open = not sys.stdout.isatty()
        self.pending: dict[str, Any] = {}

    def on_log(self, args: Any, state: Any, control: Any, logs: Any = None, **kwargs: Any) -> None:
        if not state.is_world_process_zero or not logs:
            return
        if "loss" in logs or any(name.startswith("eval_") for name in logs):
            if self.pending and ("loss" in logs or self.pending["step"] != state.global_step):
                self._flush()
            self.pending.setdefault("step", state.global_step)
            for name, value in logs.items():
                self.pending.setdefault(name, value)

    def on_step_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        self._flush()

    def on_train_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        self._flush()

    def final(self, sha256: str) -> None:
        """The last line: the sum of the file of weights that the run ends with."""
        self._flush()
        self._write(f"FINAL {sha256}")

    def _flush(self) -> None:
        if self.pending:
            known = {key: _finite(value) for key, value in self.pending.items()}
            self.pending = {}
            self._write(json.dumps(known))

    def _write(self, line: str) -> None:
        if not self.open:
            return
        try:
            print(line, flush=True)
        except OSError as error:
            self.open = False
            logger.warning(f"standard output can't be written any more ({error.strerror}); the run goes on")
            # What is left in its buffer would be tried again, and fail, at the exit of the process.
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


def _finite(value: Any) -> Any:
    return None if isinstance(value, float) and not math.isfinite(value) else value


def _is_event(line: str) -> bool:
    try:
        return "step" in json.loads(line)
    except (ValueError, TypeError):
        return False
