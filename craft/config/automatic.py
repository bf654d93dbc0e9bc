"""Which settings of a run stay open until its text, its machine and its time are known (`craft.sizing`)."""

from __future__ import annotations

import functools
from collections.abc import Mapping, Sequence
from typing import Any

from craft.config.command_line import resets
from craft.config.files import builtin_folder
from craft.utils.errors import UserError

RULES_OUT_SIZING = {
    *("training.max_steps", "training.num_train_epochs", "training.time_plan"),
    *("training.eval_protocol", "training.eval_protocols", "training.carry_state"),
    *("training.gradient_checkpointing", "training.activation_checkpointing", "training.fsdp"),
}
"""Fields that say how long a run is in steps, or that not every model has; those of `models` do, too."""


@functools.cache
def size_table() -> dict[str, Any]:
    """`configs/sizes.yaml`: `architectures`, `sizes` and `forecast`."""
    import yaml

    table: dict[str, Any] = yaml.safe_load((builtin_folder() / "sizes.yaml").read_text(encoding="utf-8"))
    return table


def chosen_settings() -> list[str]:
    """What is chosen with a size; "models" is that whole section."""
    recipes = [architecture["settings"] for architecture in size_table()["architectures"].values()]
    return ["models", *dict.fromkeys(key for recipe in recipes for key in recipe)]


def left_open(
    choices: Mapping[str, str], values: Mapping[str, str], run: Mapping[str, Any], choose: bool | None
) -> list[str]:
    """The settings that are to be chosen: none of those that were typed, or taken back by what was.

    Args:
        choices, values: what was typed, see `split_overrides`.
        run: its sections as composed; a saved one may have settings that were left open.
        choose: None if nothing was said, which means yes where a text of the user's is trained on and nothing
            typed is about the model.

    Raises:
        UserError: for True beside what leaves no choice.
    """
    known: Sequence[str] = run.get("automatic") or []
    if choose or (choose is None and choices.get("data") == "text_file"):
        known = chosen_settings()
    if not known:
        return []
    groups = [group for group in ("models", "experiments", "training") if group in choices]
    fields = [key for key in values if key.startswith("models.") or key in RULES_OUT_SIZING]
    obstacles = [
        f"{name}={typed[name]}" for names, typed in ((groups, choices), (fields, values)) for name in names
    ]
    if _value(run, "data", "streaming"):
        obstacles.append("data.streaming=true")
    if _value(run, "training", "max_minutes") is None:
        obstacles.append("training.max_minutes=null")
    if choose and obstacles:
        raise UserError(
            "--size auto chooses model and recipe for a text of known length and the time that --minutes "
            f"gives; leave {obstacles[0]} out, or --size auto",
            code="setting-conflict",
        )
    touched = {*values, *(other for key, text in values.items() for other in resets(key, text))}
    return [] if obstacles else [key for key in known if key not in touched]


def _value(run: Mapping[str, Any], section: str, name: str) -> Any:
    values = run.get(section)
    return values.get(name) if isinstance(values, Mapping) else None
