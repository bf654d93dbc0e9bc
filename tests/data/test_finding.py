"""From a path, pattern or URL to a source; what isn't there is named with its nearest neighbour."""

from __future__ import annotations

import errno
import gzip
import os
import zipfile
from pathlib import Path
from typing import Any

import pytest
from refusals import refused

from craft.data.arguments import DataArguments
from craft.data.finding import find_source
from craft.data.loaders import load_corpus


def text_of(path: Any, **fields: Any) -> str:
    path = list(map(str, path)) if isinstance(path, list) else str(path)
    return "".join(piece.text for piece in find_source(DataArguments(path=path, **fields)).pieces())


def test_folders_and_patterns_are_sorted_and_joined(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name, text in (
        ("b.txt", "B"),
        ("a.txt", "A\r\n"),
        ("deep/c.md", "C"),
        (".hidden", "H"),
        (".git/x.txt", "G"),
    ):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_bytes(text.encode())
    (tmp_path / "deep" / "d.txt.gz").write_bytes(gzip.compress(b"D"))
    (tmp_path / "photo.png").write_bytes(b"\x89PNG\r\n\x1a\n\0\0\0")
    assert text_of(tmp_path) == "A\r\nBCD"
    assert text_of(tmp_path / "*.txt") == "A\r\nB"
    assert text_of(tmp_path / "**" / "*.md") == "C"
    monkeypatch.setenv("HOME", str(tmp_path))
    assert text_of("~/b.txt") == "B"


def test_a_name_with_pattern_characters_is_taken_as_it_is(tmp_path: Path) -> None:
    (tmp_path / "x[1].txt").write_text("bracket")
    assert text_of(tmp_path / "x[1].txt") == "bracket"
    (tmp_path / "y[1].jsonl").write_text('{"text": "row"}\n')
    assert text_of(tmp_path / "y[1].jsonl") == "row"


def test_a_missing_path_is_refused_with_the_nearest_name(tmp_path: Path) -> None:
    (tmp_path / "poems.txt").write_text("x")
    (tmp_path / "dead.txt").symlink_to(tmp_path / "gone.txt")
    with refused("file-missing", tmp_path / "peoms.txt", "'poems.txt'"):
        text_of(tmp_path / "peoms.txt")
    for path in ("ftp://example.org/a.txt", tmp_path / "dead.txt"):
        with refused("file-missing", path):
            text_of(path)
    with refused("file-missing", "roneneldan/TinyStories", "data.source=hub"):
        text_of("roneneldan/TinyStories")
    with refused("text-missing", tmp_path / "*.csv"):
        text_of(tmp_path / "*.csv")
    with refused("text-missing", "data.path"):
        find_source(DataArguments())


def test_a_file_that_may_not_be_read_is_refused_with_a_way_to_leave_it_out(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*args: Any) -> None:  # root may read everything
        raise PermissionError(errno.EACCES, "Permission denied", str(tmp_path / "a.txt"))

    (tmp_path / "a.txt").write_text("text")
    monkeypatch.setattr("craft.data.finding.is_text", refuse)
    with refused("file-unreadable", f"data.exclude={tmp_path / 'a.txt'}"):
        text_of(tmp_path)


def test_folders_that_hold_links_and_pipes_are_read(tmp_path: Path) -> None:
    (tmp_path / "dead.txt").symlink_to(tmp_path / "gone.txt")
    (tmp_path / "a.txt").write_text("text")
    (tmp_path / "loop").symlink_to(tmp_path)
    os.mkfifo(tmp_path / "pipe")
    assert text_of(tmp_path) == "text"


def test_a_folder_without_text_and_a_mixed_one_are_refused(tmp_path: Path) -> None:
    (tmp_path / "a.bin").write_bytes(b"\xff\xfe\xfd")
    with refused("text-missing", tmp_path / "a.bin"):
        text_of(tmp_path)
    (tmp_path / "b.txt").write_text("text")
    (tmp_path / "c.csv").write_text("text\nx\n")
    with refused("text-format", tmp_path / "c.csv", tmp_path / "b.txt", "'*.csv'", "data.format=text"):
        text_of(tmp_path)
    assert text_of(tmp_path / "**" / "*.txt") == text_of(tmp_path, exclude="*.csv") == "text"
    assert text_of(tmp_path, format="text") == "texttext\nx\n"


def test_the_builtin_corpus_is_the_same_every_time_and_others_are_unknown() -> None:
    text = text_of("python_docs", source="builtin")
    assert text == text_of("python_docs", source="builtin")
    assert len(text) > 400_000
    assert '"lambda"' in text
    with refused("text-missing", "'python_doc'", "'python_docs'"):
        text_of("python_doc", source="builtin")


def write(folder: Path, **files: str) -> None:
    """Files by their paths, in which `__` stands for `/` and `_txt` for a suffix."""
    for name, text in files.items():
        path = folder / name.replace("__", "/").replace("_txt", ".txt")
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)


