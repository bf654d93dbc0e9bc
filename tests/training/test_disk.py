"""The room on the disk that a run needs, before it starts."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any, NamedTuple

import pytest
import tiny_run
from refusals import refused
from rich.filesize import decimal


class Usage(NamedTuple):
    free: int


def test_a_run_whose_checkpoints_cannot_fit_is_refused_before_it_starts(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    trainer = tiny_run.trainer("char_lstm", tmp_path / "run")
    monkeypatch.setattr(shutil, "disk_usage", lambda folder: Usage(20_000))
    with refused("disk-full", "20.0 kB free", tmp_path / "run", "training.save_total_limit=1"):
        trainer.train()
    assert trainer.state.global_step == 0


@pytest.mark.parametrize(
    ("changes", "copies"),
    [
        ({"save_steps": 5, "save_total_limit": 2}, 3 * 4),  # 2, the best, and one being written
        ({"save_steps": 5, "save_total_limit": 1, "ema_decay": 0.9}, 3 * 4),
        ({"save_steps": 20, "load_best_model_at_end": False}, 3),
        ({"save_steps": 5, "save_total_limit": None, "save_only_model": True, "ema_decay": 0.9}, 4),
        ({"save_steps": 5, "save_total_limit": 1, "load_best_model_at_end": False, "optim": "muon"}, 3 * 3),
        ({"save_strategy": "epoch", "save_total_limit": None}, 3 * 2),
        ({"save_strategy": "no", "load_best_model_at_end": False}, 3),
    ],
)
def test_what_is_said_is_no_less_than_what_a_run_takes(
    changes: dict[str, Any], copies: int, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    trainer = tiny_run.trainer("char_lstm", tmp_path / "run", **{"load_best_model_at_end": True, **changes})
    weights = sum(p.numel() * p.element_size() for p in trainer.model.parameters())
    with caplog.at_level("INFO", logger="craft"):
        trainer.train()
    (said,) = [message for message in caplog.messages if message.startswith("disk ")]
    assert decimal(copies * weights) in said
