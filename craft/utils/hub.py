"""Talking to the Hugging Face Hub: names, tokens, and one sentence for each way in which it can fail."""

from __future__ import annotations

import re
import socket
import ssl
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from craft.utils.common import Failed, UserError

ACCESS = "set the environment variable HF_TOKEN to a token with write access, or run 'hf auth login'"
READ_ACCESS = "set the environment variable HF_TOKEN to a token that is valid, or run 'hf auth login'"
NO_REF = re.compile(r"[\x00-\x20\x7f~^:?*\[\\]|\.\.|@\{|//|/\.|\.lock(/|$)|^[-/.]|[/.]$|^@?$|.{200}")
"""What git refuses as the name of a branch or tag, and what is too long for a file's name."""
CLIENTS = ("httpx", "httpx2", "httpcore", "requests", "urllib3", "aiohttp", "huggingface_hub", "hf_xet")
CODE = ["*.py"]
SAFE = ["*.json", "*.safetensors", "*.txt", "*.jinja", "craft_run.yaml"]
"""What is downloaded to use a model: nothing that runs."""
BELOW = ["*/*"]
"""What isn't: folders, in which checkpoints to resume from lie."""


def is_repo_id(name: str) -> bool:
    """Whether there may be a repository of that name on the Hub; the oldest have no owner before it."""
    from huggingface_hub.errors import HFValidationError
    from huggingface_hub.utils import validate_repo_id

    try:
        validate_repo_id(name)
    except HFValidationError:
        return False
    return name.isascii()


def meant_as_repo_id(name: str) -> bool:
    """Whether the user means USER/NAME on the Hub, rather than a path; it may be misspelt."""
    return re.fullmatch(r"\w[\w.-]*/[\w.-]+", name) is not None and not Path(name).exists()


def check_repo_id(repo_id: str) -> str:
    """A name on the Hub, `user/name`.

    Raises:
        UserError: if it isn't one.
    """
    if repo_id.count("/") != 1 or not is_repo_id(repo_id):
        raise UserError(
            f"{repo_id!r} is no name on the Hub: that is USER/NAME or ORGANISATION/NAME, at most 96 of the "
            "letters a-z and A-Z, digits, '-', '_' and '.' (no '--' or '..', neither '-' nor '.' at an end), "
            "for example ada/char-lstm"
        )
    return repo_id


def check_ref(name: str | None, what: str) -> None:
    """Refuses what can't be the name of a branch, tag or commit; the Hub would say so in mid-upload.

    Args:
        what: what was being done, or the option, to begin the sentence with.

    Raises:
        UserError: naming it.
    """
    if name is not None and NO_REF.search(name):
        raise UserError(
            f"{what}: {name!r} can't be the name of a branch, tag or commit (git's rules: no spaces, none of "
            "~ ^ : ? * [ \\, no '..', no '-', '.' or '/' at the beginning); choose another"
        )


def api() -> Any:
    """The Hub's client with the user's token.

    Raises:
        UserError: if there is no token.
    """
    from huggingface_hub import HfApi, constants, get_token

    quiet()
    if constants.HF_HUB_OFFLINE:
        raise UserError("HF_HUB_OFFLINE is set, so nothing can be uploaded; unset it")
    if not (token := get_token()):
        raise UserError(f"not logged in to the Hugging Face Hub: {ACCESS}")
    return HfApi(token=token)


@contextmanager
def told(what: str, left: str = "", reading: bool = False) -> Iterator[None]:
    """Turns whatever goes wrong between here and the Hub into one sentence.

    Args:
        what: what was being done, to begin the sentence with.
        left: what is left of it, to end the sentence with.
        reading: nothing is written there.

    Raises:
        UserError: for what the user can mend: token, rights, name, revision.
        Failed: for what nobody did wrong: the network, the server.
    """
    from huggingface_hub import constants
    from huggingface_hub.errors import HFValidationError, OfflineModeIsEnabled

    end = f"; {left}" if left else ""
    try:
        yield
    except (UserError, Failed):
        raise
    except OfflineModeIsEnabled:
        raise UserError(f"{what}: HF_HUB_OFFLINE is set; unset it{end}") from None
    except HFValidationError as error:
        raise UserError(f"{what}: {_reason(error)}{end}") from error
    except Exception as error:
        if (answered := _answer_in(error)) is not None:
            raise _of_status(what, answered, end, reading) from error
        if type(error).__name__ == "UnsupportedProtocol":  # of whichever HTTP client it is
            raise UserError(
                f"{what}: HF_ENDPOINT={constants.ENDPOINT} is no address, such as https://huggingface.co{end}"
            ) from error
        if of_the_network(error) and constants.HF_HUB_OFFLINE:
            raise UserError(f"{what}: HF_HUB_OFFLINE is set; unset it{end}") from error
        if of_the_network(error) or isinstance(error, OSError):
            raise Failed(f"{what}: {_reason(error)}{end}") from error
        if _met_by_client(error):
            raise Failed(
                f"{what}: what answered isn't the Hub, or is out of order ({_reason(error)}); is HF_ENDPOINT "
                f"right, is there a proxy or log-in page between?{end}"
            ) from error
        raise


