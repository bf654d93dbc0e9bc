"""`metrics.jsonl`: the numbers of a run, one JSON object an event."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

from transformers import TrainerCallback

from craft.sharing.record import METRICS_FILE
from craft.utils.files import explain_disk_errors, replace_text
from craft.utils.units import unit_of


def read_metrics(path: Path) -> list[dict[str, Any]]:
    """The events in the folder of a run, or in a file of metrics, in order; a killed process may have left
    half of one, which doesn't count."""
    path = path / METRICS_FILE if path.is_dir() else path
    lines = path.read_text(encoding="utf-8").split("\n") if path.is_file() else []
    return [event for event in map(_parsed, lines) if event is not None and "step" in event]


def begin_metrics(run_dir: Path, step: int) -> None:
    """Drops the events after `step`, which a resumed run writes again. For the main process alone."""
    kept = [event for event in read_metrics(run_dir) if event["step"] <= step] if step else []
    replace_text(run_dir / METRICS_FILE, "".join(_line(event) for event in kept))


def add_metrics(run_dir: Path, event: dict[str, Any]) -> None:
    """Appends an event, which has a `step`; numbers that JSON doesn't know (NaN, infinity) become null."""
    with (run_dir / METRICS_FILE).open("a", encoding="utf-8") as file:
        file.write(_line(event))


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
        """Adds the units read so far; beside a loss also its auxiliary parts by name, bits per unit without
        them, and speed. All processes come here."""
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


def write_event(trainer: Any, event: dict[str, Any]) -> None:
    """Adds an event of this step to the metrics of a trainer's run; for its main process alone.

    Raises:
        Failed: if the disk refuses; of several processes, in all when they next agree.
    """
    run_dir, hint = trainer.run_dir, trainer.checkpointer.what_is_left
    with explain_disk_errors(METRICS_FILE, run_dir, hint):
        add_metrics(run_dir, {"step": trainer.state.global_step, **event})


def finite_or_none(value: Any) -> Any:
    """A number as JSON knows it: NaN and infinity become null."""
    return None if isinstance(value, float) and not math.isfinite(value) else value


def _line(event: dict[str, Any]) -> str:
    known = {key: finite_or_none(value) for key, value in event.items()}
    return json.dumps(known, ensure_ascii=False) + "\n"


def _parsed(line: str) -> Any:
    try:
        return json.loads(line)
    except ValueError:
        return None
