"""Stopping for a signal: SIGTERM, SIGUSR1 and Ctrl-C finish the step and save; a second one exits at once."""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import timedelta
from types import FrameType

import torch
import torch.distributed as dist

from craft.utils.stopping import TrainingInterrupted, exit_code, name_of, say, signal_handler


class StopRequest:
    """Remembers a signal and lets all processes agree on it, since launchers may tell only one of them.

    Attributes:
        signum: the signal that asked to stop, 0 if none did; equal in all processes after
            `requested_anywhere`.
        begun: whether there is anything to finish and save.
    """

    def __init__(self) -> None:
        self.signum = 0
        self.begun = False
        self.launcher: int | None = None
        self._received = 0  # the handler writes this and `_since` only: it may interrupt `requested_anywhere`
        self._since: float | None = None
        self._group: dist.ProcessGroup | None = None

    @property
    def exit_code(self) -> int:
        return exit_code(self.signum)

    @property
    def requested(self) -> bool:
        """Whether this process knows of a signal; others may not yet. For long work within a step."""
        if self.launcher is not None and os.getppid() != self.launcher:
            self._received = self._received or signal.SIGTERM  # it was killed, and can pass nothing on
        return bool(self._received or self.signum)

    @contextmanager
    def listening(self, seconds: int = 600) -> Iterator[None]:
        """Inside, signals ask to stop.

        Args:
            seconds: how long processes wait for each other.
        """
        self.signum, self._received, self._since = 0, 0, None
        self.begun = False
        self.launcher = os.getppid() if "TORCHELASTIC_RUN_ID" in os.environ else None
        if dist.is_initialized() and dist.get_backend() != "gloo":
            # Over NCCL the question would make the host wait for the GPU in every step.
            self._group = dist.new_group(backend="gloo", timeout=timedelta(seconds=seconds))
        with signal_handler(self._receive):
            yield

    def requested_anywhere(self) -> bool:
        """Whether any process was asked to stop; all of them must ask, and get the same answer."""
        self.signum = self.max_over_ranks(max(self._received, self.signum) if self.requested else 0)
        return self.signum != 0

    def max_over_ranks(self, number: int) -> int:
        """The largest of the numbers that all processes give."""
        if not dist.is_initialized():
            return number
        flag = torch.tensor([number], dtype=torch.int32)
        dist.all_reduce(flag, op=dist.ReduceOp.MAX, group=self._group)
        return int(flag)

    def _receive(self, signum: int, frame: FrameType | None) -> None:
        # One Ctrl-C may arrive twice, from the terminal and from the launcher: only a later one is a second.
        if self._since is not None and time.monotonic() - self._since > 1:
            os._exit(128 + signum)
        if self._since is None:
            self._received, self._since = signum, time.monotonic()
            if not self.begun and not dist.is_initialized():
                say(f"{name_of(signum)}: stopped before the first step; nothing is lost")
                raise TrainingInterrupted(exit_code(signum))
            say(f"{name_of(signum)}: finishing this step and saving; once more exits at once")
