"""How each of is_distributed processes knows that the others live.

Training in step means that everyone waits for the slowest, and a process that was killed, stopped or cut
off would be waited for without a word. So each process has a heartbeat: a thread that writes step and place
into the store at which they all met, about once a second, and reads what the others wrote.
"""

from __future__ import annotations

import json
import os
import socket
import sys
import threading
import time
from dataclasses import dataclass
from pathlib import Path
from types import FrameType
from typing import Any

import torch

from craft.utils.errors import PeerLost
from craft.utils.logging import first_to_say, say_at_once

SECONDS = 1.0
"""Between two beats of up to 32 processes; more of them beat more slowly, which spares the store."""
SILENCE = 5.0
"""Seconds without a beat after which a process isn't just slow."""
MARGIN = 15
"""Seconds that the heartbeat, and NCCL after it, leave the main thread to find out by itself."""
DONE, FAILED = "done", "failed"


@dataclass
class Heard:
    """What this process knows of one process.

    Attributes:
        at: when it last wrote something new, by this process' clock.
    """

    beat: int
    step: int
    host: str
    place: str
    note: str
    at: float


class Heartbeat(threading.Thread):
    """Tells the other processes that this one lives, and knows whether they do.

    Args:
        store: shared by all processes.
        seconds: how long a silent process is waited for.

    Attributes:
        step: how far this process is.
    """

    def __init__(self, store: Any, rank: int, world: int, seconds: int) -> None:
        super().__init__(name="craft-heartbeat", daemon=True)
        self.store, self.rank, self.world, self.seconds = store, rank, world, seconds
        self.step, self.note, self.beat = 0, "", 0
        self.signum, self.others_signum = 0, 0
        self.interval = min(max(SECONDS, world / 32), seconds / 4)
        self.silence = min(max(SILENCE, 3 * self.interval), seconds)
        self.heard: dict[int, Heard] = {}
        self.answered = time.monotonic()  # when the store last did
        self._wake = threading.Event()
        self._lock = threading.Lock()

    def run(self) -> None:
        try:
            while not self.note:
                self._exchange()
                self._end_if_unheard()
                self._wake.wait(self.interval)
            self._exchange()
        except RuntimeError:  # the store is gone, perhaps since rank 0 is done, or has long been silent
            self._wake.wait(max(0.0, self.answered + self.seconds + MARGIN - time.monotonic()))
            self._give_up()

    def final_note(self, note: str) -> None:
        """Tells the others that this process is done, or has failed and said why; then it stops."""
        self.note = self.note or note
        self._wake.set()
        self.join(timeout=2 * SECONDS)
        if note == FAILED and self.rank == 0:
            time.sleep(1.5 * self.interval)  # the store may end with this process: let the others read

    def diagnosis(self, error: BaseException, recovery_hint: str) -> PeerLost:
        """Why a collective failed, once it is known who is still there; empty if another has said it."""
        deadline = time.monotonic() + self.silence + 2 * self.interval
        while time.monotonic() < deadline and not self._somebody_failed():
            if self.missing():
                deadline = min(deadline, time.monotonic() + 1.5 * self.interval)  # for others that are, too
            time.sleep(self.interval / 4)
        if self._somebody_failed():
            return PeerLost("")
        sentence = self.missing() or self.waiting(error)
        self.final_note(FAILED)
        if not first_to_say("somebody is missing"):
            return PeerLost("")
        return PeerLost(f"{sentence}{'; ' if recovery_hint else ''}{recovery_hint}")

    def missing(self) -> str:
        """A sentence about the processes that were not heard of lately; empty if all are there."""
        now = time.monotonic()
        why = f"killed, stopped, or cut off from the network (training.ddp_timeout={self.seconds} s)"
        if now - self.answered > self.silence and not self.heard:
            return f"another process is missing: it ended before it was heard of; {why}"
        if now - self.answered > self.silence:
            address = os.environ.get("MASTER_ADDR", "")
            return (
                f"rank 0 (at {address}) is missing, or its whole machine: last seen "
                f"{self._where_last(self.heard.get(0))}, {now - self.answered:.0f} s ago; {why}"
            )
        silent = {rank: heard for rank, heard in self.heard.items() if self._is_silent(heard, self.silence)}
        if not silent:
            return ""
        named = [f"rank {rank} (on {heard.host})" for rank, heard in sorted(silent.items())]
        more = f" and {len(named) - 4} more" if len(named) > 4 else ""
        step = self._where_last(max(silent.values(), key=lambda heard: heard.step))
        ago = now - max(heard.at for heard in silent.values())
        are = "is" if len(named) == 1 else "are"
        return f"{', '.join(named[:4])}{more} {are} missing: last seen {step}, {ago:.0f} s ago; {why}"

    def waiting(self, error: BaseException) -> str:
        """Where all processes are, where none is missing but something holds them up."""
        behind = sorted(self.heard.items(), key=lambda entry: entry[1].step)[:4]
        places = "; ".join(f"rank {rank} at step {h.step:,} in {h.place}" for rank, h in behind)
        return (
            f"no process is missing, but they can't work together ({first_line(error)}): {places}; if one "
            f"has more to do than training.ddp_timeout={self.seconds} s allow, raise it"
        )

    def _exchange(self) -> None:
        self.beat += 1
        place = main_thread_location()
        own = [self.beat, self.step, socket.gethostname(), place, self.note, self.signum]
        # If this process was stopped itself, by Ctrl-Z perhaps, so were the others: they begin to beat again.
        woken = time.monotonic() - self.answered > self.silence + self.interval
        self.store.set(f"craft/heartbeat/{self.rank}", json.dumps(own))
        others = [rank for rank in range(self.world) if rank != self.rank]
        written = self.store.multi_get([f"craft/heartbeat/{rank}" for rank in others])
        self.answered = time.monotonic()
        for rank, text in zip(others, written):
            beat, step, host, place, note, signum = json.loads(text)
            self.others_signum = max(self.others_signum, signum)
            known = self.heard.get(rank)
            at = self.answered if known is None or known.beat != beat or woken else known.at
            self.heard[rank] = Heard(beat, step, host, place, note, at)

    def _is_silent(self, heard: Heard, limit: float) -> bool:
        return heard.note != DONE and time.monotonic() - heard.at > limit

    def _somebody_failed(self) -> bool:
        return any(heard.note == FAILED for heard in self.heard.values())

    def _where_last(self, heard: Heard | None) -> str:
        # A step that this process has finished is one that all of them took part in.
        step = max(self.step, heard.step if heard else 0)
        return f"at step {step:,}" if step else "before the first step"

    def _end_if_unheard(self) -> None:
        """The main thread may hang in a call that never returns, as on a GPU; a failed collective should
        have told it by now. One that failed and said so isn't waited for so long."""
        heard = self.heard.values()
        failed = any(h.note == FAILED and time.monotonic() - h.at > MARGIN for h in heard)
        if failed or any(self._is_silent(h, self.seconds + MARGIN) for h in heard):
            self._give_up(said=failed)

    def _give_up(self, said: bool = False) -> None:
        if self.note or not self._lock.acquire(blocking=False):
            return
        time.sleep(MARGIN / 3)  # the main thread may be about to say it
        if not self.note:
            self.note = FAILED
            if not said and first_to_say("somebody is missing"):
                say_at_once(self.missing() or "the other processes are gone")
            os._exit(1)


def main_thread_location() -> str:
    """Where the main thread is, outside of torch: `craft/data/prepare.py:120`."""
    frame: FrameType | None = sys._current_frames().get(threading.main_thread().ident or 0)
    while (
        frame is not None
        and frame.f_back is not None
        and Path(torch.__file__).parent.as_posix() in (frame.f_code.co_filename)
    ):
        frame = frame.f_back
    if frame is None:
        return "?"
    return f"{'/'.join(Path(frame.f_code.co_filename).parts[-3:])}:{frame.f_lineno}"


def first_line(error: BaseException) -> str:
    return next(iter(str(error).strip().splitlines()), type(error).__name__)[:200]
