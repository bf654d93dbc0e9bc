"""Weights & Biases: a run of ours is one run there, also when resumed; offline unless there is a key.

What wandb reads from the environment (WANDB_ENTITY, WANDB_TAGS, WANDB_NOTES, WANDB_RUN_GROUP, …) it reads in
our runs too: only what the user left open is filled in. Figures are logged by transformers' own callback.
"""

from __future__ import annotations

import os
import secrets
from pathlib import Path
from typing import Any

from transformers.integrations import WandbCallback

from craft.utils import launch
from craft.utils.logging import get_logger
from craft.utils.markup import block, page
from craft.utils.masking import mask, masked
from craft.utils.paths import typed_path

logger = get_logger(__name__)

_started: set[str] = set()  # ids of runs that craft began in this process


class WandbRun:
    """The W&B run of a trainer: begun before transformers' own callback would begin another.

    Attributes:
        id: kept in checkpoints, also of a part of the run that isn't recorded; `None` if none of it was.
        recording: whether figures go there now.
    """

    def __init__(self, trainer: Any) -> None:
        self.trainer = trainer
        self.id: str | None = None
        self.recording = False

    def state_dict(self) -> dict[str, Any]:
        return {"id": self.id}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.id = self.id or state["id"]

    def begin(self) -> None:
        """Begins the run, or continues that of the resumed checkpoint; for the main process alone.

        If W&B isn't to be had, one line says why and training goes on without.
        """
        trainer = self.trainer
        if "wandb" not in (trainer.args.report_to or []):
            return
        if trainer.resumed is not None:
            trainer.checkpointer.load("wandb")
        launch.drop_empty()  # wandb refuses empty variables
        off = launch.flag("WANDB_DISABLED") or os.environ.get("WANDB_MODE") == "disabled"
        try:
            self.id = None if off else self._start()
        except Exception as error:  # wandb raises many kinds, and none of them is worth a training run
            self.id, reason = None, " ".join(str(error).split()) or type(error).__name__
            logger.warning(f"W&B: not recording this run ({reason}); training.report_to=none switches it off")
        self.recording = self.id is not None
        if not self.recording:
            trainer.pop_callback(WandbCallback)

    def _start(self) -> str:
        import wandb

        run_dir, args = self.trainer.run_dir, self.trainer.args
        if wandb.run is not None and wandb.run.id != self.id:
            if wandb.run.id not in _started:
                return str(wandb.run.id)  # begun by the user's own code, for example by a sweep
            wandb.finish()
        beside = run_dir.parent.parent / "logs" if run_dir.parent.name == "models" else run_dir
        folder = Path(typed_path(os.environ.get("WANDB_DIR") or str(beside), "WANDB_DIR="))
        folder.mkdir(parents=True, exist_ok=True)
        run = wandb.init(
            project=os.environ.get("WANDB_PROJECT", args.project),
            name=args.run_name or os.environ.get("WANDB_NAME") or run_dir.name,
            id=self.id or os.environ.get("WANDB_RUN_ID") or secrets.token_hex(4),
            resume=os.environ.get("WANDB_RESUME", "allow"),
            mode=os.environ.get("WANDB_MODE") or ("online" if _has_key(wandb) else "offline"),
            dir=str(folder),
            config=masked(self.trainer.run_config),
            settings=wandb.Settings(silent=True, console="off", save_code=False),
        )
        _started.add(run.id)
        if run.offline:
            logger.info(f"W&B: offline, in {folder}/wandb ('wandb login' sends runs, 'wandb sync' this one)")
        return str(run.id)

    def log_sample(self, text: str, step: int) -> None:
        """Shows generated text in the run, if there is one."""
        if self.recording:
            import wandb

            shown = wandb.Html(page(block(mask(text)), f"sample at step {step}"))
            wandb.log({"eval/sample": shown, "train/global_step": step})

    def finish(self, exit_code: int) -> None:
        """Ends the run if it is ours; a run that ends well is ended by wandb at exit."""
        if self.id in _started:
            import wandb

            wandb.finish(exit_code=exit_code)


def _has_key(wandb: Any) -> bool:
    try:
        return bool(wandb.login(prompt=False, verify=False))
    except TypeError:  # before wandb 0.31
        return bool(wandb.api.api_key)
