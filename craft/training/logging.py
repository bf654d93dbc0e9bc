"""`metrics.jsonl`: the numbers of a run, one JSON object an event."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

from transformers import TrainerCallback

from craft.sharing.record import METRICS_FILE
from craft.training.checkpointing import disk
from craft.utils.files import replace_text
from craft.utils.units import unit_of


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
        known = {key: finite_or_none(value) for key, value in event.items()}
        with self.path.open("a", encoding="utf-8") as file:
            file.write(json.dumps(known, ensure_ascii=False) + "\n")

    def _lines(self) -> list[str]:
        """All whole lines; a killed process may have left half of one."""
        if not self.path.is_file():
            return []
        return [line for line in self.path.read_text(encoding="utf-8").split("\n") if _is_event(line)]


class MetricsRecorder:
    """Writes the metrics of a trainer; for its main process alone."""

    def __init__(self, trainer: Any) -> None:
        self.trainer = trainer

    def write(self, event: dict[str, Any]) -> None:
        """Adds an event of this step.

        Raises:
            TrainingFailed: if the disk refuses; of several processes, in all when they next agree.
        """
        run_dir, checkpointer = self.trainer.run_dir, self.trainer.checkpointer

        def hint() -> str:
            return f"{checkpointer.last_good()}; {checkpointer.recovery_hint()}"

        with self.trainer.stop.defer_errors(), disk.writing(METRICS_FILE, run_dir, hint):
            MetricsFile(run_dir).write({"step": self.trainer.state.global_step, **event})


class UnitCounts(TrainerCallback):
    """How many units (characters, bytes, …) a model read, and how fast; its losses are per id.

    Attributes:
        per_id: units that an id stands for, which may be less than one; measured on the beginning.
        per_step: units of a global batch.
    """

    def __init__(self, trainer: Any) -> None:
        self.trainer, dataset = trainer, trainer.train_dataset
        known = getattr(dataset, "ids", trainer.eval_dataset)
        self.unit, id_units = unit_of(trainer.tokenizer), trainer.tokenizer.id_units
        self.per_id = 1.0 if known is None else float(id_units[known[: 1 << 20]].mean())
        self.per_step = trainer.args.global_batch_size * dataset.block_size * self.per_id
        self._lap_step = 0

    def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        self._lap_step = state.global_step  # the stopwatch begins a lap there, too

    def add_to(self, logs: dict[str, Any]) -> None:
        """Adds units so far; beside a loss also its named parts, bits per unit, and speed."""
        step = self.trainer.state.global_step
        logs[self.unit.plural] = round(step * self.per_step)
        if "loss" not in logs:
            return
        logs.update(named := self.trainer.auxiliary.drain())
        logs[self.unit.metric] = (logs["loss"] - sum(named.values())) / math.log(2) / self.per_id
        seconds, steps = self.trainer.watch.lap(), step - self._lap_step
        self._lap_step = step
        if seconds > 0 and steps > 0:
            logs[self.unit.speed] = round(steps * self.per_step / seconds, 1)


def read_metrics(run_dir: Path) -> list[dict[str, Any]]:
    """The events of a run, in order."""
    return [json.loads(line) for line in MetricsFile(run_dir)._lines()]


def finite_or_none(value: Any) -> Any:
    """A number as JSON knows it: NaN and infinity become null."""
    return None if isinstance(value, float) and not math.isfinite(value) else value


def _is_event(line: str) -> bool:
    try:
        return "step" in json.loads(line)
    except (ValueError, TypeError):
        return False
