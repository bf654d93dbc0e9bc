"""torch.compile, as transformers and accelerate apply it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import tiny_run
import torch
from safetensors.torch import load_file
from torch._dynamo.backends import registry
from transformers import TrainerCallback

from craft.training import compilation
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


@pytest.fixture
def tries(monkeypatch: pytest.MonkeyPatch) -> None:
    """Runs of 20 steps try a backend that compiles nothing."""
    monkeypatch.setattr(compilation, "BACKEND", "eager")
    monkeypatch.setattr(compilation, "MIN_STEPS", 20)
    monkeypatch.setattr(compilation, "COMPILERS", ("python3", "python"))


@pytest.fixture
def measured(tries: None, monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """What the steps that are tried take, in this order."""
    seconds: list[float] = []
    monkeypatch.setattr(compilation, "step_seconds", lambda trainer, measured=1.0: seconds.pop(0))
    return seconds


def compiled_in(trainer: Any, **how: Any) -> bool:
    """Whether the model that the loop runs is a compiled one."""

    class Look(TrainerCallback):
        def on_step_begin(self, *args: Any, **kwargs: Any) -> None:
            found.add(isinstance(trainer.model_wrapped, torch._dynamo.OptimizedModule))

    found: set[bool] = set()
    trainer.add_callback(Look())
    trainer.train(**how)
    (answer,) = found
    return answer


def trainer(folder: Path, kind: str = "char_transformer", **changes: Any) -> Any:
    made = tiny_run.trainer(kind, folder, lr_scheduler_type="constant", **changes)
    made.run_config = {"training": {}}
    return made


@pytest.mark.parametrize(("compiled", "faster"), [(40.0, True), (47.0, False), (60.0, False)])
def test_a_long_run_compiles_itself_where_its_steps_get_faster(
    compiled: float, faster: bool, measured: list[float], tmp_path: Path
) -> None:
    measured += [49.0, 50.0, compiled]
    first = trainer(tmp_path)
    assert compiled_in(first) == faster
    kept = {"torch_compile": True} if faster else {}
    assert first.run_config["training"] == kept
    assert not measured
    again = trainer(tmp_path, max_steps=25)  # it goes on as it began, and tries nothing
    assert compiled_in(again, resume_from_checkpoint=tmp_path) == faster
    assert again.run_config["training"] == kept
    told = {**kept, "torch_compile_backend": "eager"} if faster else {}
    replayed = trainer(tmp_path, max_steps=30, **told)
    assert compiled_in(replayed, resume_from_checkpoint=tmp_path) == faster


@pytest.mark.parametrize(
    ("kind", "seconds", "settings", "compilers"),
    [
        ("char_transformer", [29.0], {}, ("python3", "python")),  # 20 steps of it are no ten minutes
        ("char_transformer", [], {"max_steps": 19}, ("python3", "python")),
        ("char_transformer", [], {"torch_compile": False}, ("python3", "python")),
        ("char_transformer", [], {"gradient_checkpointing": True}, ("python3", "python")),
        ("char_transformer", [], {}, ("no-such-compiler",)),
        ("char_lstm", [], {}, ("python3", "python")),  # its kernel is no compiler's business
    ],
)
def test_no_run_compiles_itself_that_would_not_earn_it_back(
    kind: str,
    seconds: list[float],
    settings: dict[str, Any],
    compilers: tuple[str, ...],
    measured: list[float],
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
) -> None:
    measured += seconds
    monkeypatch.setattr(compilation, "COMPILERS", compilers)
    monkeypatch.delenv("CXX", raising=False)
    run = trainer(tmp_path, kind, **settings)
    assert not compiled_in(run)
    assert not measured
    assert run.run_config["training"] == {}


def test_what_one_run_chose_is_not_the_next_ones_choice(measured: list[float], tmp_path: Path) -> None:
    measured += [50.0, 50.0, 40.0, 50.0, 50.0, 60.0]
    chooses, told = trainer(tmp_path / "chooses"), trainer(tmp_path / "told", torch_compile=False)
    assert compiled_in(chooses)
    assert not compiled_in(told)
    other = trainer(tmp_path / "other")
    other.args.seed = chooses.args.seed
    assert not compiled_in(other)
    assert chooses.args.torch_compile is None


def test_what_accelerate_was_told_to_compile_is_compiled(
    measured: list[float], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("ACCELERATE_DYNAMO_BACKEND", "eager")
    assert compiled_in(trainer(tmp_path))


@pytest.mark.parametrize("fails", [False, True])
def test_steps_that_are_tried_leave_no_trace(
    fails: bool, tries: None, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """Those of a compiler that fails neither: the run goes on without it."""
    tried = []
    real = compilation.step_seconds

    def slow_at_first(run: Any, measured: float) -> float:
        tried.append(run.accelerator.state.dynamo_plugin.backend)
        seconds = real(run, measured)
        if fails and len(tried) == 3:
            raise RuntimeError("the compiler failed")
        return seconds if len(tried) == 3 else 50.0

    monkeypatch.setattr(compilation, "step_seconds", slow_at_first)
    run = trainer(tmp_path / "tried")
    assert compiled_in(run) != fails
    assert [backend.value for backend in tried] == ["NO", "NO", "EAGER"]
    compiles = {} if fails else {"torch_compile": True, "torch_compile_backend": "eager"}
    trainer(tmp_path / "told", **({"torch_compile": False} | compiles)).train()
    one, two = weights(tmp_path / "tried"), weights(tmp_path / "told")
    assert all(torch.equal(one[name], two[name]) for name in one)


def test_plain_forward_puts_the_wrapper_back() -> None:
    layer = torch.nn.Linear(2, 2)
    layer.forward = lambda x: x + 1
    with plain_forward(layer):
        assert layer(torch.zeros(1, 2)).equal(layer.bias[None])
    assert layer(torch.zeros(1, 2)).equal(torch.ones(1, 2))
