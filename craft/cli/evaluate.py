"""`craft evaluate`."""

from __future__ import annotations

import json

import click

from craft.cli.options import COUNT, hub_options
from craft.evaluation import SPLITS
from craft.sharing.trust import trusted
from craft.utils.outputs import evaluation_file, resolve
from craft.utils.terminal import echo


@click.command("evaluate")
@click.argument("model", default="latest")
@click.argument("data", required=False)
@click.option(
    "--protocol",
    "protocols",
    multiple=True,
    metavar="NAME",
    help="blocks, sliding-N, stateful, nanogpt-sampled or dynamic; repeatable.  "
    "[default: the model's natural one]",
)
@click.option("--split", type=click.Choice(SPLITS), default="validation", help="Which part of the data.")
@click.option(
    "--window",
    type=COUNT,
    metavar="N",
    help="Length of a window (of 'stateful': without effect).  [default: the one the model was trained on]",
)
@click.option(
    "--baselines",
    "with_baselines",
    is_flag=True,
    help="Show n-grams and packers beside the model, trained on the same training split ('craft baselines').",
)
@click.option(
    "--audit",
    "audited",
    is_flag=True,
    help="Check that the figures are honest: costs of probabilities that know nothing of what follows. "
    "Exit status 1 if a check fails.",
)
@click.option("--batch-size", type=COUNT, default=64, help="Windows scored at once.")
@click.option("--allow-changes", is_flag=True, help="Score the model's own text although it changed since.")
@click.option("--json", "as_json", is_flag=True, help="Print JSON instead of a table.")
@hub_options
def command(
    model: str,
    data: str | None,
    protocols: tuple[str, ...],
    split: str,
    window: int | None,
    with_baselines: bool,
    audited: bool,
    batch_size: int,
    allow_changes: bool,
    as_json: bool,
    revision: str | None,
    trust_remote_code: bool,
) -> None:
    """Score a model over a whole split: everything in it is predicted once.

    MODEL is 'latest', a folder, or a model on the Hugging Face Hub. DATA is a file, folder, glob, URL or data
    set of the Hub; without it, the data that the model was trained on, which must be the same as then. The
    figures are also kept under outputs/evaluation, with the sha256 of the text.

    \b
    craft evaluate latest
    craft evaluate latest other.txt --split all
    craft evaluate outputs/models/MODEL --protocol blocks --protocol sliding-32
    craft evaluate latest --audit
    """
    from craft.evaluation.protocols import check_name, is_dynamic

    for protocol in protocols:
        check_name(protocol)  # before anything is loaded
    where = resolve(model)
    folder = trusted(where, revision, trust_remote_code)
    from craft.evaluation import audit
    from craft.evaluation.baselines import Baseline, baselines_of, between, check_split, in_order
    from craft.evaluation.finished import evaluate_text, text_to_score
    from craft.evaluation.scores import Evaluation, save_scores, table
    from craft.inference import load
    from craft.sharing.card import mark_audited

    if with_baselines:
        check_split(split)
    network, tokenizer = load(folder, trust_remote_code=trust_remote_code)
    text = text_to_score(network, tokenizer, folder, data, split, window=window, allow_changes=allow_changes)
    found = baselines_of(text.corpus, text.ids, split) if with_baselines else []
    evaluations = evaluate_text(network, tokenizer, text, protocols, split, batch_size)
    static = [each for each in evaluations if not is_dynamic(each.protocol)]
    learning = [each for each in evaluations if is_dynamic(each.protocol)]
    if as_json:
        echo(json.dumps([*map(Evaluation.to_dict, evaluations), *map(Baseline.to_dict, found)], indent=2))
    else:
        echo("\n\nlearning while it reads:\n".join(table(each) for each in (static, learning) if each))
        if found:
            echo("\n" + in_order(found, static))
        if found and static:
            echo(f"\nthe model is {between(found, static[0].bits_per_unit)}")
    checks = []
    if audited:
        for check in audit.audit(network, tokenizer, text.ids, evaluations, text.block_size):
            echo(str(check), err=as_json)
            checks.append(check)
        mark_audited(folder, [each.to_dict() for each in evaluations], audit.passed(checks))
    file = evaluation_file(network.config.model_type, evaluations[0].dataset)
    save_scores(evaluations, where, file, found, audit.to_dict(checks) if audited else None)
    echo(f"saved {file}", err=True)  # stdout is for the figures alone
    if not audit.passed(checks):
        click.get_current_context().exit(1)
