"""Steps that meet a number that isn't one, or memory that isn't there."""

from __future__ import annotations

import logging
import shutil
from pathlib import Path
from typing import Any

import pytest
import tiny_run
import torch
from refusals import refused
from safetensors.torch import load_file

from craft.training.base import LanguageModelTrainer
from craft.training.callbacks.nonfinite import NonFiniteGuard
from craft.training.checkpointing.parts import StepSnapshot
from craft.training.logging import read_metrics
from craft.training.memory import is_out_of_memory

QUIET: dict[str, Any] = {"eval_strategy": "no", "logging_steps": 1}


def poisoned(kind: str, folder: Path, steps: tuple[int, ...], **changes: Any) -> LanguageModelTrainer:
    """A run whose loss is NaN in some steps."""
    trainer = tiny_run.trainer(kind, folder, **{**QUIET, **changes})

    def spoil(module: torch.nn.Module, inputs: Any, outputs: Any) -> None:
        if trainer.state.global_step + 1 in steps and outputs.requires_grad:
            outputs.data.fill_(float("nan"))

    trainer.model.lm_head.register_forward_hook(spoil)
    return trainer


def greedy(
    kind: str, folder: Path, at_most: int, error: type[BaseException] = torch.OutOfMemoryError, **changes
):
    """A run whose memory is short for more than so many windows at once."""
    trainer = tiny_run.trainer(kind, folder, **{**QUIET, **changes})
    sizes: list[int] = []

    def refuse(module: torch.nn.Module, inputs: Any, kwargs: Any) -> None:
        rows = len(kwargs["input_ids"])
        sizes.append(rows)
        if rows > at_most:
            raise error("DefaultCPUAllocator: can't allocate memory: you tried to allocate 7 bytes")

    trainer.model.register_forward_pre_hook(refuse, with_kwargs=True)
    return trainer, sizes


def same_weights(a: Any, b: Any) -> bool:
    return all(torch.equal(x, y) for x, y in zip(a.model.parameters(), b.model.parameters()))


@pytest.mark.parametrize("kind", ["char_lstm", "char_transformer"])
def test_batches_are_skipped_and_a_resumed_run_counts_on(
    tmp_path: Path, kind: str, caplog: pytest.LogCaptureFixture
) -> None:
    """Weights, average and carried state know nothing of the skipped batch, and the loss is the others'."""
    spec: dict[str, Any] = {"skip_nonfinite_batches": 2, "ema_decay": 0.9, "gradient_accumulation_steps": 2}
    whole = poisoned(kind, tmp_path / "whole", (6, 18), **spec)
    with caplog.at_level(logging.WARNING, logger="craft"):
        whole.train()
    said = [r.message for r in caplog.records if "is skipped" in r.message]
    assert ["step 6" in said[0], "2 of at most 2" in said[1]] == [True, True]
    events = [e for e in read_metrics(tmp_path / "whole") if "loss" in e]
    assert [e["step"] for e in events] == [step for step in range(1, 21) if step not in (6, 18)]
    assert all(e["loss"] is not None and 0 < e["loss"] < 5 for e in events)
    shutil.copytree(tmp_path / "whole", tmp_path / "again")
    shutil.rmtree(tmp_path / "again" / "checkpoint-20")
    again = poisoned(kind, tmp_path / "again", (6, 18), **spec)
    again.train(True)
    assert again.guard.skipped == 2
    assert same_weights(whole, again)
    again = poisoned(kind, tmp_path / "third", (6, 18, 19), **spec)
    with refused("not-finite", "step 19", "nan", "2 skipped", "checkpoint-16"):
        again.train()


