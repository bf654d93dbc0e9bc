"""Pictures of a run. matplotlib is an extra (`pip install "craft-lm[plots]"`), imported when it is needed."""

from __future__ import annotations

import math
import warnings
from bisect import bisect
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from craft.utils.logging import get_logger

if TYPE_CHECKING:
    from matplotlib.axes import Axes

logger = get_logger(__name__)

TRAIN, VALIDATION, BEST = "#8da0b8", "#d1495b", "#2e4057"


def plot_loss_curve(history: Sequence[dict[str, Any]], path: Path, title: str = "") -> Path | None:
    """Draws bits per character in training and validation over the characters seen.

    Args:
        history: the entries of `metrics.jsonl`: dicts with `step` and `bits_per_char` or
            `eval_bits_per_char` (losses wouldn't do: training's is per id, which may be one of a
            character's bytes) and, where known, `characters` (training characters seen so far).
        path: the PNG to write.
        title: one line above the picture, cut where that ends.

    Returns:
        `path`, or `None` (and one log line that says why) if matplotlib is missing or nothing was logged.
    """
    train, validation = _points(history, "bits_per_char"), _points(history, "eval_bits_per_char")
    if not train and not validation:
        logger.info("no loss curve: the run logged no loss (see training.logging_steps)")
        return None
    try:
        from matplotlib.backends.backend_agg import FigureCanvasAgg
        from matplotlib.figure import Figure
        from matplotlib.ticker import EngFormatter
    except ImportError:
        logger.info('no loss curve: matplotlib is missing; pip install "craft-lm[plots]" draws one')
        return None

    by_characters = all("characters" in entry for entry, _ in train + validation)

    def x(entry: dict[str, Any]) -> float:
        return entry["characters"] if by_characters else entry["step"]

    figure = Figure(figsize=(8, 4.5), dpi=150, layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.add_subplot()
    if train:
        axes.plot(
            [x(e) for e, _ in train],
            [v for _, v in train],
            color=TRAIN, linewidth=1.2, marker="o" if len(train) == 1 else "", markersize=4, label="training",
        )  # fmt: skip
    if validation:
        best, bits = min(validation, key=lambda point: point[1])
        figures = f"{bits:.3f} bits = {bits * math.log(2):.3f} nats, step {best['step']:,}"
        axes.plot(
            [x(e) for e, _ in validation],
            [v for _, v in validation],
            color=VALIDATION, linewidth=2, marker="o", markersize=4, label="validation, whole split",
        )  # fmt: skip
        axes.scatter(
            [x(best)], [bits], s=90, zorder=3, facecolors="none", edgecolors=BEST, linewidths=1.5,
            label=f"best: {figures}",
        )  # fmt: skip
    values = sorted(v for _, v in train + validation)
    # The first few values (log2 of the vocabulary size) would flatten everything that comes after.
    top = min(values[-1], 2.2 * values[0])
    margin = max(0.06 * (top - values[0]), 0.02)
    axes.set_ylim(values[0] - margin, top + margin)
    axes.set_xlabel("training characters" if by_characters else "step")
    axes.xaxis.set_major_formatter(EngFormatter(sep=" "))
    axes.set_ylabel("bits per character")
    nats = axes.secondary_yaxis("right", functions=(lambda v: v * math.log(2), lambda v: v / math.log(2)))
    nats.set_ylabel("nats per character")
    axes.grid(alpha=0.25, linewidth=0.6)
    axes.spines["top"].set_visible(False)
    axes.legend(framealpha=0.85, edgecolor="none")
    path.parent.mkdir(parents=True, exist_ok=True)
    with warnings.catch_warnings():  # of the signs of a name that the font lacks
        warnings.filterwarnings("ignore", message="Glyph")
        figure.draw_without_rendering()  # which lays it out, so that the room for a title is known
        if title:
            _set_title(axes, " ".join(title.split()))
        figure.savefig(path)
    return path


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


def _points(history: Sequence[dict[str, Any]], key: str) -> list[tuple[dict[str, Any], float]]:
    """The entries that have a number under `key` (a NaN is written as null), with it."""
    values = [(entry, entry.get(key)) for entry in history]
    return [(entry, value) for entry, value in values if value is not None and math.isfinite(value)]