def test_a_linked_folder_is_read_by_folder_and_pattern_alike(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    write(tmp_path, c__a_txt="A", c__sub__b_txt="B", elsewhere__t_txt="T")
    (tmp_path / "c" / "linked").symlink_to("../elsewhere")
    (tmp_path / "c" / "sub" / "around").symlink_to("..")
    (tmp_path / "c" / "sub" / "self").symlink_to("self")
    (tmp_path / "c" / "sub" / "z.txt").symlink_to("../a.txt")
    assert text_of(tmp_path / "c") == text_of(tmp_path / "c/**/*.txt") == "ATB"
    assert text_of(tmp_path / "c" / "**") == "ATB"
    for place in ("around", "self", "z.txt"):
        assert str(tmp_path / "c" / "sub" / place) in caplog.text


def test_files_that_craft_wrote_are_left_out_unless_named(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("craft.data.finding.SHOWN", 9)
    write(tmp_path, **{"a_txt": "A", "mine__craft_run.yaml": "x", "mine__run.json": "{}"})
    write(tmp_path, mine__notes_txt="M", outputs__samples__sample_20260131_142501_txt="S")
    write(tmp_path, **{"mine_step_5__config.json": "{}", "mine_step_5__craft_run.yaml": "x"})
    (tmp_path / "outputs/.stamps").mkdir()
    write(cache, **{"scan-1__scan.json": "{}"})
    assert text_of(tmp_path) == text_of(tmp_path / "**") == text_of(tmp_path / "**" / "*.txt") == "A"
    for place in ("mine", "mine_step_5", "outputs", "cache"):
        assert caplog.text.count(str(tmp_path / place)) >= 3
    assert text_of(tmp_path / "outputs") == text_of(tmp_path / "outputs/samples/*.txt") == "S"
    assert text_of([tmp_path / "a.txt", tmp_path / "mine" / "notes.txt"]) == "AM"
    (tmp_path / "a.txt").unlink()
    with refused("text-missing", tmp_path / "mine"):
        text_of(tmp_path / "**" / "*.txt")


def test_a_folder_of_ones_own_called_outputs_is_read(tmp_path: Path) -> None:
    write(tmp_path, a_txt="A", outputs__b_txt="B", models__c_txt="C")
    assert text_of(tmp_path) == "ACB"


def test_several_patterns_without_what_is_excluded(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    write(tmp_path, **{"package.json": "{}", "src__a.py": "P", "src__b.js": "J", "src__b.min.js": "M"})
    write(tmp_path, **{"src__node_modules__x.js": "X", "docs__api__d.py": "D", "src__api__e.py": "E"})
    both = [tmp_path / "**" / "*.py", tmp_path / "**" / "*.js"]
    assert text_of(both) == "DPEJMX"
    assert text_of(both, exclude=["node_modules", "*.min.js"]) == "DPEJ"
    assert "node_modules" not in caplog.text
    for exclude in ("docs/api", "docs/", f"{tmp_path}/docs", "**/docs/**"):
        assert text_of(both[0], exclude=exclude) == "PE"
    assert text_of([*both, tmp_path / "src" / "b.js"], exclude=["node_modules", "*.min.js"]) == "DPEJ"
    assert str(tmp_path / "src" / "b.js") in caplog.text
    assert text_of(tmp_path, exclude=["node_modules", "*.json", "nod_modules"]) == "DPEJM"
    assert "nod_modules" in caplog.text
    with refused("text-missing", "data.exclude=src/a.py"):
        text_of([tmp_path / "src" / "a.py"], exclude="src/a.py")


def test_every_path_of_a_list_must_name_something(tmp_path: Path) -> None:
    write(tmp_path, a_txt="A", folder__b_txt="B")
    with refused("file-missing", tmp_path / "nix.txt"):
        text_of([tmp_path / "a.txt", tmp_path / "nix.txt"])
    with refused("text-missing", tmp_path / "*.md"):
        text_of([tmp_path / "a.txt", tmp_path / "*.md"])
    with refused("text-missing", tmp_path / "fold*"):  # which names only a folder
        text_of(tmp_path / "fold*")
    assert text_of(tmp_path / "fold*/**") == "B"


def test_names_with_pattern_characters_and_hidden_ones_in_patterns(tmp_path: Path) -> None:
    write(tmp_path, **{"[old]__a_txt": "A", ".hidden_txt": "H", ".folder__b_txt": "B"})
    assert text_of(tmp_path / "[old]" / "*.txt") == "A"
    assert text_of(tmp_path / "**") == "A"
    assert text_of(tmp_path / ".h*") == "H"
    assert text_of(tmp_path / ".folder") == "B"


def test_files_that_are_not_text_are_left_out_of_patterns_as_of_folders(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    write(tmp_path, a_txt="A")
    (tmp_path / "photo.png").write_bytes(b"\x89PNG\r\n\x1a\n\0\0\0")
    (tmp_path / "dead.txt").symlink_to("gone")
    assert text_of(tmp_path) == text_of(tmp_path / "*") == "A"
    assert caplog.text.count(f"{tmp_path / 'dead.txt'}, {tmp_path / 'photo.png'}") == 2
    with refused("text-missing", tmp_path / "photo.png"):
        text_of(tmp_path / "*.png")


@pytest.mark.parametrize("written", ["\n--\n", r"\n--\n"])
def test_a_separator_stands_between_files(
    tmp_path: Path, written: str, caplog: pytest.LogCaptureFixture
) -> None:
    write(tmp_path, a_txt="one", b_txt="two\n", c_txt="three")
    assert text_of(tmp_path) == "onetwo\nthree"
    assert str(tmp_path / "a.txt") in caplog.text
    assert "data.separator" in caplog.text
    caplog.clear()
    assert text_of(tmp_path, separator=written) == "one\n--\ntwo\n\n--\nthree"
    assert text_of(tmp_path, separator="") == "onetwo\nthree"
    assert text_of([tmp_path / "b.txt", tmp_path / "c.txt"]) == "two\nthree"
    assert not caplog.text


def test_a_separator_stands_between_the_files_of_an_archive(tmp_path: Path) -> None:
    with zipfile.ZipFile(tmp_path / "b.zip", "w") as archive:
        archive.writestr("1.txt", "one")
        archive.writestr("2.txt", "two")
    (tmp_path / "a.txt").write_text("first")
    assert text_of(tmp_path, separator="|") == "first|one|two"


def test_a_format_decides_what_files_are_read_as(tmp_path: Path) -> None:
    (tmp_path / "rows").write_text('{"text": "row"}\n')
    (tmp_path / "more.csv").write_text('{"text": "other"}\n')
    assert text_of(tmp_path, format="jsonl") == "otherrow"
    assert text_of(tmp_path / "more.csv", format="text") == '{"text": "other"}\n'


def test_a_separator_changes_the_signature_and_belongs_to_texts(tmp_path: Path) -> None:
    write(tmp_path, **{"a_txt": "A", "b_txt": "B", "t.jsonl": '{"text": "x"}\n'})

    def signature(**fields: Any) -> list[Any]:
        return find_source(DataArguments(path=str(tmp_path / "*.txt"), **fields)).signature()

    assert signature() == signature(separator="") == signature(format="text", exclude="nothing")
    assert signature() != signature(separator=" ") != signature(separator="-")
    with refused("setting-no-effect", "data.separator=--", tmp_path / "t.jsonl"):
        load_corpus(DataArguments(path=str(tmp_path / "t.jsonl"), separator="--"))


def test_a_list_must_hold_texts_and_names_files() -> None:
    for path in (["a.txt", 3], [""]):
        with refused("setting-value", "data.path="):
            DataArguments(path=path)  # type: ignore[arg-type]
    with refused("setting-conflict", "data.path=", "builtin"):
        DataArguments(source="builtin", path=["python_docs"])
