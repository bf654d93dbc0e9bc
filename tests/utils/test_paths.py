"""Paths as users type them."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
from refusals import refused

from craft.utils.paths import typed_path, typed_setting


@pytest.fixture(autouse=True)
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    return tmp_path / "home"


def test_a_tilde_is_the_home_folder(home: Path) -> None:
    assert typed_path("~/a b/*.txt") == f"{home}/a b/*.txt"
    assert typed_path("~") == str(home)
    assert typed_path("~root/x") == os.path.expanduser("~root/x")
    assert typed_path(Path("~/x")) == f"{home}/x"


def test_a_setting_holds_a_path_or_several_or_none(home: Path) -> None:
    assert typed_setting(["~/a", "b"], "data.path=") == [f"{home}/a", "b"]
    assert typed_setting(None, "data.path=") is None


@pytest.mark.parametrize(
    "text", ["", "a/~/b", "./~x", "./user/name", "a//b/", "https://host/~ada/x.txt", "größe", "日本/😀"]
)
def test_everything_else_stays_as_it_stands(text: str) -> None:
    assert typed_path(text) == text


def test_a_file_whose_name_begins_with_a_tilde_is_taken(tmp_path: Path) -> None:
    (tmp_path / "~$letter.txt").touch()
    assert typed_path("~$letter.txt") == "~$letter.txt"


@pytest.mark.parametrize(
    "text",
    ["~no-such-user/x", "a\0b", os.fsdecode(b"caf\xe9s.txt")],
    ids=["unknown-user", "nul", "latin-1"],
)
def test_what_cannot_be_a_path_is_refused(text: str) -> None:
    with refused("path-invalid", f"--output {text!r}") as caught:
        typed_path(text, "--output ")
    str(caught.value).encode()  # can be written anywhere
