"""What craft says: short lines on the terminal, the same with times in a file."""

from __future__ import annotations

import logging
import sys
from pathlib import Path
from typing import TextIO


def get_logger(name: str) -> logging.Logger:
    """The logger of a module; all of them hang below `craft`."""
    return logging.getLogger(name if name.startswith("craft") else f"craft.{name}")


class _CurrentStderr(logging.StreamHandler):
    """Writes to whatever `sys.stderr` is at that moment, so that a live progress display can redirect it."""

    def __init__(self) -> None:
        logging.Handler.__init__(self)

    @property
    def stream(self) -> TextIO:  # type: ignore[override]
        return sys.stderr


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
    terminal.setFormatter(logging.Formatter("%(message)s"))
    root.addHandler(terminal)
    if log_file is not None and main_process:
        log_file.parent.mkdir(parents=True, exist_ok=True)
        to_file = logging.FileHandler(log_file, encoding="utf-8")
        to_file.setFormatter(logging.Formatter("%(asctime)s %(levelname)s %(name)s: %(message)s"))
        root.addHandler(to_file)
