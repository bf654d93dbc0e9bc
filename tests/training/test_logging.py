from __future__ import annotations

import io
import json
import logging
import re
import sys
from pathlib import Path

import pytest
import tiny_run
from transformers import TrainerState

from craft.sharing.record import METRICS_FILE
from craft.training.callbacks.progress import Progress
from craft.training.callbacks.step_lines import StepLines
from craft.training.checkpointing.parts import Stopwatch
from craft.training.logging import add_metrics, begin_metrics, read_metrics
from craft.utils.logging import setup_logging


def test_a_resumed_run_drops_the_events_that_it_writes_again(tmp_path: Path) -> None:
    begin_metrics(tmp_path, 0)
    for step in (5, 10, 10, 15):
        loss = float("nan") if step == 15 else 1.0
        add_metrics(tmp_path, {"step": step, "loss": loss, "sample": "line\u2028separator"})
    assert json.loads((tmp_path / METRICS_FILE).read_text().split("\n")[3])["loss"] is None
    with (tmp_path / METRICS_FILE).open("a") as torn:
        torn.write('{"step": 16, "lo')
    assert [event["step"] for event in read_metrics(tmp_path)] == [5, 10, 10, 15]
    begin_metrics(tmp_path, 10)
    add_metrics(tmp_path, {"step": 12})
    assert [event["step"] for event in read_metrics(tmp_path)] == [5, 10, 10, 12]
    begin_metrics(tmp_path, 0)
    assert read_metrics(tmp_path) == []


def test_the_stopwatch_counts_training_only(monkeypatch: pytest.MonkeyPatch) -> None:
    now = [100.0]
    monkeypatch.setattr("time.perf_counter", lambda: now[0])
    watch = Stopwatch()
    watch.load_state_dict({"elapsed": 50.0})
    watch.run()
    now[0] += 3
    watch.pause()
    now[0] += 100
    assert watch.total() == 53
    assert watch.lap() == 3
    watch.run()
    watch.run()
    now[0] += 2
    assert (watch.lap(), watch.total(), watch.before) == (2, 55, 50)


def test_each_logged_step_and_evaluation_has_a_line(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    setup_logging(tmp_path / "log.txt")
    tiny_run.trainer("char_transformer", tmp_path / "run", sample_chars=12).train()
    lines = capsys.readouterr().err.splitlines()
    losses = [line for line in lines if "bits/char" in line and "chars/s" in line]
    assert [line.split()[1] for line in losses] == ["5/20", "10/20", "15/20", "20/20"]
    assert all("left" in line for line in losses[:-1])
    scores = [line for line in lines if "  validation " in line]
    assert re.fullmatch(
        r"step 20  validation \d\.\d{4} nats = \d\.\d{4} bits/char  \(blocks, best so far\)", scores[-1]
    )
    assert all(len(line) <= 80 for line in losses + scores)
    assert any(line == "sample:" for line in lines)
    assert "\x1b" not in "".join(lines)
    assert "step  5/20" in (tmp_path / "log.txt").read_text()


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


@pytest.fixture(autouse=True)
def quiet() -> None:
    yield
    for handler in list(logging.getLogger("craft").handlers):
        logging.getLogger("craft").removeHandler(handler)
        handler.close()
    logging.getLogger("craft").propagate = True


def test_a_trainer_of_something_else_logs_its_loss(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    progress = Progress()
    state = TrainerState(global_step=5, max_steps=20, is_world_process_zero=True)
    with caplog.at_level(logging.INFO, logger="craft"):
        progress.on_train_begin(None, state, None)
        progress.on_log(None, state, None, {"loss": 1.25})
    assert caplog.messages[-1] == "step  5/20  loss 1.250"


def test_programs_get_a_json_line_for_each_logged_step(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    trainer = tiny_run.trainer(
        "char_transformer", tmp_path / "run", max_steps=12, eval_steps=5, logging_steps=5
    )
    trainer.add_callback(lines := StepLines())
    trainer.train()
    lines.final("abc")
    *shown, last = capsys.readouterr().out.splitlines()
    assert last == "FINAL abc"
    events = [json.loads(line) for line in shown]
    assert [event["step"] for event in events] == [5, 10, 12]
    logged = [entry for entry in trainer.state.log_history if "loss" in entry]
    scored = [entry for entry in trainer.state.log_history if "eval_loss" in entry]
    assert [event["loss"] for event in events] == [entry["loss"] for entry in logged]
    assert [event["eval_loss"] for event in events] == [entry["eval_loss"] for entry in scored]


def test_programs_get_a_line_for_an_evaluation_between_logged_steps(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    settings = {"max_steps": 8, "eval_steps": 3, "logging_steps": 4, "eval_on_start": True}
    trainer = tiny_run.trainer("char_transformer", tmp_path / "run", **settings)
    trainer.add_callback(StepLines())
    trainer.train()
    events = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    kinds = [(event["step"], "loss" in event, "eval_loss" in event) for event in events]
    alone, plain, both = (False, True), (True, False), (True, True)
    assert kinds == [(0, *alone), (3, *alone), (4, *plain), (6, *alone), (8, *both)]


def test_a_terminal_gets_no_json_lines(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    screen = Terminal()
    monkeypatch.setattr(sys, "stdout", screen)
    lines = StepLines()
    lines.on_log(None, TrainerState(global_step=5), None, {"loss": float("nan")})
    lines.final("abc")
    assert screen.getvalue() == ""
