"""`craft compare`."""

from __future__ import annotations

import json
from pathlib import Path

import click

from craft.cli.options import PATH
from craft.evaluation import SPLITS
from craft.utils.errors import Failed, UserError
from craft.utils.terminal import echo


@click.command("compare")
@click.argument("arguments", nargs=-1, required=True, metavar="MODEL... | [TEXT]... KEY=VALUE,VALUE...")
@click.option("--run", "train", is_flag=True, help="Train a grid of runs first, as 'craft train' does each.")
@click.option("--text", metavar="DATA", help="Score this text.  [default: what the models were trained on]")
@click.option("--split", type=click.Choice(SPLITS), default="validation", help="Which part of the text.")
@click.option(
    "--protocol", "protocols", multiple=True, metavar="NAME", help="As of 'craft evaluate'; the first ranks."
)
@click.option("--baselines", is_flag=True, help="Show n-grams and packers beside the models.")
@click.option("--config-dir", type=PATH, metavar="DIR", help="With --run: your own YAML files.")
@click.option("--json", "as_json", is_flag=True, help="Print JSON instead of a table.")
def command(
    arguments: tuple[str, ...],
    train: bool,
    text: str | None,
    split: str,
    protocols: tuple[str, ...],
    baselines: bool,
    config_dir: Path | None,
    as_json: bool,
) -> None:
    """Score models on one text beside each other, and say which is better.

    With --run, every combination of the values that settings list with commas is trained before. What is
    finished isn't trained again, what was interrupted goes on: repeat the command.

    \b
    craft compare outputs/models/A outputs/models/B --protocol sliding-32
    craft compare latest user/name --text other.txt --split all
    craft compare --run my.txt models=char_lstm,transformer training.seed=1,2,3
    """
    from craft.evaluation.baselines import check_split
    from craft.evaluation.protocols import check_name

    for protocol in protocols:
        check_name(protocol)  # before anything is trained or loaded
    if baselines:
        check_split(split)
    if config_dir is not None and not train:
        raise UserError("--config-dir is for --run; leave it out", code="setting-no-effect")
    from craft.compare import compare, save
    from craft.grid import grid, run_grid
    from craft.utils.logging import setup_logging

    setup_logging()
    cells = grid(arguments) if train else []
    failed = run_grid(cells, config_dir) if train else []
    cells = [cell for cell in cells if cell.model_dir is not None]
    if failed and not cells:
        raise Failed(f"none of the runs was finished, see above: {'; '.join(failed)}", code="run-missing")
    models = [str(cell.model_dir) for cell in cells] or arguments
    report = compare(models, text, split, protocols, baselines, cells)
    if as_json:
        echo(json.dumps(report, indent=1))
    else:
        from craft.evaluation.comparison import markdown

        echo(markdown(report))
    for file in save(report):
        echo(f"saved {file}", err=True)
    if failed:
        raise Failed(
            f"left out, for they failed (see above; the same command tries them again): {'; '.join(failed)}",
            code="run-missing",
        )
