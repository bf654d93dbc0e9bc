"""Checkpoints on their way to the Hub while training goes on: one at a time, each by a process of its own.

An upload may take longer than the other processes wait for this one, and must hold up neither a step nor a
signal nor the end of the program, as the threads of an HTTP client would. What is sent is the checkpoint as
it was when it was written, even if it is rotated away meanwhile: hard links, which take no room. An upload is
one commit, so that one which is ended in the middle leaves nothing on the Hub.
"""

from __future__ import annotations

import os
import shlex
import shutil
import subprocess
import sys
import threading
from collections import deque
from dataclasses import dataclass
from pathlib import Path

import craft
from craft.sharing.record import METRICS_FILE
from craft.sharing.upload import push
from craft.training.checkpointing.folders import UPLOADING
from craft.utils.errors import Failed, UserError
from craft.utils.logging import get_logger
from craft.utils.masking import mask
from craft.utils.outputs import RUN_NAMES

logger = get_logger(__name__)

COPIES = 2
"""Of checkpoints, beside those that are kept, at most: one on its way and one that waits."""


@dataclass(frozen=True)
class Upload:
    """One checkpoint to be sent.

    Args:
        checkpoint: what the user knows it by.
        copy: it as it was.
        resumable: the folder of the repository for all of it; None for the model alone.
    """

    checkpoint: Path
    copy: Path
    repo_id: str
    resumable: str | None
    branch: str | None

    def command(self) -> list[str]:
        # Python would look for modules in the user's folder first, and this process has the user's token.
        program = f"import sys; sys.path[:] = filter(None, sys.path); from {__name__} import main; main()"
        words = (str(self.copy), self.repo_id, self.resumable or "", self.branch or "")
        return [sys.executable, "-c", program, *words]

    def later(self) -> str:
        """The command line that makes up for it."""
        words = ["craft", "push", str(self.checkpoint), self.repo_id]
        words += ["--into", self.resumable] if self.resumable else []
        return shlex.join([*words, *(["--branch", self.branch] if self.branch else [])])

    def discard(self) -> None:
        """Deletes the copy, once it is sent or won't be."""
        shutil.rmtree(self.copy.parent, ignore_errors=True)


class Uploads:
    """Those of a run, for its main process alone.

    Args:
        run_dir: holds the copies.
    """

    def __init__(self, run_dir: Path) -> None:
        self.folder = run_dir / UPLOADING
        self._waiting: deque[Upload] = deque()
        self._current: Upload | None = None
        self._process: subprocess.Popen[str] | None = None
        self._lock = threading.RLock()
        self._count = 0

    @property
    def pending(self) -> list[Upload]:
        """What isn't on the Hub yet, in order."""
        with self._lock:
            return [*([self._current] if self._current else []), *self._waiting]

    def add(
        self, checkpoint: Path, repo_id: str, *, resumable: str | None, branch: str | None, every: bool
    ) -> None:
        """Sends a checkpoint as it is now, once the one before it is there.

        Args:
            every: those that wait are sent, too; otherwise the newest takes their place.

        Raises:
            OSError: if it can't be copied.
        """
        self._count += 1
        place = self.folder / str(self._count)
        copy = place / checkpoint.name
        shutil.copytree(checkpoint, copy, copy_function=_link)
        for name in (RUN_NAMES, METRICS_FILE):  # the metrics are still written to
            if (checkpoint.parent / name).is_file():
                shutil.copyfile(checkpoint.parent / name, place / name)
        with self._lock:
            while self._waiting and not every:
                late = self._waiting.popleft()
                late.discard()
                logger.info(f"{late.checkpoint.name} isn't uploaded: {checkpoint.name} takes its place")
            self._waiting.append(Upload(checkpoint, copy, repo_id, resumable, branch))
            if self._current is None:
                self._next()

    def leave(self) -> None:
        """Ends what is under way, at once."""
        if not self._count:
            return
        with self._lock:
            given_up, process = self.pending, self._process
            self._waiting.clear()
            self._current = self._process = None
        if process is not None:
            process.kill()
        if given_up:
            names = ", ".join(upload.checkpoint.name for upload in given_up)
            # The last one for each folder there takes the place of those before it.
            last = {upload.resumable: upload.later() for upload in given_up if upload.checkpoint.is_dir()}
            later = f"; that can be done later with: {' && '.join(last.values())}" if last else ""
            logger.warning(f"not uploaded: {names}{later}")
        shutil.rmtree(self.folder, ignore_errors=True)

    def _next(self) -> None:
        """Begins with the first that waits; a thread waits for its end."""
        self._current = None
        while self._waiting and self._current is None:
            upload = self._waiting.popleft()
            process = None
            try:
                process = _start(upload.command())
                thread = threading.Thread(target=self._await, args=(process, upload), daemon=True)
                self._process, self._current = process, upload
                thread.start()
            except (OSError, RuntimeError) as error:  # no process, no thread
                self._process = self._current = None
                if process is not None:
                    process.kill()
                    process.communicate()
                self._say_failed(upload, f"{upload.checkpoint.name} was not uploaded ({error})")

    def _say_failed(self, upload: Upload, why: str) -> None:
        logger.warning(f"{why or f'{upload.checkpoint.name} was not uploaded'}; training goes on")
        upload.discard()

    def _await(self, process: subprocess.Popen[str], upload: Upload) -> None:
        with process:
            assert process.stderr is not None
            said = process.stderr.read().strip().rpartition("\n")[-1]
        with self._lock:
            if process is not self._process:
                return  # left
            self._process = None
            if process.returncode:
                self._say_failed(upload, said)
            else:
                logger.info(f"uploaded  {upload.checkpoint.name} to {upload.repo_id}")
                upload.discard()
            self._next()


def _start(command: list[str]) -> subprocess.Popen[str]:
    own, given = str(Path(craft.__file__).parent.parent), os.environ.get("PYTHONPATH")
    path = os.pathsep.join([own, given] if given else [own])
    return subprocess.Popen(
        command,
        env={**os.environ, "PYTHONPATH": path},
        stdin=subprocess.PIPE,  # is closed when this process ends, however it does
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,  # Ctrl-C is for this process
    )


def main() -> None:
    """The process of one upload."""
    threading.Thread(target=_end_with_parent, daemon=True).start()
    folder, repo_id, resumable, branch = sys.argv[1:]
    said = ""
    try:
        step = f"Step {Path(folder).name.rpartition('-')[2]}"
        push(Path(folder), repo_id, branch=branch or None, message=step, resumable=resumable or None)
    except (UserError, Failed) as error:
        said = str(error)
    except Exception as error:
        said = f"can't push {Path(folder).name} to {repo_id}: {type(error).__name__}: {error}"
    os.write(2, mask(" ".join(said.split())).encode())
    os._exit(1 if said else 0)


def _end_with_parent() -> None:
    sys.stdin.buffer.read()
    os._exit(1)


def _link(source: str, target: str) -> str:
    try:
        os.link(source, target)
    except OSError:  # a file system without links
        shutil.copy2(source, target)
    return target
