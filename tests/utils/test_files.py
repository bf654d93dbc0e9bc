from __future__ import annotations

import os
import shutil
from pathlib import Path
from types import SimpleNamespace

import pytest
from refusals import refused

from craft.utils.errors import Code, UserError
from craft.utils.files import (
    REPLACED,
    STAGING,
    explain_disk_errors,
    remove_staging,
    replace_text,
    staged_folder,
    sync,
)

FULL = OSError(28, "No space left on device")


def test_sync_writes_files_and_folders_to_the_disk(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    synced: list[int] = []
    monkeypatch.setattr(os, "fsync", lambda descriptor: synced.append(os.fstat(descriptor).st_ino))
    file = tmp_path / "a.txt"
    file.write_bytes(b"abc")
    sync(file)
    sync(tmp_path)
    assert synced == [file.stat().st_ino, tmp_path.stat().st_ino]
    assert file.read_bytes() == b"abc"


def test_a_text_is_replaced_as_a_whole(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file = tmp_path / "a.txt"
    replace_text(file, "old")

    def full(self: Path, *args: object, **kwargs: object) -> int:
        raise FULL

    with monkeypatch.context() as patch:
        patch.setattr(Path, "write_bytes", full)
        with pytest.raises(OSError, match="No space"):
            replace_text(file, "new")
    assert file.read_text() == "old"
    replace_text(file, "näw")
    assert file.read_text(encoding="utf-8") == "näw"
    assert [path.name for path in tmp_path.iterdir()] == ["a.txt"]


def content(folder: Path) -> dict[str, str]:
    return {path.relative_to(folder).as_posix(): path.read_text() for path in folder.rglob("*.txt")}


@pytest.mark.parametrize("existed", [False, True])
def test_a_staged_folder_is_whole_or_as_it_was(tmp_path: Path, existed: bool) -> None:
    final = tmp_path / "deep" / "final"
    if existed:
        final.mkdir(parents=True)
        (final / "a.txt").write_text("old")
    before = content(tmp_path)
    with pytest.raises(FileNotFoundError), staged_folder(final) as staging:
        (staging / "a.txt").write_text("half") and (staging / "none").read_text()
    assert content(tmp_path) == before
    with staged_folder(final) as staging:
        (staging / "b.txt").write_text("new")
        assert content(final) == ({"a.txt": "old"} if existed else {})
    assert content(tmp_path) == {"deep/final/b.txt": "new"}


def test_a_staged_folder_that_can_not_be_renamed_leaves_the_old_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    final = tmp_path / "final"
    final.mkdir()
    (final / "a.txt").write_text("old")
    rename = Path.rename

    def fails(self: Path, target: Path) -> Path:
        if self.name.startswith(STAGING):
            raise FULL
        return rename(self, target)

    monkeypatch.setattr(Path, "rename", fails)
    with pytest.raises(OSError, match="No space"), staged_folder(final):
        pass
    assert [path.name for path in tmp_path.iterdir()] == ["final"]
    assert content(final) == {"a.txt": "old"}


def test_what_killed_processes_left_is_removed(tmp_path: Path) -> None:
    final = tmp_path / "final"
    for name in (STAGING + "final", STAGING + "other", REPLACED + "final"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "a.txt").write_text(name)
    with staged_folder(final) as staging:
        assert content(staging) == {}
        assert content(final) == {"a.txt": REPLACED + "final"}
    remove_staging(tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["final"]
    assert content(final) == {}


@pytest.mark.parametrize(
    ("error", "code", "value"),
    [
        (FULL, "disk-full", "Errno 28"),
        (RuntimeError("I/O error: No space left on device (os error 28)"), "disk-full", "os error 28"),
        (PermissionError(13, "Permission denied"), "file-unwritable", "Errno 13"),
    ],
)
def test_what_a_disk_refuses_is_one_line(tmp_path: Path, error: Exception, code: Code, value: str) -> None:
    folder = tmp_path / "not" / "yet"
    explained = explain_disk_errors("a.txt", folder, lambda: "the rest is there")
    with refused(code, "a.txt", folder, value, "bytes", "the rest"), explained:
        raise error


def raised_while_handling(error: Exception) -> Exception:
    error.__context__ = FULL
    return error


@pytest.mark.parametrize(
    "error",
    [
        KeyError("a bug"),
        UserError("no such file", code="file-missing"),
        ConnectionResetError(104, "Connection reset by peer"),
        raised_while_handling(KeyError("a bug")),
    ],
)
def test_other_errors_are_not_the_disk(tmp_path: Path, error: Exception) -> None:
    with pytest.raises(type(error)) as caught, explain_disk_errors("a.txt", tmp_path, str):
        raise error
    assert caught.value is error


def test_a_half_written_folder_that_is_removed_counts_as_free(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(shutil, "disk_usage", lambda folder: SimpleNamespace(free=7))
    with refused("disk-full", "1,007 bytes"), staged_folder(tmp_path / "final") as staging:
        (staging / "half").write_bytes(b"." * 1000)
        with explain_disk_errors("it", tmp_path, str):
            raise FULL


def test_a_text_that_does_not_fit_leaves_the_old_one_and_nothing_beside_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    replace_text(tmp_path / "a.txt", "old")

    def full(path: Path) -> None:
        raise FULL

    monkeypatch.setattr("craft.utils.files.sync", full)
    with pytest.raises(OSError, match="No space"):
        replace_text(tmp_path / "a.txt", "new")
    assert content(tmp_path) == {"a.txt": "old"}
