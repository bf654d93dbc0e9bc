"""What a setting may hold, as the class that receives it declares it, and the answer to what it may not.

The types, choices and defaults of a field come from its annotation; what types can't say, from validators in
its metadata, as `huggingface_hub.dataclasses.validated_field` puts them there. YAML, the command line and
Python call the same functions.
"""

from __future__ import annotations

import dataclasses
import json
import math
import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from enum import Enum
from types import NoneType, UnionType
from typing import Any, Literal, Union, get_args, get_origin, get_type_hints

from craft.utils.common import did_you_mean
from craft.utils.errors import UserError

SECTIONS = ("models", "data", "training")
"""Of a run's configuration."""
UNKNOWN = object()
"""The default of a field that has none in YAML."""

Validator = Callable[[Any], None]
"""Raises a ValueError with what is to be said behind a value that is wrong."""

NAMES: dict[Any, str] = {
    **{int: "int", float: "float", bool: "bool", str: "str", NoneType: "null", Any: "any"},
    **{list: "list", tuple: "list", Sequence: "list", dict: "dict", Mapping: "dict"},
}
WORDS = {
    **{"int": "a whole number", "float": "a number", "bool": "true or false", "str": "text"},
    **{"list": "a list", "dict": "a mapping", "any": "anything"},
}


@dataclass(frozen=True)
class Field:
    """A field of a class of settings.

    Args:
        types: which of the types of YAML it may have: int, float, bool, str, list, dict, null, any.
        choices: the words (or false) of which it may be one.
    """

    name: str
    types: tuple[str, ...] = ()
    choices: tuple[Any, ...] = ()
    default: Any = UNKNOWN

    @property
    def nullable(self) -> bool:
        return self.default is None or "null" in self.types or "any" in self.types

    @property
    def textual(self) -> bool:
        return "str" in self.types or str in map(type, self.choices)

    def describe(self) -> str:
        """What may be written, for an error message: `a number or null`."""
        parts = ["one of " + ", ".join(map(yaml_word, self.choices))] if self.choices else []
        parts += [
            WORDS[name]
            for name in self.types
            if name != "null" and not (name == "int" and "float" in self.types)
        ]
        return " or ".join([*parts, "null"] if self.nullable else parts)

    def of(self, *choices: Any) -> Field:
        """The same field where text means one of a few words."""
        return dataclasses.replace(self, choices=choices, types=_without(self.types, "str"))


def fields_of(cls: type, **names: Any) -> dict[str, Field]:
    """The public fields of a dataclass.

    Args:
        **names: what its annotations mean, where its module doesn't say.
    """
    hints = get_type_hints(cls, localns=names or None)
    found = {}
    for field in dataclasses.fields(cls):
        if field.name.startswith("_"):
            continue
        types, choices = _allowed(hints[field.name])
        choices += tuple(field.metadata.get("choices", ()))
        if str in map(type, choices):
            # `SchedulerType | str` means one of the names: the `str` is there for the type checker.
            types = _without(types, "str")
        default = field.default.value if isinstance(field.default, Enum) else field.default
        unknown = default is dataclasses.MISSING
        found[field.name] = Field(field.name, types, choices, UNKNOWN if unknown else default)
    return found


def _allowed(hint: Any) -> tuple[tuple[str, ...], tuple[Any, ...]]:
    """Types and choices of an annotation; what YAML can't hold (a torch.dtype, a class) adds nothing."""
    origin = get_origin(hint)
    if origin is Literal:
        return (), get_args(hint)
    if origin in (Union, UnionType):
        parts = [_allowed(part) for part in get_args(hint)]
        types = dict.fromkeys(name for names, _ in parts for name in names)
        return tuple(types), tuple(choice for _, choices in parts for choice in choices)
    if isinstance(hint, type) and issubclass(hint, Enum):
        return (), tuple(member.value for member in hint)
    name = NAMES.get(origin or hint)
    return ((name,) if name else ()), ()


def _without(types: tuple[str, ...], left_out: str) -> tuple[str, ...]:
    return tuple(name for name in types if name != left_out)


def yaml_word(value: Any) -> str:
    """A value as it is written in YAML, on one line: `null`, `true`, `0.1`, `text`."""
    return value if isinstance(value, str) else json.dumps(value, default=str)


def coerce(value: Any, field: Field) -> Any:
    """`value` as the field takes it: `"1e-3"` becomes 0.001 where a number is meant, `2e3` 2000.

    Raises:
        TypeError: if it takes nothing of the kind.
    """
    if isinstance(value, Enum):
        value = value.value
    elif isinstance(value, os.PathLike):
        value = os.fspath(value)
    if value is None and field.nullable:
        return None
    if any(type(value) is type(choice) and value == choice for choice in field.choices):
        return value
    if any(_is(value, name) for name in field.types):
        return value
    if isinstance(value, float) and "int" in field.types and value.is_integer():
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


def _is(value: Any, name: str) -> bool:
    if name == "any":
        return True
    if isinstance(value, bool):
        return name == "bool"
    if name == "float":
        return isinstance(value, int) or (isinstance(value, float) and math.isfinite(value))
    return isinstance(value, {"int": int, "str": str, "list": list, "dict": dict}.get(name, ()))


def check_type(section: str, field: Field, value: Any) -> Any:
    """`value` as `coerce` reads it.

    Raises:
        UserError: with what the field takes, if that isn't it.
    """
    try:
        return coerce(value, field)
    except TypeError:
        is_choice = isinstance(value, str) and bool(field.choices)
        near = did_you_mean(value, field.choices) if is_choice else ""
        raise UserError(
            f"{section}.{field.name}={yaml_word(value)} is not valid{near}; expected {field.describe()}",
            code="setting-value" if is_choice else "setting-type",
        ) from None


def validators(cls: type) -> dict[str, Sequence[Validator]]:
    """The validators beside the fields of a dataclass."""
    found = {field.name: field.metadata.get("validator") for field in dataclasses.fields(cls)}
    return {name: rules for name, rules in found.items() if rules}


def check_values(section: str, rules: Mapping[str, Sequence[Validator]], values: Mapping[str, Any]) -> None:
    """Calls the validators of every value that isn't null.

    Raises:
        UserError: with what the first one that is broken says.
    """
    for name, of_field in rules.items():
        value = values.get(name)
        for rule in of_field if value is not None else ():
            try:
                rule(value)
            except ValueError as error:
                raise UserError(
                    f"{section}.{name}={yaml_word(value)} {error}", code="setting-value"
                ) from None


def must(sentence: str, holds: Callable[[Any], bool]) -> Validator:
    """A validator that says what a value must be: `must("be above 0", lambda x: x > 0)`."""

    def rule(value: Any) -> None:
        if not holds(value):
            raise ValueError(f"must {sentence}")

    return rule


COUNT = must("be at least 1", lambda x: x >= 1)
NATURAL = must("be 0 or more", lambda x: x >= 0)
POSITIVE = must("be above 0", lambda x: x > 0)
FRACTION = must("be at least 0 and below 1", lambda x: 0 <= x < 1)
