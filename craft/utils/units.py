"""What a model's figures count: characters, bytes, pixels, or whatever a tokenizer says.

A tokenizer (or an image processor) names its unit; the keys of metrics and the words for people follow from
this table. A unit of the user's own needs no entry: "note" has `notes`, `bits_per_note`, "bits per note".
"""

from __future__ import annotations

import re
from typing import NamedTuple

from craft.utils.errors import UserError


class Unit(NamedTuple):
    """A unit and what its figures are called."""

    name: str
    plural: str
    metric: str
    """Key of the figure in bits."""
    label: str
    """The same in words."""

    @property
    def short(self) -> str:
        """Its short form, as in `bits/char`."""
        return self.metric.removeprefix("bits_per_")

    @property
    def nats(self) -> str:
        """Key of the figure in nats."""
        return f"nats_per_{self.short}"

    @property
    def speed(self) -> str:
        """Key of the speed of training."""
        return f"{self.short}s_per_second"

    @property
    def has_bytes(self) -> bool:
        """Whether it is text, which has bits per byte too: the same bytes for every model of it."""
        return self.name in ("character", "byte")

    @property
    def figures(self) -> dict[str, str]:
        """Keys of the figures that people compare, each with what it is called."""
        by_bytes = {"bits_per_byte": "bits per byte"} if self.has_bytes else {}
        nats = {self.nats: self.label.replace("bits", "nats")}
        more = {"accuracy": "accuracy", "calibration_error": "calibration error"}
        return {self.metric: self.label, **by_bytes, **nats, **more}


UNITS = {
    unit.name: unit
    for unit in (
        Unit("character", "characters", "bits_per_char", "bits per character"),
        Unit("byte", "bytes", "bits_per_byte", "bits per byte"),
        Unit("pixel", "pixels", "bits_per_dim", "bits per dimension"),
    )
}


def unit_of(counted: object) -> Unit:
    """The unit of a tokenizer or processor; characters if it names none, as before there were others."""
    return unit_named(getattr(counted, "unit", "character"))


def unit_named(name: str) -> Unit:
    """A unit of the table, or one of the user's own.

    Raises:
        UserError: if the name isn't a lowercase word.
    """
    if isinstance(name, str) and name in UNITS:
        return UNITS[name]
    if not isinstance(name, str) or not re.fullmatch(r"[a-z][a-z0-9_]{0,31}", name):
        raise UserError(f"unit {name!r} isn't a lowercase word such as note", code="setting-value")
    return Unit(name, f"{name}s", f"bits_per_{name}", f"bits per {name.replace('_', ' ')}")
