"""SIGKILL at any moment: a run that was killed again and again ends like one to which nothing happened."""

from __future__ import annotations

import random
import signal
import time
from pathlib import Path
from typing import Any

import pytest
import runs

pytestmark = [pytest.mark.chaos, pytest.mark.timeout(0)]
IN_A_SAVE = 0.5
"""The share of kills that wait for a checkpoint to be in the making."""


@pytest.mark.parametrize("case", runs.CASES, ids=lambda case: case.name)
def test_killed_runs_end_like_whole_ones(
    case: runs.Case, tmp_path: Path, seed: str, kills: int, until: float, report: dict[str, Any]
) -> None:
    start = time.monotonic()
    runs.whole(case, tmp_path / "warm")
    reference = runs.start(runs.train_words(case), runs.fresh(tmp_path / "whole"), case.world)
    reference.until(lambda: '"step"' in reference.out())
    began = time.monotonic()
    assert reference.wait() == [0] * case.world, reference.err()
    duration = time.monotonic() - began  # from the first step to the end
    expected = runs.sums(tmp_path / "whole")
    assert expected == runs.sums(tmp_path / "warm")
    equal, fallen, inside = 0, 0, 0
    differ: list[str] = []
    while fallen < kills or time.monotonic() < until:
        name = f"{seed} {case.name} {equal + len(differ)}"
        chances = runs.seeded(name)
        folder = runs.fresh(tmp_path / f"run-{equal + len(differ)}")
        story: list[str] = []
        words = runs.train_words(case)
        for _ in range(chances.randint(2, 4)):
            last, how = killed_at_random(words, folder, case, chances, duration)
            codes = last.wait()
            if -signal.SIGKILL not in codes:  # it had come to its end before
                break
            story.append(how)
            fallen += 1
            inside += "save" in how
            words = ["resume", "run"] if (folder / "run" / "craft_run.yaml").exists() else words
        else:
            last = runs.start(words, folder, case.world)
            codes = last.wait()
        found = runs.sums(folder) if codes == [0] * case.world else {"exit codes": str(codes)}
        if found == expected:
            equal += 1
        else:
            wrong = [part for part in expected if found.get(part) != expected[part]]
            errors = [last.err(rank)[-600:] for rank in range(case.world)] if "exit codes" in found else []
            differ.append(f"seed '{name}': {story} then {found.get('exit codes', wrong)} {errors}")
    said = f"{case.name}: {equal} of {equal + len(differ)} equal, {fallen} kills, {inside} of them in a save"
    runs.tell(f"\n{said} (seed {seed})")
    report.update(case=case.name, equal=equal, runs=equal + len(differ), kills=fallen, in_saves=inside)
    report.update(seed=seed, seconds=round(time.monotonic() - start), differ=differ)
    assert not differ, "\n".join(differ)


def killed_at_random(
    words: list[str], folder: Path, case: runs.Case, chances: random.Random, duration: float
) -> tuple[runs.Running, str]:
    """Starts a command and kills its processes, or one of two, unless it ends before; says when."""
    running = runs.start(words, folder, case.world)
    delay, share = chances.random(), chances.random()
    victim = chances.choice([None, *range(case.world)]) if case.world > 1 else None
    running.until(lambda: '"step"' in running.out())  # before it, a launcher would have to end the other one
    if share < IN_A_SAVE:
        running.until(lambda: any((folder / "run").glob(".staging-*")))
        time.sleep(delay * 0.03)
        what = f"in a save, {1000 * delay * 0.03:.0f} ms after its start"
    else:
        running.until(lambda: False, timeout=delay * duration)
        what = f"{delay * duration:.2f} s after the first step"
    running.kill(None if victim is None else [victim])
    assert None not in running.wait(timeout=60), f"rank {victim} was killed, and the other one hangs"
    return running, what if victim is None else f"rank {victim} {what}"
