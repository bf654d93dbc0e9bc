"""Stopping politely: SIGTERM, SIGUSR1 and Ctrl-C finish the step and save; a second one exits at once.

What one process met alone, between two steps, travels by the same word as a signal, which costs nothing more.
"""

from __future__ import annotations

import os
import signal
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import FrameType

import torch
import torch.distributed as dist

from craft.training.agreement import several, together
from craft.training.distributed import is_communication, pass_on, passed_on, patience
from craft.utils.stopping import SIGNALS, TrainingInterrupted, exit_code, name_of, say

FAILED = 1 << 30
"""More than any signal: some process failed."""


class StopRequest:
    """Remembers a signal and lets all processes agree on it, since launchers may tell only one of them.

    Attributes:
        signum: the signal that asked to stop, 0 if none did; equal in all processes after `agreed`.
        begun: whether there is anything to finish and save.
    """

    def __init__(self) -> None:
        self.signum = 0
        self.begun = False
        self.launcher: int | None = None
        self._received = 0  # the handler writes this and `_since` only: it may interrupt `agreed`
        self._since: float | None = None
        self._group: dist.ProcessGroup | None = None
        self._failure: Exception | None = None

    @property
    def exit_code(self) -> int:
        return exit_code(self.signum)

    @property
    def asked(self) -> bool:
        """Whether this process knows of a signal; others may not yet. For long work within a step."""
        if self.launcher is not None and not self._received and os.getppid() != self.launcher:
            self._received = signal.SIGTERM  # the launcher was killed, and can pass nothing on
        if self._received:
            pass_on(self._received)
        return bool(self._received or self.signum or passed_on())

    @contextmanager
    def listening(self) -> Iterator[None]:
        """Inside, signals ask to stop. In threads, where Python can't, nothing changes."""
        self.signum, self._received, self._since = 0, 0, None
        self.begun, self.launcher, self._failure = False, launcher(), None
        if dist.is_initialized() and dist.get_backend() != "gloo":
            # Over NCCL the question would make the host wait for the GPU in every step.
            self._group = dist.new_group(backend="gloo", timeout=patience())
        if threading.current_thread() is not threading.main_thread():
            yield
            return
        before = {number: signal.signal(number, self._receive) for number in SIGNALS}
        try:
            yield
        finally:
            for number, handler in before.items():
                signal.signal(number, handler)

    def agreed(self) -> bool:
        """Whether any process was asked to stop; all of them must ask, and get the same answer.

        Raises:
            Exception: in all of them, what one of them has kept; see `together`.
        """
        asked = max(self._received, self.signum) if self.asked else 0
        number = self.most(FAILED if self._failure else asked)
        if number == FAILED:
            together(self._fail)
        self.signum = number
        return self.signum != 0

    @contextmanager
    def keeping(self) -> Iterator[None]:
        """Inside, a failure of one among several processes waits until all of them meet, in `agreed`."""
        try:
            yield
        except Exception as error:
            if not several() or is_communication(error):
                raise
            self._failure = self._failure or error

    def settle(self) -> None:
        """Raises what was kept since all processes met last; all of them must ask."""
        if self.most(int(self._failure is not None)):
            together(self._fail)

    def _fail(self) -> None:
        if self._failure is not None:
            raise self._failure

    def most(self, number: int) -> int:
        """The largest of the numbers that all processes give."""
        if not dist.is_initialized():
            return number
        flag = torch.tensor([number], dtype=torch.int32)
        dist.all_reduce(flag, op=dist.ReduceOp.MAX, group=self._group)
        return int(flag)

    def _receive(self, signum: int, frame: FrameType | None) -> None:
        # One Ctrl-C may arrive twice, from the terminal and from the launcher: only a later one is a second
        # one.
        at_once = 1.0 if self.launcher is not None else 0.2
        if self._since is not None and time.monotonic() - self._since > at_once:
            os._exit(128 + signum)
        if self._since is None:
            self._received, self._since = signum, time.monotonic()
            if not self.begun and not dist.is_initialized():
                say(f"{name_of(signum)}: stopped before the first step; nothing is lost")
                raise TrainingInterrupted(exit_code(signum))
            say(f"{name_of(signum)}: finishing this step and saving; once more exits at once")


def launcher() -> int | None:
    """The parent process, if it is one of the programs that start others; those may die without a word."""
    parent = os.getppid()
    try:
        words = Path(f"/proc/{parent}/cmdline").read_bytes()
    except OSError:  # not Linux
        return None
    launchers = (b"accelerate", b"torchrun", b"torch.distributed", b"torch/distributed")
    return parent if any(name in words for name in launchers) else None
