"""torch.compile, as transformers and accelerate apply it."""

from __future__ import annotations

from pathlib import Path

import pytest
import tiny_run
import torch
from safetensors.torch import load_file
from torch._dynamo.backends import registry

from craft.training.evaluation import plain_forward


def weights(folder: Path) -> dict[str, torch.Tensor]:
    return load_file(folder / "checkpoint-20" / "model.safetensors")


@pytest.mark.parametrize("kind", ["char_lstm", "char_transformer"])
def test_a_compiled_run_saves_plain_names_and_learns_the_same(tmp_path: Path, kind: str) -> None:
    """With the backend that traces everything and compiles nothing, so that the test takes no minute."""
    tiny_run.trainer(kind, tmp_path / "plain").train()
    traced = tiny_run.trainer(kind, tmp_path / "traced", torch_compile=True, torch_compile_backend="eager")
    traced.train()
    one, two = weights(tmp_path / "plain"), weights(tmp_path / "traced")
    assert list(one) == list(two)
    for name, tensor in one.items():
        assert torch.allclose(tensor, two[name], atol=1e-5), name
    assert traced.model_wrapped is traced.model


def test_what_cannot_be_compiled_trains_all_the_same(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    tried = []

    def broken(graph: torch.fx.GraphModule, inputs: list[torch.Tensor]) -> None:
        tried.append(graph)
        raise RuntimeError("no compiler on this machine")

    monkeypatch.setitem(registry._COMPILER_FNS, "eager", broken)
    torch.compiler.reset()  # other tests of this process may have used up its compilations
    tiny_run.trainer(
        "char_transformer", tmp_path / "run", torch_compile=True, torch_compile_backend="eager"
    ).train()
    assert tried
    tiny_run.trainer("char_transformer", tmp_path / "plain").train()
    one, two = weights(tmp_path / "plain"), weights(tmp_path / "run")
    assert all(torch.equal(one[name], two[name]) for name in one)


def test_plain_forward_puts_the_wrapper_back() -> None:
    layer = torch.nn.Linear(2, 2)
    layer.forward = lambda x: x + 1
    with plain_forward(layer):
        assert layer(torch.zeros(1, 2)).equal(layer.bias[None])
    assert layer(torch.zeros(1, 2)).equal(torch.ones(1, 2))
