"""The loss curve: a real PNG where there is something to draw, a reason where there isn't."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

from craft.utils import visualization
from craft.utils.visualization import plot_loss_curve

HISTORY = [
    {"step": 10, "characters": 7680, "loss": 1.6, "bits_per_char": 4.5},
    {"step": 20, "characters": 15360, "loss": float("nan"), "bits_per_char": float("nan")},
    {"step": 25, "characters": 19200, "loss": None, "bits_per_char": None},
    {"step": 20, "characters": 15360, "eval_loss": 2.4, "eval_bits_per_char": 3.5},
]


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
    assert drawn == [[4.5], [3.5]]


def said(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    lines: list[str] = []
    monkeypatch.setattr(visualization.logger, "info", lines.append)
    return lines


def test_nothing_logged_is_said(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
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
