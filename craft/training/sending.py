"""What goes to the Hub while training: transformers would upload all of the run's folder, and pickle the
arguments on the way."""

from __future__ import annotations

import signal
import time
from pathlib import Path
from typing import Any

from transformers.trainer_utils import HubStrategy

from craft.sharing.upload import LAST, open_repo, push
from craft.training import checkpoints
from craft.training.agreement import decided_by_first
from craft.training.sharding import ShardingTrainer
from craft.training.signals import StopRequest
from craft.training.uploads import COPIES, Uploads
from craft.utils.logging import get_logger

logger = get_logger(__name__)

LAST_SECONDS = 20
"""How long a run that was asked to stop waits for the upload of what it saved; schedulers give about 30."""


class SendingTrainer(ShardingTrainer):
    """The part of `Trainer` that uploads.

    Attributes:
        uploads: checkpoints on their way to the Hub.
    """

    stop: StopRequest

    def __init__(self, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.uploads = Uploads(self.run_dir)

    @property
    def run_dir(self) -> Path:
        return Path(self.args.output_dir)

    def init_hf_repo(self, token: str | None = None) -> None:
        """Makes the repository before training, so that a wrong name or token is told at once."""
        wanted, private = self.args.hub_model_id or self.run_dir.name, self.args.hub_private_repo
        branch = self.args.hub_revision
        self.hub_model_id = decided_by_first(lambda: open_repo(wanted, private, branch=branch))

    @property
    def sends_checkpoints(self) -> bool:
        return bool(self.args.push_to_hub) and self.args.hub_strategy != HubStrategy.END

    @property
    def sends_every_one(self) -> bool:
        return self.args.hub_always_push or self.args.hub_strategy == HubStrategy.ALL_CHECKPOINTS

    def send_checkpoint(self, checkpoint: Path) -> None:
        """Uploads a checkpoint beside training; all processes come here. Where every one is sent, the next
        waits for those before it, whose copies would fill the disk."""
        if self.sends_every_one:
            self._await_uploads("every checkpoint is sent; Ctrl-C leaves it off", left=COPIES - 1)
        if self.is_world_process_zero():
            self._push_from_checkpoint(str(checkpoint))

    def _push_from_checkpoint(self, checkpoint_folder: str) -> None:
        """Uploads a checkpoint as `hub_strategy` says, beside training, which a failure doesn't end."""
        strategy, checkpoint = self.args.hub_strategy, Path(checkpoint_folder)
        folders = {HubStrategy.CHECKPOINT: LAST, HubStrategy.ALL_CHECKPOINTS: checkpoint.name}
        try:
            self.uploads.add(
                checkpoint,
                self.hub_model_id,
                resumable=folders.get(strategy),
                branch=self.args.hub_revision,
                every=self.sends_every_one and not self.stop.signum,
            )
        except OSError as error:
            logger.warning(f"{checkpoint.name} can't be uploaded: {error}; training goes on")

    def finish_uploads(self) -> None:
        """Waits until the last checkpoint is on the Hub; after a signal for a while, after Ctrl-C not."""
        if not self.sends_checkpoints:
            return
        if not self.stop.signum:
            self._await_uploads("Ctrl-C leaves it off")
        if self.stop.signum not in (0, signal.SIGINT):
            how = f"for at most {LAST_SECONDS} s; once more exits at once"
            self._await_uploads(how, seconds=LAST_SECONDS)

    def _await_uploads(self, how: str, *, left: int = 0, seconds: float | None = None) -> None:
        """Waits until no more than `left` uploads are pending. All processes do, and meet again and again, so
        that none waits longer for another and a signal is heard, which ends it; with `seconds` time does."""
        if len(pending := self.uploads.pending) > left:
            names = ", ".join(upload.checkpoint.name for upload in pending)
            logger.info(f"waiting for the upload of {names}; {how}")
        end = time.monotonic() + (seconds or 0)

        def more() -> bool:
            in_time = seconds is None or time.monotonic() < end
            return in_time and len(self.uploads.pending) > left

        while self.stop.most(int(more())) and (seconds is not None or not self.stop.agreed()):
            time.sleep(0.1)

    def push_to_hub(self, commit_message: str = "End of training", **kwargs: Any) -> str | None:
        """Uploads the model as it is now, with its card; for who trains in Python.

        Returns:
            The address of the commit; `None` in processes other than the first.
        """
        if self.hub_model_id is None:
            self.init_hf_repo()
        folder = checkpoints.staging_dir(self.run_dir, self.state.global_step).with_name(".staging-push")
        self.save_model(str(folder), _internal_call=True)
        if not self.is_world_process_zero():
            return None
        try:
            return push(folder, self.hub_model_id, branch=kwargs.get("revision"), message=commit_message)
        finally:
            checkpoints.discard(folder)
