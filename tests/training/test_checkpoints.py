"""Folders of checkpoints: whole or absent, verified, found, rotated."""

from __future__ import annotations

import json
import logging
from collections.abc import Callable
from pathlib import Path

import pytest
from refusals import refused

from craft.training.checkpointing import folders as checkpoints
from craft.training.checkpointing.checkpointer import Checkpointer
from craft.utils.files import REPLACED, staged_folder
from craft.utils.history import add_event
from craft.utils.manifest import write_manifest


def write(run_dir: Path, step: int) -> Path:
    final = checkpoints.checkpoint_dir(run_dir, step)
    with staged_folder(final) as staging:
        (staging / "deep").mkdir(parents=True)
        (staging / "model.safetensors").write_bytes(bytes(range(256)) * step)
        (staging / "model.safetensors").chmod(0o600)
        (staging / "deep" / "state.json").write_text(f'{{"step": {step}}}')
        write_manifest(staging, step=step)
    return final


def steps(run_dir: Path) -> list[int]:
    return sorted(map(checkpoints.step_of, run_dir.iterdir()))


def test_a_published_checkpoint_is_whole_and_readable(tmp_path: Path) -> None:
    checkpoint = write(tmp_path, 5)
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
    path.write_bytes(data)


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
    ("harm", "name", "values"),
    [
        (cut, "model.safetensors", ["2559", "2560"]),
        (flip, "manifest.json", []),
        (flip, "model.safetensors", []),
        (Path.unlink, "deep/state.json", []),
        (Path.unlink, "manifest.json", []),
        (cut, "manifest.json", []),
    ],
)
def test_a_damaged_checkpoint_is_passed_over(
    tmp_path: Path,
    caplog: pytest.LogCaptureFixture,
    harm: Callable[[Path], None],
    name: str,
    values: list[str],
) -> None:
    write(tmp_path, 9)
    harm(write(tmp_path, 10) / name)
    with caplog.at_level(logging.WARNING, logger="craft"):
        assert checkpoints.find_checkpoint(tmp_path) == tmp_path / "checkpoint-9"
    assert all(value in caplog.messages[0] for value in ("checkpoint-10", name, *values))
    with refused("checkpoint-damaged", tmp_path / "checkpoint-10", name, *values):
        checkpoints.find_checkpoint(tmp_path / "checkpoint-10")


def test_the_newest_is_by_step_and_not_by_name(tmp_path: Path) -> None:
    for step in (9, 100, 20):
        write(tmp_path, step)
    (tmp_path / "checkpoint-final").mkdir()
    assert checkpoints.find_checkpoint(tmp_path).name == "checkpoint-100"
    assert checkpoints.find_checkpoint(tmp_path / "checkpoint-100").name == "checkpoint-100"


def test_an_older_checkpoint_is_refused_beside_a_newer_good_one(tmp_path: Path) -> None:
    """What the run wrote next would be older than what it left behind."""
    older, newer = write(tmp_path, 9), write(tmp_path, 20)
    with refused("setting-conflict", older, newer.name):
        checkpoints.find_checkpoint(older)
    cut(newer / "model.safetensors")
    assert checkpoints.find_checkpoint(older) == older


def test_nothing_to_resume_from(tmp_path: Path) -> None:
    with refused("run-missing", tmp_path):
        checkpoints.find_checkpoint(tmp_path)
    with refused("run-missing", tmp_path / "gone"):
        checkpoints.find_checkpoint(tmp_path / "gone")


def test_rotation_keeps_the_newest_and_what_is_spared(tmp_path: Path) -> None:
    for step in (1, 2, 3, 4):
        write(tmp_path, step)
    checkpoints.rotate(tmp_path, None, {1})
    assert steps(tmp_path) == [1, 2, 3, 4]
    checkpoints.rotate(tmp_path, 2, {1, None})
    assert steps(tmp_path) == [1, 3, 4]
    checkpoints.rotate(tmp_path, 1)
    assert steps(tmp_path) == [4]


def test_rotation_counts_good_ones_only(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """Damaged ones, the newest included, push out nothing."""
    for step in (1, 2, 3, 4, 5):
        write(tmp_path, step)
    for step in (3, 5):
        flip(tmp_path / f"checkpoint-{step}" / "model.safetensors")
    with caplog.at_level(logging.WARNING, logger="craft"):
        checkpoints.rotate(tmp_path, 2)
    assert steps(tmp_path) == [2, 3, 4, 5]
    assert all(value in caplog.messages[0] for value in ("checkpoint-5", "model.safetensors"))
    for step in (2, 4):
        cut(tmp_path / f"checkpoint-{step}" / "model.safetensors")
    checkpoints.rotate(tmp_path, 1)
    assert len(list(tmp_path.iterdir())) == 4  # no good one is left, and the rest may be worth something


def test_a_kill_between_the_old_and_the_new_of_a_step_loses_nothing(tmp_path: Path) -> None:
    write(tmp_path, 4)
    write(tmp_path, 5).rename(tmp_path / f"{REPLACED}checkpoint-5")
    checkpointer = Checkpointer(tmp_path, {}, {}, keep=None)
    assert checkpointer.find(tmp_path / "checkpoint-5") == tmp_path / "checkpoint-5"
    assert steps(tmp_path) == [4, 5]


def test_no_part_is_asked_for_its_state_once_a_disk_may_refuse(tmp_path: Path) -> None:
    """A part that gathers its state from all processes would wait for one that failed to write."""
    asked: list[str] = []

    class Part:
        def __init__(self, name: str) -> None:
            self.name = name

        def state_dict(self) -> dict[str, int]:
            asked.append(self.name)
            return {}

    def full(folder: Path) -> None:
        assert asked == ["weights", "time", "own"]
        full_disk(folder)

    parts = {"weights": Part("weights"), "time": Part("time")}
    checkpointer = Checkpointer(tmp_path, parts, {"own": Part("own")}, keep=1, varying=["time"])  # type: ignore
    with refused("disk-full", tmp_path, "checkpoint-5"):
        checkpointer.save(5, full, {}, only_model=False)
    assert len(asked) == 3
    assert not list(tmp_path.iterdir())


def test_the_way_on_is_one_that_works(tmp_path: Path) -> None:
    """From the command line or from Python, with a checkpoint or before the first one."""
    run_dir = tmp_path / "my run"
    run_dir.mkdir()
    checkpointer = Checkpointer(run_dir, {}, {}, keep=None)
    assert str(run_dir) not in checkpointer.what_is_left()  # nothing is there to resume
    add_event(run_dir, "started")
    assert f"trainer.train(resume_from_checkpoint='{run_dir}')" in checkpointer.what_is_left()
    (run_dir / "craft_run.yaml").touch()
    assert "at step 0 with: craft resume '" + str(run_dir) + "'" in checkpointer.what_is_left()
    with refused("disk-full", "checkpoint-5", f"craft resume '{run_dir}'"):
        checkpointer.save(5, full_disk, {}, only_model=False)
    checkpointer.save(5, lambda folder: None, {}, only_model=False)
    assert f"{run_dir / 'checkpoint-5'};" in checkpointer.what_is_left()
    assert f"craft resume '{run_dir}'" in checkpointer.what_is_left()


def full_disk(folder: Path) -> None:
    raise OSError(28, "No space left on device")
