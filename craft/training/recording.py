"""What a run writes down of itself: its metrics, its history, and both at W&B."""

from __future__ import annotations

from typing import Any

from transformers.integrations import WandbCallback

from craft.sharing.record import METRICS_FILE
from craft.training import checkpoints, disk, tracking
from craft.training.guarding import GuardedTrainer
from craft.training.logging import MetricsFile
from craft.utils.history import HISTORY, add_event


class RecordingTrainer(GuardedTrainer):
    """The part of `Trainer` that writes down what happens."""

    @property
    def metrics_file(self) -> MetricsFile:
        return MetricsFile(self.run_dir)

    def log(self, logs: dict[str, Any], start_time: float | None = None) -> None:
        """As in transformers, and into `metrics.jsonl`."""
        logs.setdefault("elapsed", round(self.watch.total(), 3))
        super().log(logs, start_time)
        if self.is_world_process_zero():
            self.write_metrics(logs)

    def write_metrics(self, event: dict[str, Any]) -> None:
        """Adds an event of this step to `metrics.jsonl`; for the main process alone.

        Raises:
            TrainingFailed: if the disk refuses; of several processes, in all when they next agree.
        """

        def way_on() -> str:
            return f"{self.last_good}; {self.way_out()}"

        with self.kept_for_all(), disk.writing(METRICS_FILE, self.run_dir, way_on):
            self.metrics_file.write({"step": self.state.global_step, **event})

    def record_start(self) -> None:
        """Writes down that the run begins or goes on, once nothing was refused."""
        details: dict[str, Any] = {"step": self.resumed_step or 0, "processes": self.args.world_size}
        if self.changes:
            details["changes"] = {name: list(pair) for name, pair in self.changes.items()}
        with disk.writing(HISTORY, self.run_dir, self.way_out):
            add_event(self.run_dir, "resumed" if self.resumed else "started", **details)

    def _open_logs(self) -> None:
        checkpoints.clear_leftovers(self.run_dir)
        self.metrics_file.start(self.resumed_step or 0)
        if "wandb" in (self.args.report_to or []):
            known = self.progress_at(self.resumed)["wandb_id"] if self.resumed else None
            self.wandb_id = tracking.start(
                self.run_dir, self.args.project, self.run_config, known, self.args.run_name
            )
            if self.wandb_id is None:
                self.pop_callback(WandbCallback)
