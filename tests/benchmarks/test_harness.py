"""The arithmetic of the harness, with clocks that tell what we want."""

from __future__ import annotations

import json
import sys

import pytest

from craft.benchmarks import harness, machine
from craft.benchmarks.harness import Comparison, Contender, Options, Sample, measure, save, tables, timed


def contender(
    name: str, seconds: list[float], log: list[str] | None = None, amount: float = 10.0
) -> Contender:
    """Takes `seconds[i]` in round i; round 0 is the warm-up."""
    calls = iter(seconds)

    def run() -> Sample:
        if log is not None:
            log.append(name)
        wall = next(calls)
        return Sample(amount, wall, wall / 2)

    return Contender(name, run)


def result(*contenders: Contender, repeats: int, unit: str = "characters") -> dict:
    return measure(Comparison("test", unit, list(contenders), contenders[0].name), repeats)


def row(measured: dict, name: str) -> dict:
    return next(c for c in measured["contenders"] if c["name"] == name)


def test_the_warm_up_is_thrown_away_and_the_median_is_reported():
    measured = row(result(contender("a", [1000, 1, 2, 5]), repeats=3), "a")
    assert measured["rate"] == 5.0
    assert measured["seconds"] == 2
    assert measured["spread"] == (10 - 2) / 5
    assert [m["seconds"] for m in measured["measurements"]] == [1, 2, 5]
    assert [m["rate"] for m in measured["measurements"]] == [10, 5, 2]


def test_the_ratio_is_taken_within_the_rounds():
    # The machine gets slower by the round; b is always twice as fast as a.
    measured = result(contender("a", [1, 2, 4, 8]), contender("b", [1, 1, 2, 4]), repeats=3)
    assert row(measured, "a")["ratio"] == 1
    assert row(measured, "b")["ratio"] == 2
    # The ratio of the medians would be 30 / 20 here; within the rounds it is 1, 3, 0.5.
    measured = result(contender("a", [1, 1, 3, 2]), contender("b", [1, 1, 1, 4]), repeats=3)
    assert row(measured, "b")["ratio"] == 1


def test_cpu_seconds_make_a_ratio_of_their_own():
    slow = Contender("a", lambda: Sample(1, seconds=1, cpu_seconds=8))
    fast = Contender("b", lambda: Sample(1, seconds=1, cpu_seconds=2))
    measured = result(slow, fast, repeats=2)
    assert row(measured, "b")["ratio"] == 1
    assert row(measured, "b")["cpu_ratio"] == 4
    assert row(measured, "b")["cpu_rate"] == 0.5


def test_rounds_are_interleaved_and_start_with_another_contender_each_time():
    log: list[str] = []
    result(*[contender(name, [1] * 4, log) for name in "abc"], repeats=3)
    assert "".join(log) == "abc" + "bca" + "cab" + "abc"


def test_timed_counts_all_of_the_work():
    sample = timed(lambda: sum(range(1000)))()
    assert sample.amount == 499500
    assert sample.seconds > 0


@pytest.mark.skipif(machine.rss() is None, reason="the system doesn't tell")
def test_each_measurement_has_its_own_peak_of_memory():
    big = Contender("big", timed(lambda: len(bytearray(100_000_000))))
    small = Contender("small", timed(lambda: len(bytearray(1000))))
    measured = result(big, small, repeats=2)
    assert 99e6 < row(measured, "big")["rss_growth_bytes"] < 130e6
    if machine.status_bytes("self", "VmHWM") is not None:  # the peak can be reset
        assert row(measured, "small")["rss_growth_bytes"] < 20e6


def test_memory_of_another_process_is_kept():
    other = Contender("other", lambda: Sample(1, 1, 1, rss_before=5, rss_peak=7))
    measured = row(result(other, repeats=1), "other")
    assert (measured["peak_rss_bytes"], measured["rss_growth_bytes"]) == (7, 2)


def test_mfu_is_flops_by_the_peak_of_the_device(monkeypatch):
    class Gpu:
        @staticmethod
        def get_device_name() -> str:
            return "NVIDIA H200"

    monkeypatch.setattr(machine, "cuda", lambda: Gpu)
    samples = [Sample(2e6, 1.0, 1.0)]
    known = Contender("a", lambda: samples[0], flops=98.9e6)
    assert harness.summary(known, samples, samples)["mfu"] == pytest.approx(0.2)
    assert harness.summary(Contender("b", lambda: samples[0]), samples, samples)["mfu"] is None


@pytest.mark.parametrize(
    ("name", "peak"),
    [
        ("NVIDIA H100 80GB HBM3", 989e12),
        ("NVIDIA H100 PCIe", 756e12),
        ("NVIDIA L40S", 362e12),
        ("Toy 1", None),
    ],
)
def test_peak_of_a_device_is_found_by_the_longest_name(name, peak):
    assert machine.peak_flops(name) == peak


def test_no_mfu_and_no_cuda_memory_without_a_gpu(monkeypatch):
    monkeypatch.setattr(machine, "cuda", lambda: None)
    measured = row(result(Contender("a", lambda: Sample(1, 1, 1), flops=1e9), repeats=1), "a")
    assert measured["mfu"] is None
    assert measured["peak_cuda_bytes"] is None


def test_a_report_says_what_it_was_measured_on_and_how(tmp_path, monkeypatch):
    class Module:
        PROTOCOL = "one\n  two"

        @staticmethod
        def comparisons(options):
            yield Comparison("speed", "MB", [contender("a", [1, 1]), contender("b", [1, 2])], "a", {"x": 1})

    monkeypatch.setitem(sys.modules, "craft.benchmarks.toy", Module)
    told: list[str] = []
    report = harness.run_benchmark("toy", Options(repeats=1, seed=7), told.append)
    path = save(report, tmp_path)
    assert path.parent == tmp_path / "benchmarks"
    assert path.name.startswith("benchmark_toy_")
    read = json.loads(path.read_text(encoding="utf-8"))
    assert read == report
    assert read["schema"] == harness.SCHEMA
    assert read["protocol"]["description"] == "one two"
    assert (read["protocol"]["seed"], read["protocol"]["repeats"]) == (7, 1)
    assert {"python", "torch", "numpy"} <= set(read["versions"])
    assert read["hardware"]["cores"] >= 1
    assert read["comparisons"][0]["settings"] == {"x": 1}
    assert len(told) == 4

    (table,) = tables(report)
    assert table.title == "toy: speed"
    assert table.row_count == 2
    cells = [list(column.cells) for column in table.columns]
    assert cells[0] == ["a (baseline)", "b"]
    assert cells[1] == ["10", "5"]
    assert cells[2] == ["1.00", "0.50"]


def test_seconds_are_shown_where_the_unit_is_time():
    report = {"benchmark": "startup", "comparisons": [result(contender("a", [1, 0.25]), repeats=1, unit="s")]}
    (table,) = tables(report)
    assert table.columns[1].header == "seconds"
    assert list(table.columns[1].cells) == ["0.250"]


def test_commit_is_only_that_of_a_checkout_of_craft(monkeypatch, tmp_path):
    answers: dict[str, str | None] = {"ls-files": "__init__.py", "rev-parse": "abc", "status": " M x"}
    monkeypatch.setattr(machine, "_output", lambda command, folder=None: answers[command[1]])
    assert machine.commit() == {"id": "abc", "modified": True}
    answers["ls-files"] = ""  # an environment inside somebody else's repository
    assert machine.commit() is None
