"""`craft baselines`."""

from __future__ import annotations

import json

import click

from craft.utils.terminal import echo


@click.command("baselines")
@click.argument("arguments", nargs=-1, required=True, metavar="TEXT... [data.KEY=VALUE]...")
@click.option(
    "--split", type=click.Choice(["validation", "test"]), default="validation", help="What is predicted."
)
@click.option("--json", "as_json", is_flag=True, help="Print JSON instead of a table.")
def command(arguments: tuple[str, ...], split: str, as_json: bool) -> None:
    """Say what a text costs without a model, before one is trained.

    Counts n-grams of the training split and predicts the other one by them; packs the text with gzip, bzip2,
    xz, zstd and PPMd (the last two with the extra 'baselines'). TEXT and data.KEY=VALUE are read as by
    'craft train', so that the splits are the same.

    \b
    craft baselines my.txt
    craft baselines my.txt data.tokenizer=byte data.validation_size=0.05
    """
    from craft.config.command_line import split_text
    from craft.config.compose import compose
    from craft.data.arguments import DataArguments
    from craft.data.loaders import load_corpus
    from craft.evaluation.baselines import baselines_of, in_order
    from craft.evaluation.scores import save_scores
    from craft.utils.errors import UserError
    from craft.utils.outputs import evaluation_file

    corpus = load_corpus(DataArguments(**compose(split_text(arguments)).data))
    held_out = corpus.validation if split == "validation" else corpus.test
    if held_out is None or len(held_out) < 2:
        raise UserError(
            f"{corpus.name} has no {split} split to predict; make data.{split}_size larger",
            code="text-missing",
        )
    found = baselines_of(corpus, held_out, split)
    if as_json:
        echo(json.dumps([each.to_dict() for each in found], indent=2))
    else:
        echo(
            f"{corpus.name}, {split} split, {found[0].units:,} predicted {found[0].plural}\n{in_order(found)}"
        )
    file = evaluation_file("baselines", corpus.name)
    save_scores([], None, file, found)
    echo(f"saved {file}", err=True)
