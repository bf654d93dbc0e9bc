"""What a precision does to a run, beyond the choice of it (test_arguments.py)."""

from __future__ import annotations

from pathlib import Path

import pytest
import tiny_run
import torch

from craft.training.precision import Hardware, warn_of_emulation


@pytest.mark.parametrize(
    ("precision", "dtype", "native", "named"),
    [
        ("bf16", torch.float32, False, ["training.precision=bf16"]),
        ("fp32", torch.bfloat16, False, ["models.dtype=bfloat16"]),
        ("bf16", torch.bfloat16, True, []),
        ("fp32", torch.float32, False, []),
    ],
)
def test_an_emulated_precision_is_warned_of(
    precision: str,
    dtype: torch.dtype,
    native: bool,
    named: list[str],
    caplog: pytest.LogCaptureFixture,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    hardware = Hardware("cpu", native_bf16=native)
    monkeypatch.setattr(Hardware, "detect", classmethod(lambda cls, use_cpu: hardware))
    warn_of_emulation(tiny_run.model("char_transformer").to(dtype), precision, on_cpu=True)
    assert len(caplog.messages) == len(named)
    assert all(name in message for name, message in zip(named, caplog.messages))


@pytest.mark.precision
@pytest.mark.parametrize("kind", ["char_lstm", "char_transformer"])
def test_a_run_in_bfloat16_keeps_float32_weights(kind: str, tmp_path: Path) -> None:
    trainer = tiny_run.trainer(kind, tmp_path, precision="bf16", max_steps=6, save_strategy="no")
    trainer.train()
    assert {weight.dtype for weight in trainer.model.parameters()} == {torch.float32}
