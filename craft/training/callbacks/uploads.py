"""Sends checkpoints to the Hub while training goes on, as `hub_strategy` says.

Transformers would upload all of the run's folder in the training process, and pickle the arguments too.
"""

from __future__ import annotations

import signal
import time
from pathlib import Path
from typing import Any

from transformers import TrainerCallback, TrainerControl, TrainerState
from transformers.trainer_utils import HubStrategy

from craft.sharing.upload import LAST, open_repo, push
from craft.training.checkpointing import folders
from craft.training.distributed.agreement import on_rank0_broadcast
from craft.training.uploads import COPIES, Uploads
from craft.utils.logging import get_logger

logger = get_logger(__name__)

LAST_SECONDS = 20
"""How long a run that was asked to stop waits for the upload of what it saved; schedulers give about 30."""


class UploadCheckpoints(TrainerCallback):
    """Uploads what was saved, in a process beside training; a failed upload doesn't end the run.

    Args:
        trainer: has the name of the repository as `hub_model_id` and the `StopRequest` as `stop`.
    """

    def __init__(self, trainer: Any) -> None:
        self.trainer, self.args = trainer, trainer.args
        self.queue = Uploads(Path(self.args.output_dir))

    @property
    def active(self) -> bool:
        return bool(self.args.push_to_hub) and self.args.hub_strategy != HubStrategy.END

    @property
    def copies(self) -> int:
        """How many checkpoints may be on their way after they were deleted here."""
        return COPIES if self.active else 0

    @property
    def sends_every_one(self) -> bool:
        return self.args.hub_always_push or self.args.hub_strategy == HubStrategy.ALL_CHECKPOINTS

    def on_save(self, args: Any, state: TrainerState, control: TrainerControl, **kwargs: Any) -> None:
        """Where every one is sent, the next waits for those before it, whose copies would fill the disk."""
        if not self.active:
            return
        if self.sends_every_one:
            self._wait("every checkpoint is sent; Ctrl-C leaves it off", left=COPIES - 1)
        if state.is_world_process_zero:
            self._send(folders.checkpoint_dir(self.trainer.checkpointer.run_dir, state.global_step))

    def _send(self, checkpoint: Path) -> None:
        resumable = {HubStrategy.CHECKPOINT: LAST, HubStrategy.ALL_CHECKPOINTS: checkpoint.name}
        try:
            self.queue.add(
                checkpoint,
                self.trainer.hub_model_id,
                resumable=resumable.get(self.args.hub_strategy),
                branch=self.args.hub_revision,
                every=self.sends_every_one and not self.trainer.stop.signum,
            )
        except OSError as error:
            logger.warning(f"{checkpoint.name} can't be uploaded: {error}; training goes on")

    def push_now(self, message: str, branch: str | None) -> str | None:
        """Uploads the model as it is; the address of the commit, in the main process."""
        folder = Path(self.args.output_dir) / f"{folders.STAGING}push"
        self.trainer.save_model(str(folder), _internal_call=True)
        if not self.trainer.is_world_process_zero():
            return None
        try:
            return push(folder, self.trainer.hub_model_id, branch=branch, message=message)
        finally:
            folders.discard(folder)

    def finish(self) -> None:
        """Waits until the last checkpoint is on the Hub; after a signal for a while, after Ctrl-C not."""
        if not self.active:
            return
        stop = self.trainer.stop
        if not stop.signum:
            self._wait("Ctrl-C leaves it off")
        if stop.signum not in (0, signal.SIGINT):
            self._wait(f"for at most {LAST_SECONDS} s; once more exits at once", seconds=LAST_SECONDS)

    def _wait(self, how: str, *, left: int = 0, seconds: float | None = None) -> None:
        """Waits until no more than `left` uploads are pending. All processes do, and meet again and again, so
        that none waits longer for another and a signal is heard, which ends it; with `seconds` time does."""
        stop = self.trainer.stop
        if len(pending := self.queue.pending) > left:
            names = ", ".join(upload.checkpoint.name for upload in pending)
            logger.info(f"waiting for the upload of {names}; {how}")
        end = time.monotonic() + (seconds or 0)

        def more() -> bool:
            in_time = seconds is None or time.monotonic() < end
            return in_time and len(self.queue.pending) > left

        while stop.most(int(more())) and (seconds is not None or not stop.agreed()):
            time.sleep(0.1)


def open_run_repo(args: Any) -> str:
    """Makes the repository of a run, as the main process does for all; its full name."""
    wanted, private = args.hub_model_id or Path(args.output_dir).name, args.hub_private_repo
    return on_rank0_broadcast(lambda: open_repo(wanted, private, args.hub_revision, args.hub_license))
