"""What counts as a name on the Hub."""

from __future__ import annotations

from pathlib import Path

import pytest
from refusals import refused

from craft.utils.hub import check_repo_id, is_repo_id, meant_as_repo_id


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
def test_what_is_meant_as_a_name_and_what_is_one(
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
