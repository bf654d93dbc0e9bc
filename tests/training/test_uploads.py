"""Checkpoints on their way to a real server, which answers when the test lets it."""

from __future__ import annotations

import logging
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import tiny_run
from transformers import TrainerCallback

from craft.training.base import LanguageModelTrainer
from craft.training.checkpointing.folders import checkpoints

sys.path.insert(0, str(Path(__file__).resolve().parent.parent / "hub"))
from server import Hub

QUIET: dict[str, Any] = {"eval_strategy": "no", "report_to": "none"}


@pytest.fixture
def hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    """Holding its lock keeps every request waiting."""
    with Hub() as hub:
        for name, value in hub.environment(tmp_path / "home", "ada").items():
            monkeypatch.setenv(name, value)
        monkeypatch.setattr("craft.training.callbacks.uploads.open_repo", lambda *_, **__: "ada/run")
        hub.add("models/ada/run", {"config.json": b"{}"})
        yield hub


def run(run_dir: Path, strategy: str, **changes: Any) -> LanguageModelTrainer:
    """A run of six steps that saves and uploads after two, four and six."""
    settings = {"push_to_hub": True, "hub_strategy": strategy, "max_steps": 6, "save_steps": 2, **changes}
    return tiny_run.trainer("char_transformer", run_dir, **QUIET, **settings)


def names(run_dir: Path) -> list[str]:
    return [checkpoint.name for checkpoint in checkpoints(run_dir)]


class Slow(TrainerCallback):
    """The server answers nothing until the last step is done.

    Attributes:
        pending: what wasn't uploaded then.
        there: the checkpoints of the run then.
    """

    def __init__(self, trainer: LanguageModelTrainer, hub: Hub) -> None:
        self.trainer, self.hub = trainer, hub

    def on_step_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        if state.global_step == 0:
            self.hub.lock.acquire()

    def on_train_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        self.pending = self.trainer.uploads.steps
        self.there = names(self.trainer.run_dir)
        self.hub.lock.release()


def test_training_goes_on_beside_an_upload_and_waits_for_the_last(
    hub: Hub, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """What isn't uploaded yet isn't removed; of what waits the newest is sent."""
    run_dir = tmp_path / "run"
    trainer = run(run_dir, "checkpoint", save_total_limit=1, max_steps=8)
    trainer.add_callback(slow := Slow(trainer, hub))
    with caplog.at_level(logging.INFO, logger="craft"):
        trainer.train()
    assert slow.pending == {2, 8}
    assert {"checkpoint-2", "checkpoint-8"} <= set(slow.there)
    assert names(run_dir) == ["checkpoint-8"]
    assert all(f"checkpoint-{step} isn't uploaded" in caplog.text for step in (4, 6))
    repo = hub.repos["models/ada/run"]
    assert repo.messages == ["initial commit", "Step 2", "Step 8"]
    model = (run_dir / "checkpoint-8" / "model.safetensors").read_bytes()
    (*_, first, last) = repo.commits.values()
    assert last["model.safetensors"] == last["last-checkpoint/model.safetensors"] == model
    assert first["model.safetensors"] == first["last-checkpoint/model.safetensors"] != model


def test_an_upload_that_fails_is_told_and_the_next_one_is_sent(
    hub: Hub, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    hub.faults["commit"], hub.answers["commit"] = 1, 409
    with caplog.at_level(logging.INFO, logger="craft"):
        run(tmp_path / "run", "all_checkpoints").train()
    assert [m for m in caplog.messages if "checkpoint-2 " in m and "ada/run" in m and "409" in m]
    assert hub.repos["models/ada/run"].messages == ["initial commit", "Step 4", "Step 6"]


def test_every_checkpoint_is_sent_if_that_is_asked_for(hub: Hub, tmp_path: Path) -> None:
    trainer = run(tmp_path / "run", "every_save", hub_always_push=True)
    trainer.train()
    assert hub.repos["models/ada/run"].messages == ["initial commit", "Step 2", "Step 4", "Step 6"]
    assert "last-checkpoint/model.safetensors" not in list(hub.repos["models/ada/run"].commits.values())[-1]


def test_the_process_of_an_upload_runs_nothing_from_the_current_folder(
    hub: Hub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It has the token of the Hub in its environment."""
    for name in ("base64", "token", "json", "craft"):
        (tmp_path / f"{name}.py").write_text(f"open({str(tmp_path / 'executed')!r}, 'a').write({name!r})")
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("PYTHONPATH", raising=False)
    run(tmp_path / "run", "every_save", save_steps=6).train()
    assert hub.repos["models/ada/run"].messages[1:] == ["Step 6"]
    assert not (tmp_path / "executed").exists()


def test_a_process_that_can_not_be_started_is_told(
    hub: Hub, tmp_path: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuses(*args: Any, **kwargs: Any) -> None:
        raise OSError(12, "Cannot allocate memory")

    trainer = run(tmp_path / "run", "checkpoint", save_steps=6)
    monkeypatch.setattr(subprocess, "Popen", refuses)
    trainer.train()
    assert [m for m in caplog.messages if "checkpoint-6 " in m and "Cannot allocate memory" in m]
    assert not trainer.uploads.steps


@pytest.mark.parametrize(
    ("number", "seconds"), [(signal.SIGTERM, 200), (signal.SIGUSR1, 0.5), (signal.SIGINT, 200)]
)
def test_a_signal_ends_uploads_soon_and_what_is_left_off_is_named(
    hub: Hub,
    tmp_path: Path,
    caplog: pytest.LogCaptureFixture,
    monkeypatch: pytest.MonkeyPatch,
    number: int,
    seconds: float,
) -> None:
    """What was saved is uploaded for a while; after Ctrl-C not at all."""
    monkeypatch.setattr("craft.training.callbacks.uploads.LAST_SECONDS", seconds)
    run_dir = tmp_path / "run"
    trainer = run(run_dir, "checkpoint", save_steps=100, max_steps=20, hub_revision="main")
    trainer.add_callback(tiny_run.SignalAt(5, number))
    if number == signal.SIGUSR1:
        hub.lock.acquire()
    with pytest.raises(SystemExit), caplog.at_level(logging.INFO, logger="craft"):
        trainer.train()
    if number == signal.SIGUSR1:
        hub.lock.release()
    later = f"craft push {run_dir / 'checkpoint-6'} ada/run --into last-checkpoint --branch main"
    assert (later in caplog.text) == (number != signal.SIGTERM)
    assert ("Step 6" in hub.repos["models/ada/run"].messages) == (number == signal.SIGTERM)
    assert not trainer.uploads.steps
