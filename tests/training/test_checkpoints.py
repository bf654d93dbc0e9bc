from __future__ import annotations

import json
import logging
import os
from pathlib import Path

import pytest

from craft.training.checkpointing import folders as checkpoints
from craft.utils.errors import UserError
from craft.utils.files import sha256


def write(run_dir: Path, step: int) -> Path:
    staging = checkpoints.staging_dir(run_dir, step)
    (staging / "deep").mkdir(parents=True)
    (staging / "model.safetensors").write_bytes(bytes(range(256)) * step)
    (staging / "model.safetensors").chmod(0o600)
    (staging / "deep" / "state.json").write_text(f'{{"step": {step}}}')
    return checkpoints.publish(staging, step)


def test_a_published_checkpoint_is_whole_and_readable(tmp_path: Path) -> None:
    checkpoint = write(tmp_path, 5)
    assert checkpoint == tmp_path / "checkpoint-5"
    assert checkpoints.damage(checkpoint) == ""
    assert sorted(json.loads((checkpoint / "manifest.json").read_text())["files"]) == [
        "deep/state.json",
        "model.safetensors",
    ]
    assert (checkpoint / "model.safetensors").stat().st_mode & 0o044  # others may read it
    assert [path.name for path in tmp_path.iterdir()] == ["checkpoint-5"]


def test_writing_a_step_again_replaces_it(tmp_path: Path) -> None:
    (write(tmp_path, 5) / "extra").write_text("stale")
    assert not (write(tmp_path, 5) / "extra").exists()
    assert checkpoints.damage(tmp_path / "checkpoint-5") == ""


def cut(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-1])


def flip(path: Path) -> None:
    data = bytearray(path.read_bytes())
    data[100] ^= 1
    written = path.stat()
    path.write_bytes(data)
    os.utime(path, ns=(written.st_atime_ns, written.st_mtime_ns + 1))  # clocks of file systems tick slowly


def test_any_flipped_byte_is_found(tmp_path: Path) -> None:
    """Each byte of each file, the manifest included."""
    checkpoint = write(tmp_path, 1)
    for path in checkpoint.rglob("*"):
        if path.is_file():
            whole = path.read_bytes()
            for place in range(len(whole)):
                path.write_bytes(whole[:place] + bytes([whole[place] ^ 1]) + whole[place + 1 :])
                assert checkpoints.damage(checkpoint), f"{path.name} at {place}"
            path.write_bytes(whole)
            assert not checkpoints.damage(checkpoint)


@pytest.mark.parametrize(
    ("harm", "name", "reason"),
    [
        (cut, "model.safetensors", "model.safetensors has 2559 bytes instead of 2560"),
        (flip, "manifest.json", "its manifest.json"),
        (flip, "model.safetensors", "model.safetensors has changed since it was written"),
        (Path.unlink, "deep/state.json", "deep/state.json is missing"),
        (Path.unlink, "manifest.json", "it has no manifest.json"),
        (cut, "manifest.json", "its manifest.json can't be read"),
    ],
)
def test_a_damaged_checkpoint_is_passed_over(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, harm, name: str, reason: str
) -> None:
    write(tmp_path, 9)
    harm(write(tmp_path, 10) / name)
    with caplog.at_level(logging.WARNING, logger="craft"):
        assert checkpoints.find_checkpoint(tmp_path) == tmp_path / "checkpoint-9"
    assert "checkpoint-10 is passed over: " + reason in caplog.text
    with pytest.raises(UserError, match=r"can't resume from .*checkpoint-10"):
        checkpoints.find_checkpoint(tmp_path / "checkpoint-10")


def test_the_newest_by_step_not_by_name(tmp_path: Path) -> None:
    for step in (9, 100, 20):
        write(tmp_path, step)
    (tmp_path / "checkpoint-final").mkdir()
    assert checkpoints.find_checkpoint(tmp_path).name == "checkpoint-100"
    assert checkpoints.find_checkpoint(tmp_path / "checkpoint-9").name == "checkpoint-9"


def test_nothing_to_resume_from(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="holds no whole checkpoint-N"):
        checkpoints.find_checkpoint(tmp_path)
    with pytest.raises(UserError, match="there is no such folder"):
        checkpoints.find_checkpoint(tmp_path / "gone")


