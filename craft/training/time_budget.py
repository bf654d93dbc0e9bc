"""`TimeBudget`: a run that ends, scored and saved, when `training.max_minutes` are over.

A plan is a pair (step, total): from that step on, the run is to have so many steps in all. The first one is
made before the run begins, from trial steps (`trial.py`); `callbacks/time_plan.py` makes a new one where the
end would be missed. They are kept as `training.time_plan`; a run that has it measures nothing.
"""

from __future__ import annotations

import math
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from datetime import datetime, timedelta
from typing import Any

import yaml
from transformers.trainer_utils import IntervalStrategy, SaveStrategy

from craft.training.checkpointing.resume_rules import STEPS
from craft.training.distributed.agreement import on_rank0_broadcast
from craft.training.trial import Costs, measure
from craft.utils.common import human
from craft.utils.errors import UserError
from craft.utils.files import explain_disk_errors, replace_text
from craft.utils.logging import get_logger
from craft.utils.outputs import RUN_CONFIG

logger = get_logger(__name__)

ROOM = 10
"""How many times longer than its first plan a run may become."""

Plans = Sequence[Sequence[int]]


def total_at(plans: Plans, step: int) -> int:
    """How many steps the run is to have in all, as planned at a step."""
    return [total for begin, total in plans if begin <= step][-1]


def schedule_position(plans: Plans, step: float) -> float:
    """Where the schedule of the first plan is read: each plan spreads what was left of it over its own steps,
    so that the learning rate never jumps and still comes to its end."""
    begin, position, slope, whole = 0, 0.0, 1.0, plans[0][1]
    for start, total in plans[1:]:
        if start >= step:
            break
        position += (start - begin) * slope
        begin, slope = start, (whole - position) / (total - start)
    return position + (step - begin) * slope


def most_steps(seconds: float, cost: Callable[[int], float], begin: int = 0) -> int:
    """The largest total above `begin` that costs no more than that; `begin` if there is none.

    Args:
        cost: grows with the total.
    """
    low, high = begin, begin + 1
    while cost(high) <= seconds:
        low, high = high, begin + 2 * (high - begin)
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (middle, high) if cost(middle) <= seconds else (low, middle)
    return low


