"""Text for people: it can't control their terminal, and can be written in any encoding of it.

A terminal obeys control characters in whatever is printed on it: a text, and a model that has learnt from it,
could rename its window, move the cursor, or make one name look like another. On a terminal they are shown
instead, as `\\x1b`, and so they are on stderr and in logs; files and pipes get the text as it is.
"""

from __future__ import annotations

import io
import os
import re
import sys
from collections.abc import Iterable, Iterator
from typing import Any

CONTROL = re.compile(r"\r(?!\n)|[\x00-\x08\x0b\x0c\x0e-\x1f\x7f-\x9f\u202a-\u202e\u2066-\u2069]")
"""The C0 and C1 controls but for tabs and line ends, and what turns the direction of a line of text around
(marks of direction, which belong to scripts, don't)."""


def visible(text: str) -> str:
    """`text` with control characters as escapes that do nothing."""
    return CONTROL.sub(lambda found: found[0].encode("unicode_escape").decode(), text)


def visible_pieces(pieces: Iterable[str]) -> Iterator[str]:
    """The same for a text that comes bit by bit: a carriage return waits for the line feed behind it."""
    held = ""
    for piece in pieces:
        held += piece
        if not held.endswith("\r"):
            yield visible(held)
            held = ""
    yield visible(held)


def echo(text: str = "", *, err: bool = False, nl: bool = True) -> None:
    """As `click.echo`, with control characters visible where a person reads: on a terminal, on stderr."""
    import click

    harmless = err or sys.stdout.isatty()
    click.echo(visible(text) if harmless else text, err=err, nl=nl, color=True)  # else click cuts escapes out


def write_at_once(text: str) -> None:
    """Writes to stderr from any thread or signal handler, without waiting for a lock."""
    os.write(2, visible(text).encode(getattr(sys.stderr, "encoding", None) or "utf-8", "backslashreplace"))


def progress_bar(total: int, unit: str, *, shown: bool = True) -> Any:
    """A tqdm bar on stderr, if that is a terminal and what is counted takes more than some seconds."""
    from tqdm import tqdm

    hidden = None if shown else True  # None: shown on a terminal alone
    return tqdm(total=total, unit=f" {unit}", unit_scale=True, delay=3, leave=False, disable=hidden)


def prepare_standard_streams() -> None:
    """Makes the standard streams write `\\u2019` where their encoding lacks a character, instead of failing;
    opens those that the shell has closed (`craft train >&-`)."""
    for name in ("stdout", "stderr"):
        stream = getattr(sys, name)
        if stream is None:
            setattr(sys, name, open(os.devnull, "w", errors="backslashreplace"))  # noqa: SIM115
        elif isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")
