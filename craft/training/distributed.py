"""Several processes: how they join, how each knows that the others live, and who says what went wrong.

Training in step means that everyone waits for the slowest, and a process that was killed, stopped or cut
off would be waited for without a word. So each process has a pulse: a thread that writes step and place
into the store at which they all met, about once a second, and reads what the others wrote. When a
collective fails, the pulses say who is missing and where it was last seen. One process has no pulse and
pays nothing.
"""

from __future__ import annotations

import atexit
import json
import os
import re
import socket
import struct
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path
from types import FrameType
from typing import Any

import torch
import torch.distributed as dist

from craft.utils.common import PeerLost, UserError
from craft.utils.logging import first_to_say, get_logger, say_at_once

logger = get_logger(__name__)

SECONDS = 1.0
"""Between two beats of up to 32 processes; more of them beat more slowly, which spares the store."""
SILENCE = 5.0
"""Seconds without a beat after which a process isn't just slow."""
MARGIN = 15
"""Seconds that the pulse, and NCCL after it, leave the main thread to find out by itself."""
DONE, FAILED = "done", "failed"
COMMUNICATION = re.compile(
    r"gloo|nccl|connection (was )?(closed|reset|refused)|timed out waiting|broken pipe|no route to host", re.I
)

_pulse: Pulse | None = None


def join(seconds: int) -> None:
    """Joins the processes that a launcher started on CPUs. No wait for another one lasts longer than
    `seconds`, which Accelerate would not pass on.

    Raises:
        PeerLost: if not all of them come.
    """
    world, address, port = (os.environ.get(name, "") for name in ("WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT"))
    if "GLOO_SOCKET_IFNAME" not in os.environ and (interface := interface_to(address)):
        # By itself gloo asks for the address of the host's own name, which is 127.0.1.1 on many.
        os.environ["GLOO_SOCKET_IFNAME"] = interface
    try:
        dist.init_process_group("gloo", timeout=timedelta(seconds=seconds))
    except (RuntimeError, ValueError) as error:
        raise PeerLost(
            f"not all of {world} processes met at {address}:{port} within training.ddp_timeout={seconds} s "
            f"({first_line(error)}); is that address right, and reachable from every machine?"
        ) from error


def interface_to(address: str) -> str:
    """The network interface over which this machine reaches `address`; empty where that can't be known."""
    try:
        import fcntl

        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe:
            probe.connect((address, 1))  # sends nothing
            own = probe.getsockname()[0]
            for _, name in socket.if_nameindex():
                try:
                    packed = fcntl.ioctl(probe.fileno(), 0x8915, struct.pack("256s", name.encode()))
                except OSError:  # it has no address
                    continue
                if socket.inet_ntoa(packed[20:24]) == own:
                    return name
    except (ImportError, OSError):
        pass
    return ""


def watch(seconds: int) -> None:
    """Starts this process' pulse, once the processes have joined; nothing for one process."""
    global _pulse
    if _pulse is None and dist.is_initialized() and dist.get_world_size() > 1:
        store = dist.distributed_c10d._get_default_store().clone()  # with a connection of its own
        store.set_timeout(timedelta(seconds=seconds + MARGIN))
        _pulse = Pulse(store, dist.get_rank(), dist.get_world_size(), seconds)
        _pulse.start()
        atexit.register(_pulse.last_note, DONE)  # a thread inside of torch would not survive the interpreter


def patience() -> timedelta | None:
    """How long one process waits for another; None leaves it to torch."""
    return None if _pulse is None else timedelta(seconds=_pulse.seconds)


def sharding_wanted() -> bool:
    """Whether Accelerate's configuration or command line asks for FSDP."""
    return os.environ.get("ACCELERATE_USE_FSDP", "").lower() == "true"


def pass_on(signum: int) -> None:
    """Tells the other processes, with the next beat, that this one was asked to stop."""
    if _pulse is not None:
        _pulse.signum = signum


def passed_on() -> int:
    """The signal that another process was asked to stop by, as far as its pulse has told."""
    return 0 if _pulse is None else _pulse.others_signum


