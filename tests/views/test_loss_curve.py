"""The loss curve: a real PNG where there is something to draw, a reason where there isn't."""

from __future__ import annotations

import sys
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest

from craft.utils.units import UNITS, unit_named
from craft.views import png
from craft.views.loss_curve import loss_curve
from craft.views.png import draw_loss_curve

HISTORY = [
    {"step": 10, "characters": 7680, "loss": 1.6, "bits_per_char": 4.5},
    {"step": 20, "characters": 15360, "loss": float("nan"), "bits_per_char": float("nan")},
    {"step": 25, "characters": 19200, "loss": None, "bits_per_char": None},
    {"step": 20, "characters": 15360, "eval_loss": 2.4, "eval_bits_per_char": 3.5},
]


def plot_loss_curve(
    history: Sequence[dict[str, Any]], path: Path, title: str = "", unit: str = "character", **scored: str
) -> Path | None:
    return draw_loss_curve(loss_curve(history, unit_named(unit), title=title, **scored), path)


def test_draws_a_png(tmp_path: Path) -> None:
    pytest.importorskip("matplotlib", reason="the plots extra is not installed")
    path = plot_loss_curve(HISTORY, tmp_path / "new" / "loss.png", "a title")
    assert path is not None
    assert path.read_bytes().startswith(b"\x89PNG")


def test_both_curves_are_in_bits_per_character(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Of bytes of an alphabet of several, the loss is per byte in training and per character after it."""
    pytest.importorskip("matplotlib", reason="the plots extra is not installed")
    from matplotlib.axes import Axes

    drawn: list[list[float]] = []
    plot = Axes.plot

    def remember(self: Axes, x: list[float], y: list[float], **style: object) -> object:
        drawn.append(y)
        return plot(self, x, y, **style)

    monkeypatch.setattr(Axes, "plot", remember)
    plot_loss_curve(HISTORY, tmp_path / "loss.png")
    assert [list(values) for values in drawn] == [[4.5], [3.5]]


LONG = ["小说" * 45, "W" * 200, "i" * 400, "long " * 60, "x" * 9999]


@pytest.mark.parametrize("name", ["小说", "$x^2$ and $", r"\$_{x^\frac", "two\nlines", *LONG])
@pytest.mark.parametrize("history", [HISTORY[:1], HISTORY[-1:], HISTORY])
def test_a_title_of_any_characters_and_length_fits_the_picture(
    history: list[dict[str, float]], name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Nothing is warned of or reaches beyond the picture; of a title is shown what has room there."""
    pytest.importorskip("matplotlib", reason="the plots extra is not installed")
    from matplotlib.figure import Figure
    from matplotlib.text import Text

    drawn: list[Figure] = []
    save = Figure.savefig

    def remember(self: Figure, path: Path) -> None:
        drawn.append(self)
        save(self, path)

    monkeypatch.setattr(Figure, "savefig", remember)
    title = f"char_lstm 1.1M on {name}"
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert plot_loss_curve(history, tmp_path / "loss.png", title)
        (text,) = drawn[0].findobj(lambda each: isinstance(each, Text) and each.get_text()[:9] == title[:9])
        shown, whole = text.get_text(), " ".join(title.split())
        warnings.filterwarnings("ignore", message="Glyph")
        box, width = text.get_window_extent(), drawn[0].bbox.width
    assert 0 <= box.x0 < box.x1 <= width
    assert shown == whole or (whole.startswith(shown[:-1]) and shown[-1] == "…" and box.x1 > 0.9 * width)


@pytest.fixture
def figures(monkeypatch: pytest.MonkeyPatch) -> list[Any]:
    """The pictures that are drawn, none of which is written."""
    pytest.importorskip("matplotlib", reason="the plots extra is not installed")
    from matplotlib.figure import Figure

    drawn: list[Any] = []
    monkeypatch.setattr(Figure, "savefig", lambda self, path: drawn.append(self))
    return drawn


def test_the_legend_names_the_best_figure(tmp_path: Path, figures: list[Any]) -> None:
    """Characters in thousands and millions; the best figure in the legend, where it hides no curve."""
    plot_loss_curve(HISTORY, tmp_path / "loss.png")
    (axes,) = figures[0].axes
    shown = [text.get_text() for text in axes.get_legend().get_texts()]
    assert shown == ["training", "validation, whole split", "best: 3.500 bits = 2.426 nats, step 20"]
    assert axes.xaxis.get_major_formatter()(15360) == "15.36 k"
    low, high = axes.get_ylim()
    assert 3.4 < low < 3.5
    assert 4.5 < high < 4.6


@pytest.mark.parametrize("points", [12, 500])
def test_a_text_learnt_by_heart_leaves_its_validation_in_sight(
    points: int, tmp_path: Path, figures: list[Any]
) -> None:
    learnt = [{"step": n, "characters": 100 * n, "bits_per_char": 6 / n} for n in range(1, points)]
    held_out = [{"step": n, "characters": 100 * n, "eval_bits_per_char": 2 + n / points} for n in (4, 6, 8)]
    plot_loss_curve(learnt + held_out, tmp_path / "loss.png")
    low, high = figures[0].axes[0].get_ylim()
    assert 0 <= low < 6 / points
    assert max(row["eval_bits_per_char"] for row in held_out) < high < 6


@pytest.mark.parametrize("unit", ["byte", "pixel", "note"])
def test_every_word_on_the_picture_is_of_the_unit(unit: str, tmp_path: Path, figures: list[Any]) -> None:
    from matplotlib.text import Text

    metric, plural = unit_named(unit).metric, unit_named(unit).plural
    history = [{"step": 1, plural: 9, metric: 3.0}, {"step": 1, plural: 9, f"eval_{metric}": 2.0}]
    plot_loss_curve(history, tmp_path / "loss.png", unit=unit, scored=f"first 200,000 {plural}")
    words = " ".join(text.get_text() for text in figures[0].findobj(Text))
    for expected in (f"training {plural}", unit_named(unit).label, f"validation, first 200,000 {plural}"):
        assert expected in words
    assert "char" not in words
    assert UNITS["character"].label not in words


def said(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    lines: list[str] = []
    monkeypatch.setattr(png.logger, "info", lines.append)
    return lines


def test_a_run_that_logged_nothing_has_no_picture(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    lines = said(monkeypatch)
    assert plot_loss_curve([{"step": 1}], tmp_path / "loss.png") is None
    assert "logging_steps" in lines[0]


def test_without_matplotlib_one_line_says_what_to_install(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    lines = said(monkeypatch)
    monkeypatch.setitem(sys.modules, "matplotlib.figure", None)
    assert plot_loss_curve(HISTORY, tmp_path / "loss.png") is None
    assert "craft-lm[plots]" in lines[0]
    assert not (tmp_path / "loss.png").exists()
