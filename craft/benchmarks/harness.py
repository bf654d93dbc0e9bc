"""Measures in interleaved rounds, compares medians with a baseline of the same run, prints, saves.

A machine drifts (clocks, neighbours, caches), so contenders never run one after the other but in rounds,
after one to warm up: each runs every contender once, starting with another one each time. A rate is the
median over the rounds, a ratio the median of the ratios to the baseline within the rounds, the spread that
of the rates from the lowest to the highest, relative to their median. Every single measurement goes into
the JSON.
"""

from __future__ import annotations

import gc
import importlib
import json
import platform
import shutil
import statistics
import subprocess
import time
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass, field
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch
from rich.table import Table

import craft
from craft.utils.hardware import cpu_name
from craft.utils.outputs import benchmark_file

SCHEMA = 2
PACKAGES = ("torch", "transformers", "tokenizers", "datasets", "accelerate", "numpy")


@dataclass(frozen=True)
class Options:
    """What the user of `craft benchmark` can set; its help explains them."""

    repeats: int = 5
    steps: int = 100
    quick: bool = False


@dataclass(frozen=True)
class Comparison:
    """Contenders that do the same work.

    Args:
        name: what is compared, in the title of the table.
        amount, unit: of the work, for example 500 `characters`.
        contenders: by name, what does the work once and returns its seconds; the first is the baseline.
        settings: whatever one needs to know to repeat it.
    """

    name: str
    amount: float
    unit: str
    contenders: dict[str, Callable[[], float]]
    settings: dict[str, Any] = field(default_factory=dict)


def now() -> float:
    """The time in seconds, once the GPU, if there is one, has finished what it was given."""
    if torch.accelerator.is_available():
        torch.accelerator.synchronize()
    return time.perf_counter()


def timed(work: Callable[[], object]) -> Callable[[], float]:
    """A contender that times all of `work`."""

    def run() -> float:
        start = now()
        work()
        return now() - start

    return run


def measure(
    comparison: Comparison, repeats: int, report: Callable[[str], object] = str, warm_up: bool = True
) -> dict[str, Any]:
    """Runs a comparison in `repeats` interleaved rounds, after one to warm up, which isn't counted.

    Returns:
        The comparison as JSON: of each contender rate, ratio to the baseline, spread and all seconds.
    """
    names = list(comparison.contenders)
    seconds: dict[str, list[float]] = {name: [] for name in names}
    for turn in range(0 if warm_up else 1, repeats + 1):
        first = turn % len(names)
        for name in names[first:] + names[:first]:
            report(f"{comparison.name}: {name} ({turn}/{repeats})")
            gc.collect()
            took = comparison.contenders[name]()
            if turn:
                seconds[name].append(took)
    rows = []
    for name, times in seconds.items():
        rates = [comparison.amount / each for each in times]
        rate = statistics.median(rates)
        ratio = statistics.median(b / s for s, b in zip(times, seconds[names[0]], strict=True))
        spread = (max(rates) - min(rates)) / rate
        rows.append({"name": name, "rate": rate, "ratio": ratio, "spread": spread, "seconds": times})
    facts = {name: getattr(comparison, name) for name in ("name", "amount", "unit", "settings")}
    return facts | {"baseline": names[0], "contenders": rows}


def run_benchmark(name: str, options: Options, report: Callable[[str], object] = str) -> dict[str, Any]:
    """Runs `craft/benchmarks/{name}.py` and returns what `save` and `tables` take."""
    module = importlib.import_module(f"craft.benchmarks.{name}")
    return {
        "schema": SCHEMA,
        "benchmark": name,
        "started": time.strftime("%Y-%m-%dT%H:%M:%S%z"),
        **describe_machine(),
        "protocol": {
            "description": " ".join((module.__doc__ or "").split()),
            "rounds": " ".join((__doc__ or "").split()),
            **asdict(options),
        },
        "comparisons": [
            measure(comparison, options.repeats, report, warm_up=not options.quick)
            for comparison in module.comparisons(options)
        ],
    }


def describe_machine() -> dict[str, Any]:
    """Hardware, versions and commit."""
    gpu = torch.cuda.get_device_name() if torch.cuda.is_available() else None
    threads = torch.get_num_threads()
    name = gpu or f"{cpu_name()}-{threads}t"
    return {
        "hardware": {"name": name, "cpu": cpu_name(), "threads": threads, "system": platform.platform()},
        "versions": {
            "python": platform.python_version(),
            "craft": craft.__version__,
            **{package: version(package) for package in PACKAGES},
        },
        "commit": commit(),
    }


def commit() -> str | None:
    """The commit of the checkout that craft runs from, with `-dirty` if files differ; None without one."""
    root = Path(craft.__file__).parents[1]
    # git by itself would also find a repository around an installed craft.
    if not (root / ".git").exists() or shutil.which("git") is None:
        return None
    command = ["git", "describe", "--always", "--dirty"]
    return subprocess.run(command, cwd=root, capture_output=True, text=True).stdout.strip()


def save(report: dict[str, Any]) -> Path:
    """Writes a report to `outputs/benchmarks/`."""
    path = benchmark_file(report["benchmark"], report["hardware"]["name"])
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(report, indent=1) + "\n", encoding="utf-8")
    return path


def tables(report: dict[str, Any]) -> Iterator[Table]:
    """One rich table for each comparison of a report."""
    for comparison in report["comparisons"]:
        table = Table(title=f"{report['benchmark']}: {comparison['name']}", title_justify="left")
        table.add_column("")
        for column in (f"{comparison['unit']}/s", "ratio", "spread"):
            table.add_column(column, justify="right")
        for row in comparison["contenders"]:
            name = row["name"] + (" (baseline)" if row["name"] == comparison["baseline"] else "")
            rate = f"{row['rate']:,.0f}" if row["rate"] >= 100 else f"{row['rate']:.3g}"
            table.add_row(name, rate, f"{row['ratio']:.2f}", f"{row['spread']:.0%}")
        yield table
