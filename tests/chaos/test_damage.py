"""Every file of a checkpoint, damaged in every way: the run goes back to the one before and ends the same."""

from __future__ import annotations

import random
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import runs
from refusals import refused

from craft.training.checkpointing.folders import checkpoints, find_checkpoint

pytestmark = [pytest.mark.chaos, pytest.mark.timeout(0)]
CASE = runs.Case(
    "lstm-muon-ema", ["models=char_lstm", "training.ema_decay=0.9", "training.save_total_limit=3"]
)


def flip(file: Path, chances: random.Random) -> None:
    data = bytearray(file.read_bytes())
    data[chances.randrange(len(data))] ^= 1 << chances.randrange(8)
    file.write_bytes(data)


def truncate(file: Path, chances: random.Random) -> None:
    data = file.read_bytes()
    file.write_bytes(data[: chances.randrange(1, len(data))])


def empty(file: Path, chances: random.Random) -> None:
    file.write_bytes(b"")


def delete(file: Path, chances: random.Random) -> None:
    file.unlink()


DAMAGES: list[Callable[[Path, random.Random], None]] = [flip, truncate, empty, delete]


@pytest.fixture(scope="module")
def expected(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    return runs.whole(CASE, tmp_path_factory.mktemp("whole") / "whole")


@pytest.fixture(scope="module")
def killed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run with three checkpoints that was killed behind the last of them."""
    folder = runs.fresh(tmp_path_factory.mktemp("killed") / "killed")
    running = runs.start(runs.train_words(CASE), folder)
    assert running.until(lambda: (folder / "run" / "checkpoint-12").exists())
    running.kill()
    assert not (folder / "run" / f"checkpoint-{runs.STEPS}").exists()
    return folder


def newest(folder: Path) -> list[Path]:
    return list(checkpoints(folder / "run"))


@pytest.mark.parametrize("damage", DAMAGES, ids=lambda damage: damage.__name__)
def test_a_checkpoint_with_one_damaged_file_is_passed_over(
    damage: Callable[[Path, random.Random], None],
    killed: Path,
    expected: dict[str, str],
    tmp_path: Path,
    seed: str,
    request: pytest.FixtureRequest,
    report: dict[str, Any],
) -> None:
    last, before, *_ = newest(killed)
    names = sorted(path.name for path in last.iterdir())
    weights = {f"{name}.safetensors" for name in ("model", "training_state", "rank_0")}
    assert {"manifest.json", *weights} < set(names)
    # Short campaigns resume for a quarter of the files with each kind of damage, and choose for all of them.
    some = names if request.config.getoption("--minutes") else names[DAMAGES.index(damage) :: len(DAMAGES)]
    equal = 0
    for name in names:
        folder = tmp_path / name
        shutil.copytree(killed, folder)
        damage(folder / "run" / last.name / name, runs.seeded(seed, damage.__name__, name))
        assert find_checkpoint(folder / "run") == folder / "run" / before.name, name
        if name in some:
            done = runs.resume_to_end(CASE, folder)
            assert all(checkpoint.name in done.err() for checkpoint in (last, before)), name
            assert runs.sums(folder) == expected, name
            equal += 1
        shutil.rmtree(folder)
    report.update(damage=damage.__name__, files=len(names), resumed=equal, equal=equal, seed=seed)
    runs.tell(f"\n{damage.__name__}: {len(names)} files found damaged, {equal} of {equal} resumed runs equal")


def test_two_damaged_checkpoints_are_passed_over(
    killed: Path, expected: dict[str, str], tmp_path: Path
) -> None:
    shutil.copytree(killed, folder := tmp_path / "two")
    last, before, oldest = newest(folder)[:3]
    flip(last / "model.safetensors", random.Random(1))
    delete(before / "rank_0.safetensors", random.Random(1))
    done = runs.resume_to_end(CASE, folder)
    assert all(checkpoint.name in done.err() for checkpoint in (last, before, oldest))
    assert runs.sums(folder) == expected


def test_a_run_whose_checkpoints_are_all_damaged_is_refused_and_left_as_it_is(
    killed: Path, tmp_path: Path
) -> None:
    shutil.copytree(killed, folder := tmp_path / "all")
    for checkpoint in newest(folder):
        flip(checkpoint / "training_state.safetensors", random.Random(1))
    there = {path: path.read_bytes() for path in (folder / "run").rglob("*") if path.is_file()}
    done = runs.start(["resume", "run"], folder)
    assert done.wait() == [2]
    (line,) = [line for line in done.err().splitlines() if line.startswith("error: ")]
    assert all(checkpoint.name in line for checkpoint in newest(folder))
    assert all(path.read_bytes() == data for path, data in there.items())
    with refused("checkpoint-damaged", *(checkpoint.name for checkpoint in newest(folder))):
        find_checkpoint(folder / "run")
