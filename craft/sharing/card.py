"""The model card: what a stranger should know before using a model, and what the Hub reads of it.

The template escapes whatever is put into it, so that no name, sample or path of a corpus can end the YAML,
add HTML or change the page. Only what is `Markup` goes in as it is.
"""

from __future__ import annotations

import json
import math
import os
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from craft.sharing.privacy import hub_data_set, hub_model, name_of, sanitized_run, sanitized_text
from craft.sharing.record import EVALUATION, Record, fields, fields_or_empty
from craft.utils.common import human
from craft.utils.errors import UserError
from craft.utils.files import replace_text
from craft.utils.labels import LICENCE, is_language, is_licence
from craft.utils.markup import block, inline

CARD = "README.md"
TEMPLATE = Path(__file__).with_name("card.md.jinja")
PLACE = "path/to/this/folder"
"""Where the card says that the model is, until it is on the Hub."""


def write_card(folder: Path, name: str | None = None) -> None:
    """Writes the card of a model into its folder.

    Args:
        name: the model's; by default that of the folder.
    """
    replace_text(folder / CARD, render(folder, name))


def mark_audited(folder: Path, scores: Sequence[dict[str, Any]], passed: bool) -> None:
    """Says of the figures in a model's record that were audited now, and came out the same, whether they
    passed; and in its card, unless a person has edited that.

    Args:
        scores: as `Evaluation.to_dict` gives them.
    """
    file, card = folder / EVALUATION, folder / CARD
    found = fields_or_empty(file)
    recorded = found.get("evaluations")
    marked = [
        each
        for each in (recorded if isinstance(recorded, list) else [])
        for score in scores
        if all(fields(each).get(key) == score[key] for key in ("protocol", "split", "block_size", "sha256"))
        and math.isclose(fields(each).get("nats", 0.0), score["nats"], rel_tol=1e-4)
    ]
    of_the_hub = folder.parent.name == "snapshots"  # a cache, whose files belong to a commit
    if not marked or of_the_hub or not os.access(folder, os.W_OK):
        return
    own = card.is_file() and card.read_text(encoding="utf-8") == render(folder)
    for each in marked:
        each["audited"] = passed
    replace_text(file, json.dumps(found, indent=2, ensure_ascii=False) + "\n")
    if own:
        write_card(folder)


def card_for_hub(folder: Path, repo_id: str, licence: str | None = None, space: str | None = None) -> str:
    """The card in a folder as a person may have edited it, for a repository of the Hub.

    Args:
        licence: an identifier of the Hub, for example `apache-2.0`, instead of the one that the card states.
        space: the address of the model's page, which is named below the title.

    Raises:
        UserError: for a licence that isn't an identifier, or a card without a line for it.
    """
    path = folder / CARD
    text = path.read_text(encoding="utf-8", errors="replace") if path.is_file() else render(folder)
    if licence is not None:
        try:
            LICENCE(licence)
        except ValueError as error:
            raise UserError(f"--license {licence!r} {error}", code="setting-value") from None
        text, found = re.subn("^license:.*$", f"license: {licence}", text, count=1, flags=re.MULTILINE)
        if not found:
            raise UserError(f"{path} has no line 'license:'; write {licence} there", code="setting-conflict")
    if space is not None and space not in text:
        link = f"[Try it in your browser]({space}), where it runs without a server."
        metadata, rule, body = text.partition("\n---\n")
        body, found = re.subn("^# .*$", rf"\g<0>\n\n{link}", body, count=1, flags=re.MULTILINE)
        text = metadata + rule + body if found else f"{text}\n\n{link}\n"
    return text.replace(PLACE, repo_id)


