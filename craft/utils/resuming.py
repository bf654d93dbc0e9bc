"""Which run to go on with: a folder, or the newest that is neither finished nor in training now."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from craft.utils.errors import UserError
from craft.utils.history import finished_at
from craft.utils.locks import is_locked
from craft.utils.outputs import OUTPUTS, RUN_CONFIG, checkpoint_step
from craft.utils.paths import typed_path


@dataclass(frozen=True)
class Finished:
    """A run with nothing left to do.

    Args:
        run_dir: its folder.
    """

    run_dir: Path

    def __str__(self) -> str:
        model = f"{self.run_dir}_step_{finished_at(self.run_dir)}"
        return (
            f"{self.run_dir} is finished, its model is {model}; to train it on: craft resume {self.run_dir} "
            "training.max_steps=N"
        )


def run_to_resume(run_dir: str, root: Path = OUTPUTS) -> Path | Finished:
    """The folder of the run to go on with.

    Args:
        run_dir: the folder, or `latest` for the newest run that is neither finished nor in training now.

    Raises:
        UserError: if there is none.
    """
    if run_dir == "latest":
        return _newest_unfinished(root / "models")
    folder = Path(typed_path(run_dir))
    if checkpoint_step(folder.name) is not None:
        raise UserError(
            f"{run_dir} is one checkpoint; name its run, {folder.parent}, which goes on from the newest good "
            "one",
            code="usage",
        )
    if not (folder / RUN_CONFIG).is_file():
        raise UserError(
            f"{run_dir}: no run there ({RUN_CONFIG} is missing); give a folder under outputs/models",
            code="run-missing",
        )
    return folder if finished_at(folder) is None else Finished(folder)


def _newest_unfinished(models: Path) -> Path | Finished:
    runs = [path.parent for path in models.glob(f"[!.]*/{RUN_CONFIG}") if "_step_" not in path.parent.name]
    runs.sort(key=lambda run: run.stat().st_mtime_ns, reverse=True)
    if not runs:
        raise UserError(f"no run to resume in {models}; start one with 'craft train'", code="run-missing")
    unfinished = [run for run in runs if finished_at(run) is None]
    if not unfinished:
        return Finished(runs[0])
    idle = [run for run in unfinished if not is_locked(run)]
    if not idle:
        raise UserError(
            f"{unfinished[0]} is in training now, and no other run is unfinished", code="run-locked"
        )
    return idle[0]
