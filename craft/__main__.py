"""The `craft` command, also as `python -m craft`."""

from __future__ import annotations

import os
import signal
from types import FrameType


def main() -> None:
    """Runs the command line. Ctrl-C while it is still being imported ends in a word, not in a traceback."""
    before = signal.signal(signal.SIGINT, _interrupted)
    from craft.cli.main import main as command

    signal.signal(signal.SIGINT, before)
    command()


def _interrupted(signum: int, frame: FrameType | None) -> None:
    os.write(2, b"interrupted\n")
    os._exit(130)


if __name__ == "__main__":
    main()
