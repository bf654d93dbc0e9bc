"""Stopping politely: SIGTERM and Ctrl-C finish the step and save; a second one exits at once."""

from __future__ import annotations

import os
import signal
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType

import torch
import torch.distributed as dist

from craft.training.distributed import patience

SIGNALS = (signal.SIGINT, signal.SIGTERM)


class StopRequest:
    """Remembers a signal and lets all processes agree on it, since launchers may tell only one of them.

    Attributes:
        signum: the signal that asked to stop, 0 if none did; equal in all processes after `agreed`.
    """

    def __init__(self) -> None:
        self.signum = 0
        self._received = 0  # the handler writes this and `_since` only: it may interrupt `agreed`
        self._since: float | None = None
        self._group: dist.ProcessGroup | None = None

    @property
    def exit_code(self) -> int:
        """0 for SIGTERM (asked by a scheduler, and done), 130 for Ctrl-C, as shells have it."""
        return 130 if self.signum == signal.SIGINT else 0

    @contextmanager
    def listening(self) -> Iterator[None]:
        """Inside, signals ask to stop. In threads, where Python can't, nothing changes."""
        self.signum, self._received, self._since = 0, 0, None
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
        """Whether any process was asked to stop; all of them must ask, and get the same answer."""
        signum = max(self._received, self.signum)
        if dist.is_initialized():
            flag = torch.tensor([signum], dtype=torch.int32)
            dist.all_reduce(flag, op=dist.ReduceOp.MAX, group=self._group)
            signum = int(flag)
        self.signum = signum
        return signum != 0

    def _receive(self, signum: int, frame: FrameType | None) -> None:
        # One Ctrl-C may arrive twice, from the terminal and from the launcher: only a later one is a second
        # one.
        if self._since is not None and time.monotonic() - self._since > 1.0:
            os._exit(128 + signum)
        if self._since is None:
            self._received, self._since = signum, time.monotonic()
            name = "Ctrl-C" if signum == signal.SIGINT else "SIGTERM"
            # Not through logging: a handler may interrupt a write that holds its lock.
            os.write(2, f"\n{name}: finishing this step and saving; once more exits at once\n".encode())