def at_step(step: int) -> None:
    """Notes how far this process is; called at every step."""
    if _pulse is not None:
        _pulse.step = step


def silent_peers() -> str:
    """A sentence about the processes that were not heard of lately, if there are any."""
    return "" if _pulse is None else _pulse.missing()


@contextmanager
def among_peers(way_out: Callable[[], str] = str, last: bool = False) -> Iterator[None]:
    """Turns failed communication into a sentence that names who is missing, and tells the other processes
    of any other error, so that they end without guesses of their own.

    Args:
        way_out: how to go on, for the end of the sentence.
        last: afterwards this process has nothing more to do with the others.

    Raises:
        PeerLost: for a process that doesn't answer any more.
    """
    try:
        yield
    except PeerLost:
        raise
    except Exception as error:
        if _pulse is None:
            raise
        if not isinstance(error, UserError) and is_communication(error):
            raise _pulse.diagnosis(error, way_out()) from error
        _pulse.last_note(FAILED)
        raise
    except BaseException:  # a signal that was obeyed
        if _pulse is not None:
            _pulse.last_note(DONE)
        raise
    if last and _pulse is not None:
        _pulse.last_note(DONE)


def is_communication(error: BaseException) -> bool:
    """Whether an exception says that other processes can't be reached, in whatever words."""
    if isinstance(error, dist.DistError):
        return True
    return isinstance(error, RuntimeError) and bool(COMMUNICATION.search(str(error)))


def first_line(error: BaseException) -> str:
    return next(iter(str(error).strip().splitlines()), type(error).__name__)[:200]


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


class Pulse(threading.Thread):
    """Tells the other processes that this one lives, and knows whether they do.

    Args:
        store: shared by all processes.
        seconds: how long a silent process is waited for.

    Attributes:
        step: how far this process is.
    """

    def __init__(self, store: Any, rank: int, world: int, seconds: int) -> None:
        super().__init__(name="craft-pulse", daemon=True)
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

    def last_note(self, note: str) -> None:
        """Tells the others that this process is done, or failed and has said why; then the pulse stops."""
        self.note = self.note or note
        self._wake.set()
        self.join(timeout=2 * SECONDS)
        if note == FAILED and self.rank == 0:
            time.sleep(1.5 * self.interval)  # the store may end with this process: let the others read

    def diagnosis(self, error: BaseException, way_out: str) -> PeerLost:
        """Why a collective failed, once it is known who is still there; empty if another has said it."""
        deadline = time.monotonic() + self.silence + 2 * self.interval
        while time.monotonic() < deadline and not self._somebody_failed():
            if self.missing():
                deadline = min(deadline, time.monotonic() + 1.5 * self.interval)  # for others that are, too
            time.sleep(self.interval / 4)
        if self._somebody_failed():
            return PeerLost("")
        sentence = self.missing() or self.waiting(error)
        self.last_note(FAILED)
        if not first_to_say("somebody is missing"):
            return PeerLost("")
        return PeerLost(f"{sentence}{'; ' if way_out else ''}{way_out}")

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
        place = place_of_main_thread()
        own = [self.beat, self.step, socket.gethostname(), place, self.note, self.signum]
        # If this process was stopped itself, by Ctrl-Z perhaps, so were the others: they begin to beat again.
        woken = time.monotonic() - self.answered > self.silence + self.interval
        self.store.set(f"craft/pulse/{self.rank}", json.dumps(own))
        others = [rank for rank in range(self.world) if rank != self.rank]
        written = self.store.multi_get([f"craft/pulse/{rank}" for rank in others])
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
        have told it by now."""
        if any(self._is_silent(heard, self.seconds + MARGIN) for heard in self.heard.values()):
            self._give_up()

    def _give_up(self) -> None:
        if self.note or not self._lock.acquire(blocking=False):
            return
        time.sleep(MARGIN / 3)  # the main thread may be about to say it
        if not self.note:
            self.note = FAILED
            if first_to_say("somebody is missing"):
                say_at_once(self.missing() or "the other processes are gone")
            os._exit(1)


def place_of_main_thread() -> str:
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