def render(folder: Path, name: str | None = None) -> str:
    """The card of the model in a folder, with the metadata of the Hub before it.

    Args:
        name: the model's; by default that of the folder.
    """
    import jinja2
    import yaml
    from markupsafe import Markup

    def number(value: float | None, form: str = ",") -> Markup:
        return Markup("–" if value is None else format(value, form))

    record = Record.of(folder)
    run = sanitized_run(record.run)
    title = sanitized_text(name or name_of(folder.name))
    environment = jinja2.Environment(
        finalize=lambda value: value if isinstance(value, Markup) else inline(str(value)),
        undefined=jinja2.StrictUndefined,
        autoescape=False,  # Markdown isn't HTML: `finalize` escapes for both
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
    )
    environment.filters |= {"number": number, "protocol": protocol_words}
    return environment.from_string(TEMPLATE.read_text(encoding="utf-8")).render(
        metadata=Markup(card_data(record, title).to_yaml()),
        title=title,
        record=record,
        unit=record.unit,
        columns=[
            (Markup(words.replace(" per ", "/")), name, ".2%" if name == "accuracy" else ".4f")
            for name, words in record.unit.figures.items()
        ],
        size=human(record.parameters) if record.parameters else "an unknown number of",
        place=Markup(PLACE),
        data=run["data"],
        corpus=corpus_name(record),
        of_the_hub=hub_data_set(record.run["data"]) is not None,
        settings=Markup(block(yaml.safe_dump(run, sort_keys=False, allow_unicode=True))),
        sample=Markup(block(sanitized_text(record.sample))) if record.sample else "",
    )


def card_data(record: Record, name: str) -> Any:
    """What stands before the card, as the Hub's `ModelCardData`."""
    from huggingface_hub import EvalResult, ModelCardData

    data, unit = record.run["data"], record.unit
    corpus, language = hub_data_set(data), data.get("language")
    licence = record.run["training"].get("hub_license")
    metrics = {name: words for name, words in unit.figures.items() if name != unit.nats}
    scored = [(e, name) for e in record.evaluations for name in metrics if e[name] is not None]
    of = {"accuracy": f" of the likeliest {unit.name}"}
    protocol = {"protocol": "protocol", "block_size": "block_size", unit.plural: f"predicted_{unit.plural}"}
    results = [
        EvalResult(
            task_type="text-generation",
            task_name=f"{unit.name.capitalize()}-level language modelling",
            dataset_type=corpus or "text",  # not its own name, which might be that of a data set
            dataset_name=corpus_name(record),
            dataset_split=e["split"],
            metric_type=metrics[name].replace(" ", "_"),
            metric_name=f"{metrics[name]}{of.get(name, '')} ({protocol_words(e)})",
            metric_value=e[name],
            metric_args={shown: e[field] for field, shown in protocol.items()},
        )
        for e, name in scored
    ]
    return ModelCardData(
        language=language if is_language(language) else None,
        license=licence if is_licence(licence) else "unknown",
        library_name="transformers",
        pipeline_tag="text-generation",
        tags=[f"{unit.name}-level", "craft", *filter(None, [record.model_type])],
        datasets=[corpus] if corpus else None,
        metrics=list(dict.fromkeys(metrics[name].replace(" ", "_") for _, name in scored)) or None,
        base_model=hub_model(record.run["models"]),
        model_name=name,
        eval_results=results or None,
    )


def corpus_name(record: Record) -> str:
    """The corpus as its owner calls it, in one line."""
    data = record.run["data"]
    path = data.get("path") or "a text"
    names = [name_of(str(each)) for each in (path if isinstance(path, list) else [path])]
    words = sanitized_text(str(record.corpus["name"] or data.get("name") or ", ".join(names)))
    return " ".join(words.split())


def protocol_words(e: dict[str, Any]) -> str:
    """`blocks, windows of 64, audited`: the protocol of a score, with what it depends on."""
    windowed = e["protocol"] != "stateful" and e["block_size"] is not None
    windows = f", windows of {e['block_size']}" if windowed else ""
    return f"{e['protocol']}{windows}{', audited' if e['audited'] else ''}"
