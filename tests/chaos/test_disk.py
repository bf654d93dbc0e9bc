"""A disk that fills up while a run saves: one line, the last good checkpoint stays, and the run goes on."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest
import runs

from craft.training.checkpointing.folders import find_checkpoint

pytestmark = [pytest.mark.chaos, pytest.mark.timeout(0)]


@pytest.fixture
def disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of 8 MB."""
    place = tmp_path / "disk"
    place.mkdir()
    if os.geteuid() != 0:
        pytest.skip("mounting a small tmpfs needs root")
    done = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=8m", "tmpfs", str(place)], capture_output=True, text=True
    )
    if done.returncode:
        pytest.skip(f"this machine mounts no tmpfs: {done.stderr.strip()}")
    yield place
    subprocess.run(["umount", "--lazy", str(place)], check=False)


@pytest.mark.parametrize("case", [runs.CASES[0], runs.CASES[2]], ids=lambda case: case.name)
def test_a_disk_that_fills_up_costs_no_checkpoint(case: runs.Case, disk: Path, tmp_path: Path) -> None:
    expected = runs.whole(case, tmp_path / "whole")
    folder = runs.fresh(disk / "small")
    ballast = disk / "ballast"
    running = runs.start(runs.train_words(case), folder)
    first = folder / "run" / "checkpoint-6"
    assert running.until(first.exists)
    process = psutil.Process(running.ranks[0].pid)
    process.suspend()  # or it writes on while the disk is measured and filled
    assert running.until(lambda: process.status() == psutil.STATUS_STOPPED)
    size = sum(path.stat().st_size for path in first.iterdir())
    room = shutil.disk_usage(disk).free - size // 2  # for the log, and half a checkpoint
    ballast.write_bytes(b"\0" * room)
    process.resume()
    assert running.wait() == [1], running.err()
    assert "Traceback" not in running.err()
    (line,) = [line for line in running.err().splitlines() if line.startswith("error: ")]
    good = find_checkpoint(folder / "run")  # verified
    free = re.search(r"([\d,]+) bytes", line)
    assert free is not None, line
    assert int(free[1].replace(",", "")) < size
    assert all(value in line for value in ("checkpoint-", "craft resume run", good.name)), line
    assert not list((folder / "run").glob(".staging-*"))

    ballast.unlink()
    done = runs.resume_to_end(case, folder)
    assert good.name in done.err()
    assert runs.sums(folder) == expected
    runs.tell(f"\nfull disk, {case.name}: {line}\n  {good.name} survived, the resumed run is equal")
