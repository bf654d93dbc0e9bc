"""Talking to the Hugging Face Hub: names, tokens, downloads, and one sentence for each failure."""

from __future__ import annotations

import re
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from json import JSONDecodeError
from pathlib import Path
from typing import Any

from craft.utils.errors import Code, CraftError, Failed, UserError, first_line, one_line

LOG_IN = "set HF_TOKEN to a token that may do this, or run 'hf auth login'"
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
            f"{repo_id!r} is no name on the Hub: that is USER/NAME, such as ada/char-lstm, of at most 96 "
            "letters (a-z, A-Z), digits, '-', '_' and '.'",
            code="path-invalid",
        )
    return repo_id


def api() -> Any:
    """The Hub's client with the user's token, which there must be."""
    from huggingface_hub import HfApi, get_token

    quiet()
    if not (token := get_token()):
        raise UserError(f"not logged in to the Hugging Face Hub; {LOG_IN}", code="hub-login")
    return HfApi(token=token)


def fetch(repo_id: str, revision: str | None, patterns: list[str], leave_out: list[str]) -> Path:
    """The files of a repository that match, as a folder of the cache, all of them from one commit.

    Args:
        revision: a branch, tag or commit.
        patterns, leave_out: as for `fnmatch`, whose `*` stands for slashes, too.

    Raises:
        UserError, Failed: see `translate_hub_errors`.
    """
    from huggingface_hub import snapshot_download

    quiet()
    with translate_hub_errors(f"can't load the model {repo_id!r}", revision=revision):
        folder = snapshot_download(
            repo_id, revision=revision, allow_patterns=patterns, ignore_patterns=leave_out
        )
    return Path(folder)


def fetch_config(repo_id: str, revision: str | None = None) -> tuple[Path, str]:
    """A model's config.json alone, and the commit it is from, so that the rest is taken from there too."""
    folder = fetch(repo_id, revision, ["config.json"], [])  # the cache keeps it as snapshots/COMMIT
    if not (folder / "config.json").is_file():
        raise UserError(
            f"{repo_id!r} has no config.json on the Hub, so it isn't a model", code="model-missing"
        )
    return folder / "config.json", folder.name


@contextmanager
def translate_hub_errors(what: str, hint: str = "", *, revision: str | None = None) -> Iterator[None]:
    """Turns whatever goes wrong between here and the Hub into one sentence.

    Args:
        what: what was being done, to begin the sentence with.
        hint: what can be done instead, to end the sentence with.
        revision: the branch, tag or commit that was asked for.

    Raises:
        UserError: for what the user can mend: token, rights, name, revision.
        Failed: for what nobody did wrong: the network, the server.
    """
    try:
        yield
    except CraftError:
        raise
    except Exception as error:
        kind, code, why = _explain(error, revision)
        raise kind(f"{what}: {why}{f'; {hint}' if hint else ''}", code=code) from error


def _explain(error: Exception, revision: str | None) -> tuple[type[UserError | Failed], Code, str]:
    """Whose matter an error is, its code, and what to do about it."""
    from huggingface_hub import constants, errors

    reason = _reason(error)
    if (answer := _answer_in(error)) is not None:
        status = answer.response.status_code
        said = f"{status}, {_unsigned(answer.server_message or reason).rstrip('.')}"
        if isinstance(answer, errors.GatedRepoError):
            return UserError, "hub-login", f"its owner grants access on its page; ask there, then {LOG_IN}"
        if isinstance(answer, errors.RepositoryNotFoundError):
            why = f"none of that name is on the Hub, or it is private; check the name, or {LOG_IN}"
            return UserError, "hub-missing", why
        if isinstance(answer, errors.RevisionNotFoundError):
            why = f"it has no revision {revision!r}; use a branch, a tag, or a commit with all its 40 digits"
            return UserError, "hub-missing", why
        if status in (401, 403):
            return UserError, "hub-login", f"the Hub doesn't allow it ({said}); {LOG_IN}"
        if status in (400, 404, 409, 422):
            return UserError, "hub-refused", f"the Hub refused it ({said})"
        return Failed, "network", f"the Hub answered {said}; try again later"
    if is_network_error(error) or isinstance(error, errors.LocalEntryNotFoundError):
        if constants.HF_HUB_OFFLINE:
            return UserError, "network", "HF_HUB_OFFLINE is set; unset it, or name what is in the cache"
        return Failed, "network", f"the Hub at {constants.ENDPOINT} can't be reached ({reason})"
    if isinstance(error, JSONDecodeError | KeyError | TypeError):  # in what the client reads
        why = f"{constants.ENDPOINT} answers, but isn't the Hub; is there a proxy or log-in page between?"
        return Failed, "network", why
    if isinstance(error, ValueError):  # a bad name, or a card that the Hub doesn't take
        return UserError, "hub-refused", one_line(error)
    if isinstance(error, OSError):
        return Failed, "file-unreadable", reason
    raise error


def is_transient(error: BaseException) -> bool:
    """Whether an error may be over in a moment: the Hub is busy, or somebody else was faster."""
    from huggingface_hub.errors import RemoteEntryNotFoundError

    if (answer := _answer_in(error)) is None:
        return is_network_error(error)
    status = answer.response.status_code
    return status in (412, 429) or status >= 500 or isinstance(answer, RemoteEntryNotFoundError)


def quiet() -> None:
    """No lines on retries, which show signed addresses, and no progress bars into files."""
    from huggingface_hub.utils import disable_progress_bars
    from huggingface_hub.utils.logging import set_verbosity_error

    set_verbosity_error()
    if not sys.stderr.isatty():
        disable_progress_bars()


def is_network_error(error: BaseException) -> bool:
    """Whether it comes from a connection: its libraries have no base class of errors in common."""
    return any(
        isinstance(cause, ConnectionError | TimeoutError) or type(cause).__module__.split(".")[0] in CLIENTS
        for cause in _causes(error)
    )


def _answer_in(error: BaseException) -> Any:
    """The answer of the Hub that an error is or follows from, if there was one."""
    from huggingface_hub.errors import HfHubHTTPError

    return next((cause for cause in _causes(error) if isinstance(cause, HfHubHTTPError)), None)


def _reason(error: BaseException) -> str:
    """The first line of the innermost error, which says most."""
    *_, innermost = _causes(error)
    return _unsigned(first_line(innermost))


def _unsigned(text: str) -> str:
    """`text` with addresses without what is behind `?`, which may be a signature, as good as a token."""
    return re.sub(r"(https?://[^\s'\"?]+)\?[^\s'\"]*", r"\1", text)


def _causes(error: BaseException | None) -> Iterator[BaseException]:
    """An error and those that it follows from, the innermost last."""
    while error is not None:
        yield error
        error = error.__cause__
