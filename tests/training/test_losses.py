"""Losses that a model adds by names of their own: trained, logged and saved as what they are."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import tiny_run
import torch
from refusals import refused

from craft.models import CharLSTMForCausalLM
from craft.training.base import LanguageModelTrainer
from craft.training.losses import AuxiliaryLosses

QUIET: dict[str, Any] = {"eval_strategy": "no", "max_steps": 4, "logging_steps": 4, "save_steps": 100}


class Penalised(CharLSTMForCausalLM):
    """Adds what each of `names` says to the loss: the mean square of the states, or nothing in odd steps."""

    weight, names, calls = 100.0, ("activity",), 0

    def compute_loss(self, hidden: Any, logits: Any, labels: Any, **targets: Any) -> Any:
        loss, others = super().compute_loss(hidden, logits, labels, **targets)
        self.calls += 1
        squares = self.weight * hidden.square().mean(dim=-1)
        value = self.mean_over_predictions(squares, targets.get("num_items_in_batch"))
        names = [name for name in self.names if name != "sometimes" or self.calls % 2]
        return loss, {**others, **dict.fromkeys(names, value)}


def trainer(folder: Path, *names: str, **settings: Any) -> LanguageModelTrainer:
    network = tiny_run.model("char_lstm")
    network.__class__ = Penalised
    network.names = names or Penalised.names
    return tiny_run.trainer("char_lstm", folder, network=network, **{**QUIET, **settings})


def logged(run: LanguageModelTrainer) -> dict[str, float]:
    run.train()
    return next(entry for entry in run.state.log_history if "loss" in entry)


def test_an_auxiliary_loss_is_the_same_at_any_accumulation(tmp_path: Path) -> None:
    whole, *others = (
        logged(trainer(tmp_path / str(steps), gradient_accumulation_steps=steps)) for steps in (1, 2, 4)
    )
    for other in others:
        assert other["activity"] == pytest.approx(whole["activity"], rel=1e-4)
        assert other["loss"] == pytest.approx(whole["loss"], rel=1e-4)


@pytest.mark.parametrize("accumulation", [1, 2])
def test_label_smoothing_keeps_auxiliary_losses(tmp_path: Path, accumulation: int) -> None:
    settings = {"label_smoothing_factor": 0.1, "gradient_accumulation_steps": accumulation}
    entry = logged(trainer(tmp_path, learning_rate=1e-9, **settings))
    plain = logged(
        tiny_run.trainer("char_lstm", tmp_path / "plain", **{**QUIET, **settings}, learning_rate=1e-9)
    )
    assert entry["activity"] > 1
    assert entry["loss"] - entry["activity"] == pytest.approx(plain["loss"], rel=1e-4)
    assert entry["bits_per_char"] == pytest.approx(plain["bits_per_char"], rel=1e-4)


def test_a_loss_function_that_would_drop_auxiliary_losses_is_refused(tmp_path: Path) -> None:
    run = trainer(tmp_path)
    run.compute_loss_func = lambda outputs, labels, num_items_in_batch: outputs.logits.sum()
    with refused("setting-conflict", "compute_loss_func", "activity"):
        run.train()


def test_an_auxiliary_loss_of_some_steps_is_a_mean_over_all(tmp_path: Path) -> None:
    entry = logged(trainer(tmp_path, "activity", "sometimes", learning_rate=1e-9))
    assert entry["sometimes"] == pytest.approx(entry["activity"] / 2, rel=0.1)


@pytest.mark.parametrize(
    "name",
    ["loss", "grad_norm", "learning_rate", "bits_per_char", "characters", "chars_per_second", "eval_loss"],
)
def test_a_name_of_another_figure_is_refused(tmp_path: Path, name: str) -> None:
    with refused("model-invalid", repr(name)):
        trainer(tmp_path, name).train()


def test_the_line_for_people_shows_auxiliary_losses(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level("INFO", logger="craft"):
        entry = logged(trainer(tmp_path))
    assert f"activity {entry['activity']:.3f}" in caplog.text


@pytest.mark.parametrize("across", [True, False])
@pytest.mark.parametrize("world", [1, 2, 4])
def test_sums_go_on_on_another_number_of_processes(across: bool, world: int) -> None:
    """Two processes summed up 1 and 3 in 2 steps: in all 4, or 2 on average."""

    def on(world: int) -> AuxiliaryLosses:
        args = SimpleNamespace(
            world_size=world, device=torch.device("cpu"), average_tokens_across_devices=across
        )
        gather = SimpleNamespace(gather=lambda total: total.repeat(world))
        return AuxiliaryLosses(SimpleNamespace(args=args, accelerator=gather))

    states = [{"sums": {"second": torch.tensor(value)}, "steps": 2} for value in (1.0, 3.0)]
    if world == 2:
        for rank, value in enumerate((1, 3)):
            (own := on(2)).load_rank_states(states, rank)
            assert (own.sums["second"], own.steps) == (value, 2)
    else:
        (own := on(world)).load_rank_states(states, 0)
        assert own.drain() == {"second": 2.0 if across else 1.0}
