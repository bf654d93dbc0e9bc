"""What a run says at its end, and which folders it refuses."""

from __future__ import annotations

import logging
import shlex
from pathlib import Path

import pytest
from refusals import refused

from craft.runs import is_overfit, writable
from craft.train import print_next_steps
from craft.utils.outputs import RunPaths


@pytest.mark.parametrize("name", ["run_step_3", "my runs/run 'a' \"b\"_step_3"])
def test_the_next_commands_can_be_pasted(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    said: list[str] = []
    monkeypatch.setattr(logging.getLogger("craft.train"), "info", said.append)
    print_next_steps(Path(name), RunPaths("m", "1K", "fp32", "20260102_030405", folder=Path("run")))
    generate, evaluate = (shlex.split(line) for line in said[0].splitlines()[-2:])
    assert generate == ["craft", "generate", name]
    assert evaluate == ["craft", "evaluate", name]


def test_a_folder_that_cannot_be_written(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("x", encoding="utf-8")
    with refused("file-unwritable", tmp_path / "file/logs"), writable(tmp_path / "file/logs"):
        (tmp_path / "file/logs").mkdir()


@pytest.mark.parametrize(
    ("losses", "best", "overfit"),
    [
        ({50: 2.0, 100: 1.5, 150: 1.0, 200: 0.5}, 100, True),
        ({50: 2.0, 100: 1.5, 150: 1.0, 200: 0.5}, 151, False),  # late enough
        ({50: 2.0, 100: 1.5, 150: 1.0, 200: 1.6}, 100, False),  # it diverged instead
        ({}, 100, False),
    ],
)
def test_an_early_best_step_before_a_falling_loss_is_overfitting(
    losses: dict[int, float], best: int, overfit: bool
) -> None:
    history = [{"step": step, "loss": loss} for step, loss in losses.items()] + [
        {"step": 200, "eval_loss": 9}
    ]
    assert is_overfit(history, best, 200) is overfit
