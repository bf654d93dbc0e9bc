"""Options that several commands have."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import click

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
