"""Follows the time plans of a run, and makes a new one where the end would be missed."""

from __future__ import annotations

import time
from typing import Any

from transformers import TrainerCallback, TrainerControl, TrainerState
from transformers.trainer_utils import SaveStrategy

from craft.training.distributed.agreement import on_rank0_broadcast
from craft.training.time_budget import (
    ROOM,
    TimeBudget,
    minutes,
    most_steps,
    seconds_left,
)
from craft.training.trial import Costs
from craft.utils.logging import get_logger

logger = get_logger(__name__)

LOOKS = 20
"""How many times in a run the end is forecast."""
EARLIEST = (0.1, 0.6)
"""The share of all steps after which the first, and the last, new plan may be made."""
ENOUGH = (1.5, 0.015)
"""Seconds, or the share of its time, by which the forecast of a run may miss its end without a new plan: so
little that a run uses the time it was given."""


class TimePlan(TrainerCallback):
    """Ends a run at the step that its plans say, and forecasts when that is.

    Args:
        budget: of the trainer; does nothing in a run without plans.
    """

    def __init__(self, budget: TimeBudget) -> None:
        self.budget, self.trainer = budget, budget.trainer
        self._pauses = 0

    def on_train_begin(self, args: Any, state: TrainerState, control: TrainerControl, **kwargs: Any) -> None:
        self._begin, self._pauses = time.monotonic() - self.trainer.watch.total(), 0
        self._marks = [(state.global_step, self.trainer.watch.total())]
        self._said = self.budget.measured

    def on_evaluate(self, args: Any, state: TrainerState, control: TrainerControl, **kwargs: Any) -> None:
        self._pauses += self.trainer.is_in_train

    def on_save(self, args: Any, state: TrainerState, control: TrainerControl, **kwargs: Any) -> None:
        self._pauses += 1

    def on_step_end(self, args: Any, state: TrainerState, control: TrainerControl, **kwargs: Any) -> None:
        budget, step = self.budget, state.global_step
        if not budget.plans:
            return
        budget.apply_plan(state)
        every = max(1, state.max_steps // LOOKS)
        looks = step % every == 0 and step < state.max_steps
        if looks and not self._said and step >= self._marks[0][0] + every // 2:
            self._said = True
            self._say_end(state)
        if looks and budget.measured and (total := on_rank0_broadcast(lambda: self._new_total(state))):
            budget.change(step, total)
            budget.apply_plan(state)
            control.should_save |= args.save_strategy != SaveStrategy.NO

    def on_train_end(self, args: Any, state: TrainerState, control: TrainerControl, **kwargs: Any) -> None:
        if not self.budget.protocols and not self.trainer.stop.signum:  # else the run isn't over
            self.budget.report()

    def costs(self, state: TrainerState) -> Costs:
        """What takes how long, as it was in this process: steps lately, evaluations and saves as one."""
        planned, trained = self.budget.costs, self.trainer.watch.total()
        middle = (self._marks[0][0] + state.global_step) / 2
        step, seconds = [mark for mark in self._marks if mark[0] <= middle][-1]
        each = max(1e-6, (trained - seconds) / max(1, state.global_step - step))
        self._marks.append((state.global_step, trained))
        slower = 1.0 if planned is None else each / planned.step
        pause = (time.monotonic() - self._begin - trained) / max(1, self._pauses)
        before = planned or Costs(each, 0.0, 0.0, 0.0)
        if self._pauses:
            return Costs(each, pause, pause, slower * before.ending)
        return Costs(each, slower * before.evaluation, before.save, slower * before.ending)

    def _new_total(self, state: TrainerState) -> int | None:
        """How many steps the run is to have instead, if it would miss its end and may be planned anew."""
        budget, step, number = self.budget, state.global_step, len(self.budget.plans) - 1
        costs, every = self.costs(state), budget.intervals(budget.plans[0][1])
        end = budget.elapsed() + seconds_left(costs, step, state.max_steps, every)
        enough = max(ENOUGH[0], ENOUGH[1] * budget.seconds)
        early = number >= len(EARLIEST) or step < EARLIEST[number] * state.max_steps
        if early or abs(end - budget.seconds) <= enough:
            return None
        left = budget.seconds - budget.elapsed()
        total = most_steps(left, lambda total: seconds_left(costs, step, total, every), step)
        total = min(max(total, step + 1), ROOM * budget.plans[0][1])
        logger.info(
            f"plan      at step {step:,} the end is forecast at {minutes(end)} of {minutes(budget.seconds)}: "
            f"{total:,} steps instead of {state.max_steps:,}"
        )
        return None if total == state.max_steps else total

    def _say_end(self, state: TrainerState) -> None:
        """The forecast of a run whose plan was made before: it stays, on this machine, too."""
        budget = self.budget
        costs, every = self.costs(state), budget.intervals(budget.plans[0][1])
        end = budget.elapsed() + seconds_left(costs, state.global_step, state.max_steps, every)
        of = f" of {minutes(budget.seconds)}" if self.trainer.args.max_minutes else ""
        logger.info(
            f"plan      {budget.plans[-1][1]:,} steps as planned before: scored and saved at about "
            f"{budget.clock(end)} ({minutes(end)}{of})"
        )
