"""Checkpoints on their way to a real server, which answers when the test lets it."""

from __future__ import annotations

import logging
import shutil
import signal
import sys
import threading
import time
from pathlib import Path
from typing import Any

import pytest
import tiny_run
from transformers import TrainerCallback

from craft.training.checkpointing.disk import check_room
from craft.training.checkpointing.folders import UPLOADING, clear_leftovers
from craft.training.uploads import COPIES, Upload, Uploads
from craft.utils.errors import UserError

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


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run with checkpoints of the steps 2, 4 and 6."""
    run_dir = tmp_path_factory.mktemp("trained") / "run"
    settings: dict[str, Any] = {"max_steps": 6, "save_steps": 2, "save_total_limit": None, **QUIET}
    tiny_run.trainer("char_transformer", run_dir, **settings).train()
    return run_dir


@pytest.fixture
def run_dir(trained: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(trained, tmp_path / "run"))


def add(uploads: Uploads, step: int, name: str = "ada/run", every: bool = False) -> None:
    checkpoint = uploads.folder.parent / f"checkpoint-{step}"
    uploads.add(checkpoint, name, resumable="last-checkpoint", branch=None, every=every)


def wait(uploads: Uploads) -> None:
    deadline = time.monotonic() + 200
    while uploads.pending:
        assert time.monotonic() < deadline
        time.sleep(0.05)


def test_one_is_on_its_way_as_it_was_and_the_newest_waits(
    hub: Hub, run_dir: Path, caplog: pytest.LogCaptureFixture
) -> None:
    uploads = Uploads(run_dir)
    model = {step: (run_dir / f"checkpoint-{step}/model.safetensors").read_bytes() for step in (2, 6)}
    events = (run_dir / "metrics.jsonl").read_text()
    with hub.lock, caplog.at_level(logging.INFO, logger="craft"):
        add(uploads, 2)
        add(uploads, 4)
        add(uploads, 6)
        for step in (2, 4, 6):  # rotated away
            shutil.rmtree(run_dir / f"checkpoint-{step}")
        (run_dir / "metrics.jsonl").write_text("")
        assert [upload.checkpoint.name for upload in uploads.pending] == ["checkpoint-2", "checkpoint-6"]
    assert "checkpoint-4 isn't uploaded: checkpoint-6 takes its place" in caplog.text
    wait(uploads)
    repo = hub.repos["models/ada/run"]
    assert repo.messages == ["initial commit", "Step 2", "Step 6"]
    for files, step in zip(list(repo.commits.values())[1:], (2, 6)):
        assert files["model.safetensors"] == files["last-checkpoint/model.safetensors"] == model[step]
        assert files["last-checkpoint/metrics.jsonl"].decode() == events
    assert not list((run_dir / UPLOADING).iterdir())


def test_every_one_if_that_is_asked_for(hub: Hub, run_dir: Path) -> None:
    uploads = Uploads(run_dir)
    with hub.lock:
        for step in (2, 4, 6):
            add(uploads, step, every=True)
    wait(uploads)
    assert hub.repos["models/ada/run"].messages[1:] == ["Step 2", "Step 4", "Step 6"]


def test_what_is_left_off_is_named_with_what_makes_up_for_all_of_it(run_dir: Path) -> None:
    folder = run_dir / "checkpoint-2"
    model = Upload(folder, folder, "ada/run", resumable=None, branch=None)
    assert model.later() == f"craft push {folder} ada/run"
    whole = Upload(folder, folder, "ada/run", resumable="checkpoint-2", branch="ours")
    assert whole.later() == f"craft push {folder} ada/run --into checkpoint-2 --branch ours"


def test_the_process_of_an_upload_runs_nothing_from_the_current_folder(
    hub: Hub, run_dir: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It has the token of the Hub in its environment."""
    for name in ("base64", "token", "json", "craft"):
        (tmp_path / f"{name}.py").write_text(f"open({str(tmp_path / 'executed')!r}, 'a').write({name!r})")
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("PYTHONPATH", raising=False)
    uploads = Uploads(run_dir)
    add(uploads, 2)
    wait(uploads)
    assert hub.repos["models/ada/run"].messages[1:] == ["Step 2"]
    assert not (tmp_path / "executed").exists()


def test_what_is_left_off_ends_at_once_and_is_named(
    hub: Hub, run_dir: Path, caplog: pytest.LogCaptureFixture
) -> None:
    uploads = Uploads(run_dir)
    with hub.lock:
        add(uploads, 2)
        add(uploads, 4)
        process = uploads._process
        assert process is not None
        uploads.leave()
        assert process.wait(timeout=100) == -9
    assert not uploads.pending
    command = f"craft push {run_dir / 'checkpoint-4'} ada/run --into last-checkpoint"
    assert (
        f"not uploaded: checkpoint-2, checkpoint-4; that can be done later with: {command}\n" in caplog.text
    )
    assert "training goes on" not in caplog.text
    assert hub.repos["models/ada/run"].messages == ["initial commit"]
    assert not (run_dir / UPLOADING).exists()
    (run_dir / UPLOADING / "1").mkdir(parents=True)  # of a killed process
    clear_leftovers(run_dir)
    assert not (run_dir / UPLOADING).exists()