def fetch(repo_id: str, revision: str | None = None, code: bool = False) -> Path:
    """A model of the Hub as a folder of the cache, all of it from one commit.

    Args:
        revision: a branch, tag or commit.
        code: also its Python files, which the user has said may run.

    Raises:
        UserError: if there is no such model or revision.
        Failed: if it can't be reached.
    """
    return download(repo_id, revision, [*SAFE, *(CODE if code else [])], leave_out=BELOW)


def download(
    repo_id: str, revision: str | None, patterns: list[str], *, leave_out: list[str], anew: bool = False
) -> Path:
    """As `fetch`, of the files that match.

    Args:
        patterns, leave_out: as for `fnmatch`, whose `*` stands for slashes, too.
        anew: also what is in the cache already.
    """
    from huggingface_hub import snapshot_download

    with loading(repo_id, revision):
        return Path(
            snapshot_download(
                repo_id,
                revision=revision,
                allow_patterns=patterns,
                ignore_patterns=leave_out,
                force_download=anew,
            )
        )


def fetch_config(repo_id: str, revision: str | None = None) -> tuple[Path, str]:
    """A model's config.json alone, and the commit that it is from, so that the rest is taken from there too.

    Raises:
        UserError, Failed: as `fetch`.
    """
    from huggingface_hub import hf_hub_download

    with loading(repo_id, revision):
        file = Path(hf_hub_download(repo_id, "config.json", revision=revision))
    return file, file.parent.name  # the cache keeps it as snapshots/COMMIT/config.json


@contextmanager
def loading(repo_id: str, revision: str | None) -> Iterator[None]:
    """As `told`, around what reads a model of the Hub."""
    from huggingface_hub import constants
    from huggingface_hub.errors import (
        EntryNotFoundError,
        GatedRepoError,
        LocalEntryNotFoundError,
        RepositoryNotFoundError,
        RevisionNotFoundError,
    )

    quiet()
    what = f"can't load the model {repo_id!r}"
    check_ref(revision, what)
    try:
        with told(what, reading=True):
            yield
    except (UserError, Failed) as error:
        cause = error.__cause__
        if isinstance(cause, GatedRepoError):
            raise UserError(
                f"{what}: its owner grants access on its page; ask there, then {READ_ACCESS}"
            ) from cause
        if isinstance(cause, RepositoryNotFoundError):
            raise UserError(
                f"{what}: there is none of that name on the Hub, or it is private and your token (HF_TOKEN, "
                "'hf auth login') can't see it; give a folder made by 'craft train', or a Hub id"
            ) from cause
        if isinstance(cause, RevisionNotFoundError):
            whole = " (a commit has 40 digits)" if re.fullmatch(r"[0-9a-f]{4,39}", revision or "") else ""
            raise UserError(
                f"{what}: it has no revision {revision!r}{whole}; its page lists branches and tags"
            ) from cause
        if isinstance(cause, LocalEntryNotFoundError):  # which is an EntryNotFoundError
            if constants.HF_HUB_OFFLINE:
                raise UserError(
                    f"{what}: HF_HUB_OFFLINE is set and it isn't in the cache; unset it, or give a folder"
                ) from cause
            if isinstance(error, UserError) or _answer_in(cause) is not None:
                raise
            raise Failed(
                f"{what}: the Hub can't be reached ({_reason(cause)}), and it isn't in the cache"
            ) from cause
        if isinstance(cause, EntryNotFoundError):
            raise UserError(f"{what}: it has no config.json, so it isn't a model") from cause
        raise


