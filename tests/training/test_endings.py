"""How runs end and begin again: best and last, patience, NaN, a full disk, finished runs, damage."""

from __future__ import annotations

import logging
import re
import signal
from pathlib import Path
from typing import Any

import pytest
import tiny_run
import torch
from refusals import refused
from safetensors import SafetensorError
from safetensors.torch import load_file
from transformers import TrainerCallback

from craft.data.tokenization import CharTokenizer
from craft.training.base import LanguageModelTrainer
from craft.training.checkpointing.safetensors_io import save_tree
from craft.training.logging import add_metrics, read_metrics
from craft.utils.stopping import TrainingInterrupted, exit_on_signal


def scripted(output_dir: Path, losses: list[float], **changes: Any) -> LanguageModelTrainer:
    """A run that reports evaluation losses from a list."""
    trainer = tiny_run.trainer("char_transformer", output_dir, eval_steps=2, save_steps=100, **changes)
    real = trainer.validation.metrics

    def metrics(*args: Any) -> dict[str, float]:
        return {**real(*args), "eval_loss": losses[trainer.state.global_step // 2 - 1]}

    trainer.validation.metrics = metrics  # type: ignore[method-assign]
    return trainer


def test_best_and_last_are_kept(tmp_path: Path) -> None:
    """A new best is saved although no save was due, and `load_best_model_at_end` gives it back."""
    losses = [3.0, 2.0, 1.0, 4.0, 5.0, 6.0, 7.0, 8.0, 9.0, 10.0]
    trainer = scripted(tmp_path, losses, load_best_model_at_end=True, save_total_limit=1)
    trainer.train()
    assert sorted(path.name for path in tmp_path.glob("checkpoint-*")) == ["checkpoint-20", "checkpoint-6"]
    best = load_file(tmp_path / "checkpoint-6" / "model.safetensors")
    for name, parameter in trainer.model.named_parameters():
        assert torch.equal(parameter, best[name])


def test_a_damaged_best_checkpoint_is_not_given_back(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    losses = [3.0, 2.0, 1.0, 4.0, 5.0, 6.0, 7.0, 8.0, 9.0, 10.0]
    trainer = scripted(tmp_path, losses, load_best_model_at_end=True, save_total_limit=1)

    class Harm(TrainerCallback):
        def on_evaluate(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
            if state.global_step == 20:
                path = tmp_path / "checkpoint-6" / "model.safetensors"
                path.write_bytes(path.read_bytes()[:-1] + b"x")

    trainer.add_callback(Harm())
    with caplog.at_level(logging.WARNING, logger="craft"):
        trainer.train()
    assert [m for m in caplog.messages if "checkpoint-6" in m and "model.safetensors" in m]
    last = load_file(tmp_path / "checkpoint-20" / "model.safetensors")
    for name, parameter in trainer.model.named_parameters():
        assert torch.equal(parameter, last[name])


def test_a_full_disk_between_saves_names_the_last_good_checkpoint(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    trainer = tiny_run.trainer("char_transformer", tmp_path, eval_strategy="no")

    def full(run_dir: Any, event: Any) -> None:
        if event["step"] == 5:
            raise OSError(28, "No space left on device")

    monkeypatch.setattr("craft.training.logging.add_metrics", full)
    with refused("disk-full", "metrics.jsonl", tmp_path / "checkpoint-4"):
        trainer.train()


def test_a_signal_while_a_failed_run_is_closed_does_not_hide_the_failure(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    trainer = tiny_run.trainer("char_transformer", tmp_path, eval_strategy="no")

    def full(run_dir: Any, event: Any) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("craft.training.logging.add_metrics", full)
    monkeypatch.setattr(trainer.wandb, "finish", lambda exit_code: signal.raise_signal(signal.SIGTERM))
    with exit_on_signal("nothing was trained yet"), refused("disk-full", "metrics.jsonl"):
        trainer.train()


def test_a_full_disk_at_a_sample_or_at_the_start_is_one_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(run_dir: Any, event: Any) -> None:
        if "sample" in event:
            raise OSError(28, "No space left on device")
        add_metrics(run_dir, event)

    monkeypatch.setattr("craft.training.logging.add_metrics", full)
    with refused("disk-full", "metrics.jsonl", tmp_path / "a" / "checkpoint-8"):
        tiny_run.trainer("char_transformer", tmp_path / "a", sample_chars=5, save_total_limit=None).train()

    def no_room(*args: Any, **kwargs: Any) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("craft.training.callbacks.lifecycle.add_event", no_room)
    with refused("disk-full", "history.jsonl", tmp_path / "b"):
        tiny_run.trainer("char_transformer", tmp_path / "b").train()


def test_the_best_checkpoint_is_the_best_by_the_chosen_metric(tmp_path: Path) -> None:
    trainer = tiny_run.trainer(
        "char_transformer", tmp_path, load_best_model_at_end=True, metric_for_best_model="accuracy"
    )
    trainer.train()
    scores = {e["step"]: e["eval_accuracy"] for e in trainer.state.log_history if "eval_accuracy" in e}
    assert trainer.state.best_metric == max(scores.values())
    assert scores[trainer.state.best_global_step] == max(scores.values())


def test_the_last_step_is_evaluated_too(tmp_path: Path) -> None:
    trainer = tiny_run.trainer("char_transformer", tmp_path, max_steps=7, load_best_model_at_end=True)
    trainer.train()
    assert [e["step"] for e in trainer.state.log_history if "eval_loss" in e] == [7]
    assert trainer.state.best_global_step == 7


@pytest.mark.parametrize(
    "spec",
    [{"save_strategy": "no"}, {"save_only_model": True, "save_steps": 3}],
    ids=["saves nothing", "saves weights alone"],
)
def test_a_signal_saves_all_that_a_resumed_run_needs(spec: dict[str, Any], tmp_path: Path) -> None:
    """Also at a step at which less was just saved."""
    spec["eval_strategy"] = "no"
    whole = tiny_run.trainer("char_transformer", tmp_path / "whole", **spec)
    whole.train()
    assert not list((tmp_path / "whole").glob("checkpoint-*/optimizer.safetensors"))
    stopped = tiny_run.trainer("char_transformer", tmp_path / "stopped", **spec)
    stopped.add_callback(tiny_run.SignalAt(6, signal.SIGTERM))
    with pytest.raises(TrainingInterrupted):
        stopped.train()
    again = tiny_run.trainer("char_transformer", tmp_path / "stopped", **spec)
    again.train(resume_from_checkpoint=True)
    for a, b in zip(whole.model.parameters(), again.model.parameters()):
        assert torch.equal(a, b)


@pytest.mark.parametrize("step", [8, 10, 14, 20])
def test_a_signal_in_an_evaluation_ends_it_and_a_resumed_run_does_it_again(tmp_path: Path, step: int) -> None:
    """The end is that of a run without the signal: weights, best step, metrics; 8 is the best of the first
    half, 14 where patience ends."""
    losses = [3.0, 2.0, 2.5, 1.9, 2.1, 2.2, 2.3, 2.4, 2.5, 1.0]
    settings: dict[str, Any] = {"load_best_model_at_end": True, "sample_chars": 9, "dropout": 0.2}
    if step == 14:
        settings["early_stopping_patience"] = 3
    whole = scripted(tmp_path / "whole", losses, **settings)
    whole.train()
    stopped = scripted(tmp_path / "stopped", losses, **settings)
    tiny_run.signal_in_evaluation(stopped, step, signal.SIGUSR1)
    with pytest.raises(TrainingInterrupted) as end:
        stopped.train()
    assert end.value.code == 0
    assert [e["step"] for e in read_metrics(tmp_path / "stopped") if "eval_loss" in e][-1] == step - 2
    again = scripted(tmp_path / "stopped", losses, **settings)
    accepted: list[int] = []
    again.on_run_validated = lambda: accepted.append(step)
    again.train(resume_from_checkpoint=True)
    assert accepted == [step]  # also where the evaluation is the last thing to do
    assert again.state.best_global_step == whole.state.best_global_step
    for a, b in zip(whole.model.parameters(), again.model.parameters()):
        assert torch.equal(a, b)
    runs = [read_metrics(tmp_path / name) for name in ("whole", "stopped")]
    scores = [[(e["step"], e.get("eval_loss"), e.get("sample")) for e in events] for events in runs]
    assert scores[0] == scores[1]


def test_a_run_that_stopped_early_is_finished(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    losses = [3.0, 2.0, 2.5, 1.9, 2.1, 2.2, 2.3, 2.4, 2.5, 1.0]
    settings: dict[str, Any] = {"early_stopping_patience": 3, "load_best_model_at_end": True}
    trainer = scripted(tmp_path, losses, **settings)
    first = trainer.train()
    assert trainer.state.global_step == 14  # the best was at 8; 10, 12 and 14 were no better
    with caplog.at_level(logging.INFO, logger="craft"):
        again = scripted(tmp_path, losses, **settings)
        result = again.train(resume_from_checkpoint=True)
    assert (result.global_step, result.training_loss) == (14, pytest.approx(first.training_loss))
    assert [m for m in caplog.messages if "checkpoint-14" in m and "training.early_stopping_patience" in m]
    for a, b in zip(trainer.model.parameters(), again.model.parameters()):
        assert torch.equal(a, b)


def test_patience_survives_a_resume(tmp_path: Path) -> None:
    losses = [3.0, 1.0, 2.0, 2.0, 2.0, 2.0, 2.0, 2.0, 2.0, 2.0]
    first = scripted(tmp_path, losses, max_steps=8)
    first.train()
    second = scripted(tmp_path, losses, early_stopping_patience=3)
    second.train(resume_from_checkpoint=True)
    assert second.state.global_step == 10


def test_a_finished_run_says_so_and_stays(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    first = tiny_run.trainer("char_lstm", tmp_path)
    first.train()
    before = (tmp_path / "metrics.jsonl").read_bytes()
    again = tiny_run.trainer("char_lstm", tmp_path)
    with caplog.at_level(logging.INFO, logger="craft"):
        assert again.train(resume_from_checkpoint=True).global_step == 20
    assert [m for m in caplog.messages if "checkpoint-20" in m and "training.max_steps" in m]
    assert (tmp_path / "metrics.jsonl").read_bytes() == before
    for a, b in zip(first.model.parameters(), again.model.parameters()):
        assert torch.equal(a, b)


def test_another_alphabet_is_not_resumed(tmp_path: Path) -> None:
    tiny_run.trainer("char_transformer", tmp_path, max_steps=4, eval_strategy="no").train()
    again = tiny_run.trainer("char_transformer", tmp_path, eval_strategy="no")
    again.processing_class = CharTokenizer.train([tiny_run.TEXT.replace("g", "G")])
    with refused("run-changed", tmp_path / "checkpoint-4"):
        again.train(resume_from_checkpoint=True)


def test_a_new_run_does_not_mix_with_an_old_one(tmp_path: Path) -> None:
    tiny_run.trainer("char_lstm", tmp_path).train()
    with refused("setting-conflict", tmp_path):
        tiny_run.trainer("char_lstm", tmp_path).train()


def test_a_damaged_checkpoint_is_passed_over_and_the_end_is_the_same(tmp_path: Path) -> None:
    first = tiny_run.trainer("char_lstm", tmp_path, dropout=0.2, eval_strategy="no")
    first.train()
    weights = tmp_path / "checkpoint-20" / "training_state.safetensors"
    weights.write_bytes(weights.read_bytes()[:-7])
    again = tiny_run.trainer("char_lstm", tmp_path, dropout=0.2, eval_strategy="no")
    again.train(resume_from_checkpoint=tmp_path)
    assert again.resumed == tmp_path / "checkpoint-16"
    for a, b in zip(first.model.parameters(), again.model.parameters()):
        assert torch.equal(a, b)


@pytest.mark.parametrize("poison", ["loss", "gradient"])
def test_nan_stops_the_run(tmp_path: Path, poison: str) -> None:
    trainer = tiny_run.trainer("char_transformer", tmp_path)

    def spoil(module: torch.nn.Module, inputs: Any, outputs: Any) -> None:
        if trainer.state.global_step == 6 and outputs.requires_grad:
            if poison == "loss":
                outputs.data.fill_(float("nan"))
            else:
                outputs.register_hook(lambda gradient: gradient * float("inf"))

    trainer.model.lm_head.register_forward_hook(spoil)
    what = "loss is nan" if poison == "loss" else "gradient norm is "
    with refused("not-finite", "step 7:", what, "0.00", tmp_path / "checkpoint-4"):
        trainer.train()
    assert [path.name for path in tmp_path.glob("checkpoint-*")] == ["checkpoint-4"]


def test_a_full_disk_stops_the_run_and_leaves_no_torn_checkpoint(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    trainer = tiny_run.trainer("char_transformer", tmp_path)

    def full(tree: Any, path: Path) -> None:
        if trainer.state.global_step == 8:
            raise SafetensorError("I/O error: No space left on device (os error 28)")
        save_tree(tree, path)

    monkeypatch.setattr("craft.training.checkpointing.checkpointer.save_tree", full)
    left = (tmp_path / "checkpoint-4", f"trainer.train(resume_from_checkpoint='{tmp_path}')")
    with refused("disk-full", "checkpoint-8", "os error 28", *left) as failure:
        trainer.train()
    assert re.search(r"[\d,]{6,} bytes", str(failure.value))
    assert {p.name for p in tmp_path.iterdir()} == {"checkpoint-4", "history.jsonl", "metrics.jsonl", ".lock"}
