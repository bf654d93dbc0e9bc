"""What goes wrong, as exceptions with a stable code for programs and one line for people."""

from __future__ import annotations

from typing import Literal

Code = Literal[
    "setting-unknown",
    "setting-type",
    "setting-value",
    "setting-conflict",
    "setting-no-effect",
    "usage",
    "file-missing",
    "file-unreadable",
    "file-unwritable",
    "path-invalid",
    "package-missing",
    "machine-unable",
    "launch-invalid",
    "text-missing",
    "text-short",
    "text-encoding",
    "text-format",
    "text-column",
    "text-changed",
    "character-unknown",
    "data-invalid",
    "tokenizer-invalid",
    "model-missing",
    "model-invalid",
    "model-mismatch",
    "code-untrusted",
    "run-missing",
    "run-locked",
    "run-changed",
    "checkpoint-damaged",
    "checkpoint-old",
    "hub-login",
    "hub-missing",
    "hub-refused",
    "network",
    "secret",
    "not-finite",
    "disk-full",
    "out-of-memory",
    "peer-lost",
]
"""Codes stay as they are from release to release; docs/guides/errors.md lists them."""


class CraftError(Exception):
    """One line that says what was wrong, the value, where, and what to do instead.

    Attributes:
        code: which kind of error it is, for programs.
        printed_elsewhere: another process prints this error; this one ends silently.
    """

    printed_elsewhere = False

    def __init__(self, message: str = "", *, code: Code) -> None:
        super().__init__(message)
        self.code = code


class UserError(CraftError):
    """A mistake of the user; the command line prints it as `error: …` and exits with status 2."""


class Failed(CraftError):
    """Nobody made a mistake, but the network is down or the disk is full; exit status 1.

    The message also says what is left.
    """


class TrainingFailed(Failed):
    """Training can't go on; the message has the step, the last good checkpoint and a way on."""


class PeerLost(TrainingFailed):
    """Another process of this run is gone; the message says which, or nothing if that was said elsewhere.

    What is left of the group can't be tidied up, so the command line ends the process at once.
    """

    def __init__(self, message: str = "", *, code: Code = "peer-lost") -> None:
        super().__init__(message, code=code)


def first_line(error: object) -> str:
    """The first line of what an error of a library says; the name of its class if it says nothing."""
    return (str(error).strip() or type(error).__name__).splitlines()[0].rstrip(".")


def one_line(error: object) -> str:
    """All that an error of a library says, on one line; the name of its class if it says nothing."""
    return " ".join(str(error).split()).rstrip(".") or type(error).__name__
