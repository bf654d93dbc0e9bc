"""Runs that are planned by time: the plans, the schedule that follows them, trial steps without a trace.

No test here asserts how long something takes.
"""

from __future__ import annotations

import itertools
import json
from pathlib import Path
from typing import Any

import pytest
import tiny_run
import torch
from hypothesis import given
from hypothesis import strategies as st
from refusals import refused
from transformers import TrainerCallback

from craft.training import trial
from craft.training.callbacks import time_plan
from craft.training.checkpointing.parts import Generators
from craft.training.logging import read_metrics
from craft.training.time_budget import (
    Intervals,
    minutes,
    most_steps,
    schedule_position,
    seconds_left,
    total_at,
)
from craft.training.trial import Costs
from craft.utils.outputs import RUN_CONFIG

TIMED: dict[str, Any] = {"max_steps": -1, "eval_steps": 0.25, "save_steps": 0.25, "logging_steps": 0.1}
THREE = [[0, 40], [10, 60], [30, 50]]


@st.composite
def plans(draw: st.DrawFn) -> list[list[int]]:
    """Up to three, each made while the one before it is followed."""
    made = [[0, draw(st.integers(3, 5000))]]
    for _ in range(draw(st.integers(0, 2))):
        begin, total = made[-1]
        if total - begin < 3:
            break
        step = draw(st.integers(begin + 1, total - 1))
        made.append([step, draw(st.integers(step + 1, 3 * total))])
    return made


@given(plans())
def test_the_schedule_goes_on_from_where_it_was_and_comes_to_its_end(made: list[list[int]]) -> None:
    whole, steps = made[0][1], range(made[-1][1] + 1)
    places = [schedule_position(made, step) for step in steps]
    assert places[0] == 0
    assert places[-1] == pytest.approx(whole)
    assert all(one < two for one, two in itertools.pairwise(places))
    for number, (step, _) in enumerate(made[1:], start=1):  # to the bit what it was before the plan was made
        before = [schedule_position(made[:number], earlier) for earlier in range(step + 1)]
        assert before == places[: step + 1]


@given(plans())
def test_a_step_has_the_plan_that_was_made_last(made: list[list[int]]) -> None:
    for number, (step, total) in enumerate(made):
        assert total_at(made, step) == total
        assert total_at(made, step - 1 if number else 0) == made[max(0, number - 1)][1]


@given(st.integers(1, 400), st.integers(0, 400), st.integers(1, 90), st.integers(1, 90))
def test_pauses_are_those_of_the_loop(total: int, begin: int, evaluation: int, save: int) -> None:
    begin = min(begin, total - 1)
    left = range(begin + 1, total + 1)
    evaluations = [step for step in left if step % evaluation == 0 or step == total]
    saves = [step for step in left if step % save == 0 or step == total]
    expected = len(evaluations), max(len(saves), len(evaluations))
    assert Intervals(evaluation, save).pauses(begin, total) == expected
    assert Intervals(None, save).pauses(begin, total) == (0, len(saves))
    assert Intervals(evaluation, None).pauses(begin, total) == (len(evaluations), 0)


@given(st.integers(0, 100), st.floats(1e-3, 1), st.floats(0, 5), st.floats(0, 9), st.floats(0, 300))
def test_as_many_steps_as_fit(begin: int, step: float, pause: float, ending: float, seconds: float) -> None:
    def cost(total: int) -> float:
        return seconds_left(Costs(step, pause, pause, ending), begin, total, Intervals(100, 50))

    steps = most_steps(seconds, cost, begin)
    assert steps == begin or cost(steps) <= seconds
    assert cost(steps + 1) > seconds


def test_times_are_written_as_people_read_them() -> None:
    assert [minutes(s) for s in (0, 9, 62.4, 298, 3600, 3898)] == [
        "0:00",
        "0:09",
        "1:02",
        "4:58",
        "1:00:00",
        "1:04:58",
    ]


@pytest.mark.parametrize("kind", ["char_lstm", "char_transformer"])
def test_trial_steps_leave_no_trace(kind: str, tmp_path: Path) -> None:
    more: dict[str, Any] = {"optim": "muon", "gradient_accumulation_steps": 2}
    trainer = tiny_run.trainer(kind, tmp_path / "run", dropout=0.2, **more)
    generators = Generators(trainer.args.device)
    weights = {name: tensor.clone() for name, tensor in trainer.model.state_dict().items()}
    before, attributes = generators.state_dict(), set(trainer.model.__dict__)
    trial.measure(trainer, ("blocks",))
    after = generators.state_dict()
    assert torch.equal(before.pop("torch"), after.pop("torch"))
    assert before == after
    assert all(torch.equal(weights[name], tensor) for name, tensor in trainer.model.state_dict().items())
    assert [p for p in trainer.model.parameters() if p.grad is not None] == []
    assert set(trainer.model.__dict__) <= attributes | {"_original_forward"}
    assert (trainer.optimizer, trainer.carried.slots, trainer.auxiliary.steps) == (None, {}, 0)
    assert list((tmp_path / "run").iterdir()) == []