def test_nothing_is_saved_of_a_step_that_nobody_looked_at(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """On a GPU the loss is looked at only where something is due, and a callback may ask for a save later."""
    monkeypatch.setattr(NonFiniteGuard, "on_step_end", lambda *args, **kwargs: None)
    trainer = poisoned("char_transformer", tmp_path, (8,), save_steps=4, logging_steps=100)
    with refused("not-finite", "step 8"):
        trainer.train()
    assert [path.name for path in tmp_path.glob("checkpoint-*")] == ["checkpoint-4"]


def test_a_step_may_be_undone_more_than_once(tmp_path: Path) -> None:
    trainer = tiny_run.trainer("char_lstm", tmp_path, **QUIET)
    trainer._tr_loss = torch.tensor(1.0)
    trainer.carried.slots, trainer.auxiliary.sums = {0: [torch.ones(8, 2)]}, {"second": torch.ones(())}
    before = StepSnapshot(trainer)
    for _ in range(2):
        trainer._tr_loss += 1
        trainer.carried.slots[0], trainer.carried.slots[1] = [torch.zeros(8, 2)], [torch.zeros(8, 2)]
        trainer.auxiliary.add({"second": torch.ones(())}, last=True)
        before.rollback()
        assert trainer._tr_loss == 1
        assert list(trainer.carried.slots) == [0]
        assert trainer.carried.slots[0][0].tolist() == [[1, 1]] * 8
        assert (trainer.auxiliary.sums["second"], trainer.auxiliary.steps) == (1, 0)


def test_the_mean_of_a_logged_loss_leaves_skipped_batches_out(tmp_path: Path) -> None:
    spec: dict[str, Any] = {"skip_nonfinite_batches": 9, "learning_rate": 1e-30}
    means = []
    for name, steps in (("whole", ()), ("skipped", (2, 3))):
        poisoned("char_transformer", tmp_path / name, steps, logging_steps=4, **spec).train()
        means.append(read_metrics(tmp_path / name)[0]["loss"])
    assert means[0] == pytest.approx(means[1], abs=0.05)


@pytest.mark.parametrize("kind", ["char_lstm", "char_transformer"])
def test_micro_batches_are_cut_until_they_fit(
    tmp_path: Path, kind: str, caplog: pytest.LogCaptureFixture
) -> None:
    """As if that accumulation had been asked for, bit for bit, dropout and carried state included."""
    spec: dict[str, Any] = {"dropout": 0.2, "auto_find_batch_size": True}
    asked = tiny_run.trainer(kind, tmp_path / "asked", dropout=0.2, gradient_accumulation_steps=4, **QUIET)
    asked.train()
    found, sizes = greedy(kind, tmp_path / "found", 2, **spec)
    with caplog.at_level(logging.WARNING, logger="craft"):
        found.train()
    assert "2 windows from now on, in 4 accumulation steps" in caplog.text
    assert sizes[:3] == [8, 4, 2]
    assert set(sizes[3:]) == {2}
    assert same_weights(asked, found)
    if kind == "char_lstm":
        states = [
            load_file(tmp_path / n / "checkpoint-20" / "rank_0.safetensors") for n in ("asked", "found")
        ]
        carried = [name for name in states[0] if name.startswith("carried_state")]
        assert all(torch.equal(states[0][name], states[1][name]) for name in carried)
    shutil.rmtree(tmp_path / "found" / "checkpoint-20")
    again = tiny_run.trainer(kind, tmp_path / "found", dropout=0.2, **QUIET)
    again.train(True)  # although the memory would be there now: exactly as before
    assert again.state.train_batch_size == 2
    assert again.args.gradient_accumulation_steps == 1
    assert same_weights(asked, again)


@pytest.mark.parametrize("error", [torch.OutOfMemoryError, RuntimeError, MemoryError])
def test_short_memory_is_one_line_with_a_setting_that_helps(
    tmp_path: Path, error: type[BaseException]
) -> None:
    trainer, _ = greedy("char_transformer", tmp_path, 3, error=error)
    advice = ("training.auto_find_batch_size=true", "training.gradient_accumulation_steps=2", "4 windows")
    with refused("out-of-memory", "step 0", "8 windows at once", *advice, "global batch of 8"):
        trainer.train()


def test_memory_that_holds_not_even_one_window_is_refused(tmp_path: Path) -> None:
    trainer, _ = greedy("char_transformer", tmp_path, 0, auto_find_batch_size=True)
    with refused("out-of-memory", "1 windows at once", "data.block_size"):
        trainer.train()


def test_short_memory_in_an_evaluation_names_its_batch_size(tmp_path: Path) -> None:
    trainer, _ = greedy("char_transformer", tmp_path, 8, eval_strategy="steps", eval_steps=2)
    trainer.model.register_forward_pre_hook(
        lambda module, inputs: (_ for _ in ()).throw(MemoryError()) if not module.training else None
    )
    with refused("out-of-memory", "step 2", "training.per_device_eval_batch_size=8"):
        trainer.train()


def test_other_errors_are_not_taken_for_short_memory() -> None:
    assert not is_out_of_memory(RuntimeError("size mismatch"))
    assert not is_out_of_memory(ValueError("can't allocate memory"))
