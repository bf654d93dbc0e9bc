"""Signals that ask a program to end: which they are, and what to do where there is nothing to save.

SIGTERM comes from schedulers, SIGUSR1 is Slurm's warning before it takes the machine away, SIGINT is Ctrl-C.
"""

from __future__ import annotations

import os
import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import FrameType

from craft.utils.terminal import write_at_once

SIGNALS = tuple(getattr(signal, name) for name in ("SIGINT", "SIGTERM", "SIGUSR1") if hasattr(signal, name))

Handler = Callable[[int, FrameType | None], None]

NOTHING_YET = "nothing was trained yet, and nothing is lost"


class TrainingInterrupted(SystemExit):
    """A signal was obeyed and nothing is lost; the status is 130 for Ctrl-C, else 0."""


def exit_code(signum: int) -> int:
    """130 for Ctrl-C, as shells have it; 0 for the others: asked by a scheduler, and done."""
    return 130 if signum == signal.SIGINT else 0


def name_of(signum: int) -> str:
    return "Ctrl-C" if signum == signal.SIGINT else signal.Signals(signum).name


def say(text: str) -> None:
    """For handlers: not through logging, for they may interrupt a write that holds its lock."""
    write_at_once(f"\n{text}\n")


class SignalHandler:
    """What is to be said when a signal ends the program at once.

    Attributes:
        state: how things stand, as half a sentence; it changes as the program goes on.
    """

    def __init__(self, state: str) -> None:
        self.state = state

    def handle(self, signum: int, frame: FrameType | None) -> None:
        """Ends the program by an exception, so that files and locks are cleaned up."""
        for number in SIGNALS:
            signal.signal(number, lambda again, frame: os._exit(128 + again))
        say(f"{name_of(signum)}: {self.state}")
        raise TrainingInterrupted(exit_code(signum))


@contextmanager
def signal_handler(handler: Handler) -> Iterator[None]:
    """Inside, signals go to a handler. In threads, where Python can't do that, nothing changes."""
    in_thread = threading.current_thread() is not threading.main_thread()
    before = {} if in_thread else {number: signal.signal(number, handler) for number in SIGNALS}
    try:
        yield
    finally:
        for number, earlier in before.items():
            signal.signal(number, earlier)


@contextmanager
def exit_on_signal(state: str) -> Iterator[SignalHandler]:
    """Inside, a signal ends the program at once, with one line."""
    handler = SignalHandler(state)
    with signal_handler(handler.handle):
        yield handler
