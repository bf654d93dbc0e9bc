"""Options that several commands have."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import click

from craft.utils.paths import typed_path
from craft.utils.plugins import import_plugins


class TypedPath(click.ParamType):
    """A path of the user: `--output=~/x` means what `--output ~/x` does."""

    name = "path"

    def convert(self, value: str | Path, param: click.Parameter | None, ctx: click.Context | None) -> Path:
        return Path(typed_path(value, f"{param.opts[-1]} " if param else ""))


PATH = TypedPath()
COUNT = click.IntRange(min=1)

revision_option = click.option("--revision", metavar="NAME", help="A branch, tag or commit of it on the Hub.")
"""Which version of a model or run is taken from the Hub."""

with_plugins = click.option(
    "--plugin",
    multiple=True,
    metavar="MODULE",
    expose_value=False,
    callback=lambda context, parameter, names: import_plugins(names),
    help="Import a module of yours first, such as one that defines an optimizer. May be repeated.",
)
"""Modules of the user's, see `craft.utils.plugins`."""


def hub_options(command: Callable[..., Any]) -> Callable[..., Any]:
    """How a model is taken from the Hub: `revision` and `trust_remote_code`."""
    trust = click.option(
        "--trust-remote-code",
        is_flag=True,
        help="Run the code beside the weights, for a model that craft itself doesn't know.",
    )
    return revision_option(trust(command))
