from __future__ import annotations

import logging
from pathlib import Path

import pytest
import tiny_run
import torch
from safetensors.torch import load_file
from torch._dynamo.backends import registry

from craft.training.compilation import compile_forward, plain_forward


def test_a_compiled_run_saves_plain_names_and_learns_the_same(tmp_path: Path) -> None:
    """With the backend that traces everything and compiles nothing, so that the test takes no minute."""
    plain = tiny_run.trainer("char_transformer", tmp_path / "plain")
    plain.train()
    traced = tiny_run.trainer(
        "char_transformer", tmp_path / "traced", torch_compile=True, torch_compile_backend="eager"
    )
    traced.train()
    one, two = (load_file(tmp_path / run / "checkpoint-20/model.safetensors") for run in ("plain", "traced"))
    assert list(one) == list(two)
    for name, tensor in one.items():
        assert torch.allclose(tensor, two[name], atol=1e-5), name
    assert "forward" not in traced.model.__dict__


def test_what_can_not_be_compiled_trains_all_the_same(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken(graph: torch.fx.GraphModule, inputs: list[torch.Tensor]) -> None:
        raise RuntimeError("no compiler on this machine\nand a long tail")

    monkeypatch.setitem(registry._COMPILER_FNS, "eager", broken)
    torch.compiler.reset()  # other tests of this process may have used up its compilations
    trainer = tiny_run.trainer(
        "char_transformer", tmp_path / "run", torch_compile=True, torch_compile_backend="eager"
    )
    with caplog.at_level(logging.WARNING, logger="craft"):
        trainer.train()
    warnings = [record.message for record in caplog.records if "torch.compile" in record.message]
    assert len(warnings) == 1
    assert "no compiler on this machine" in warnings[0]
    assert "\n" not in warnings[0]
    tiny_run.trainer("char_transformer", tmp_path / "plain").train()
    one, two = (load_file(tmp_path / run / "checkpoint-20/model.safetensors") for run in ("plain", "run"))
    assert all(torch.equal(one[name], two[name]) for name in one)  # the attempt left no trace


def test_plain_forward_puts_the_wrapper_back() -> None:
    layer = torch.nn.Linear(2, 2)
    layer.forward = lambda x: x + 1
    with plain_forward(layer):
        assert layer(torch.zeros(1, 2)).equal(layer.bias[None])
    assert layer(torch.zeros(1, 2)).equal(torch.ones(1, 2))


def test_gradients_of_the_attempt_are_dropped() -> None:
    layer = torch.nn.Linear(2, 2)
    assert compile_forward(layer, lambda: layer(torch.ones(1, 2)).sum().backward(), backend="eager")
    assert layer.weight.grad is None
