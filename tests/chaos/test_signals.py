"""A signal to one of two processes: both stop at the same step, save, and the run goes on exactly."""

from __future__ import annotations

import signal
from pathlib import Path

import pytest
import runs

from craft.training.checkpointing.folders import find_checkpoint

pytestmark = [pytest.mark.chaos, pytest.mark.timeout(0)]
STATUS = {signal.SIGTERM: 0, signal.SIGINT: 130, signal.SIGUSR1: 0}


@pytest.fixture(scope="module")
def expected(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> tuple[runs.Case, dict[str, str]]:
    """A case, and how it ends if nothing happens."""
    return request.param, runs.whole(request.param, tmp_path_factory.mktemp("whole") / "whole")


TWO = [case for case in runs.CASES if case.world == 2]


@pytest.mark.parametrize("number", STATUS, ids=lambda number: number.name)
@pytest.mark.parametrize("expected", TWO, ids=lambda case: case.name, indirect=True)
def test_a_signal_to_one_of_two_processes_saves_both(
    expected: tuple[runs.Case, dict[str, str]], number: signal.Signals, tmp_path: Path, seed: str
) -> None:
    case, result = expected
    folder = runs.fresh(tmp_path / "stopped")
    chances = runs.seeded(seed, case.name, number.name)
    step, rank = chances.randint(2, runs.STEPS - 8), chances.randint(0, 1)
    running = runs.start(runs.train_words(case), folder, world=2)
    assert running.until(lambda: f'"step": {step},' in running.out())
    running.signal(rank, number)
    assert running.wait() == [STATUS[number]] * 2, [running.err(r) for r in (0, 1)]
    assert not any("Traceback" in running.err(r) for r in (0, 1))
    saved = find_checkpoint(folder / "run")
    assert step <= int(saved.name.split("-")[1]) < runs.STEPS
    done = runs.resume_to_end(case, folder)
    assert saved.name in done.err()
    assert runs.sums(folder) == result
    runs.tell(f"\n{number.name} to rank {rank} of {case.name} after step {step}: {saved.name}, equal")
