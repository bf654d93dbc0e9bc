"""Logging: short lines on the terminal, the same with times in a file.

Of several processes the first one (rank 0) logs everything; the others log warnings only, with their rank,
and none repeats what another on the same machine has logged.
"""

from __future__ import annotations

import hashlib
import logging
import os
import sys
from pathlib import Path
from typing import TextIO

from craft.utils import launch
from craft.utils.masking import mask
from craft.utils.terminal import visible


def get_logger(name: str) -> logging.Logger:
    """The logger of a module; all of them hang below `craft`."""
    return logging.getLogger(name if name.startswith("craft") else f"craft.{name}")


def rank_prefix() -> str:
    """`rank 1: `, or nothing where there is one process."""
    return f"rank {launch.number('RANK', 0)}: " if launch.world_size() > 1 else ""


def first_to_say(text: str) -> bool:
    """Whether this is the first process of this launch on this machine that is about to write a text."""
    own_file = os.environ.get("TORCHELASTIC_ERROR_FILE")  # below a folder of this launch
    if own_file is None or launch.world_size() == 1:
        return True
    digest = hashlib.sha256(text.encode(errors="backslashreplace")).hexdigest()[:16]
    try:
        (Path(own_file).parents[1] / f"said-{digest}").touch(exist_ok=False)
    except OSError as error:
        return not isinstance(error, FileExistsError)
    return True


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

    def handleError(self, record: logging.LogRecord) -> None:
        why = sys.exc_info()[1]
        logging.getLogger("craft").removeHandler(self)
        logging.getLogger("craft").warning(f"the log {self.baseFilename} can't be written any more: {why}")


def setup_logging(log_file: Path | None = None, main_process: bool = True) -> None:
    """Sends craft's messages to stderr (bare lines) and, if given, to `log_file` (with time and level).

    Calling it again replaces what it set up before. Processes other than the main one show warnings only.
    """
    root = logging.getLogger("craft")
    for handler in list(root.handlers):
        root.removeHandler(handler)
        handler.close()
    root.setLevel(logging.INFO)
    root.propagate = False
    terminal = _CurrentStderr()
    terminal.setLevel(logging.INFO if main_process else logging.WARNING)
    terminal.setFormatter(_Masked("%(message)s" if main_process else f"{rank_prefix()}%(message)s"))
    terminal.addFilter(lambda record: record.levelno < logging.WARNING or first_to_say(record.getMessage()))
    root.addHandler(terminal)
    if log_file is not None and main_process:
        log_file.parent.mkdir(parents=True, exist_ok=True)
        to_file = _LogFile(log_file, encoding="utf-8", errors="backslashreplace")
        to_file.setFormatter(_Masked("%(asctime)s %(levelname)s %(name)s: %(message)s"))
        root.addHandler(to_file)
