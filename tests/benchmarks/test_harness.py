"""The arithmetic of the harness, with measurements that are given."""

from __future__ import annotations

import json
import statistics
import sys
from pathlib import Path

import pytest

from craft.benchmarks import harness
from craft.benchmarks.harness import Comparison, Options, measure, save, tables, timed


def measured(repeats: int, log: list[str] | None = None, **seconds: list[float]) -> dict[str, dict]:
    """The figures of contenders that take `seconds[i]` for 10 characters in round i; round 0 warms up."""
    calls = {name: iter(each) for name, each in seconds.items()}

    def run(name: str) -> float:
        if log is not None:
            log.append(name)
        return next(calls[name])

    contenders = {name: (lambda name=name: run(name)) for name in seconds}
    found = measure(Comparison("test", 10, "characters", contenders), repeats)
    assert found["baseline"] == next(iter(seconds))
    return {row["name"]: row for row in found["contenders"]}


def test_the_round_that_warms_up_does_not_count_and_the_median_is_reported() -> None:
    row = measured(3, a=[1000, 1, 2, 5])["a"]
    assert row["rate"] == 5.0
    assert row["spread"] == (10 - 2) / 5
    assert row["seconds"] == [1, 2, 5]


def test_the_ratio_is_taken_within_the_rounds() -> None:
    # The machine gets slower by the round; b is always twice as fast as a.
    rows = measured(3, a=[1, 2, 4, 8], b=[1, 1, 2, 4])
    assert (rows["a"]["ratio"], rows["b"]["ratio"]) == (1, 2)
    # The ratio of the medians would be 2 / 1 here; within the rounds it is 1, 3, 0.5.
    assert measured(3, a=[1, 1, 3, 2], b=[1, 1, 1, 4])["b"]["ratio"] == statistics.median([1, 3, 0.5])


def test_each_round_starts_with_another_contender() -> None:
    log: list[str] = []
    measured(3, log, a=[1] * 4, b=[1] * 4, c=[1] * 4)
    assert "".join(log) == "abc" + "bca" + "cab" + "abc"


def test_all_of_the_work_is_timed() -> None:
    done: list[int] = []
    assert timed(lambda: done.append(1))() > 0
    assert done == [1]


def test_a_report_says_what_it_was_measured_on_and_how(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Module:
        """one
        two"""

        @staticmethod
        def comparisons(options: Options):
            yield Comparison("speed", 10, "MB", {"a": lambda: 1.0, "b": lambda: 2.0}, {"x": 1})

    monkeypatch.setitem(sys.modules, "craft.benchmarks.toy", Module)
    monkeypatch.chdir(tmp_path)
    progress: list[str] = []
    report = harness.run_benchmark("toy", Options(repeats=1, steps=9), progress.append)
    path = save(report)
    assert path.parent == Path("outputs/benchmarks")
    assert path.name.startswith("benchmark_toy_")
    read = json.loads(path.read_text(encoding="utf-8"))
    assert read == report
    assert read["schema"] == harness.SCHEMA
    assert read["protocol"]["description"] == "one two"
    assert (read["protocol"]["steps"], read["protocol"]["repeats"]) == (9, 1)
    assert {"python", "torch", "numpy"} <= set(read["versions"])
    assert read["hardware"]["threads"] >= 1
    assert read["comparisons"][0]["settings"] == {"x": 1}
    assert len(progress) == 4

    (table,) = tables(report)
    assert table.title == "toy: speed"
    cells = [list(column.cells) for column in table.columns]
    assert cells == [["a (baseline)", "b"], ["10", "5"], ["1.00", "0.50"], ["0%", "0%"]]


def test_the_commit_is_only_that_of_a_checkout_of_craft(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(harness.craft, "__file__", str(tmp_path / "site-packages" / "craft" / "__init__.py"))
    assert harness.commit() is None
