"""What a setting needs of this machine: a number format, several processes, a folder that can be made.

Each rule takes the settings of a training by name and raises a UserError. Packages aren't looked for here:
transformers says which one is missing, see `library_errors`.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from itertools import pairwise
from pathlib import Path
from typing import Any

from craft.training.precision import Hardware, choose_precision
from craft.utils import launch
from craft.utils.errors import UserError
from craft.utils.settings import must, yaml_word

Values = Mapping[str, Any]

LENGTHS = {"max_steps": -1, "num_train_epochs": 3.0}
"""What also says how long a run is, and what it is where nobody does."""


def _is_time_plan(plans: Any) -> bool:
    pairs = bool(plans) and all(isinstance(plan, list) and len(plan) == 2 for plan in plans)
    if not pairs or any(type(number) is not int for plan in plans for number in plan):
        return False
    in_order = all(one[0] < two[0] < one[1] for one, two in pairwise(plans))
    return plans[0][0] == 0 and in_order and all(begin < total for begin, total in plans)


TIME_PLAN = must("be pairs [step, steps in all], the first of step 0, such as [[0, 1200]]", _is_time_plan)


@contextmanager
def library_errors() -> Iterator[None]:
    """Turns what transformers raises for settings and missing packages into one line."""
    from torch import OutOfMemoryError

    try:
        yield
    except OutOfMemoryError:
        raise
    except (ImportError, KeyError, OSError, RuntimeError, TypeError, ValueError) as error:
        missing = isinstance(error, ImportError) or "install" in str(error)
        code: Any = "package-missing" if missing else "setting-value"
        raise UserError(f"training: {' '.join(str(error).split())}", code=code) from error


def asked_for_cpu(values: Values) -> bool:
    """Whether a run is on a CPU by choice."""
    return values["use_cpu"] or launch.flag("ACCELERATE_USE_CPU")


def on_cpu(values: Values) -> bool:
    """Whether a run is on a CPU, by choice or because this machine has nothing else."""
    import torch

    return asked_for_cpu(values) or not torch.accelerator.is_available()


def precision(values: Values) -> None:
    """The format is named once, and this machine computes in it; `bf16` and `fp16` are other words for it."""
    asked = {name: f"training.{name}=true" for name in ("fp16", "bf16") if values[name]}
    if values["precision"] != "auto":
        asked.setdefault(values["precision"], f"training.precision={values['precision']}")
    if len(asked) > 1:
        raise UserError(
            f"{' and '.join(asked.values())} exclude each other; set training.precision alone",
            code="setting-conflict",
        )
    for name in asked:
        choose_precision(name, hardware=Hardware.detect(on_cpu(values)))


def several_processes(values: Values) -> None:
    if values["fsdp"] and launch.world_size() < 2:
        raise UserError(
            f"training.fsdp={yaml_word(values['fsdp'])} shares a model between several processes, and this "
            "is one; start them with accelerate launch, or leave it out",
            code="setting-conflict",
        )


def output_dir(values: Values) -> None:
    """A folder of the run's own that is there or can be made."""
    if not (written := values["output_dir"]):
        return
    folder = Path(written)
    place = next(place for place in (folder, *folder.parents) if os.path.lexists(place))
    named = folder.name not in ("", "..") and len(os.fsencode(folder.name)) <= 200
    if not named or not place.is_dir() or not os.access(place, os.W_OK):
        raise UserError(
            f"training.output_dir={written} can't be made in {place}; choose another, such as runs/first",
            code="file-unwritable",
        )


def run_length(values: Values) -> None:
    """Time or steps: one of them says how long a run is."""
    times = [name for name in ("max_minutes", "time_plan") if values[name]]
    steps = [name for name, usual in LENGTHS.items() if values[name] != usual]
    if times and steps:
        first, second = (f"training.{name}={yaml_word(values[name])}" for name in (times[0], steps[0]))
        raise UserError(
            f"{first} and {second} both say how long the run is; set one of them "
            f"(training.{times[0]}=null takes the first back)",
            code="setting-conflict",
        )


RULES = (precision, several_processes, output_dir, run_length)
