"""Entries are whole or absent, whatever kills, damages or competes with their making."""

from __future__ import annotations

import errno
import multiprocessing
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from refusals import refused

import craft.data.cache
import craft.utils.manifest
from craft.data.cache import CHECKED, Cache, _is_checked
from craft.utils.errors import UserError
from craft.utils.manifest import MANIFEST


def write(folder: Path) -> None:
    (folder / "a.bin").write_bytes(b"a" * 1000)
    (folder / "b.bin").write_bytes(b"b" * 10)


def test_an_entry_is_built_once(cache: Path) -> None:
    built = []

    def build(folder: Path) -> None:
        built.append(folder)
        write(folder)

    place = Cache().entry("key", build)
    assert place == Cache().entry("key", build) == cache / "key"
    assert len(built) == 1
    assert (place / "a.bin").read_bytes() == b"a" * 1000
    assert Cache().entry("other", build) != place
    assert sorted(p.name for p in cache.iterdir()) == [".locks", "key", "other"]


def test_the_folder_is_the_argument_or_the_variable_or_under_home(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert Cache(str(tmp_path / "mine")).root == tmp_path / "mine"
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.delenv("CRAFT_CACHE")
    assert Cache().root == tmp_path / ".cache" / "craft"


@pytest.mark.parametrize("damage", ["truncate", "remove", "manifest", "garble", "flip", "flip manifest"])
def test_a_damaged_entry_is_rebuilt_and_logged_once(
    damage: str, cache: Path, caplog: pytest.LogCaptureFixture
) -> None:
    place = Cache().entry("key", write)
    if damage == "truncate":
        os.truncate(place / "a.bin", 999)
    elif damage == "remove":
        (place / "b.bin").unlink()
    elif damage == "manifest":
        (place / MANIFEST).unlink()
    elif damage == "garble":
        (place / MANIFEST).write_text("{")
    elif damage == "flip":
        flip(place / "a.bin", 500)
    else:
        flip(place / MANIFEST, (place / MANIFEST).read_bytes().rindex(b'"') - 1)  # within a sha256
        (place / CHECKED).unlink()
    with caplog.at_level("WARNING", logger="craft"):
        assert Cache().entry("key", write) == place
    assert (place / "a.bin").stat().st_size == 1000
    assert (place / "b.bin").stat().st_size == 10
    assert len([r for r in caplog.records if "rebuilding" in r.getMessage()]) == 1
    assert sorted(p.name for p in cache.iterdir()) == [".locks", "key"]


def flip(path: Path, byte: int) -> None:
    """Flips a bit of a file, and puts size and time of modification back."""
    stat = path.stat()
    with path.open("r+b") as file:
        file.seek(byte)
        old = file.read(1)[0]
        file.seek(byte)
        file.write(bytes([old ^ 1]))
    os.utime(path, ns=(stat.st_atime_ns, stat.st_mtime_ns))


def test_an_entry_is_read_again_when_touched_or_moved_and_after_a_week(
    cache: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    read: list[str] = []
    original = craft.utils.manifest.sha256
    monkeypatch.setattr(craft.utils.manifest, "sha256", lambda path: read.append(path.name) or original(path))
    place = Cache().entry("key", write)
    time.sleep(0.1)  # more than a tick
    Cache().entry("key", write)
    read.clear()
    Cache().entry("key", write)
    assert read == []
    os.utime(place / "a.bin")
    time.sleep(0.1)
    Cache().entry("key", write)
    Cache().entry("key", write)
    assert sorted(read) == ["a.bin", "b.bin"]
    week = time.time_ns() + 8 * 24 * 3600 * 10**9
    with monkeypatch.context() as later:
        later.setattr(time, "time_ns", lambda: week)
        Cache().entry("key", write)
        Cache().entry("key", write)
    assert len(read) == 4
    Cache().entry("key", write)  # a clock that was set back is no reason to trust
    assert len(read) == 6
    shutil.copytree(cache / "key", tmp_path / "copy" / "key")
    time.sleep(0.1)
    assert Cache(str(tmp_path / "copy")).entry("key", write) == tmp_path / "copy" / "key"
    assert len(read) == 8


def test_files_younger_than_a_clock_tick_are_not_trusted(
    cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    place = Cache().entry("key", write)
    monkeypatch.setattr(craft.data.cache, "TICK_NS", 10**15)
    assert not _is_checked(place, ["a.bin"])
    monkeypatch.setattr(craft.data.cache, "TICK_NS", 0)
    assert _is_checked(place, ["a.bin"])


def test_a_folder_that_cannot_be_written_is_checked_every_time(
    cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    place = Cache().entry("key", write)
    (place / CHECKED).unlink()

    def refuse(path: Path) -> None:
        raise PermissionError(errno.EROFS, "read-only")

    monkeypatch.setattr(Path, "touch", refuse)
    assert Cache().entry("key", write) == place
    assert not (place / CHECKED).exists()


def test_a_build_that_fails_leaves_nothing(cache: Path) -> None:
    def build(folder: Path) -> None:
        write(folder)
        raise UserError("no", code="text-changed")

    with refused("text-changed"):
        Cache().entry("key", build)
    assert [p.name for p in cache.iterdir()] == [".locks"]


KILLED = """
import sys, time
from pathlib import Path
from craft.data.cache import Cache
def build(folder):
    (folder / "a.bin").write_bytes(b"x")
    print("half", flush=True)
    time.sleep(60)
Cache(sys.argv[1]).entry(sys.argv[2], build)
"""


def test_a_kill_in_the_middle_leaves_no_entry_and_the_next_build_removes_its_files(cache: Path) -> None:
    process = subprocess.Popen([sys.executable, "-c", KILLED, str(cache), "key"], stdout=subprocess.PIPE)
    assert process.stdout is not None
    assert process.stdout.readline() == b"half\n"
    process.send_signal(signal.SIGKILL)
    process.communicate()
    assert sorted(p.name for p in cache.iterdir()) == [".locks", ".staging-key"]
    place = Cache().entry("key", write)
    assert (place / "a.bin").read_bytes() == b"a" * 1000
    assert sorted(p.name for p in cache.iterdir()) == [".locks", "key"]


def test_a_kill_at_any_moment_leaves_nothing_or_everything(cache: Path) -> None:
    def work() -> None:
        Cache(str(cache)).entry("key", write)

    context = multiprocessing.get_context("fork")
    for delay in range(40):
        process = context.Process(target=work)
        process.start()
        time.sleep(delay / 4000)
        process.kill()
        process.join()
        if (cache / "key").exists():
            sizes = {path.name: path.stat().st_size for path in (cache / "key").iterdir()}
            assert sizes.pop(MANIFEST)
            sizes.pop(CHECKED, None)  # written behind the rename: it only remembers that the sums were right
            assert sizes == {"a.bin": 1000, "b.bin": 10}
            shutil.rmtree(cache / "key")
    assert (Cache().entry("key", write) / "b.bin").stat().st_size == 10
    assert list(cache.glob(".staging-*")) == []


def test_processes_that_need_the_same_entry_build_it_once(cache: Path, tmp_path: Path) -> None:
    log = tmp_path / "log"

    def build(folder: Path) -> None:
        with log.open("a") as file:
            file.write("built\n")
        time.sleep(0.3)
        write(folder)

    def work() -> None:
        assert (Cache(str(cache)).entry("key", build) / "a.bin").stat().st_size == 1000

    context = multiprocessing.get_context("fork")
    processes = [context.Process(target=work) for _ in range(4)]
    for process in processes:
        process.start()
    for process in processes:
        process.join()
    assert [p.exitcode for p in processes] == [0] * 4
    assert log.read_text() == "built\n"


def test_a_folder_that_cannot_be_written_is_named_with_a_way_out(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with refused("file-unwritable", tmp_path / "file" / "below", "data.cache_dir"):
        Cache(str(tmp_path / "file" / "below")).entry("key", write)


def test_a_full_disk_is_named_with_a_way_out(cache: Path) -> None:
    def build(folder: Path) -> None:
        raise OSError(28, "No space left on device")

    with refused("disk-full", cache, "data.cache_dir"):
        Cache().entry("key", build)
    assert [p.name for p in cache.iterdir()] == [".locks"]
