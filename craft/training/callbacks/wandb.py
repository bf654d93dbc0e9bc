"""Weights & Biases: a run of ours is one run there, also when resumed; offline unless there is a key.

What wandb reads from the environment (WANDB_ENTITY, WANDB_TAGS, WANDB_NOTES, WANDB_RUN_GROUP, …) it reads in
our runs too: only what the user left open is filled in.
"""

from __future__ import annotations

import os
import secrets
import tempfile
from pathlib import Path
from typing import Any

from transformers.integrations import WandbCallback

from craft.utils import launch
from craft.utils.errors import UserError
from craft.utils.logging import get_logger
from craft.utils.markup import block, page
from craft.utils.masking import mask, masked
from craft.utils.paths import typed_path

logger = get_logger(__name__)

ID_FILE = "wandb_run_id.txt"
_started: set[str] = set()


class WandbRun:
    """The W&B run of a trainer: begun before transformers' own callback would begin another.

    Attributes:
        id: kept in checkpoints; `None` where nothing is recorded.
    """

    def __init__(self, trainer: Any) -> None:
        self.trainer = trainer
        self.id: str | None = None

    def state_dict(self) -> dict[str, Any]:
        return {"id": self.id}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.id = self.id or state["id"]

    def begin(self) -> None:
        """Begins the run, or continues that of the resumed checkpoint; for the main process alone."""
        trainer = self.trainer
        if "wandb" not in (trainer.args.report_to or []):
            return
        if trainer.resumed is not None:
            trainer.checkpointer.load("wandb")
        args = trainer.args
        self.id = start(trainer.run_dir, args.project, trainer.run_config, self.id, args.run_name)
        if self.id is None:
            trainer.pop_callback(WandbCallback)

    def log_sample(self, text: str, step: int) -> None:
        if self.id is not None:
            log_sample(text, step)

    def finish(self, exit_code: int) -> None:
        if self.id is not None:
            finish(exit_code)


def check() -> None:
    """Refuses variables of W&B that it couldn't follow, before anything is trained.

    Raises:
        UserError: with the variable and its value.
    """
    launch.drop_empty()
    if _switched_off():
        return
    if given := os.environ.get("WANDB_DIR"):
        folder = Path(typed_path(given, "WANDB_DIR="))
        try:
            folder.mkdir(parents=True, exist_ok=True)
            tempfile.TemporaryFile(dir=folder).close()
        except OSError as error:
            raise UserError(
                f"WANDB_DIR={given} can't be written to: {error.strerror}; choose another folder, or unset it"
            ) from error
    try:
        import wandb
    except ImportError:
        return  # said by `start`
    for name, value in os.environ.items():
        try:
            wandb.Settings().update_from_env_vars({name: value})
        except (ValueError, wandb.errors.Error) as error:
            details = getattr(error, "errors", None)  # of pydantic, which makes several lines of them
            reason = details()[0]["msg"] if callable(details) else error
            raise UserError(f"{name}={value} isn't what W&B takes: {reason}") from error


def start(
    run_dir: Path, project: str, config: dict[str, Any], run_id: str | None, name: str | None = None
) -> str | None:
    """Begins or continues the W&B run of a run directory, before Hugging Face's callback would begin
    another.

    Args:
        run_id: the id in the checkpoint that is resumed; otherwise the one in `run_dir`, WANDB_RUN_ID, or a
            new one.
        name: what it is called there; otherwise WANDB_NAME, or the name of `run_dir`.

    Returns:
        The id, which is kept in `run_dir`; `None` if W&B isn't to be had (said in one line, training goes
        on).
    """
    try:
        import wandb
    except ImportError:
        logger.warning(
            "W&B: the package wandb isn't installed; pip install wandb, or training.report_to=none"
        )
        return None
    launch.drop_empty()  # wandb refuses them
    if _switched_off():
        return None
    id_file = run_dir / ID_FILE
    if run_id is None and id_file.is_file():
        run_id = id_file.read_text(encoding="utf-8").strip()
    if wandb.run is not None and wandb.run.id != run_id:
        if wandb.run.id not in _started:
            return wandb.run.id  # begun by the user's own code, for example by a sweep
        wandb.finish()
    run_id = run_id or os.environ.get("WANDB_RUN_ID") or secrets.token_hex(4)
    folder = Path(typed_path(os.environ.get("WANDB_DIR") or str(log_dir(run_dir)), "WANDB_DIR="))
    folder.mkdir(parents=True, exist_ok=True)
    try:
        mode = os.environ.get("WANDB_MODE") or ("online" if _has_key(wandb) else "offline")
        run = wandb.init(
            project=os.environ.get("WANDB_PROJECT", project),
            name=name or os.environ.get("WANDB_NAME") or run_dir.name,
            id=run_id,
            resume=os.environ.get("WANDB_RESUME", "allow"),
            mode=mode,
            dir=str(folder),
            config=masked(config),
            settings=wandb.Settings(silent=True, console="off", save_code=False),
        )
    except Exception as error:  # wandb raises many kinds, and none of them is worth a training run
        reason = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
        logger.warning(f"W&B: not recording this run ({reason}); training.report_to=none switches it off")
        return None
    _started.add(run_id)
    id_file.write_text(run_id + "\n", encoding="utf-8")
    if run.offline:
        logger.info(f"W&B: offline, in {folder}/wandb ('wandb login' sends runs, 'wandb sync' this one)")
    return run_id


def log_sample(text: str, step: int) -> None:
    """Shows generated text in the W&B run, if there is one."""
    import wandb

    if wandb.run is not None:
        shown = wandb.Html(page(block(mask(text)), f"sample at step {step}"))
        wandb.log({"eval/sample": shown, "train/global_step": step})


def finish(exit_code: int) -> None:
    """Ends the W&B run if it is ours; a run that ends well is ended by wandb at exit."""
    import wandb

    if wandb.run is not None and wandb.run.id in _started:
        wandb.finish(exit_code=exit_code)


def log_dir(run_dir: Path) -> Path:
    """`outputs/logs` for a run in `outputs/models`, otherwise the run's own folder."""
    return run_dir.parent.parent / "logs" if run_dir.parent.name == "models" else run_dir


def _switched_off() -> bool:
    return launch.flag("WANDB_DISABLED") or os.environ.get("WANDB_MODE") == "disabled"


def _has_key(wandb: Any) -> bool:
    try:
        return bool(wandb.login(prompt=False, verify=False))
    except TypeError:  # before wandb 0.31
        return bool(wandb.api.api_key)
