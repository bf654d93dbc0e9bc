"""Views as PNG. matplotlib is an extra (`pip install "craft-lm[plots]"`), imported when it is needed."""

from __future__ import annotations

import math
import warnings
from bisect import bisect
from pathlib import Path
from typing import TYPE_CHECKING

from craft.utils.errors import UserError
from craft.utils.logging import get_logger
from craft.views.loss_curve import LossCurve
from craft.views.runs import RunCurves

if TYPE_CHECKING:
    from matplotlib.axes import Axes

logger = get_logger(__name__)

RUNS = ("#d1495b", "#2e4057", "#edae49", "#00798c", "#8da0b8", "#66a182")
TRAIN, VALIDATION, BEST = "#8da0b8", "#d1495b", "#2e4057"


def draw_loss_curve(curve: LossCurve | None, path: Path) -> Path | None:
    """Draws a loss curve.

    Returns:
        `path`, or `None` (and one log line that says why) if matplotlib is missing or nothing was logged.
    """
    if curve is None:
        logger.info("no loss curve: the run logged no loss (see training.logging_steps)")
        return None
    try:
        axes = _new_axes()
    except ImportError:
        logger.info('no loss curve: matplotlib is missing; pip install "craft-lm[plots]" draws one')
        return None
    if curve.training:
        dot = "o" if len(curve.training) == 1 else ""
        style = {"color": TRAIN, "linewidth": 1.2, "marker": dot, "markersize": 4}
        axes.plot(*zip(*curve.training), label="training", **style)
    if curve.best is not None:
        style = {"color": VALIDATION, "linewidth": 2, "marker": "o", "markersize": 4}
        axes.plot(*zip(*curve.validation), label=f"validation, {curve.scored}", **style)
        index, step = curve.best
        x, bits = curve.validation[index]
        ring = {"s": 90, "zorder": 3, "facecolors": "none", "edgecolors": BEST, "linewidths": 1.5}
        figures = f"{bits:.3f} bits = {bits * math.log(2):.3f} nats, step {step:,}"
        axes.scatter([x], [bits], label=f"best: {figures}", **ring)
    values = sorted(bits for _, bits in [*curve.training, *curve.validation])
    # The first few values (log2 of the vocabulary size) would flatten everything that comes after. Of a text
    # learnt by heart the training comes near 0, and the validation doesn't.
    best = min((bits for _, bits in curve.validation), default=values[0])
    top = min(values[-1], 2.2 * best)
    margin = max(0.06 * (top - values[0]), 0.02)
    axes.set_ylim(max(0.0, values[0] - margin), top + margin)
    axes.set_xlabel(curve.over)
    axes.set_ylabel(curve.unit.label)
    nats = axes.secondary_yaxis("right", functions=(lambda v: v * math.log(2), lambda v: v / math.log(2)))
    nats.set_ylabel(curve.unit.label.replace("bits", "nats"))
    axes.spines["top"].set_visible(False)
    axes.legend(framealpha=0.85, edgecolor="none")
    path.parent.mkdir(parents=True, exist_ok=True)
    with warnings.catch_warnings():  # of the signs of a name that the font lacks
        warnings.filterwarnings("ignore", message="Glyph")
        axes.figure.draw_without_rendering()  # which lays it out, so that the room for a title is known
        if curve.title:
            _set_title(axes, " ".join(curve.title.split()))
        axes.figure.savefig(path)
    return path


def draw_runs(curves: RunCurves, path: Path) -> Path:
    """Draws the validation of several runs, each with its name and its best at the end of its line.

    Raises:
        UserError: if matplotlib is missing.
    """
    try:
        axes = _new_axes()
    except ImportError:
        raise UserError(
            'pictures need matplotlib: pip install "craft-lm[plots]"', code="package-missing"
        ) from None
    bests = {name: min(bits for _, bits in points) for name, points in curves.runs.items()}
    for index, (name, points) in enumerate(curves.runs.items()):
        label = f"{name}: {bests[name]:.3f} bits = {bests[name] * math.log(2):.3f} nats"
        axes.plot(
            *zip(*points), color=RUNS[index % len(RUNS)], linewidth=2, marker="o", markersize=4, label=label
        )
    # Of the first scores only as much as leaves room for the last ones.
    lowest, highest = min(bests.values()), max(bests.values())
    first = max(points[0][1] for points in curves.runs.values())
    top = min(first, highest + max(0.5, 1.5 * (highest - lowest)))
    margin = 0.06 * (top - lowest) + 0.01
    axes.set_ylim(lowest - margin, top + margin)
    axes.set_xlim(left=0)
    if curves.over == "minutes":
        axes.xaxis.set_major_formatter("{x:g}")
    axes.set_xlabel(
        f"{curves.over} since the start of the process" if curves.over == "minutes" else curves.over
    )
    axes.set_ylabel(f"validation, {curves.unit.label}")
    for side in ("top", "right"):
        axes.spines[side].set_visible(False)
    axes.figure.legend(loc="outside upper left", edgecolor="none")
    path.parent.mkdir(parents=True, exist_ok=True)
    axes.figure.savefig(path)
    return path


def _new_axes() -> Axes:
    """The axes of a picture of their own, with counts such as 250 k below them.

    Raises:
        ImportError: without matplotlib.
    """
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure
    from matplotlib.ticker import EngFormatter

    figure = Figure(figsize=(8, 4.5), dpi=150, layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.add_subplot()
    axes.xaxis.set_major_formatter(EngFormatter(sep=" "))
    axes.grid(alpha=0.25, linewidth=0.6)
    return axes


def _set_title(axes: Axes, title: str) -> None:
    """Writes a title above axes that are laid out, and cuts what would reach beyond the picture.

    How wide a character is, only its font knows; `$` is one, not the start of mathematics.
    """
    text = axes.set_title(title, loc="left", fontsize=11, parse_math=False)
    right = 0.99 * axes.figure.bbox.width

    def reach(length: int) -> float:
        text.set_text(f"{title[:length].rstrip()}…")
        return text.get_window_extent().x1

    if text.get_window_extent().x1 > right:
        reach(bisect(range(1, len(title)), right, key=reach))