def may_pass(error: BaseException) -> float | None:
    """For what may be over in a moment, how many seconds the Hub asks to wait; None for what stays wrong."""
    answered = _answer_in(error)
    if answered is None:
        return 0.0 if of_the_network(error) else None
    status, headers = answered.response.status_code, answered.response.headers
    gone = headers.get("X-Error-Code") == "EntryNotFound"  # a file that somebody else has just deleted
    if status not in (412, 429) and status < 500 and not gone:
        return None
    wanted = headers.get("Retry-After") or ""
    return float(wanted) if wanted.isascii() and wanted.isdigit() else 0.0


def quiet() -> None:
    from huggingface_hub.utils import disable_progress_bars
    from huggingface_hub.utils.logging import set_verbosity_error

    set_verbosity_error()  # its lines on retries show signed addresses, which are as good as a token
    if not sys.stderr.isatty():
        disable_progress_bars()


def _of_status(what: str, error: Any, end: str, reading: bool = False) -> UserError | Failed:
    status = getattr(error.response, "status_code", None)
    said = _unsigned(getattr(error, "server_message", None) or _reason(error)).rstrip(".")
    if (where := _storage(error)) is not None:
        return Failed(f"{what}: the Hub's storage at {where} answered {status}; try again{end}")
    if status == 401:
        access = READ_ACCESS if reading else ACCESS
        return UserError(f"{what}: the Hub doesn't accept the token (401); {access}{end}")
    if status == 403 and reading:
        return UserError(f"{what}: you may not read it (403, {said}); ask its owner{end}")
    if status == 403:
        return UserError(
            f"{what}: the token may not do that (403, {said}); use a name of your own or of your "
            f"organisation, and a token with write access{end}"
        )
    if status == 404:
        return UserError(f"{what}: not found on the Hub (404, {said}); check the name and the branch{end}")
    if status in (400, 409, 422):
        return UserError(f"{what}: the Hub refused it ({status}, {said}){end}")
    later = "; try again later" if status == 429 or (status or 0) >= 500 else ""
    return Failed(f"{what}: the Hub answered {status} ({said}){later}{end}")


def _storage(error: Any) -> str | None:
    """The host where files lie, if that is what refused: under an address that the Hub signed, so that it is
    no matter of the user's rights."""
    from huggingface_hub import constants

    status, host = error.response.status_code, urlsplit(str(error.response.url)).netloc
    if (status != 403 and status < 500) or host == urlsplit(constants.ENDPOINT).netloc:
        return None
    of_the_hub = {"X-Error-Code", "X-Error-Message"}  # which a mirror may lead to
    return None if any(name in error.response.headers for name in of_the_hub) else host


def _answer_in(error: BaseException) -> Any:
    """The answer of the Hub that an error is or follows from, if there was one."""
    from huggingface_hub.errors import HfHubHTTPError

    return next((cause for cause in _causes(error) if isinstance(cause, HfHubHTTPError)), None)


def _met_by_client(error: Exception) -> bool:
    """Whether it was raised while a client of the Hub read an answer."""
    trace = error.__traceback__
    while trace is not None:
        if trace.tb_frame.f_globals.get("__name__", "").startswith("huggingface_hub."):
            return True
        trace = trace.tb_next
    return False


def of_the_network(error: BaseException) -> bool:
    """Whether it comes from a connection: its libraries have no base class of errors in common."""
    of_connections = (ConnectionError, TimeoutError, socket.gaierror, ssl.SSLError)
    return any(
        isinstance(cause, of_connections) or type(cause).__module__.split(".")[0] in CLIENTS
        for cause in _causes(error)
    )


def _reason(error: BaseException) -> str:
    """The first line of the innermost error, which says most."""
    *_, innermost = _causes(error)
    return _unsigned((str(innermost).strip() or type(innermost).__name__).splitlines()[0]).rstrip(".")


def _unsigned(text: str) -> str:
    """`text` with addresses without what is behind `?`, which may be a signature, as good as a token."""
    return re.sub(r"(https?://[^\s'\"?]+)\?[^\s'\"]*", r"\1", text)


def _causes(error: BaseException) -> Iterator[BaseException]:
    """An error and those that it follows from, the innermost last."""
    cause: BaseException | None = error
    while cause is not None:
        yield cause
        cause = cause.__cause__
