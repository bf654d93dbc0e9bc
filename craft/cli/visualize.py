"""`craft visualize`."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from craft.cli.options import PATH
from craft.utils.terminal import echo
from craft.views.runs import AXES


@click.command("visualize")
@click.argument("runs", nargs=-1, required=True, type=PATH, metavar="RUN...")
@click.option(
    "--over", type=click.Choice(list(AXES)), default="minutes", help="What the runs are drawn over."
)
@click.option("--output", type=PATH, metavar="FILE", help="[default: a file under outputs/visualizations]")
def command(runs: tuple[Path, ...], over: str, output: Path | None) -> None:
    """Draw the validation of several runs into one picture.

    RUN is the folder of a run or of a finished model, or a file of metrics: one JSON object a line, with
    step, wall (seconds) and eval_bits_per_char.

    \b
    craft visualize outputs/models/*_step_*
    craft visualize runs/a runs/b --over characters --output ab.png
    """
    from craft.utils.outputs import visualization_file
    from craft.views.png import draw_runs
    from craft.views.runs import run_curves

    names = [run.name if run.is_dir() else run.stem for run in runs]
    if len(set(names)) < len(names):
        names = [str(run) for run in runs]
    histories = {name: _metrics(run) for name, run in zip(names, runs)}
    echo(str(draw_runs(run_curves(histories, over), output or visualization_file("runs"))))


def _metrics(run: Path) -> list[dict[str, Any]]:
    """The metrics of a run.

    Raises:
        UserError: if there are none.
    """
    from craft.sharing.record import METRICS_FILE
    from craft.training.logging import read_metrics
    from craft.utils.errors import UserError

    found = read_metrics(run)
    if not found:
        raise UserError(
            f"{run} holds no metrics; give the folder of a run, of a finished model, or a {METRICS_FILE}",
            code="file-missing",
        )
    return found