def test_an_optimizer_of_the_caller_is_given_back_as_it_was(tmp_path: Path) -> None:
    network = tiny_run.model("char_lstm")
    optimizer = torch.optim.AdamW(network.parameters(), lr=0.01)
    for parameter in network.parameters():
        parameter.grad = torch.ones_like(parameter)
    optimizer.step()
    before = optimizer.state_dict()["state"][0]["exp_avg"].clone()
    trainer = tiny_run.trainer("char_lstm", tmp_path, network=network, optimizers=(optimizer, None))
    trial.measure(trainer, ())
    assert trainer.optimizer is optimizer
    assert torch.equal(optimizer.state_dict()["state"][0]["exp_avg"], before)


def final(run_dir: Path) -> dict[str, str]:
    """What the last checkpoint holds, as hashes."""
    last = max(run_dir.glob("checkpoint-*"), key=lambda folder: int(folder.name.split("-")[1]))
    files = json.loads((last / "manifest.json").read_text())["files"]
    return {name: entry["sha256"] for name, entry in files.items() if name.endswith(".safetensors")}


HARD: dict[str, Any] = {"dropout": 0.2, "gradient_accumulation_steps": 2, "lr_scheduler_type": "cosine"}


def test_a_measured_run_is_repeated_by_its_plan(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """To the bit, with its optimizer, its random numbers and its carried state."""
    monkeypatch.setattr(trial, "TRIAL_SECONDS", 0.1)  # so that much is left on a busy machine
    timed = tiny_run.trainer("char_lstm", tmp_path / "timed", max_minutes=0.12, **{**TIMED, **HARD})
    timed.train()
    plan = timed.args.time_plan
    assert plan is not None
    again = tiny_run.trainer("char_lstm", tmp_path / "again", time_plan=plan, **{**TIMED, **HARD})
    again.train()
    assert timed.state.global_step == again.state.global_step == plan[-1][1]
    assert final(tmp_path / "timed") == final(tmp_path / "again")


class Stops(TrainerCallback):
    """Ends training behind a step, as a kill would that comes after it was saved."""

    def __init__(self, step: int) -> None:
        self.step = step

    def on_save(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        if state.global_step == self.step:
            raise KeyboardInterrupt


@pytest.mark.parametrize("step", [8, 12, 32])
def test_a_run_that_goes_on_follows_plans_made_before_and_behind_its_checkpoint(
    step: int, tmp_path: Path
) -> None:
    given = {**TIMED, **HARD, "time_plan": THREE, "save_steps": 4}
    whole = tiny_run.trainer("char_lstm", tmp_path / "whole", **given)
    whole.train()
    stopped = tiny_run.trainer("char_lstm", tmp_path / "run", callbacks=[Stops(step)], **given)
    with pytest.raises(KeyboardInterrupt):
        stopped.train()
    resumed = tiny_run.trainer("char_lstm", tmp_path / "run", **given)
    resumed.train(resume_from_checkpoint=True)
    assert resumed.checkpointer.resumed_step == step
    assert whole.state.global_step == resumed.state.global_step == 50
    assert final(tmp_path / "whole") == final(tmp_path / "run")
    scored = [
        [event["step"] for event in read_metrics(tmp_path / name) if "eval_loss" in event]
        for name in ("whole", "run")
    ]
    assert scored == [[10, 20, 30, 40, 50]] * 2  # a quarter of the first plan


def test_the_learning_rate_comes_to_its_end_without_a_jump(tmp_path: Path) -> None:
    given: dict[str, Any] = {**TIMED, "warmup_steps": 0, "logging_steps": 1, "eval_strategy": "no"}
    trainer = tiny_run.trainer("char_transformer", tmp_path, time_plan=THREE, **given)
    trainer.train()
    rates = [event["learning_rate"] for event in read_metrics(tmp_path) if "learning_rate" in event]
    falls = [one - two for one, two in itertools.pairwise(rates)]
    # linear: by the same amount in each step, in which the three plans differ
    each = [0.01 / 40, 0.01 * 30 / 40 / 50, 0.01 * (30 - 12) / 40 / 20]
    assert falls[:9] == pytest.approx([each[0]] * 9)
    assert falls[10:29] == pytest.approx([each[1]] * 19)
    assert falls[30:] == pytest.approx([each[2]] * (len(falls) - 30))
    assert trainer.lr_scheduler.get_last_lr() == pytest.approx([0.0] * len(trainer.optimizer.param_groups))


class Jump(TrainerCallback):
    """Lets most of a minute go by behind a step, and new plans be made from there on."""

    def __init__(self, trainer: Any, step: int) -> None:
        self.trainer, self.step = trainer, step

    def on_step_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        if state.global_step == self.step:
            self.trainer.budget._began -= 55
            time_plan.EARLIEST = (0.0, 2.0)


def test_the_rest_is_planned_anew_where_the_end_would_be_missed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(time_plan, "EARLIEST", (2.0, 2.0))
    monkeypatch.setattr(time_plan, "LOOKS", 1_000_000)
    given = {**TIMED, **HARD, "save_steps": 1_000_000, "eval_strategy": "no"}
    timed = tiny_run.trainer("char_lstm", tmp_path / "timed", max_minutes=1, **given)
    timed.run_config = {"training": {"max_minutes": 1, "time_plan": None}}
    (tmp_path / "timed" / RUN_CONFIG).write_text("training: {}")
    timed.add_callback(Jump(timed, 20))
    timed.train()
    plan = timed.args.time_plan
    assert plan is not None
    assert [step for step, _ in plan] == [0, 21]
    assert plan[0][1] > plan[1][1] == timed.state.global_step
    saved = [json.loads(file.read_text()) for file in (tmp_path / "timed").glob("checkpoint-*/progress.json")]
    assert plan in [progress["parts"]["time_budget"]["plans"] for progress in saved]
    assert timed.run_config["training"]["time_plan"] == plan
    assert str(plan[-1][1]) in (tmp_path / "timed" / RUN_CONFIG).read_text()
    again = tiny_run.trainer("char_lstm", tmp_path / "again", time_plan=plan, **given)
    again.train()
    assert final(tmp_path / "timed") == final(tmp_path / "again")


def test_what_was_tried_before_is_not_tried_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    trainer = tiny_run.trainer("char_lstm", tmp_path / "run", max_minutes=0.12, **TIMED)
    trainer.budget.tried = trial.Costs(step=0.5, evaluation=0.0, save=0.0, ending=0.0)
    monkeypatch.setattr(trial, "step_seconds", lambda *_: pytest.fail("steps were tried"))
    trainer.train()
    assert trainer.budget.plans[0][1] <= 0.12 * 60 / 0.5


def test_a_finished_run_trains_on_by_steps(tmp_path: Path) -> None:
    tiny_run.trainer("char_lstm", tmp_path, time_plan=THREE, **TIMED).train()
    longer = tiny_run.trainer("char_lstm", tmp_path, **{**TIMED, "max_steps": 60})
    longer.train(resume_from_checkpoint=True)
    assert longer.state.global_step == 60


def test_too_little_time_is_refused_before_anything_is_written(tmp_path: Path) -> None:
    trainer = tiny_run.trainer("char_lstm", tmp_path / "run", max_minutes=1e-4, **TIMED)
    with refused("setting-value", "training.max_minutes=0.0001"):
        trainer.train()
    assert list((tmp_path / "run").iterdir()) == []


def test_a_run_that_was_begun_with_steps_goes_on_with_steps(tmp_path: Path) -> None:
    tiny_run.trainer("char_lstm", tmp_path).train()
    with refused("run-changed", "training.max_minutes=5", "training.max_steps"):
        tiny_run.trainer("char_lstm", tmp_path, max_minutes=5, **TIMED).train(resume_from_checkpoint=True)


@pytest.mark.parametrize(
    "plan", [[], [1], [[1, 20]], [[0, 0]], [[0, 9.5]], [[0, 20], [20, 30]], [[0, 20], [5, 4]], [[0, 20, 3]]]
)
def test_a_plan_that_no_run_can_have_is_refused(plan: Any, tmp_path: Path) -> None:
    with refused("setting-value", "training.time_plan"):
        tiny_run.arguments(tmp_path, **TIMED, time_plan=plan)


@pytest.mark.parametrize("changes", [{"max_steps": 20}, {"num_train_epochs": 2.0}])
def test_time_and_steps_exclude_each_other(changes: dict[str, Any], tmp_path: Path) -> None:
    (name,) = changes
    with refused("setting-conflict", "training.max_minutes=5", f"training.{name}"):
        tiny_run.arguments(tmp_path, **{**TIMED, **changes}, max_minutes=5)
