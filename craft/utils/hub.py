"""Talking to the Hugging Face Hub: names, tokens, downloads, and one sentence for each failure."""

from __future__ import annotations

import re
import socket
import ssl
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from json import JSONDecodeError
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from craft.utils.errors import Failed, UserError

LOG_IN = "set the environment variable HF_TOKEN to a valid token, or run 'hf auth login'"
LOG_IN_TO_WRITE = LOG_IN.replace("valid token", "token with write access")
NOT_A_REF = re.compile(r"[\x00-\x20\x7f~^:?*\[\\]|\.\.|@\{|//|/\.|\.lock(/|$)|^[-/.]|[/.]$|^@?$|.{200}")
"""What git refuses as the name of a branch or tag, and what is too long for a file's name."""
CLIENTS = ("httpx", "httpx2", "httpcore", "requests", "urllib3", "aiohttp", "hf_xet")
CODE = ["*.py"]
SAFE = ["*.json", "*.safetensors", "*.txt", "*.jinja", "craft_run.yaml"]
"""What is downloaded to use a model: nothing that runs."""
IN_FOLDERS = ["*/*"]
"""What isn't: checkpoints to resume from lie in folders."""


def is_repo_id(name: Any) -> bool:
    """Whether there may be a repository of that name on the Hub; the oldest have no owner before it."""
    from huggingface_hub.errors import HFValidationError
    from huggingface_hub.utils import validate_repo_id

    try:
        validate_repo_id(name)
    except HFValidationError:
        return False
    return isinstance(name, str) and name.isascii()  # which not every version asks


def meant_as_repo_id(name: str) -> bool:
    """Whether the user means USER/NAME on the Hub, rather than a path; it may be misspelt."""
    return re.fullmatch(r"\w[\w.-]*/[\w.-]+", name) is not None and not Path(name).exists()


def check_repo_id(repo_id: str) -> str:
    """Refuses what can't be `user/name` on the Hub, and returns the rest as it is."""
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
    """
    if name is not None and NOT_A_REF.search(name):
        raise UserError(
            f"{what}: {name!r} can't be the name of a branch, tag or commit (git's rules: no spaces, none of "
            "~ ^ : ? * [ \\, no '..', no '-', '.' or '/' at the beginning); choose another"
        )


def api() -> Any:
    """The Hub's client with the user's token, which there must be."""
    from huggingface_hub import HfApi, constants, get_token

    quiet()
    if constants.HF_HUB_OFFLINE:
        raise UserError("HF_HUB_OFFLINE is set, so nothing can be uploaded; unset it")
    if not (token := get_token()):
        raise UserError(f"not logged in to the Hugging Face Hub: {LOG_IN_TO_WRITE}")
    return HfApi(token=token)


def fetch(
    repo_id: str, revision: str | None, patterns: list[str], leave_out: list[str], *, anew: bool = False
) -> Path:
    """The files of a repository that match, as a folder of the cache, all of them from one commit.

    Args:
        revision: a branch, tag or commit.
        patterns, leave_out: as for `fnmatch`, whose `*` stands for slashes, too.
        anew: also what is in the cache already.

    Raises:
        UserError, Failed: see `translate_hub_errors`.
    """
    from huggingface_hub import snapshot_download

    what = f"can't load the model {repo_id!r}"
    wanted = {"allow_patterns": patterns, "ignore_patterns": leave_out, "force_download": anew}
    quiet()
    check_ref(revision, what)
    with translate_hub_errors(what, revision=revision, reading=True):
        return Path(snapshot_download(repo_id, revision=revision, **wanted))


def fetch_config(repo_id: str, revision: str | None = None) -> tuple[Path, str]:
    """A model's config.json alone, and the commit it is from, so that the rest is taken from there too."""
    folder = fetch(repo_id, revision, ["config.json"], [])  # the cache keeps it as snapshots/COMMIT
    if not (folder / "config.json").is_file():
        raise UserError(f"{repo_id!r} has no config.json on the Hub, so it isn't a model")
    return folder / "config.json", folder.name


@contextmanager
def translate_hub_errors(
    what: str, left: str = "", *, revision: str | None = None, reading: bool = False
) -> Iterator[None]:
    """Turns whatever goes wrong between here and the Hub into one sentence.

    Args:
        what: what was being done, to begin the sentence with.
        left: what is left of it, to end the sentence with.
        revision: the branch, tag or commit that was asked for.
        reading: nothing is written there.

    Raises:
        UserError: for what the user can mend: token, rights, name, revision.
        Failed: for what nobody did wrong: the network, the server.
    """
    from huggingface_hub.constants import ENDPOINT, HF_HUB_OFFLINE
    from huggingface_hub.errors import LocalEntryNotFoundError

    try:
        yield
    except (UserError, Failed):
        raise
    except Exception as error:
        kind: type[UserError | Failed] = Failed
        unreached = is_network_error(error) or isinstance(error, LocalEntryNotFoundError)
        if (answer := _answer_in(error)) is not None:
            kind, why = _explain(answer, revision, reading)
        elif unreached and HF_HUB_OFFLINE:
            kind, why = UserError, "HF_HUB_OFFLINE is set; unset it, or name what is in the cache"
        elif unreached:
            kind = Failed if "://" in ENDPOINT else UserError
            why = f"the Hub at {ENDPOINT} can't be reached ({_reason(error)})"
        elif isinstance(error, JSONDecodeError | KeyError | TypeError):  # in what the client reads
            why = f"{ENDPOINT} answers, but isn't the Hub; is there a proxy or log-in page between?"
        elif isinstance(error, ValueError):  # a bad name, or a card that the Hub doesn't take
            kind, why = UserError, " ".join(str(error).split()).rstrip(".")
        elif isinstance(error, OSError):
            why = _reason(error)
        else:
            raise
        raise kind(f"{what}: {why}{f'; {left}' if left else ''}") from error