@dataclass(frozen=True)
class Intervals:
    """Every how many steps a run is evaluated and saved; None for never. Both come at its end, too."""

    evaluation: int | None
    save: int | None

    def pauses(self, begin: int, total: int) -> tuple[int, int]:
        """Evaluations and saves behind a step. A new best is saved, too, so there are no fewer saves."""
        evaluations, saves = (
            0 if every is None else -(-total // every) - begin // every
            for every in (self.evaluation, self.save)
        )
        return evaluations, saves if self.save is None else max(saves, evaluations)


def seconds_left(costs: Costs, begin: int, total: int, every: Intervals) -> float:
    """How long a run of so many steps takes from a step on, to its very end."""
    evaluations, saves = every.pauses(begin, total)
    steps = (total - begin) * costs.step
    return steps + evaluations * costs.evaluation + saves * costs.save + costs.ending


class TimeBudget:
    """The clock and the plans of a trainer's run. As a part of checkpoints it holds the seconds lived so far.

    Args:
        trainer: a `craft.training.base.Trainer`.

    Attributes:
        process_began: when the clock starts (seconds since 1970); None for when training is called.
        protocols: by which the finished model is scored in this process, after training.
        plans: empty in a run that isn't planned by time.
        tried: what such a run was seen to cost, where that was measured before.
        costs: what the first plan counts on; None where it wasn't measured.
        measured: whether this process made the first plan, and so may change it.
    """

    def __init__(self, trainer: Any) -> None:
        self.trainer = trainer
        self.process_began: float | None = None
        self.protocols: tuple[str, ...] = ()
        self.plans: list[list[int]] = []
        self.tried: Costs | None = None
        self.costs: Costs | None = None
        self.measured = False
        self._began, self._before = time.time(), 0.0

    # ---- The clock

    @property
    def seconds(self) -> float:
        """What the run was given."""
        return 60 * (self.trainer.args.max_minutes or math.inf)

    def elapsed(self) -> float:
        """Seconds that this process and those before it lived."""
        return self._before + time.time() - self._began

    def state_dict(self) -> dict[str, Any]:
        costs = None if self.costs is None else asdict(self.costs)
        return {"lived": self.elapsed(), "plans": self.plans, "costs": costs}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self._before = state["lived"]
        self.costs = Costs(**state["costs"]) if state["costs"] else None

    # ---- Plans

    def begin(self) -> None:
        """Starts the clock of a run, or goes on with that of the run that is resumed."""
        args, checkpointer = self.trainer.args, self.trainer.checkpointer
        self._began = time.time() if self.process_began is None else self.process_began
        self._before, self.costs, self.measured = 0.0, None, False
        self.plans = args.time_plan or []
        if checkpointer.resumed is not None and (kept := checkpointer.progress()["parts"].get("time_budget")):
            self.load_state_dict(kept)
            if args.max_minutes is not None and not self.plans:  # a run that goes on keeps its plans
                self.plans = kept["plans"]

    @property
    def is_open(self) -> bool:
        """Whether the number of steps is still to follow from the time."""
        return self.trainer.args.max_minutes is not None and not self.plans

    def total_steps(self) -> int:
        """How many steps the run is to have, by its plans or its arguments."""
        trainer, step = self.trainer, self.trainer.checkpointer.resumed_step or 0
        steps: int = trainer.set_initial_training_values(trainer.args, trainer.get_train_dataloader())[-1]
        return total_at(self.plans, step) if self.plans else steps

    def planned_steps(self) -> int:
        """How many steps the run is to have: as its time plan says, which is made if it has none yet.

        Raises:
            UserError: if the time isn't enough, or the run goes on from one that wasn't planned by time.
        """
        if self.is_open:
            self.plans, self.measured = self._first_plan(), True
        if self.plans:
            self._store_plans()
        return self.total_steps()

    def _first_plan(self) -> list[list[int]]:
        checkpointer = self.trainer.checkpointer
        if checkpointer.resumed is not None:
            raise UserError(
                f"training.max_minutes={self.trainer.args.max_minutes:g} plans a new run, and "
                f"{checkpointer.run_dir} was begun with a number of steps; set training.max_steps",
                code="run-changed",
            )
        self.costs = costs = self.tried or measure(self.trainer, self.protocols)

        def decide() -> list[list[int]]:
            steps = self.steps_within(self.seconds - self.elapsed(), costs)
            if steps < 1:
                needed = self.elapsed() + seconds_left(costs, 0, 1, self.intervals(1))
                raise UserError(
                    f"training.max_minutes={self.trainer.args.max_minutes:g} is too little: start, one step, "
                    f"scoring and saving take about {needed:.0f} s here; give "
                    f"training.max_minutes={math.ceil(needed / 4) / 10:g} or more",
                    code="setting-value",
                )
            self._announce(steps)
            return [[0, steps]]

        return on_rank0_broadcast(decide)

    def steps_within(self, seconds: float, costs: Costs) -> int:
        """The most steps of a new run that is scored and saved within so many seconds; 0 without time."""
        return most_steps(seconds, lambda total: seconds_left(costs, 0, total, self.intervals(total)))

    def _announce(self, steps: int) -> None:
        trainer, minutes = self.trainer, self.trainer.args.max_minutes
        evaluations = self.intervals(steps).pauses(0, steps)[0]
        counts = [f"{evaluations} evaluations"]
        if per_epoch := getattr(trainer.train_dataset, "steps_per_epoch", None):
            counts.insert(0, f"{steps / per_epoch:.1f} epochs")
        if units := getattr(trainer, "units", None):
            counts.insert(0, f"{human(steps * units.per_step)} {units.unit.plural}")
        logger.info(
            f"plan      {minutes:g} minute{'s' * (minutes != 1)}: {steps:,} steps ({', '.join(counts)}),\n"
            f"          scored and saved at about {self.clock(self.seconds)}"
        )

    def intervals(self, total: int) -> Intervals:
        """As the arguments say for a run of so many steps, in which a fraction is one of all steps."""
        args, data = self.trainer.args, self.trainer.train_dataset

        def every(strategy: str, steps: float) -> int | None:
            if strategy == IntervalStrategy.EPOCH:
                return getattr(data, "steps_per_epoch", None)
            return math.ceil(steps * total if steps < 1 else steps) if strategy == "steps" else None

        evaluation = every(args.eval_strategy, args.eval_steps or 1)
        save = every(args.save_strategy, args.save_steps)
        return Intervals(evaluation, evaluation if args.save_strategy == SaveStrategy.BEST else save)

    def change(self, step: int, total: int) -> None:
        """Plans the rest anew from a step on; all processes come here."""
        self.plans = [*self.plans, [step, total]]
        self._store_plans()
        on_rank0_broadcast(self._rewrite)

    def _store_plans(self) -> None:
        """Puts the plans where they are saved with the run."""
        trainer, plans = self.trainer, [list(plan) for plan in self.plans]
        trainer.args.time_plan, trainer.args.max_steps = plans, plans[0][1]
        keep_setting(trainer, "time_plan", plans)

    def _rewrite(self) -> None:
        """The saved run, before any checkpoint knows the new plan."""
        trainer, file = self.trainer, self.trainer.run_dir / RUN_CONFIG
        if file.is_file():
            with explain_disk_errors(RUN_CONFIG, trainer.run_dir, trainer.checkpointer.what_is_left):
                replace_text(file, yaml.safe_dump(trainer.run_config, sort_keys=False, allow_unicode=True))

    # ---- In the loop of transformers

    def with_spare_epochs(self, values: tuple[Any, ...]) -> tuple[Any, ...]:
        """What `set_initial_training_values` returns, with the epochs that a run has if it grows; of a
        stream, which has but one, with the steps in it."""
        if not self.plans:
            return values
        epochs, steps, *rest, in_epoch, total = values
        if epochs == sys.maxsize:
            return epochs, ROOM * steps, *rest, ROOM * in_epoch, total
        return ROOM * epochs, steps, *rest, in_epoch, total

    def schedule_steps(self, steps: int) -> int:
        """For how many steps a schedule is made."""
        return self.plans[0][1] if self.plans else steps

    def follow_plans(self, schedule: Any) -> Any:
        """Lets a new schedule, made for the first plan, follow the others."""
        if self.plans and hasattr(schedule, "lr_lambdas"):
            schedule.lr_lambdas = [self._warped(factor) for factor in schedule.lr_lambdas]
        return schedule

    def _warped(self, factor: Callable[[float], float]) -> Callable[[float], float]:
        return lambda step: factor(schedule_position(self.plans, step))

    def apply_plan(self, state: Any) -> None:
        """Lets a run have the total of the plan of its step; that is also compared when it is resumed."""
        if self.plans:
            state.max_steps = self.trainer.settings[STEPS] = total_at(self.plans, state.global_step)

    # ---- Words

    def clock(self, end: float) -> str:
        """The time of day at which so many seconds are over."""
        return format(datetime.now() + timedelta(seconds=end - self.elapsed()), "%H:%M:%S")

    def report(self) -> None:
        """Says, once all is done, how long it took of the time that was given."""
        took, given = self.elapsed(), self.seconds
        if given < math.inf:
            logger.info(f"took {minutes(took)} of {minutes(given)} ({took / given - 1:+.1%})")


def keep_setting(trainer: Any, name: str, value: Any) -> None:
    """Saves what was measured as a setting of the run, so that `--config` and a resumed run have it, too."""
    if "training" in trainer.run_config:
        training = {**trainer.run_config["training"], name: value}
        trainer.run_config = {**trainer.run_config, "training": training}


def minutes(seconds: float) -> str:
    """`4:58`, or with hours `1:04:58`."""
    return str(timedelta(seconds=round(seconds))).removeprefix("0:").lstrip("0").rjust(4, "0")
