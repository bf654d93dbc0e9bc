from __future__ import annotations

import os
from pathlib import Path

import pytest

from craft.utils.files import replace_text, sync


def test_what_is_synced(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
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
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(Path, "write_text", full)
        with pytest.raises(OSError, match="No space"):
            replace_text(file, "new")
    assert file.read_text() == "old"
    replace_text(file, "näw")
    assert file.read_text(encoding="utf-8") == "näw"
    assert [path.name for path in tmp_path.iterdir()] == ["a.txt"]
