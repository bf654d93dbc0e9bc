"""`craft novelty`."""

from __future__ import annotations

import json
import textwrap
from pathlib import Path
from typing import Any

import click
from click.core import ParameterSource

from craft.cli.files import read_file
from craft.cli.generate import of_sampling
from craft.cli.options import COUNT, PATH, hub_options
from craft.inference import Sampling
from craft.sharing.trust import trusted
from craft.utils.common import require_extra
from craft.utils.errors import UserError
from craft.utils.outputs import evaluation_file, resolve
from craft.utils.terminal import echo

ROWS, LENGTH = 64, 2000
"""Texts that are sampled side by side, and the characters of each."""


@click.command("novelty")
@click.argument("model", default="latest")
@click.argument("data", required=False)
@click.option("--chars", type=COUNT, default=1_000_000, help="Characters to sample, or to read of FILE.")
@click.option("--samples", type=PATH, metavar="FILE", help="Judge this text instead of sampling.")
@of_sampling("temperature", "Below 1 safer, above wilder.", "-t")
@of_sampling("top_k", "Choose among the k likeliest; 0 for all.")
@of_sampling("top_p", "Choose among those that reach this probability.")
@click.option("--seed", type=int, default=0, help="The same seed samples the same texts.")
@click.option("--allow-changes", is_flag=True, help="Read the model's own text although it changed since.")
@click.option("--json", "as_json", is_flag=True, help="Print JSON instead of a table.")
@hub_options
def command(
    model: str,
    data: str | None,
    chars: int,
    samples: Path | None,
    allow_changes: bool,
    as_json: bool,
    revision: str | None,
    trust_remote_code: bool,
    **sampling: Any,
) -> None:
    """Say how much a model copies from its training text.

    MODEL and DATA are those of 'craft evaluate'. The model writes texts, each from an empty prompt; what they
    have in common with the training text is shown beside what the validation text has in common with it. The
    figures are also kept under outputs/evaluation. Needs the extra 'novelty'.

    \b
    craft novelty latest
    craft novelty latest --chars 200000 --temperature 1
    craft novelty latest --samples story.txt
    """
    source = click.get_current_context().get_parameter_source
    if samples and (typed := [name for name in sampling if source(name) is ParameterSource.COMMANDLINE]):
        option = f"--{typed[0].replace('_', '-')}"
        raise UserError(f"{option} is for sampling, and --samples names a text", code="setting-no-effect")
    Sampling(**sampling)  # a value out of range is refused before torch is imported
    require_extra("novelty", "pydivsufsort")
    texts = None if samples is None else [_read(samples)[:chars]]
    where = resolve(model)
    folder = trusted(where, revision, trust_remote_code)
    from craft.data.facts import split_facts, utf8_pieces
    from craft.evaluation.finished import text_to_score
    from craft.evaluation.novelty import in_words, novelty, table
    from craft.inference import load

    network, tokenizer = load(folder, trust_remote_code=trust_remote_code)
    text = text_to_score(network, tokenizer, folder, data, "train", allow_changes=allow_changes)
    groups = {"samples": _sampled(network, tokenizer, chars, **sampling) if texts is None else texts}
    if text.corpus.validation is not None:
        validation = b"".join(utf8_pieces(text.corpus.validation, tokenizer))
        groups["validation"] = [validation.decode(errors="replace")[:chars]]
    train = b"".join(utf8_pieces(text.ids, tokenizer))
    found = dict(zip(groups, novelty(train, list(groups.values()))))
    meaning = in_words(found["samples"], found.get("validation"))
    report = {
        "model": where,
        "dataset": text.corpus.name,
        "train": split_facts(text.ids, tokenizer),
        **({"samples_file": str(samples)} if samples else {"sampling": sampling}),
        **found,
        "meaning": meaning,
    }
    written = json.dumps(report, indent=2)
    if as_json:
        echo(written)
    else:
        settings = ", ".join(f"{name} {value}" for name, value in sampling.items())
        echo(f"{text.corpus.name}, train split, beside {samples or f'samples of {settings}'}")
        echo(f"{table(found)}\n\n{textwrap.fill(meaning, 80)}")
    file = evaluation_file(network.config.model_type, text.corpus.name, kind="novelty")
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text(written + "\n", encoding="utf-8")
    echo(f"saved {file}", err=True)


def _sampled(network: Any, tokenizer: Any, chars: int, seed: int, **sampling: Any) -> list[str]:
    """Texts of so many characters together, in rounds of which each has a seed of its own."""
    from craft.inference import sample

    texts: list[str] = []
    missing = chars
    while missing > 0:
        rows, length = min(ROWS, -(-missing // LENGTH)), min(LENGTH, missing)
        size: dict[str, Any] = {"num_samples": rows, "max_new_tokens": length}
        (more,) = sample(network, tokenizer, seed=(seed + len(texts)) % 2**32, **size, **sampling)
        if not any(more):  # it ends each text at once
            break
        texts += more
        missing = chars - sum(map(len, texts))
        echo(f"sampled {chars - missing:,} of {chars:,} characters", err=True)
    return texts


def _read(file: Path) -> str:
    try:
        return read_file(file).decode()
    except UnicodeDecodeError as error:
        raise UserError(f"{file} is not UTF-8 text: {error.reason}", code="text-encoding") from error
