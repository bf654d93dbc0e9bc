"""The model card: what a stranger should know before using a model, and what the Hub reads of it.

The template escapes whatever is put into it, so that no name, sample or path of a corpus can end the YAML,
add HTML or change the page. Only what is `Markup` goes in as it is.
"""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any

from craft.sharing.privacy import hub_data_set, hub_model, name_of, public_run, public_text, public_words
from craft.sharing.record import Record, fields, fields_or_empty, figures
from craft.utils.common import human
from craft.utils.errors import UserError
from craft.utils.files import replace_text
from craft.utils.labels import LICENCE_TEXTS, LICENCES, is_language, is_licence, wrong_licence
from craft.utils.markup import block, inline

CARD = "README.md"
TEMPLATE = Path(__file__).with_name("card.md.jinja")
SEAL = "<!-- Written by craft; what you change above is kept when the model is pushed. SHA-256 {} -->\n"
"""The last line of a card in a folder: with it, the card as written is told from one that a person edited."""
SHOWN = {
    "models": None,
    "data": ("block_size", "order", "tokenizer", "unknown"),
    "training": (
        *("optim", "learning_rate", "muon_learning_rate", "lr_scheduler_type", "warmup_steps", "max_steps"),
        *("num_train_epochs", "global_batch_size", "weight_decay", "adam_beta1", "adam_beta2"),
        *("max_grad_norm", "precision", "carry_state", "ema_decay", "seed"),
    ),
}
"""Settings that the card lists (None: all of the section)."""
LONGEST_SAMPLE, LONGEST_SETTING = 5_000, 200
"""Lengths of a sample and of a setting that are shown."""


def write_card(folder: Path, name: str | None = None) -> None:
    """Writes the card of a model into its folder.

    Args:
        name: the model's; by default that of the folder.
    """
    card = render(folder, name=name)
    replace_text(folder / CARD, card + _seal(card))


def is_edited(card: str) -> bool:
    """Whether a card isn't as `write_card` wrote it, wherever its folder is by now and whatever a newer craft
    would write."""
    above, mark, seal = card.rpartition(SEAL.partition("{}")[0])
    return mark + seal != _seal(above)


def _seal(card: str) -> str:
    return SEAL.format(hashlib.sha256(card.encode()).hexdigest())


def render(
    folder: Path, repo_id: str | None = None, licence: str | None = None, *, name: str | None = None
) -> str:
    """The card of the model in a folder, with the metadata of the Hub before it.

    Args:
        repo_id: where it will be on the Hub, whose name is then the model's.
        name: the model's where it isn't there; by default that of the folder.
        licence: an identifier of the Hub, for example `apache-2.0`; by default the run's
            `training.hub_license`.

    Raises:
        UserError: for a licence that isn't an identifier.
    """
    import jinja2
    from markupsafe import Markup

    def number(value: float | None, form: str = ",") -> Markup:
        return Markup("–" if value is None else format(value, form))

    if licence is not None and (wrong := wrong_licence(licence, "--license ")):
        raise UserError(wrong)
    record = Record.of(folder)
    run = public_run(record.run)
    if licence is None and is_licence(stated := record.run["training"].get("hub_license")):
        licence = stated
    licence_text = next((name for name in LICENCE_TEXTS if (folder / name).is_file()), None)
    title = public_text((repo_id or name or name_of(folder.name)).rpartition("/")[2])
    sample = public_text(record.sample)
    if len(sample) > LONGEST_SAMPLE:
        sample = f"{sample[:LONGEST_SAMPLE]} …"
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
        metadata=Markup(card_data(record, title, licence or "unknown", licence_text).to_yaml()),
        title=title,
        record=record,
        unit=record.unit,
        columns=[
            (Markup(words.replace(" per ", "/")), name, ".2%" if name == "accuracy" else ".4f")
            for name, words in figures(record.unit).items()
        ],
        size=human(record.parameters) if record.parameters else "an unknown number of",
        repo_id=Markup(repo_id or ""),
        path=Markup(repo_id or "path/to/this/folder"),
        prompt=Markup(_prompt(folder)),
        data=run["data"],
        corpus=corpus_name(record),
        of_the_hub=hub_data_set(record.run["data"]) is not None,
        settings=[
            (section, key, Markup(text) if isinstance(value, int | float) else text[:LONGEST_SETTING])
            for section, names in SHOWN.items()
            for key, value in run[section].items()
            if value is not None and (names is None or key in names)
            for text in [value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)]
        ],
        passes=_passes(record),
        sample=Markup(block(sample)) if sample else "",
        licence=licence,
    )


def card_data(record: Record, name: str, licence: str, licence_text: str | None = None) -> Any:
    """What stands before the card, as the Hub's `ModelCardData`.

    Args:
        licence_text: the file beside the card that holds the words of a licence that the Hub doesn't list.
    """
    from huggingface_hub import EvalResult, ModelCardData

    data, unit = record.run["data"], record.unit
    corpus, language = hub_data_set(data), data.get("language")
    metrics = {name: words for name, words in figures(unit).items() if name != unit.nats}
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
    listed = licence in LICENCES
    return ModelCardData(
        language=language if is_language(language) else None,
        license=licence if listed else "other",
        license_name=None if listed else licence,
        license_link=licence_text if not listed or licence == "other" else None,
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
    words = public_words(str(record.corpus["name"] or data.get("name") or ", ".join(names)))
    return " ".join(words.split())


def protocol_words(e: dict[str, Any]) -> str:
    """`blocks, windows of 64`: the protocol of a score, with what it depends on."""
    if e["protocol"] == "stateful" or e["block_size"] is None:
        return str(e["protocol"])
    return f"{e['protocol']}, windows of {e['block_size']}"


def _passes(record: Record) -> float | None:
    """How many times training read its text."""
    batch = record.run["training"].get("global_batch_size")
    block_size = record.run["data"].get("block_size")
    size = record.splits.get("train", {}).get(record.unit.plural)
    if not (isinstance(batch, int) and isinstance(block_size, int) and record.step and size):
        return None
    return record.step * batch * block_size / size


def _prompt(folder: Path) -> str:
    """A Python expression for a prompt that the model's alphabet has."""
    tokenizer = fields_or_empty(folder / "tokenizer.json")
    words = fields(fields(tokenizer.get("model")).get("vocab"))
    characters = [token for token in words if len(token) == 1 and token.isprintable()]
    return r'"\n"' if "\n" in words or not characters else f"chr({ord(characters[0])})"
