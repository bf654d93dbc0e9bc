"""What a precision does to a run, beyond the choice of it (test_arguments.py)."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

import pytest
import tiny_run
import torch
from refusals import refused

from craft.training.precision import Hardware

QUIET = {"max_steps": 4, "eval_strategy": "no", "save_strategy": "no"}
KINDS = pytest.mark.parametrize("kind", ["char_lstm", "char_transformer"])


def refuse_autocast(module: Any, inputs: Any) -> None:
    """As a layer does whose kernel the processor doesn't have."""
    if torch.is_autocast_enabled("cpu"):
        raise RuntimeError("could not create a primitive descriptor for bf16")


def take_long(module: Any, inputs: Any) -> None:
    """As a layer does whose format the processor only emulates."""
    if torch.is_autocast_enabled("cpu") or module.weight.dtype == torch.bfloat16:
        time.sleep(0.5)


@pytest.mark.precision
@KINDS
def test_the_trial_of_a_precision_changes_no_result(
    kind: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    made = []
    for tried in (True, False):
        torch.manual_seed(3)
        if not tried:
            monkeypatch.setattr("craft.training.precision.try_format", lambda *given, **more: None)
        trainer = tiny_run.trainer(kind, tmp_path / str(tried), 0.2, precision="bf16", **QUIET)
        trainer.train()
        made.append([torch.rand(3), *trainer.model.parameters()])
    assert all(torch.equal(a, b) for a, b in zip(*made, strict=True))


@KINDS
def test_a_precision_that_cannot_be_computed_is_refused_before_anything_is_written(
    kind: str, tmp_path: Path
) -> None:
    model = tiny_run.model(kind)
    model.lm_head.register_forward_pre_hook(refuse_autocast)
    with refused("machine-unable", "training.precision=bf16", "primitive descriptor", "precision=fp32"):
        tiny_run.trainer(kind, tmp_path / "run", network=model, precision="bf16", **QUIET)
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    ("settings", "dtype", "named"),
    [
        ({"precision": "bf16"}, torch.float32, "training.precision=bf16"),
        ({"precision": "auto", "bf16": True}, torch.float32, "training.precision=bf16"),
        ({}, torch.bfloat16, "models.dtype=bfloat16"),
        ({"precision": "auto"}, torch.float32, ""),
        ({"precision": "fp32"}, torch.float32, ""),
    ],
)
def test_a_slow_format_that_was_asked_for_is_warned_of_with_its_ratio(
    settings: dict[str, Any],
    dtype: torch.dtype,
    named: str,
    tmp_path: Path,
    caplog: pytest.LogCaptureFixture,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(
        Hardware, "detect", classmethod(lambda cls, use_cpu=False: Hardware("cpu", native_bf16=True))
    )
    model = tiny_run.model("char_transformer").to(dtype)
    model.lm_head.register_forward_pre_hook(take_long)
    tiny_run.trainer("char_transformer", tmp_path, network=model, **{**settings, **QUIET})
    said = [message for message in caplog.messages if " times " in message]
    assert [named in message for message in said] == [True] * bool(named)
    assert {weight.dtype for weight in model.parameters()} == {dtype}


@pytest.mark.precision
@pytest.mark.parametrize("kind", ["char_lstm", "char_transformer"])
def test_a_run_in_bfloat16_keeps_float32_weights(kind: str, tmp_path: Path) -> None:
    trainer = tiny_run.trainer(kind, tmp_path, precision="bf16", max_steps=6, save_strategy="no")
    trainer.train()
    assert {weight.dtype for weight in trainer.model.parameters()} == {torch.float32}
