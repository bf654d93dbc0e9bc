"""`craft evaluate`."""

from __future__ import annotations

import dataclasses
import json
from typing import TYPE_CHECKING, Any

import click

if TYPE_CHECKING:
    from craft.training.evaluation import Evaluation


@click.command("evaluate")
@click.argument("model", default="latest")
@click.argument("data", required=False)
@click.option(
    "--protocol",
    "protocols",
    multiple=True,
    metavar="NAME",
    help="blocks, sliding-N or stateful; may be given more than once.  [default: the model's natural one]",
)
@click.option(
    "--split",
    type=click.Choice(("train", "validation", "test", "all")),
    default="validation",
    show_default=True,
    help="Which part of the data.",
)
@click.option(
    "--batch-size", type=click.IntRange(min=1), default=64, show_default=True, help="Windows scored at once."
)
@click.option("--json", "as_json", is_flag=True, help="Print JSON instead of a table.")
def command(
    model: str, data: str | None, protocols: tuple[str, ...], split: str, batch_size: int, as_json: bool
) -> None:
    """Score a model over a whole split: every character is predicted once.

    MODEL is 'latest', a folder, or a model on the Hugging Face Hub. DATA is a file, folder, glob, URL or data
    set of the Hub; without it, the data that the model was trained on.

    \b
    craft evaluate latest
    craft evaluate latest other.txt --split all
    craft evaluate outputs/models/MODEL --protocol blocks --protocol sliding-32
    """
    from craft.inference import evaluate

    results = evaluate(model, data, protocols, split, batch_size)
    click.echo(json.dumps([_record(result) for result in results], indent=2) if as_json else _table(results))


FIGURES = ("nats_per_char", "bits_per_char", "bits_per_byte", "perplexity", "accuracy")


def _record(result: Evaluation) -> dict[str, Any]:
    return {**dataclasses.asdict(result), **{name: getattr(result, name) for name in FIGURES}}


def _table(results: list[Evaluation]) -> str:
    titles = (
        "protocol",
        "split",
        "characters",
        "nats/char",
        "bits/char",
        "bits/byte",
        "perplexity",
        "accuracy",
    )
    rows = [
        (r.protocol, r.split, f"{r.characters:,}", *(f"{getattr(r, name):.4f}" for name in FIGURES))
        for r in results
    ]
    widths = [max(map(len, column)) for column in zip(titles, *rows)]
    return "\n".join(
        "  ".join(cell.ljust(w) if i < 2 else cell.rjust(w) for i, (cell, w) in enumerate(zip(row, widths)))
        for row in (titles, *rows)
    )
