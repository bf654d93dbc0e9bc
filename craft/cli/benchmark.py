"""`craft benchmark`: craft's speed beside baselines, on this machine."""

from __future__ import annotations

import click

from craft.benchmarks import NAMES
from craft.utils.terminal import echo


@click.command("benchmark")
@click.argument("names", nargs=-1, type=click.Choice(NAMES), metavar="[" + "|".join(NAMES) + "]...")
@click.option("--repeats", metavar="N", default=5, show_default=True, type=click.IntRange(min=2),
              help="Rounds that count, after one to warm up.")  # fmt: skip
@click.option("--steps", metavar="N", default=100, show_default=True, type=click.IntRange(min=2),
              help="train: steps of one measurement.")  # fmt: skip
@click.option("--quick", is_flag=True, help="Tiny models and texts, to see that everything runs; no figures.")
def command(names: tuple[str, ...], repeats: int, steps: int, quick: bool) -> None:
    """Measure craft's speed beside baselines: medians of interleaved rounds in the same process.

    Without a name all four run, which takes about a quarter of an hour on two cores. Every measurement goes
    into a JSON file under outputs/benchmarks.
    """
    from rich.console import Console

    from craft.benchmarks.harness import Options, run_benchmark, save, tables

    options = Options(repeats=repeats, steps=steps, quick=quick)
    console, progress = Console(), Console(stderr=True)
    if not console.is_terminal:
        console.width = 120  # a file has no width, and a wrapped table is hard to read
    for name in names or NAMES:
        with progress.status(name) as status:
            report = run_benchmark(name, options, status.update)
        for table in tables(report):
            console.print(table)
        echo(f"{save(report)}\n")