def test_a_process_that_can_not_be_started_is_told(
    run_dir: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refused(command: list[str]) -> None:
        raise OSError(12, "Cannot allocate memory")

    monkeypatch.setattr("craft.training.uploads._start", refused)
    uploads = Uploads(run_dir)
    add(uploads, 2)
    assert not uploads.pending
    assert (
        "checkpoint-2 was not uploaded ([Errno 12] Cannot allocate memory); training goes on" in caplog.text
    )
    assert not list((run_dir / UPLOADING).iterdir())


def test_a_thread_that_can_not_be_started_is_told(
    hub: Hub, run_dir: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refused(thread: threading.Thread) -> None:
        raise RuntimeError("can't start new thread")

    uploads = Uploads(run_dir)
    with hub.lock, monkeypatch.context() as patch:
        patch.setattr("craft.training.uploads.threading.Thread.start", refused)
        add(uploads, 2)
        assert not uploads.pending
    assert "checkpoint-2 was not uploaded (can't start new thread); training goes on" in caplog.text
    add(uploads, 4)
    wait(uploads)
    assert hub.repos["models/ada/run"].messages[1:] == ["Step 4"]


def test_every_one_waits_for_those_before_it(
    hub: Hub, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """However slow the server is, no more copies are on the disk than were announced."""
    settings: dict[str, Any] = {"push_to_hub": True, "hub_strategy": "all_checkpoints", "save_steps": 2}
    trainer = tiny_run.trainer(
        "char_transformer", tmp_path / "run", **QUIET, **settings, max_steps=10, save_total_limit=1
    )
    most: list[int] = []
    add_one = trainer.uploads.queue.add

    def counted(*args: Any, **kwargs: Any) -> None:
        add_one(*args, **kwargs)
        most.append(len(list((tmp_path / "run" / UPLOADING).iterdir())))

    trainer.uploads.queue.add = counted  # type: ignore[method-assign]
    with caplog.at_level(logging.INFO, logger="craft"):
        trainer.train()
    assert len(most) == 5
    assert max(most) == COPIES
    assert "1 kept, one being written, 2 being uploaded" in caplog.text
    assert hub.repos["models/ada/run"].messages[1:] == [f"Step {step}" for step in (2, 4, 6, 8, 10)]


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_after_a_signal_what_it_saved_is_uploaded_for_a_while(
    hub: Hub, tmp_path: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch, number: int
) -> None:
    settings: dict[str, Any] = {"push_to_hub": True, "hub_strategy": "checkpoint", "save_steps": 100}
    monkeypatch.setattr("craft.training.callbacks.uploads.LAST_SECONDS", 200)
    trainer = tiny_run.trainer("char_transformer", tmp_path / "run", **QUIET, **settings)
    trainer.add_callback(tiny_run.SignalAt(5, number))
    with pytest.raises(SystemExit), caplog.at_level(logging.INFO, logger="craft"):
        trainer.train()
    if number == signal.SIGTERM:
        assert "waiting for the upload of checkpoint-6; for at most 200 s; once more exits" in caplog.text
        assert hub.repos["models/ada/run"].messages[1:] == ["Step 6"]
        assert "not uploaded" not in caplog.text
    else:
        assert "waiting for" not in caplog.text
        later = f"craft push {tmp_path / 'run' / 'checkpoint-6'} ada/run --into last-checkpoint"
        assert f"not uploaded: checkpoint-6; that can be done later with: {later}" in caplog.text


def test_after_a_signal_a_slow_server_is_not_waited_for_long(
    hub: Hub, tmp_path: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    settings: dict[str, Any] = {"push_to_hub": True, "hub_strategy": "checkpoint", "save_steps": 100}
    monkeypatch.setattr("craft.training.callbacks.uploads.LAST_SECONDS", 0.5)
    trainer = tiny_run.trainer("char_transformer", tmp_path / "run", **QUIET, **settings)
    trainer.add_callback(tiny_run.SignalAt(5, signal.SIGUSR1))
    with hub.lock, pytest.raises(SystemExit), caplog.at_level(logging.INFO, logger="craft"):
        trainer.train()
    assert "not uploaded: checkpoint-6; that can be done later with: craft push" in caplog.text


def test_training_goes_on_beside_an_upload_and_waits_for_the_last(
    hub: Hub, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """Also beside one that fails, and with a run that keeps one checkpoint."""
    settings: dict[str, Any] = {"push_to_hub": True, "hub_strategy": "checkpoint", "save_total_limit": 1}
    trainer = tiny_run.trainer("char_transformer", tmp_path / "run", **QUIET, **settings)
    hub.faults["commit"], hub.answers["commit"] = 1, 409

    class Slow(TrainerCallback):
        def on_step_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
            if state.global_step == 0:
                hub.lock.acquire()

        def on_train_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
            self.seen = [upload.checkpoint.name for upload in trainer.uploads.queue.pending]
            hub.lock.release()

    trainer.add_callback(slow := Slow())
    with caplog.at_level(logging.INFO, logger="craft"):
        trainer.train()
    assert slow.seen == ["checkpoint-4", "checkpoint-20"]
    assert "waiting for the upload of checkpoint-4, checkpoint-20; Ctrl-C leaves it off" in caplog.text
    assert caplog.text.count("can't push checkpoint-4 to ada/run: the Hub refused it (409") == 1
    assert caplog.text.count("training goes on") == 1
    assert hub.repos["models/ada/run"].messages == ["initial commit", "Step 20"]
    assert [path.name for path in (tmp_path / "run").glob("checkpoint-*")] == ["checkpoint-20"]


def test_their_room_is_counted(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.INFO, logger="craft"):
        check_room(tmp_path, 1000, keep=1, best=False, saves=10, sent=2)
    assert "up to 4.0 kB (1.0 kB a checkpoint, 1 kept, one being written, 2 being uploaded)" in caplog.text
    with pytest.raises(UserError, match="2 being uploaded"):
        check_room(tmp_path, 1 << 60, keep=1, best=False, saves=10, sent=2)
