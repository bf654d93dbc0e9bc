"""Repeat, interleave, take medians, compare with a baseline of the same process, print, save.

A machine drifts (clocks, neighbours, caches), so contenders never run one after the other but in rounds: each
round runs every contender once, starting with another one each time, and a ratio is the median of the ratios
within the rounds. Every single measurement goes into the JSON.
"""

from __future__ import annotations

import gc
import importlib
import json
import statistics
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from craft.benchmarks import machine
from craft.utils import outputs

SCHEMA = 1


@dataclass(frozen=True)
class Options:
    """What the user of `craft benchmark` can set.

    Args:
        repeats: rounds that count; one more round before them warms everything up.
        steps: training steps of one measurement (None: the benchmark's own choice).
        size: megabytes of generated text for the preparation of a corpus.
        seed: of weights, texts and data order.
        quick: tiny models and texts and no warm-up, to see that everything runs; its figures mean nothing.
    """

    repeats: int = 5
    steps: int | None = None
    size: float = 64.0
    seed: int = 0
    quick: bool = False


@dataclass
class Sample:
    """One measurement: `amount` of work (characters, MB, windows, calls) in `seconds`, memory in bytes.

    `cpu_seconds` is the work of all threads of the process, which a busy machine hardly lengthens.
    """

    amount: float
    seconds: float
    cpu_seconds: float
    rss_before: int | None = None
    rss_peak: int | None = None
    cuda_peak: int | None = None

    @property
    def rate(self) -> float:
        return self.amount / self.seconds

    @property
    def cpu_rate(self) -> float:
        return self.amount / max(self.cpu_seconds, 1e-9)

    @classmethod
    def between(cls, start: machine.Moment, end: machine.Moment, amount: float) -> Sample:
        return cls(amount, end.wall - start.wall, end.cpu - start.cpu)


@dataclass
class Contender:
    """Something to measure. `run` does the work once; `flops` are those of one unit of work, for MFU."""

    name: str
    run: Callable[[], Sample]
    flops: float | None = None


@dataclass
class Comparison:
    """Contenders that do the same work; the baseline is one of them.

    Args:
        name: what is compared, in the title of the table.
        unit: of the work, for example `characters`; the table shows `{unit}/s`, or seconds if it is `s`.
        contenders: in the order of the table.
        baseline: the name of the contender that has ratio 1.
        settings: whatever one needs to know to repeat it.
    """

    name: str
    unit: str
    contenders: list[Contender]
    baseline: str
    settings: dict[str, Any] = field(default_factory=dict)


def timed(work: Callable[[], float]) -> Callable[[], Sample]:
    """A `run` that times all of `work`, which returns the amount of work it did."""

    def run() -> Sample:
        start = machine.now()
        amount = work()
        return Sample.between(start, machine.now(), amount)

    return run


def measure(
    comparison: Comparison, repeats: int, tell: Callable[[str], object] = str, warm_up: bool = True
) -> dict[str, Any]:
    """Run a comparison in `repeats` interleaved rounds, after one round to warm up, which is thrown away.

    Returns:
        The comparison as JSON: for each contender the medians, the ratio to the baseline and all
        measurements.
    """
    contenders = comparison.contenders
    samples: dict[str, list[Sample]] = {c.name: [] for c in contenders}
    for turn in range(0 if warm_up else 1, repeats + 1):
        for contender in _rotated(contenders, turn):
            tell(f"{comparison.name}: {contender.name} ({'warm-up' if turn == 0 else f'{turn}/{repeats}'})")
            sample = _one(contender)
            if turn:
                samples[contender.name].append(sample)
    base = samples[comparison.baseline]
    return {
        "name": comparison.name,
        "unit": comparison.unit,
        "baseline": comparison.baseline,
        "settings": comparison.settings,
        "contenders": [summary(c, samples[c.name], base) for c in contenders],
    }


def summary(contender: Contender, samples: Sequence[Sample], base: Sequence[Sample]) -> dict[str, Any]:
    """Medians of one contender. `ratio` is how many times as fast as the baseline: the median over the
    rounds of this rate by the baseline's rate of the same round; `cpu_rate` and `cpu_ratio` count CPU seconds
    instead. Memory peaks are the largest seen."""
    rate = statistics.median(s.rate for s in samples)
    gpu = machine.cuda()
    peak = machine.peak_flops(gpu.get_device_name()) if gpu else None
    growths = [s.rss_peak - s.rss_before for s in samples if s.rss_peak and s.rss_before]
    return {
        "name": contender.name,
        "rate": rate,
        "seconds": statistics.median(s.seconds for s in samples),
        "ratio": statistics.median(s.rate / b.rate for s, b in zip(samples, base, strict=True)),
        "cpu_rate": statistics.median(s.cpu_rate for s in samples),
        "cpu_ratio": statistics.median(s.cpu_rate / b.cpu_rate for s, b in zip(samples, base, strict=True)),
        "spread": (max(s.rate for s in samples) - min(s.rate for s in samples)) / rate,
        "peak_rss_bytes": _largest(s.rss_peak for s in samples),
        "rss_growth_bytes": _largest(growths),
        "peak_cuda_bytes": _largest(s.cuda_peak for s in samples),
        "mfu": rate * contender.flops / peak if contender.flops and peak else None,
        "measurements": [asdict(s) | {"rate": s.rate} for s in samples],
    }