def _explain(error: Any, revision: str | None, reading: bool) -> tuple[type[UserError | Failed], str]:
    """Whose matter an answer of the Hub is, and what to do about it, which the answer doesn't say."""
    from huggingface_hub import constants, errors

    status, headers = error.response.status_code, error.response.headers
    said = _unsigned(error.server_message or _reason(error)).rstrip(".")
    host = urlsplit(str(error.response.url)).netloc
    if host != urlsplit(constants.ENDPOINT).netloc and not {"x-error-code", "x-error-message"} & {*headers}:
        # Files lie under addresses that the Hub signed: what is refused there is no matter of rights.
        return Failed, f"the Hub's storage at {host} answered {status}; try again"
    log_in = LOG_IN if reading else LOG_IN_TO_WRITE
    missing = f"it has no revision {revision!r}"
    if re.fullmatch(r"[0-9a-f]{4,39}", revision or ""):
        missing += " (a commit has 40 digits)"
    by_class = {
        errors.GatedRepoError: f"its owner grants access on its page; ask there, then {log_in}",
        errors.RepositoryNotFoundError: "there is none of that name on the Hub, or it is private and your "
        "token (HF_TOKEN, 'hf auth login') can't see it; check the name, or give a folder",
        errors.RevisionNotFoundError: f"{missing}; its page lists branches and tags",
    }
    by_status = {
        401: f"the Hub doesn't accept the token (401); {log_in}",
        403: f"you may not {'read' if reading else 'write'} it (403, {said}); ask its owner, or {log_in}",
        **dict.fromkeys((400, 404, 409, 422), f"the Hub refused it ({status}, {said})"),
    }
    if why := by_class.get(type(error)) or by_status.get(status):
        return UserError, why
    return Failed, f"the Hub answered {status} ({said}); try again later"


def retry_after(error: BaseException) -> float | None:
    """For what may be over in a moment, how many seconds the Hub asks to wait; None for what stays wrong."""
    from huggingface_hub.errors import RemoteEntryNotFoundError

    if (answer := _answer_in(error)) is None:
        return 0.0 if is_network_error(error) else None
    status, wanted = answer.response.status_code, answer.response.headers.get("Retry-After", "")
    deleted = isinstance(answer, RemoteEntryNotFoundError)  # by somebody else, just now
    if status not in (412, 429) and status < 500 and not deleted:
        return None
    return float(wanted) if wanted.isascii() and wanted.isdigit() else 0.0


def quiet() -> None:
    """No lines on retries, which show signed addresses, and no progress bars into files."""
    from huggingface_hub.utils import disable_progress_bars
    from huggingface_hub.utils.logging import set_verbosity_error

    set_verbosity_error()
    if not sys.stderr.isatty():
        disable_progress_bars()


def is_network_error(error: BaseException) -> bool:
    """Whether it comes from a connection: its libraries have no base class of errors in common."""
    of_connections = (ConnectionError, TimeoutError, socket.gaierror, ssl.SSLError)
    return any(
        isinstance(cause, of_connections) or type(cause).__module__.split(".")[0] in CLIENTS
        for cause in _causes(error)
    )


def _answer_in(error: BaseException) -> Any:
    """The answer of the Hub that an error is or follows from, if there was one."""
    from huggingface_hub.errors import HfHubHTTPError

    return next((cause for cause in _causes(error) if isinstance(cause, HfHubHTTPError)), None)


def _reason(error: BaseException) -> str:
    """The first line of the innermost error, which says most."""
    *_, innermost = _causes(error)
    return _unsigned((str(innermost).strip() or type(innermost).__name__).splitlines()[0]).rstrip(".")


def _unsigned(text: str) -> str:
    """`text` with addresses without what is behind `?`, which may be a signature, as good as a token."""
    return re.sub(r"(https?://[^\s'\"?]+)\?[^\s'\"]*", r"\1", text)


def _causes(error: BaseException | None) -> Iterator[BaseException]:
    """An error and those that it follows from, the innermost last."""
    while error is not None:
        yield error
        error = error.__cause__
