"""What a resumed run takes over, what it refuses, and what it notes."""

from __future__ import annotations

import json
import logging
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import tiny_run
import torch
from refusals import refused
from transformers import EarlyStoppingCallback, TrainerCallback
from transformers.trainer_callback import ExportableState

from craft.training.checkpointing.resume_rules import differences
from craft.utils.history import read_history
from craft.utils.locks import is_locked, run_lock
from craft.utils.manifest import write_manifest

QUIET: dict[str, Any] = {"eval_strategy": "no"}


@pytest.fixture(scope="module")
def stopped(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run of 20 steps, stopped after 16."""
    folder = tmp_path_factory.mktemp("run")
    tiny_run.trainer("char_lstm", folder, dropout=0.1, **QUIET).train()
    shutil.rmtree(folder / "checkpoint-20")
    return folder


@pytest.fixture
def run_dir(stopped: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(stopped, tmp_path / "run"))


@pytest.mark.parametrize(
    ("changes", "named"),
    [
        ({"global_batch_size": 4}, ["training.global_batch_size 8 → 4"]),
        ({"seed": 7}, ["training.seed 42 → 7"]),
        ({"learning_rate": 0.1, "weight_decay": 0.5}, ["learning_rate 0.01 → 0.1", "weight_decay 0.0 → 0.5"]),
        ({"gradient_accumulation_steps": 2}, ["training.gradient_accumulation_steps 1 → 2"]),
        ({"optim": "muon"}, ["training.optim adamw_torch_fused → muon"]),
        pytest.param({"precision": "bf16"}, ["training.precision fp32 → bf16"], marks=pytest.mark.precision),
        ({"ema_decay": 0.9}, ["training.ema_decay null → 0.9"]),
        ({"carry_state": False}, ["training.carry_state true → false", "data.order streams → shuffled"]),
        ({"dropout": 0.2}, ["models.dropout 0.1 → 0.2"]),
        ({"max_steps": 18}, ["training.max_steps 20 → 18"]),
        (
            {"lr_scheduler_type": "cosine", "warmup_steps": 3},
            ["lr_scheduler_type linear → cosine", "warmup_steps 2 → 3"],
        ),
    ],
)
def test_resume_refuses_settings_that_change_the_weights(
    run_dir: Path, changes: dict[str, Any], named: list[str], caplog: pytest.LogCaptureFixture
) -> None:
    before = sorted(run_dir.rglob("*"))
    changes = {"dropout": 0.1, **QUIET, **changes}
    with refused("run-changed", "checkpoint-16", *named, "--allow-changes"):
        tiny_run.trainer("char_lstm", run_dir, **changes).train(True)
    assert sorted(run_dir.rglob("*")) == before
    with caplog.at_level(logging.WARNING, logger="craft"):
        again = tiny_run.trainer("char_lstm", run_dir, **changes)
        again.train(True, allow_changes=True)
    assert again.state.global_step == changes.get("max_steps", 20)
    noted = read_history(run_dir)[-1]
    assert (noted["event"], noted["step"]) == ("resumed", 16)
    for phrase in named:
        assert phrase in caplog.text
        assert phrase.split()[0].split(".")[-1] in " ".join(noted["changes"])
    if "learning_rate" in changes:  # what was allowed counts: it isn't overwritten by the saved state
        (last,) = (e for e in again.state.log_history if e["step"] == 20 and "learning_rate" in e)
        assert last["learning_rate"] == pytest.approx(0.1 * 1 / 18)
        assert again.optimizer.param_groups[0]["weight_decay"] == 0.5


def test_another_text_or_block_size_is_refused(run_dir: Path) -> None:
    trainer = tiny_run.trainer("char_lstm", run_dir, dropout=0.1, **QUIET)
    trainer.train_dataset.ids = trainer.train_dataset.ids[::-1]
    with refused("run-changed", "the text"):
        trainer.train(True)
    trainer = tiny_run.trainer("char_lstm", run_dir, dropout=0.1, **QUIET)
    trainer.train_dataset.block_size = 7
    with refused("run-changed", "data.block_size 8 → 7"):
        trainer.train(True)


def test_what_made_another_text_of_it_is_named_and_where_it_lies_is_free() -> None:
    base = {"training.lr_scheduler_type": "linear", "training.max_steps": 10, "data.path": "a", "data.x": 1}
    moved = {**base, "data.path": "b", "the text": "1"}
    assert differences({**base, "the text": "1"}, moved, same_world=True) == {}
    cut = {**base, "data.x": 2, "the text": "2"}
    assert set(differences({**base, "the text": "1"}, cut, same_world=True)) == {"the text", "data.x"}


def test_resume_allows_settings_that_do_not_affect_weights(run_dir: Path, tmp_path: Path) -> None:
    whole = tiny_run.trainer("char_lstm", tmp_path / "whole", dropout=0.1, **QUIET)
    whole.train()
    free = {"logging_steps": 3, "save_steps": 7, "eval_strategy": "steps", "eval_steps": 3, "sample_chars": 5}
    again = tiny_run.trainer("char_lstm", run_dir, dropout=0.1, **free, save_total_limit=1)
    again.train(True)
    assert again.resumed is not None
    for a, b in zip(whole.model.parameters(), again.model.parameters()):
        assert torch.equal(a, b)


def test_more_steps_follow_the_longer_schedule(run_dir: Path, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.INFO, logger="craft"):
        again = tiny_run.trainer("char_lstm", run_dir, dropout=0.1, max_steps=30, logging_steps=1, **QUIET)
        again.train(True)
    assert "training.max_steps 20 → 30" in caplog.text
    rates = {e["step"]: e["learning_rate"] for e in again.state.log_history if "learning_rate" in e}
    assert rates[17] == pytest.approx(0.01 * (30 - 16) / 28)


def test_a_model_of_another_shape_is_never_resumed(run_dir: Path) -> None:
    trainer = tiny_run.trainer("char_lstm", run_dir, dropout=0.1, **QUIET)
    trainer.model.lm_head.weight = torch.nn.Parameter(torch.zeros(33, 17))
    with refused("model-mismatch", run_dir / "checkpoint-16"):
        trainer.train(True)


def test_a_format_of_another_version_is_refused(run_dir: Path) -> None:
    progress = run_dir / "checkpoint-16" / "progress.json"
    progress.write_text(progress.read_text().replace('"format": 2', '"format": 3'))
    write_manifest(run_dir / "checkpoint-16", step=16)
    with refused("checkpoint-old", run_dir / "checkpoint-16", "3"):
        tiny_run.trainer("char_lstm", run_dir, dropout=0.1, **QUIET).train(True)


def test_the_time_of_a_resumed_run_is_that_of_all_its_processes(run_dir: Path) -> None:
    saved = json.loads((run_dir / "checkpoint-16" / "progress.json").read_text())["parts"]["stopwatch"]
    metrics = tiny_run.trainer("char_lstm", run_dir, dropout=0.1, **QUIET).train(True).metrics
    assert metrics["train_runtime"] >= saved["elapsed"] > 0


def test_weights_alone_are_not_resumed_but_a_finished_model_is_made_of_them(tmp_path: Path) -> None:
    spec: dict[str, Any] = {**QUIET, "save_only_model": True}
    trained = tiny_run.trainer("char_transformer", tmp_path / "run", **spec)
    trained.train()
    again = tiny_run.trainer("char_transformer", tmp_path / "run", **spec)
    assert again.train(True).global_step == 20
    for a, b in zip(trained.model.parameters(), again.model.parameters()):
        assert torch.equal(a, b)
    shutil.rmtree(tmp_path / "run" / "checkpoint-20")
    lost = tiny_run.trainer("char_transformer", tmp_path / "run", **spec)
    left = f"models.init_from={tmp_path / 'run' / 'checkpoint-16'}"
    assert left in lost.checkpointer.recovery_hint()
    with refused("run-changed", left):
        lost.train(True)


def test_a_run_without_a_checkpoint_starts_again(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    whole = tiny_run.trainer("char_lstm", tmp_path, **QUIET)
    whole.train()
    for checkpoint in tmp_path.glob("checkpoint-*"):
        shutil.rmtree(checkpoint)
    again = tiny_run.trainer("char_lstm", tmp_path, **QUIET)
    with caplog.at_level(logging.INFO, logger="craft"):
        again.train(True)
    assert f"{tmp_path} " in caplog.text
    for a, b in zip(whole.model.parameters(), again.model.parameters()):
        assert torch.equal(a, b)


class Counts(TrainerCallback, ExportableState):
    def __init__(self) -> None:
        self.steps = 0

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        self.steps += 1

    def state(self) -> dict[str, Any]:
        return {"args": {}, "attributes": {"steps": self.steps}}


def test_callbacks_go_on_with_what_they_knew(tmp_path: Path) -> None:
    def trainer() -> Any:
        made = tiny_run.trainer("char_transformer", tmp_path, eval_steps=2)
        for callback in (Counts(), Counts(), EarlyStoppingCallback(early_stopping_patience=100)):
            made.add_callback(callback)
        return made

    first = trainer()
    first.callback_handler.callbacks[-2].steps = 100
    first.train()
    shutil.rmtree(tmp_path / "checkpoint-20")
    again = trainer()
    own = again.callback_handler.callbacks[-3:]
    again.train(True)
    assert again.callback_handler.callbacks[-3:] == own
    assert [callback.steps for callback in own[:2]] == [20, 120]


def test_two_processes_do_not_train_in_one_folder(tmp_path: Path) -> None:
    code = (
        "import sys; from pathlib import Path; from craft.utils.locks import run_lock\n"
        f"with run_lock(Path({str(tmp_path)!r})): print('mine', flush=True); sys.stdin.read()"
    )
    pipes: dict[str, Any] = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE}
    with subprocess.Popen([sys.executable, "-c", code], **pipes) as other:
        assert other.stdout.readline() == b"mine\n"
        with refused("run-locked", tmp_path, "training.output_dir"):
            tiny_run.trainer("char_lstm", tmp_path, **QUIET).train()
        other.kill()
    with run_lock(tmp_path):
        with run_lock(tmp_path):
            pass
        assert is_locked(tmp_path)
    assert not is_locked(tmp_path)


def test_settings_are_kept_in_the_checkpoint(stopped: Path) -> None:
    progress = json.loads((stopped / "checkpoint-16" / "progress.json").read_text())
    expected = {"training.seed": 42, "data.block_size": 8, "models.hidden_size": 16}
    assert expected.items() <= progress["settings"].items()
    assert progress["environment"]["torch"] == torch.__version__


def test_the_average_is_found_again_by_several_processes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Which call their device cpu:0, a name that safetensors doesn't know."""
    trainer = tiny_run.trainer("char_transformer", tmp_path, ema_decay=0.9, max_steps=1, **QUIET)
    trainer.train()
    trainer.checkpointer.resumed = tmp_path / "checkpoint-1"
    trainer.ema.on_train_begin(trainer.args, trainer.state, trainer.control)
    monkeypatch.setattr(type(trainer.args), "device", torch.device("cpu:0"))
    trainer.checkpointer.load("ema")
    assert trainer.ema.updates == 1


def test_what_decides_the_ids_of_a_stream_is_compared_as_it_is_written() -> None:
    stream = {"data.streaming": True, "training.lr_scheduler_type": "linear"}
    old = {**stream, "data.lanes": 16, "data.validation_size": 1000, "data.path": "a"}
    new = {**stream, "data.lanes": 8, "data.validation_size": 5000, "data.path": "b"}
    assert set(differences(old, new, same_world=True)) == {"data.lanes", "data.validation_size"}
