"""Several runs in one picture."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from click.testing import CliRunner
from refusals import refused

from craft.cli.visualize import command
from craft.views.runs import run_curves

LSTM = [
    {"step": 10, "characters": 640, "wall": 30.0, "loss": 2.0},
    {"step": 10, "characters": 640, "wall": 33.0, "eval_bits_per_char": 3.0, "eval_bits_per_byte": 2.9},
    {"step": 20, "characters": 1280, "wall": 63.0, "eval_bits_per_char": 2.5, "eval_bits_per_byte": 2.4},
    {"step": 30, "characters": 1920, "wall": 90.0, "eval_bits_per_char": None},
]
BYTES = [{"step": 5, "bytes": 320, "wall": 12.0, "eval_bits_per_byte": 2.8}]


@pytest.mark.parametrize(
    ("over", "points"),
    [
        ("minutes", [(0.55, 3.0), (1.05, 2.5)]),
        ("steps", [(10, 3.0), (20, 2.5)]),
        ("characters", [(640, 3.0), (1280, 2.5)]),
    ],
)
def test_scores_are_drawn_over_what_is_asked_for(over: str, points: list[tuple[float, float]]) -> None:
    curves = run_curves({"lstm": LSTM}, over)
    assert curves.unit.name == "character"
    assert curves.runs["lstm"] == [pytest.approx(point) for point in points]


def test_runs_of_different_units_are_compared_in_what_all_have() -> None:
    curves = run_curves({"lstm": LSTM, "bytes": BYTES})
    assert curves.unit.name == "byte"
    assert curves.runs == {"lstm": [(0.55, 2.9), (1.05, 2.4)], "bytes": [(0.2, 2.8)]}


def test_runs_that_cannot_be_compared_are_refused() -> None:
    with refused("model-mismatch", "pixels: eval_bits_per_dim"):
        run_curves({"lstm": LSTM, "pixels": [{"step": 1, "wall": 1.0, "eval_bits_per_dim": 1.0}]})
    with refused("setting-conflict", "old", "--over"):
        run_curves({"old": [{"step": 1, "eval_bits_per_char": 1.0}]})


def test_the_command_draws_folders_and_files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("matplotlib", reason="the plots extra is not installed")
    monkeypatch.chdir(tmp_path)
    Path("run").mkdir()
    for file, history in (("run/metrics.jsonl", LSTM), ("nanogpt.jsonl", BYTES)):
        Path(file).write_text("".join(json.dumps(entry) + "\n" for entry in history))
    drawn = CliRunner().invoke(command, ["run", "nanogpt.jsonl"], catch_exceptions=False).stdout.strip()
    assert Path(drawn).match("outputs/visualizations/runs_*.png")
    assert Path(drawn).read_bytes().startswith(b"\x89PNG")
    Path("empty").mkdir()
    with refused("file-missing", "empty", "metrics.jsonl"):
        CliRunner().invoke(command, ["empty"], catch_exceptions=False)
