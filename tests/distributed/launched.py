"""What tests of several processes need: a place to meet, and what was said of errors."""

from __future__ import annotations

import socket


def free_port() -> int:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return int(free.getsockname()[1])


def errors(text: str) -> list[str]:
    """The lines of errors in what a process said."""
    return [line for line in text.splitlines() if line.startswith("error: ")]