def run_benchmark(name: str, options: Options, tell: Callable[[str], object] = str) -> dict[str, Any]:
    """Run `craft/benchmarks/{name}.py` and return its report, ready for `save` and `tables`."""
    module = importlib.import_module(f"craft.benchmarks.{name}")
    started = time.strftime("%Y-%m-%dT%H:%M:%S%z")
    results = [
        measure(comparison, options.repeats, tell, warm_up=not options.quick)
        for comparison in module.comparisons(options)
    ]
    return {
        "schema": SCHEMA,
        "benchmark": name,
        "started": started,
        **machine.describe(),
        "protocol": {
            "description": " ".join(module.PROTOCOL.split()),
            "rounds": "one round to warm up (none if quick), then `repeats` rounds of all contenders in "
            "rotated order; rate: median; ratio: median of the ratios to the baseline of the same round; CPU "
            "ratio: the same by CPU seconds, which a busy machine hardly lengthens; memory: largest peak",
            **asdict(options),
        },
        "comparisons": results,
    }


def save(report: dict[str, Any], root: Path = outputs.OUTPUTS) -> Path:
    """Write a report to `{root}/benchmarks/benchmark_{test}_{hardware}_{date}_{timestamp}.json`."""
    path = outputs.benchmark_file(report["benchmark"], report["hardware"]["name"], root)
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(report, indent=1) + "\n", encoding="utf-8")
    return path


def tables(report: dict[str, Any]) -> Iterator[Any]:
    """One rich table for each comparison of a report."""
    from rich.table import Table

    for comparison in report["comparisons"]:
        rows = comparison["contenders"]
        by_time = comparison["unit"] == "s"
        table = Table(title=f"{report['benchmark']}: {comparison['name']}", title_justify="left")
        table.add_column("")
        unit = "seconds" if by_time else f"{comparison['unit']}/s"
        for column in (unit, "speed ratio", "CPU ratio", "spread", "peak RSS MB"):
            table.add_column(column, justify="right")
        with_cuda = any(row["peak_cuda_bytes"] is not None for row in rows)
        with_mfu = any(row["mfu"] is not None for row in rows)
        if with_cuda:
            table.add_column("peak CUDA MB", justify="right")
        if with_mfu:
            table.add_column("MFU", justify="right")
        for row in rows:
            name = row["name"] + (" (baseline)" if row["name"] == comparison["baseline"] else "")
            cells = [f"{row['seconds']:.3f}" if by_time else _figure(row["rate"])]
            cells += [f"{row['ratio']:.2f}", f"{row['cpu_ratio']:.2f}", f"{row['spread']:.0%}", _memory(row)]
            if with_cuda:
                cells.append(_megabytes(row["peak_cuda_bytes"]))
            if with_mfu:
                cells.append("-" if row["mfu"] is None else f"{row['mfu']:.1%}")
            table.add_row(name, *cells)
        yield table


def _one(contender: Contender) -> Sample:
    """One measurement with its memory; a contender that measures another process fills the memory in
    itself."""
    gc.collect()
    machine.reset_peak()
    before = machine.rss()
    sample = contender.run()
    if sample.rss_peak is None:
        sample.rss_before, sample.rss_peak, sample.cuda_peak = before, machine.peak_rss(), machine.peak_cuda()
    return sample


def _rotated(contenders: list[Contender], turn: int) -> list[Contender]:
    start = turn % len(contenders)
    return contenders[start:] + contenders[:start]


def _largest(values: Any) -> int | None:
    return max((v for v in values if v is not None), default=None)


def _figure(rate: float) -> str:
    return f"{rate:,.0f}" if rate >= 100 else f"{rate:.3g}"


def _megabytes(size: int | None) -> str:
    return "-" if size is None else f"{size / 1e6:,.0f}"


def _memory(row: dict[str, Any]) -> str:
    """`812 (+35)`: the peak, and how far it lies above what the process held before the measurement."""
    growth = row["rss_growth_bytes"]
    return _megabytes(row["peak_rss_bytes"]) + ("" if growth is None else f" (+{growth / 1e6:,.0f})")
