"""Optimizers, callbacks and states of the user's, which survive a kill without a change in craft."""

from __future__ import annotations

import shutil
import sys
from pathlib import Path
from typing import Any

import pytest
import tiny_run
import torch
from refusals import refused
from torch import Tensor
from transformers import TrainerCallback

from craft.training.base import LanguageModelTrainer

QUIET: dict[str, Any] = {"eval_strategy": "no", "lr_scheduler_type": "cosine"}


class Odd(torch.optim.Optimizer):
    """Keeps states of every kind: another number format, nested ones, keys that aren't text, a global one."""

    def __init__(self, params: Any, lr: float, weight_decay: float = 0.0, beta: float = 0.9) -> None:
        super().__init__(params, {"lr": lr, "weight_decay": weight_decay, "beta": beta})

    @torch.no_grad()
    def step(self, closure: Any = None) -> None:
        shared = self.state["shared"]
        shared["steps"] = shared.get("steps", 0) + 1
        for group in self.param_groups:
            for p in group["params"]:
                state = self.state[p]
                if not state:
                    state["mean"] = torch.zeros_like(p, dtype=torch.float64)
                    state["rounded"] = torch.zeros_like(p, dtype=torch.bfloat16)
                    state["nested"] = {("a", 1): [torch.zeros(2), (0.5, None)], 2: True}
                state["mean"].lerp_(p.grad.double(), 1 - group["beta"])
                state["rounded"].lerp_(p.grad.bfloat16(), 0.1)
                state["nested"]["a", 1][0] += shared["steps"]
                scale = state["nested"]["a", 1][0].sum().sqrt()
                p.mul_(1 - group["lr"] * group["weight_decay"])
                p.sub_(
                    (state["mean"].sign() + state["rounded"]).to(p.dtype), alpha=float(group["lr"] / scale)
                )


def given(folder: Path, schedule: bool) -> LanguageModelTrainer:
    model = tiny_run.model("char_lstm", dropout=0.1)
    optimizer = Odd(model.parameters(), 1e-2)
    rates = (
        torch.optim.lr_scheduler.OneCycleLR(optimizer, 1e-2, 20, cycle_momentum=False) if schedule else None
    )
    trainer = tiny_run.trainer("char_lstm", folder, network=model, optimizers=(optimizer, rates), **QUIET)
    return trainer


def named(folder: Path) -> LanguageModelTrainer:
    settings = {"optim": f"{__name__}.Odd", "optim_args": "beta=0.8", "weight_decay": 0.1}
    return tiny_run.trainer("char_lstm", folder, dropout=0.1, **settings, **QUIET)


@pytest.fixture(autouse=True)
def imported(monkeypatch: pytest.MonkeyPatch) -> None:
    """This module as `--plugin` leaves one: pytest doesn't list it."""
    monkeypatch.setitem(sys.modules, __name__, sys.modules.get(__name__) or sys.modules[Odd.__module__])


@pytest.mark.parametrize(
    "make",
    [lambda folder: given(folder, True), lambda folder: given(folder, False), named],
    ids=["optimizer and schedule", "optimizer alone", "named class"],
)
def test_an_optimizer_of_the_user_resumes_bit_for_bit(tmp_path: Path, make: Any) -> None:
    whole = make(tmp_path / "whole")
    whole.train()
    assert type(whole.optimizer.optimizer) is Odd
    shutil.copytree(tmp_path / "whole", tmp_path / "again")
    shutil.rmtree(tmp_path / "again" / "checkpoint-20")
    assert not [path for path in tmp_path.rglob("*") if path.suffix in (".pt", ".bin", ".pth", ".pkl")]
    again = make(tmp_path / "again")
    again.train(resume_from_checkpoint=True)
    assert again.resumed == tmp_path / "again" / "checkpoint-16"
    assert all(torch.equal(a, b) for a, b in zip(whole.model.parameters(), again.model.parameters()))
    pairs = zip(whole.optimizer.state.values(), again.optimizer.state.values())
    assert all(str(a) == str(b) for a, b in pairs)


def test_a_named_optimizer_gets_the_settings_and_groups_with_and_without_decay(tmp_path: Path) -> None:
    optimizer = named(tmp_path).create_optimizer()
    assert [group["weight_decay"] for group in optimizer.param_groups] == [0.1, 0.0]
    assert {(group["lr"], group["beta"]) for group in optimizer.param_groups} == {(0.01, 0.8)}


def test_arguments_that_an_optimizer_does_not_take_are_one_line(tmp_path: Path) -> None:
    settings = {"optim": f"{__name__}.Odd", "optim_args": "betas=0.8"}
    with refused("setting-value", "betas"):
        tiny_run.trainer("char_lstm", tmp_path / "run", **settings, **QUIET).train()
    assert not list((tmp_path / "run").glob("*"))


def test_another_optimizer_is_a_changed_setting(tmp_path: Path) -> None:
    given(tmp_path, False).train()
    shutil.rmtree(tmp_path / "checkpoint-20")
    with refused("run-changed", "training.optim", "Odd", "adamw_torch_fused"):
        tiny_run.trainer("char_lstm", tmp_path, dropout=0.1, **QUIET).train(True)


class Mean(TrainerCallback):
    """Counts the steps and averages the embedding over them."""

    def __init__(self) -> None:
        self.steps, self.mean, self.at_begin = 0, torch.zeros(16), -1

    def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        self.at_begin = self.steps

    def on_step_end(self, args: Any, state: Any, control: Any, model: Any = None, **kwargs: Any) -> None:
        self.steps += 1
        weight: Tensor = model.get_input_embeddings().weight
        self.mean += (weight.detach().mean(0) - self.mean) / self.steps

    def state_dict(self) -> dict[str, Any]:
        return {"steps": self.steps, "mean": self.mean}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.steps, self.mean = state["steps"], state["mean"]


def test_a_registered_part_is_restored_before_callbacks_begin(tmp_path: Path) -> None:
    means = []
    for resume in (None, True):
        mean = Mean()
        trainer = tiny_run.trainer("char_transformer", tmp_path, callbacks=[mean], **QUIET)
        trainer.register("mean", mean)
        trainer.train(resume)
        means.append(mean)
        shutil.rmtree(tmp_path / "checkpoint-20")
    whole, again = means
    assert (whole.at_begin, again.at_begin) == (0, 16)
    assert again.steps == 20
    assert torch.equal(whole.mean, again.mean)
    with refused("usage", "'ema'"):
        trainer.register("ema", Mean())
