"""What a run is: which keys exist, what each may hold, and the `Run` that passed every check.

The keys of each section are the fields of the class that receives it (`DataArguments`,
`CraftTrainingArguments`, the model's own config), read from their sources by `sources.py`; ranges are in
`rules.py`, combinations in `combinations.py`.
"""

from __future__ import annotations

import math
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from typing import Any

from craft.config import combinations, rules
from craft.config.fields import SECTIONS, Locate, model_source, own_fields, section_fields, suggest
from craft.config.sources import UNKNOWN, Field, Kind, yaml_word
from craft.utils.common import UserError, did_you_mean
from craft.utils.paths import HOLDS_PATH, typed_setting

SECTIONS_ARE = "(a run has the sections models, data and training)"


@dataclass(frozen=True)
class Run:
    """One run, validated: everything that `craft.train.train` needs to know, and to repeat it.

    Attributes:
        models: `model_type` and the fields of that model's config.
        data: the fields of `DataArguments`.
        training: the fields of `CraftTrainingArguments`.
        experiment: the name of the experiment it was composed from, for names and records.
    """

    models: dict[str, Any]
    data: dict[str, Any]
    training: dict[str, Any]
    experiment: str = "none"

    @classmethod
    def of(
        cls,
        mapping: Mapping[str, Any],
        locate: Locate = lambda key: "",
        typed: Collection[str] | None = None,
    ) -> Run:
        """A run from plain data.

        Args:
            locate: says where a key was written.
            typed: the keys that were typed over a saved run, which itself may hold settings without effect;
                None where all of it is new.

        Raises:
            UserError: for an unknown key, a wrong type, a value out of range or an impossible combination.
        """
        for key in mapping:
            if key == "experiments":
                where = locate("experiments")
                raise UserError(f"an experiment's file must begin with the line '# @package _global_'{where}")
            if key not in (*SECTIONS, "experiment"):
                hint = did_you_mean(str(key), SECTIONS)
                raise UserError(f"unknown section {key!r}{locate(str(key))}{hint} {SECTIONS_ARE}")
        if not isinstance(mapping.get("experiment", ""), str):
            raise UserError(f"experiment={yaml_word(mapping['experiment'])} must be text")
        sections = {}
        for name in SECTIONS:
            section = mapping.get(name)
            if not isinstance(section, Mapping):
                what = yaml_word(section)
                raise UserError(
                    f"{name} is {what}{locate(name)}; it must be a mapping of settings {SECTIONS_ARE}"
                )
            sections[name] = check_section(name, section, locate)
        complete = {name: {**_defaults(name, section), **section} for name, section in sections.items()}
        recurrent = model_source(sections["models"]["model_type"]).carries_state
        defaults = _defaults("data", sections["data"])
        stated = frozenset(
            key
            for key, value in complete["data"].items()
            if value != defaults[key] and (typed is None or f"data.{key}" in typed)
        )
        combinations.check(combinations.Parts(**complete, recurrent=recurrent, stated=stated), locate)
        own = {name: _own(name, complete[name], section) for name, section in sections.items()}
        return cls(experiment=mapping.get("experiment", "none"), **own)

    def to_dict(self) -> dict[str, Any]:
        """Plain data, valid for `Run.of`."""
        return {"experiment": self.experiment, **{name: dict(getattr(self, name)) for name in SECTIONS}}

    def to_yaml(self) -> str:
        """YAML that `craft train --config FILE` repeats."""
        import yaml

        return yaml.safe_dump(self.to_dict(), sort_keys=False, allow_unicode=True, width=110)


def check_section(section: str, values: Mapping[str, Any], locate: Locate) -> dict[str, Any]:
    """One section: every key known, every value of its type and in its range; "1e-3" becomes a number."""
    known = section_fields(section, values, locate)
    checked = {}
    for key, value in values.items():
        name = f"{section}.{key}"
        if key not in known:
            hint = suggest(name, values.get("model_type"))
            raise UserError(f"unknown key {name!r}{locate(name)}{hint}")
        try:
            checked[key] = coerce(value, known[key])
        except TypeError:
            raise UserError(
                f"{name}={yaml_word(value)}{locate(name)} is not valid{_nearest(value, known[key])}; "
                f"expected {known[key].describe()}"
            ) from None
        if HOLDS_PATH.search(str(key)):
            checked[key] = typed_setting(checked[key], f"{name}=")
        rules.check_range(section, str(key), checked[key], locate)
        rules.check_effect(section, known[key], checked[key], locate)
        rules.check_word(section, str(key), checked[key], locate)
    return checked


def _nearest(value: Any, field: Field) -> str:
    choices = [choice for kind in field.kinds for choice in kind.choices]
    return did_you_mean(value, choices) if isinstance(value, str) and choices else ""


def _defaults(section: str, values: Mapping[str, Any]) -> dict[str, Any]:
    """The defaults of the section's class; those that its source doesn't show as literals are left out."""
    return {
        field.name: field.default
        for field in section_fields(section, values).values()
        if field.default is not UNKNOWN
    }


def _own(section: str, complete: Mapping[str, Any], written: Mapping[str, Any]) -> dict[str, Any]:
    """What a run holds: first what was written, then every other default of craft's own classes, so that a
    later version repeats it. A model's fields that follow from the data are left to the data."""
    left_open = rules.FROM_DATA if section == "models" else ()
    defaults = [name for name in own_fields(section, written) if name in complete and name not in left_open]
    return {name: complete[name] for name in dict.fromkeys([*written, *defaults])}


def coerce(value: Any, field: Field) -> Any:
    """`value` as one of the field's kinds: `"1e-3"` becomes 0.001 where a number is meant, `2e3` 2000.

    Raises:
        TypeError: if it is none of them.
    """
    if value is None:
        if field.nullable:
            return None
        raise TypeError
    for kind in field.kinds:
        if _is(value, kind):
            return value
    names = {kind.name for kind in field.kinds}
    if isinstance(value, float) and "int" in names and value.is_integer():
        return int(value)
    if isinstance(value, str) and not field.textual and (meant := _scalar(value)) != value:
        return coerce(meant, field)
    raise TypeError


def _scalar(text: str) -> Any:
    """The number or truth value that a text spells, else the text: environment variables are always text."""
    if text.lower() in ("true", "false"):
        return text.lower() == "true"
    for number in (int, float):
        try:
            return number(text)
        except ValueError:
            pass
    return text


def _is(value: Any, kind: Kind) -> bool:
    if kind.name == "choice":
        return any(type(value) is type(choice) and value == choice for choice in kind.choices)
    if kind.name == "any":
        return True
    if isinstance(value, bool):
        return kind.name == "bool"
    if kind.name == "float":
        return isinstance(value, int) or (isinstance(value, float) and math.isfinite(value))
    types = {"int": int, "str": str, "list": list, "dict": dict}
    return kind.name in types and isinstance(value, types[kind.name])
