"""What counts as a name on the Hub, and the code of whatever goes wrong between here and there."""

from __future__ import annotations

from json import JSONDecodeError
from pathlib import Path
from types import SimpleNamespace

import pytest
from huggingface_hub import errors
from refusals import refused

from craft.utils.errors import Code, CraftError, Failed, UserError
from craft.utils.hub import (
    check_repo_id,
    is_repo_id,
    is_transient,
    meant_as_repo_id,
    translate_hub_errors,
)


@pytest.mark.parametrize(
    ("name", "meant", "valid"),
    [
        ("ada/lstm", True, True),
        ("ada/My.Model_v1-0", True, True),
        ("ada/größe", True, False),
        ("ada/a--b", True, False),
        ("ada/" + "x" * 97, True, False),
        ("there/is", False, True),
        ("imdb", False, True),
        ("./x", False, False),
        ("../x", False, False),
        ("~/x", False, False),
        ("/x/y", False, False),
        ("a/b/c", False, False),
        ("https://x/y", False, False),
        ("a/*.txt", False, False),
    ],
)
def test_names_on_the_hub_are_told_from_paths(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str, meant: bool, valid: bool
) -> None:
    (tmp_path / "there" / "is").mkdir(parents=True)
    monkeypatch.chdir(tmp_path)
    assert (meant_as_repo_id(name), is_repo_id(name)) == (meant, valid)
    if valid and "/" in name:
        assert check_repo_id(name) == name
    else:
        with refused("path-invalid", repr(name)):
            check_repo_id(name)


def answer(status: int, kind: type[errors.HfHubHTTPError] = errors.HfHubHTTPError) -> Exception:
    """An answer of the Hub as its client raises it."""
    response = SimpleNamespace(status_code=status, headers={}, request=None)
    return kind("it says no at https://x/y?Signature=abc", response=response)


@pytest.mark.parametrize(
    ("error", "kind", "code", "transient"),
    [
        (answer(401), UserError, "hub-login", False),
        (answer(403), UserError, "hub-login", False),
        (answer(403, errors.GatedRepoError), UserError, "hub-login", False),
        (answer(404, errors.RepositoryNotFoundError), UserError, "hub-missing", False),
        (answer(404, errors.RevisionNotFoundError), UserError, "hub-missing", False),
        (answer(409), UserError, "hub-refused", False),
        (answer(404, errors.RemoteEntryNotFoundError), UserError, "hub-refused", True),
        (answer(412), Failed, "network", True),
        (answer(429), Failed, "network", True),
        (answer(503), Failed, "network", True),
        (ConnectionError("cut"), Failed, "network", True),
        (errors.LocalEntryNotFoundError("none here"), Failed, "network", False),
        (JSONDecodeError("no JSON", "<html>", 0), Failed, "network", False),
        (ValueError("a bad card"), UserError, "hub-refused", False),
        (OSError("no space"), Failed, "file-unreadable", False),
    ],
    ids=str,
)
def test_every_failure_has_a_code_and_names_what_was_done(
    error: Exception, kind: type[CraftError], code: Code, transient: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", False)
    with (
        refused(code, "can't push x", "with the rest") as caught,
        translate_hub_errors("can't push x", "with the rest", revision="v9"),
    ):
        raise error
    assert isinstance(caught.value, kind)
    assert is_transient(error) == transient
    assert "Signature" not in str(caught.value)
    assert ("v9" in str(caught.value)) == isinstance(error, errors.RevisionNotFoundError)


def test_a_bug_is_not_told_as_a_failure_of_the_hub() -> None:
    with pytest.raises(ZeroDivisionError), translate_hub_errors("can't push x"):
        raise ZeroDivisionError
