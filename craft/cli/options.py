"""Options that several commands have."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import click

from craft.utils.paths import typed_path


class TypedPath(click.ParamType):
    """A path of the user: `--output=~/x` means what `--output ~/x` does."""

    name = "path"

    def convert(self, value: str | Path, param: click.Parameter | None, ctx: click.Context | None) -> Path:
        return Path(typed_path(value, f"{param.opts[-1]} " if param else ""))


PATH = TypedPath()
COUNT = click.IntRange(min=1)

of_a_revision = click.option("--revision", metavar="NAME", help="A branch, tag or commit of it on the Hub.")
"""Which version of a model or run is taken from the Hub."""


def from_the_hub(command: Callable[..., Any]) -> Callable[..., Any]:
    """How a model is taken from the Hub: `revision` and `trust_remote_code`."""
    trust = click.option(
        "--trust-remote-code",
        is_flag=True,
        help="Run the code beside the weights, for a model that craft itself doesn't know.",
    )
    return of_a_revision(trust(command))