def test_rotation_keeps_the_newest_and_the_best(tmp_path: Path) -> None:
    for step in (1, 2, 3, 4):
        write(tmp_path, step)
    checkpoints.rotate(tmp_path, None, 1)
    assert len(list(tmp_path.iterdir())) == 4
    checkpoints.rotate(tmp_path, 2, 1)
    assert sorted(path.name for path in tmp_path.iterdir()) == [
        "checkpoint-1",
        "checkpoint-3",
        "checkpoint-4",
    ]
    checkpoints.rotate(tmp_path, 1, None)
    assert [path.name for path in tmp_path.iterdir()] == ["checkpoint-4"]


def test_rotation_counts_good_ones_only(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """Damaged ones, the newest included, push out nothing."""
    for step in (1, 2, 3, 4, 5):
        write(tmp_path, step)
    for step in (3, 5):
        flip(tmp_path / f"checkpoint-{step}" / "model.safetensors")
    with caplog.at_level(logging.WARNING, logger="craft"):
        checkpoints.rotate(tmp_path, 2, None)
    assert sorted(path.name[11:] for path in tmp_path.iterdir()) == ["2", "3", "4", "5"]
    assert "checkpoint-5 is damaged (model.safetensors has changed" in caplog.text
    for step in (2, 4):
        cut(tmp_path / f"checkpoint-{step}" / "model.safetensors")
    checkpoints.rotate(tmp_path, 1, None)
    assert len(list(tmp_path.iterdir())) == 4  # no good one is left, and the rest may be worth something


def test_a_run_from_an_older_checkpoint_ends_the_line_that_it_left(tmp_path: Path) -> None:
    """Once a good one was written; until then the one it came from stays."""

    def steps() -> list[int]:
        return sorted(int(path.name[11:]) for path in tmp_path.iterdir())

    for step in (2, 4, 5, 8, 12, 16, 20):
        write(tmp_path, step)
    damaged = write(tmp_path, 8) / "model.safetensors"
    flip(damaged)
    checkpoints.rotate(tmp_path, 2, None, written=[8], resumed=4)
    assert steps() == [4, 8, 16, 20]
    write(tmp_path, 5)
    write(tmp_path, 8)
    checkpoints.rotate(tmp_path, None, None, written=[8], resumed=4)
    assert steps() == [4, 8]  # also without a limit, and what lay between
    assert checkpoints.find_checkpoint(tmp_path).name == "checkpoint-8"
    write(tmp_path, 12)
    checkpoints.rotate(tmp_path, 2, None, written=[8, 12], resumed=4)
    assert steps() == [8, 12]
    write(tmp_path, 16)
    checkpoints.rotate(tmp_path, 1, 8, written=[8, 12, 16], resumed=4)
    assert steps() == [8, 16]


def test_what_nobody_has_touched_is_not_read_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Links to its files, which uploads make and delete, aren't touches; another file in its place is one."""
    read: list[str] = []

    def counted(path: Path) -> str:
        read.append(path.name)
        return sha256(path)

    checkpoint = write(tmp_path, 5)
    monkeypatch.setattr("craft.utils.manifest.sha256", counted)
    weights, link = checkpoint / "model.safetensors", tmp_path / "link"
    link.hardlink_to(weights)
    assert checkpoints.is_good(checkpoint)
    link.unlink()
    assert checkpoints.is_good(checkpoint)
    assert not read
    stat = weights.stat()
    other = tmp_path / "other"
    other.write_bytes(bytes(stat.st_size))
    os.utime(other, ns=(stat.st_atime_ns, stat.st_mtime_ns))
    other.rename(weights)
    assert not checkpoints.is_good(checkpoint)
    assert "model.safetensors" in read


def test_a_kill_between_the_old_and_the_new_of_a_step(tmp_path: Path) -> None:
    write(tmp_path, 4)
    write(tmp_path, 5).rename(tmp_path / ".replaced-checkpoint-5")
    assert checkpoints.find_checkpoint(tmp_path).name == "checkpoint-5"
    checkpoints.staging_dir(tmp_path, 5)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["checkpoint-4", "checkpoint-5"]


def test_leftovers_of_a_killed_process_go(tmp_path: Path) -> None:
    write(tmp_path, 1)
    checkpoints.staging_dir(tmp_path, 2).mkdir()
    (tmp_path / ".trash-checkpoint-0").mkdir()
    checkpoints.clear_leftovers(tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["checkpoint-1"]
