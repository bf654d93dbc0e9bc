"""What craft says: short lines on the terminal, the same with times in a file.

Of several processes the first one (rank 0) speaks; the others only warn, with their rank, and none repeats
what another on the same machine has said.
"""

from __future__ import annotations

import hashlib
import logging
import os
import sys
from collections import Counter
from pathlib import Path
from typing import TextIO

from craft.utils import launch
from craft.utils.masking import mask
from craft.utils.terminal import visible, write_at_once


def get_logger(name: str) -> logging.Logger:
    """The logger of a module; all of them hang below `craft`."""
    return logging.getLogger(name if name.startswith("craft") else f"craft.{name}")


def rank() -> int:
    """This process' number among those that a launcher started, 0 without one."""
    return launch.number("RANK", 0)


def rank_prefix() -> str:
    """`rank 1: `, or nothing where there is one process."""
    return f"rank {rank()}: " if launch.world_size() > 1 else ""


def first_to_say(text: str) -> bool:
    """Whether no other process of this launch on this machine has asked the same; the first may say it."""
    own_file = os.environ.get("TORCHELASTIC_ERROR_FILE")  # below a folder of this launch
    if own_file is None or launch.world_size() == 1:
        return True
    name = hashlib.sha256(text.encode(errors="backslashreplace")).hexdigest()[:16]
    said = Path(own_file).parent.parent / f"said-{name}"
    try:
        os.close(os.open(said, os.O_CREAT | os.O_EXCL))
    except FileExistsError:
        return False
    except OSError:
        return True
    return True


def say_at_once(line: str) -> None:
    """Writes an error with this process' rank to stderr, from any thread, without waiting for a lock."""
    write_at_once(f"error: {rank_prefix()}{line}\n")


class _SaidOnce(logging.Filter):
    """Lets a warning through in the first process that has it, and its repetitions likewise."""

    def __init__(self) -> None:
        super().__init__()
        self.count: Counter[str] = Counter()

    def filter(self, record: logging.LogRecord) -> bool:
        if record.levelno < logging.WARNING:
            return True
        text = record.getMessage()
        self.count[text] += 1
        return first_to_say(f"{self.count[text]} {text}")


class _CurrentStderr(logging.StreamHandler):
    """Writes to whatever `sys.stderr` is at that moment, so that a live progress display can redirect it."""

    def __init__(self) -> None:
        logging.Handler.__init__(self)

    @property
    def stream(self) -> TextIO:  # type: ignore[override]
        return sys.stderr


class _Masked(logging.Formatter):
    """Writes no secret, wherever in a message or traceback it stands, and nothing that a terminal obeys."""

    def format(self, record: logging.LogRecord) -> str:
        return visible(mask(super().format(record)))


class _LogFile(logging.FileHandler):
    """A log that can't be written any more, on a full disk, costs one line instead of a traceback each."""

    _said = False

    def handleError(self, record: logging.LogRecord) -> None:
        if not self._said:
            self._said = True
            why = sys.exc_info()[1]
            print(visible(f"the log {self.baseFilename} can't be written any more: {why}"), file=sys.stderr)


def setup_logging(log_file: Path | None = None, main_process: bool = True, level: int = logging.INFO) -> None:
    """Sends craft's messages to stderr (bare lines) and, if given, to `log_file` (with time and level).

    Calling it again replaces what it set up before. Processes other than the main one show warnings only.
    """
    root = logging.getLogger("craft")
    for handler in list(root.handlers):
        root.removeHandler(handler)
        handler.close()
    root.setLevel(level)
    root.propagate = False
    terminal = _CurrentStderr()
    terminal.setLevel(level if main_process else logging.WARNING)
    terminal.setFormatter(_Masked("%(message)s" if main_process else f"{rank_prefix()}%(message)s"))
    if rank_prefix():
        terminal.addFilter(_SaidOnce())
    root.addHandler(terminal)
    if log_file is not None and main_process:
        log_file.parent.mkdir(parents=True, exist_ok=True)
        to_file = _LogFile(log_file, encoding="utf-8", errors="backslashreplace")
        to_file.setFormatter(_Masked("%(asctime)s %(levelname)s %(name)s: %(message)s"))
        root.addHandler(to_file)
