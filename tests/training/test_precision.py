"""A precision that was asked for is tried before anything depends on it."""

from __future__ import annotations

import random
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tiny_run
import torch

from craft.training.optimization import Hardware
from craft.training.precision_trial import try_precision
from craft.utils import hardware
from craft.utils.errors import UserError

QUIET = {"max_steps": 6, "eval_strategy": "no", "save_strategy": "no"}
KINDS = pytest.mark.parametrize("kind", ["char_lstm", "char_transformer"])


def without_trial(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(
        "craft.training.precision_trial.try_format", lambda *given: pytest.fail("it was tried")
    )


def refuse_autocast(module: Any, inputs: Any) -> None:
    """As a layer does whose kernel the processor doesn't have."""
    if torch.is_autocast_enabled("cpu"):
        raise RuntimeError("could not create a primitive descriptor for bf16")


@pytest.mark.precision
@KINDS
def test_the_trial_changes_no_result(kind: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Dropout, carried states and the order of data are those of a run without one; so is what follows."""
    made = []
    for tried in (True, False):
        torch.manual_seed(3), np.random.seed(3), random.seed(3)
        trainer = tiny_run.trainer(kind, tmp_path / str(tried), 0.2, precision="bf16", **QUIET)
        if not tried:
            monkeypatch.setattr("craft.training.run.try_precision", lambda trainer: None)
        trainer.train()
        after = [torch.rand(3), torch.from_numpy(np.random.rand(3)), torch.tensor(random.random())]
        made.append([*after, *trainer.model.parameters(), *trainer.carried.state_dict().values()])
    assert all(torch.equal(a, b) for a, b in zip(*made, strict=True))


@KINDS
def test_a_precision_that_cannot_be_computed_is_refused_before_anything_is_written(
    kind: str, tmp_path: Path
) -> None:
    trainer = tiny_run.trainer(kind, tmp_path / "run", precision="bf16", **QUIET)
    before = {name: weight.clone() for name, weight in trainer.model.named_parameters()}
    trainer.model.get_output_embeddings().register_forward_pre_hook(refuse_autocast)
    with pytest.raises(UserError) as refusal:
        trainer.train()
    for words in ("training.precision=bf16", "primitive descriptor for bf16", "training.precision=fp32"):
        assert words in str(refusal.value)
    assert not list(tmp_path.rglob("run/*"))
    assert all(torch.equal(before[name], weight) for name, weight in trainer.model.named_parameters())
    assert all(weight.grad is None for weight in trainer.model.parameters())


def test_a_slow_precision_is_warned_of(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    times = iter([1.0, 30.0])  # in float32, in bfloat16
    monkeypatch.setattr(hardware, "seconds", lambda step: (step(), next(times))[1])
    tiny_run.trainer("char_lstm", tmp_path, precision="bf16", **QUIET).train()
    (said,) = [message for message in caplog.messages if "training.precision=bf16" in message]
    assert " 30.0 times " in said


def test_models_of_half_precision_are_tried_too(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Beside a copy in float32; the model itself stays what it is."""
    times, seen = iter([1.0, 2.0]), []
    trainer = tiny_run.trainer("char_lstm", tmp_path, **QUIET)
    trainer.model.to(torch.bfloat16).lm_head.register_forward_hook(
        lambda module, inputs, output: seen.append(output.dtype)
    )
    monkeypatch.setattr(hardware, "seconds", lambda step: (step(), next(times))[1])
    try_precision(trainer)
    assert seen == [torch.float32, torch.bfloat16]
    assert {weight.dtype for weight in trainer.model.parameters()} == {torch.bfloat16}
    assert any("models.dtype=bfloat16" in message for message in caplog.messages)


@pytest.mark.parametrize("precision", ["fp32", "auto"])
def test_nothing_is_tried_unless_it_was_asked_for(
    precision: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(
        Hardware, "detect", classmethod(lambda cls, use_cpu: Hardware("cpu", native_bf16=True))
    )
    without_trial(monkeypatch)
    trainer = tiny_run.trainer("char_lstm", tmp_path, precision=precision, **QUIET)
    try_precision(trainer)
    assert trainer.args.precision == {"auto": "bf16"}.get(precision, precision)
