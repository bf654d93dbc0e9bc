"""From a path, pattern or URL to a source; what isn't there is named with its nearest neighbour."""

from __future__ import annotations

import gzip
import logging
import os
import zipfile
from pathlib import Path
from typing import Any

import pytest

from craft.data.arguments import DataArguments
from craft.data.finding import find_source
from craft.data.loaders import load_corpus
from craft.utils.errors import UserError


def text_of(path: Any, **fields: Any) -> str:
    path = list(map(str, path)) if isinstance(path, list) else str(path)
    return "".join(piece.text for piece in find_source(DataArguments(path=path, **fields)).pieces())


def refusal(path: Any, **fields: Any) -> str:
    with pytest.raises(UserError) as caught:
        find_source(DataArguments(path=path if isinstance(path, list) else str(path), **fields))
    return str(caught.value)


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


def test_what_is_missing_is_named_with_its_neighbour(tmp_path: Path) -> None:
    (tmp_path / "poems.txt").write_text("x")
    with pytest.raises(UserError, match=r"peoms.txt doesn't exist, did you mean '.*/poems.txt'\?"):
        find_source(DataArguments(path=str(tmp_path / "peoms.txt")))
    with pytest.raises(UserError, match=r"\*.csv matches no file \(the current folder"):
        find_source(DataArguments(path=str(tmp_path / "*.csv")))
    with pytest.raises(UserError, match=r"roneneldan/TinyStories doesn't exist .*say data.source=hub"):
        find_source(DataArguments(path="roneneldan/TinyStories"))
    with pytest.raises(UserError, match=r"data.path is empty"):
        find_source(DataArguments())


def test_links_folders_without_permission_and_saved_datasets(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "dead.txt").symlink_to(tmp_path / "gone.txt")
    with pytest.raises(UserError, match=r"dead.txt is a link to .*gone.txt, which doesn't exist"):
        find_source(DataArguments(path=str(tmp_path / "dead.txt")))
    (tmp_path / "a.txt").write_text("text")
    (tmp_path / "loop").symlink_to(tmp_path)
    os.mkfifo(tmp_path / "pipe")
    assert text_of(tmp_path) == "text"
    monkeypatch.setattr(os, "access", lambda path, mode: path.name != "a.txt")  # root may read everything
    with pytest.raises(UserError, match=r"a.txt can't be read: permission denied; leave it out"):
        find_source(DataArguments(path=str(tmp_path)))
    (tmp_path / "state.json").write_text("{}")
    with pytest.raises(UserError, match=r"is a saved dataset: say data.source=hub data.path="):
        find_source(DataArguments(path=str(tmp_path)))


def test_a_folder_without_text_and_a_mixed_one_are_refused(tmp_path: Path) -> None:
    (tmp_path / "a.bin").write_bytes(b"\xff\xfe\xfd")
    with pytest.raises(UserError, match="holds no text file"):
        find_source(DataArguments(path=str(tmp_path)))
    (tmp_path / "b.txt").write_text("text")
    (tmp_path / "c.csv").write_text("text\nx\n")
    refused = refusal(tmp_path)
    for word in (f"csv ({tmp_path / 'c.csv'})", f"text ({tmp_path / 'b.txt'})", f"'{tmp_path}/**/*.txt'"):
        assert word in refused
    assert "data.exclude='*.csv'" in refused
    assert "data.format=text" in refused
    assert text_of(tmp_path / "**" / "*.txt") == text_of(tmp_path, exclude="*.csv") == "text"
    assert text_of(tmp_path, format="text") == "texttext\nx\n"


def test_split_names_belong_to_datasets(tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_text("x")
    with pytest.raises(UserError, match=r"data\.validation_split=validation"):
        find_source(DataArguments(path=str(tmp_path / "a.txt"), validation_split="validation"))


def test_the_builtin_corpus_is_the_same_every_time_and_others_are_unknown() -> None:
    text = text_of("python_docs", source="builtin")
    assert text == text_of("python_docs", source="builtin")
    assert len(text) > 400_000
    assert '"lambda"' in text
    with pytest.raises(UserError, match=r"'python_doc' isn't a built-in corpus .*did you mean 'python_docs'"):
        find_source(DataArguments(source="builtin", path="python_doc"))


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


def test_what_craft_wrote_is_no_text_unless_it_is_named(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    caplog.set_level(logging.INFO, "craft")
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
    assert str(tmp_path / "mine") in refusal(tmp_path / "**" / "*.txt")


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
    assert "data.exclude=src" in refusal([str(tmp_path / "src" / "a.py")], exclude="src/a.py")


def test_every_path_of_a_list_must_name_something(tmp_path: Path) -> None:
    write(tmp_path, a_txt="A", folder__b_txt="B")
    assert "nix.txt" in refusal([str(tmp_path / "a.txt"), str(tmp_path / "nix.txt")])
    assert "*.md" in refusal([str(tmp_path / "a.txt"), str(tmp_path / "*.md")], exclude="folder")
    assert f"'{tmp_path}/fold*/**'" in refusal(tmp_path / "fold*")
    assert text_of(tmp_path / "fold*/**") == "B"
    assert "ftp://" in refusal("ftp://example.org/a.txt")


def test_names_with_pattern_characters_and_hidden_ones_in_patterns(tmp_path: Path) -> None:
    write(tmp_path, **{"[old]__a_txt": "A", ".hidden_txt": "H", ".folder__b_txt": "B"})
    assert text_of(tmp_path / "[old]" / "*.txt") == "A"
    assert text_of(tmp_path / "**") == "A"
    assert text_of(tmp_path / ".h*") == "H"
    assert text_of(tmp_path / ".folder") == "B"


def test_what_is_no_text_is_left_out_of_patterns_as_of_folders(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    write(tmp_path, a_txt="A")
    (tmp_path / "photo.png").write_bytes(b"\x89PNG\r\n\x1a\n\0\0\0")
    (tmp_path / "dead.txt").symlink_to("gone")
    assert text_of(tmp_path) == text_of(tmp_path / "*") == "A"
    assert caplog.text.count(f"{tmp_path / 'dead.txt'}, {tmp_path / 'photo.png'}") == 2
    assert "photo.png" in refusal(tmp_path / "*.png")


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
    with pytest.raises(UserError) as caught:
        load_corpus(DataArguments(path=str(tmp_path / "t.jsonl"), separator="--"))
    assert "data.separator=--" in str(caught.value)


def test_a_list_must_hold_texts_and_names_files() -> None:
    for path in (["a.txt", 3], [""]):
        with pytest.raises(UserError):
            DataArguments(path=path)  # type: ignore[arg-type]
    with pytest.raises(UserError):
        DataArguments(source="builtin", path=["python_docs"])
