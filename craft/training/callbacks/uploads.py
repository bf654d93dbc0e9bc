"""Sends checkpoints to the Hub while training goes on, as `hub_strategy` says: each by its own `craft push`.

An upload must hold up neither a step nor a signal nor the end of the program, as the threads of an HTTP
client would. It is one commit, so that one which is ended in the middle leaves nothing on the Hub.
"""

from __future__ import annotations

import os
import shlex
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from transformers import TrainerCallback, TrainerControl, TrainerState
from transformers.trainer_utils import HubStrategy

import craft
from craft.sharing.upload import LAST, open_repo, push
from craft.training.checkpointing import folders
from craft.training.distributed.agreement import on_rank0_broadcast
from craft.utils.logging import get_logger

logger = get_logger(__name__)

LAST_SECONDS = 20
"""Seconds that a run waits for its last upload after a signal to stop; schedulers give about 30."""
CRAFT = str(Path(craft.__file__).parent.parent)
# Python would look for modules in the user's folder first, and this process has the user's token.
PROGRAM = f"""import sys
sys.path[:] = [{CRAFT!r}, *filter(None, sys.path)]
from craft.cli.main import main
main()"""


class UploadCheckpoints(TrainerCallback):
    """Uploads what was saved, one checkpoint after the other; a failed upload doesn't end the run.

    The main process has the uploads; the others wait with it.

    Args:
        trainer: has the name of the repository as `hub_model_id` and the `StopRequest` as `stop`.
    """

    def __init__(self, trainer: Any) -> None:
        self.trainer, self.args = trainer, trainer.args
        self._process: subprocess.Popen[bytes] | None = None
        self._said: Any = None
        self._pending: list[Path] = []  # the one under way, and those that wait

    @property
    def active(self) -> bool:
        return bool(self.args.push_to_hub) and self.args.hub_strategy != HubStrategy.END

    @property
    def sends_all(self) -> bool:
        return self.args.hub_always_push or self.args.hub_strategy == HubStrategy.ALL_CHECKPOINTS

    @property
    def steps(self) -> set[int]:
        """Of the checkpoints that aren't on the Hub yet, and stay on the disk until then."""
        return set(map(folders.step_of, self._pending))

    def on_save(self, args: Any, state: TrainerState, control: TrainerControl, **kwargs: Any) -> None:
        if not self.active or not state.is_world_process_zero:
            return
        checkpoint = folders.checkpoint_dir(self.trainer.checkpointer.run_dir, state.global_step)
        if not self.sends_all:
            for late in self._pending[1:]:
                logger.info(f"{late.name} isn't uploaded: {checkpoint.name} takes its place")
            del self._pending[1:]
        self._pending.append(checkpoint)
        self._advance()

    def on_step_end(self, args: Any, state: TrainerState, control: TrainerControl, **kwargs: Any) -> None:
        self._advance()

    def _advance(self) -> None:
        """Says how the upload under way ended, if it did, and starts the next."""
        if self._process is not None and self._process.poll() is not None:
            checkpoint = self._pending.pop(0)
            if self._process.returncode == 0:
                logger.info(f"uploaded  {checkpoint.name} to {self.trainer.hub_model_id}")
            else:
                self._said.seek(0)
                said = self._said.read().decode(errors="replace").strip().rpartition("\n")[-1]
                logger.warning(f"{checkpoint.name} was not uploaded ({said}); training goes on")
            self._process = None
        if self._process is None and self._pending:
            self._said = tempfile.TemporaryFile()  # noqa: SIM115  (a pipe could fill up)
            try:
                self._process = subprocess.Popen(
                    [sys.executable, "-c", PROGRAM, *self._words(self._pending[0])],
                    env={**os.environ, "WORLD_SIZE": "1"},  # a rank isn't its matter
                    stdin=subprocess.DEVNULL,
                    stdout=subprocess.DEVNULL,
                    stderr=self._said,
                    start_new_session=True,  # Ctrl-C is for this process
                )
            except OSError as error:
                logger.warning(f"{self._pending.pop(0).name} was not uploaded ({error}); training goes on")

    def _words(self, checkpoint: Path) -> list[str]:
        """The words after `craft` that upload a checkpoint."""
        into = {HubStrategy.CHECKPOINT: LAST, HubStrategy.ALL_CHECKPOINTS: checkpoint.name}
        words = ["push", str(checkpoint), self.trainer.hub_model_id]
        words += ["--into", into[self.args.hub_strategy]] if self.args.hub_strategy in into else []
        return [*words, *(["--branch", self.args.hub_revision] if self.args.hub_revision else [])]

    def push_now(self, message: str, branch: str | None) -> str | None:
        """Uploads the model as it is; the address of the commit, in the main process."""
        with tempfile.TemporaryDirectory() as folder:
            self.trainer.save_model(folder, _internal_call=True)
            if not self.trainer.is_world_process_zero():
                return None
            return push(Path(folder), self.trainer.hub_model_id, branch=branch, message=message)

    def finish(self) -> None:
        """Waits until the last checkpoint is on the Hub; after a signal for a while, after Ctrl-C not.

        All processes do, and meet again and again, so that none waits too long for another and all of them
        hear of a signal.
        """
        if not self.active:
            return
        stop, since = self.trainer.stop, time.monotonic()

        def more() -> bool:
            self._advance()
            late = stop.signum and time.monotonic() - since > LAST_SECONDS
            return bool(self._pending) and not late and stop.signum != signal.SIGINT

        if more():
            names = ", ".join(checkpoint.name for checkpoint in self._pending)
            logger.info(f"waiting for the upload of {names}; Ctrl-C leaves it off")
        while stop.max_over_ranks(int(more())):
            time.sleep(0.1)
            if not stop.signum and stop.requested_anywhere():
                since = time.monotonic()
        if self.trainer.is_world_process_zero():  # what was spared for an upload may be one too many
            checkpointer, best = self.trainer.checkpointer, self.trainer.state.best_global_step
            folders.rotate(checkpointer.run_dir, checkpointer.keep, {best, *self.steps})

    def cancel(self) -> None:
        """Ends what is under way at once, and names what would make up for it."""
        if self._process is not None:
            self._process.kill()
            self._process.wait()
        if self._pending:
            names = ", ".join(checkpoint.name for checkpoint in self._pending)
            # The last one takes the place of those before it, unless each has a folder of its own there.
            left = self._pending if self.sends_all else self._pending[-1:]
            later = " && ".join(shlex.join(["craft", *self._words(checkpoint)]) for checkpoint in left)
            logger.warning(f"not uploaded: {names}; that can be done later with: {later}")
        self._process, self._pending = None, []


def open_run_repo(args: Any) -> str:
    """Makes the repository of a run, as the main process does for all; its full name."""
    wanted, private = args.hub_model_id or Path(args.output_dir).name, args.hub_private_repo
    return on_rank0_broadcast(lambda: open_repo(wanted, private, args.hub_revision, args.hub_license))
