"""For programs that read along: a JSON object per logged step on standard output, `FINAL` at the end."""

from __future__ import annotations

import json
import os
import sys
from typing import Any

from transformers import TrainerCallback

from craft.training.logging import finite_or_none
from craft.utils.logging import get_logger

logger = get_logger(__name__)


class StepLines(TrainerCallback):
    """Writes the lines for programs.

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
            self.pending.update({name: value for name, value in logs.items() if name not in self.pending})

    def on_step_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        self._flush()

    def on_train_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        self._flush()

    def final(self, sha256: str) -> None:
        """Writes the last line: the sum of the file of weights that the run ends with."""
        self._flush()
        self._write(f"FINAL {sha256}")

    def _flush(self) -> None:
        if self.pending:
            known = {key: finite_or_none(value) for key, value in self.pending.items()}
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
