"""The model card: what a stranger should know before using a model, and what the Hub reads to list it.

The template escapes whatever is put into it, so that no name, sample or path of a corpus can end the YAML,
add HTML or change the page. Only what is made here for its place (`Ready`) goes in as it is.
"""

from __future__ import annotations

import math
import re
from pathlib import Path
from typing import Any

from craft.sharing.privacy import name_of, public_run, public_text
from craft.sharing.record import CURVE, Record
from craft.utils.common import UserError, human
from craft.utils.files import replace_text
from craft.utils.markup import block, inline
from craft.utils.outputs import slug

CARD = "README.md"
TEMPLATE = Path(__file__).with_name("card.md.jinja")
HERE = "path/to/this/folder"
"""The model in a card that doesn't know where it will be."""
UNKNOWN_LICENCE = "unknown"
METRICS = ("bits_per_character", "bits_per_byte", "accuracy")
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


class Ready(str):
    """Markdown that is escaped already."""


def write_card(folder: Path) -> None:
    """Writes the card of a model into its folder."""
    replace_text(folder / CARD, render(folder))


def render(folder: Path, repo_id: str | None = None, licence: str | None = None) -> str:
    """The card of the model in a folder, with the metadata of the Hub before it.

    Args:
        repo_id: where it will be on the Hub.
        licence: an identifier of the Hub, for example `apache-2.0`.

    Raises:
        UserError: for a licence that isn't an identifier.
    """
    import jinja2

    if licence is not None and not re.fullmatch(r"[a-z0-9][a-z0-9.-]*", licence):
        raise UserError(
            f"--license {licence!r} isn't an identifier of the Hub; write for example apache-2.0, mit, "
            "cc-by-4.0 or other"
        )
    record = Record.of(folder)
    environment = jinja2.Environment(
        finalize=lambda value: value if isinstance(value, Ready) else inline(str(value)),
        undefined=jinja2.StrictUndefined,
        autoescape=False,  # Markdown isn't HTML: `finalize` escapes for both
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
    )
    template = environment.from_string(TEMPLATE.read_text(encoding="utf-8"))
    title = (repo_id or name_of(folder.name)).rpartition("/")[2]
    return template.render(
        metadata=Ready(_front_matter(record, title, licence or UNKNOWN_LICENCE)),
        title=public_text(title),
        unit="byte" if _data(record).get("tokenizer") == "byte" else "character",
        architecture=_architecture(record),
        model_literal=Ready(f'"{repo_id or HERE}"'),
        model_word=Ready(repo_id or "FOLDER"),
        prompt_literal=Ready(_prompt(folder)),
        corpus=_corpus(record),
        splits=_splits(record),
        settings=_settings(record),
        evaluations=[_row(e) for e in record.evaluations],
        curve=(folder / CURVE).is_file(),
        sample=Ready(block(public_text(record.sample))) if record.sample else "",
        limits=_limits(record),
        licence=_licence(licence),
    )


def metadata(record: Record, name: str, licence: str) -> dict[str, Any]:
    """What stands before the card, as the Hub defines it."""
    from huggingface_hub import EvalResult, ModelCardData

    corpus = _name(record)
    results = [
        EvalResult(
            task_type="text-generation",
            task_name="Character-level language modelling",
            dataset_type=_dataset(record),
            dataset_name=corpus,
            dataset_split=str(e.get("split", "validation")),
            metric_type=kind,
            metric_name=f"{words} ({_protocol(e)})",
            metric_value=_finite(e.get(key)),
            metric_args={
                "protocol": str(e.get("protocol")),
                "block_size": e.get("block_size"),
                "predicted_characters": e.get("characters"),
            },
        )
        for e in record.evaluations
        for kind, words, key in (
            ("bits_per_character", "bits per character", "bits_per_char"),
            ("bits_per_byte", "bits per byte", "bits_per_byte"),
            ("accuracy", "accuracy of the likeliest character", "accuracy"),
        )
        if _finite(e.get(key)) is not None
    ]
    language = _data(record).get("language")
    base = public_run(record.run).get("models", {}).get("init_from")
    card = ModelCardData(
        language=str(language) if language else None,
        license=licence,
        library_name="transformers",
        pipeline_tag="text-generation",
        tags=["character-level", "craft", *([record.config["model_type"]] if record.config else [])],
        datasets=[_dataset(record)] if record.run else None,
        metrics=list(METRICS) if results else None,
        base_model=base if base and "/" in str(base) else None,
        model_name=name,
        eval_results=results or None,
    )
    return _encodable(card.to_dict())


def _front_matter(record: Record, name: str, licence: str) -> str:
    """The metadata in YAML that reads the same in every parser: ASCII, one line for each value, and quotes
    around whatever isn't a plain word."""
    import yaml

    class Dumper(yaml.SafeDumper):
        pass

    def text(dumper: yaml.SafeDumper, value: str) -> yaml.Node:
        plain = re.fullmatch(r"[A-Za-z][\w /-]*", value, re.ASCII)
        return dumper.represent_scalar("tag:yaml.org,2002:str", value, style=None if plain else '"')

    Dumper.add_representer(str, text)
    shown = metadata(record, name, licence)
    return yaml.dump(shown, Dumper=Dumper, sort_keys=False, allow_unicode=False, width=math.inf).rstrip("\n")


def _encodable(value: Any) -> Any:
    """Without what UTF-8 can't hold: unpaired surrogates, as names of files may have them."""
    if isinstance(value, dict):
        return {key: _encodable(each) for key, each in value.items()}
    if isinstance(value, list):
        return [_encodable(each) for each in value]
    return value.encode("utf-8", "replace").decode() if isinstance(value, str) else value


def _data(record: Record) -> dict[str, Any]:
    data = record.run.get("data")
    return data if isinstance(data, dict) else {}


def _name(record: Record) -> str:
    """The corpus as its owner calls it."""
    data = _data(record)
    name = record.data.get("name") or data.get("name") or name_of(str(data.get("path") or "a text"))
    return public_text(str(name))


def _dataset(record: Record) -> str:
    """The corpus as the Hub calls it: an id of the Hub, or a word of the same kind."""
    path = (
        public_run(record.run).get("data", {}).get("path") if _data(record).get("source") == "hub" else None
    )
    return str(path) if path else slug(_name(record))


def _corpus(record: Record) -> dict[str, Any] | None:
    data = _data(record)
    if not data:
        return None
    shown = public_run(record.run)["data"]
    source = {"builtin": "built into craft", "hub": "a data set of the Hub", "files": "files of its owner"}
    sentence = f"{inline(_name(record))} ({inline(source.get(str(data.get('source')), 'a text'))}"
    if data.get("source") == "hub" or str(shown.get("path", "")).startswith("http"):
        sentence += f", {inline(str(shown.get('path')))}"
    if shown.get("revision"):
        sentence += f", revision {inline(str(shown['revision']))}"
    sentence += ")"
    if isinstance(record.data.get("characters"), int):
        sentence += f": {record.data['characters']:,} characters"
    if isinstance(record.data.get("vocabulary"), int):
        sentence += f", {record.data['vocabulary']} ids"
    return {"sentence": Ready(sentence + ".")}


def _splits(record: Record) -> list[dict[str, Any]]:
    splits = record.data.get("splits")
    if not isinstance(splits, dict):
        return []
    return [
        {
            "name": name,
            "characters": f"{facts['characters']:,}" if facts.get("characters") is not None else "a stream",
            "sha256": facts.get("sha256") or "not known of a stream",
        }
        for name, facts in splits.items()
    ]


def _settings(record: Record) -> list[tuple[Any, str]]:
    rows: list[tuple[Any, str]] = []
    shown = public_run(record.run)
    for section, names in SHOWN.items():
        values = shown.get(section)
        for key, value in values.items() if isinstance(values, dict) else ():
            if value is not None and (names is None or key in names):
                number = isinstance(value, int | float)
                rows.append((Ready(f"{section}.{inline(str(key))}"), Ready(value) if number else str(value)))
    return rows


def _row(e: dict[str, Any]) -> dict[str, Any]:
    def number(key: str) -> Any:
        value = _finite(e.get(key))
        return Ready("–" if value is None else f"{value:.4f}")

    accuracy, characters = _finite(e.get("accuracy")), e.get("characters")
    return {
        "split": e.get("split", ""),
        "protocol": _protocol(e),
        **{key: number(key) for key in ("bits_per_char", "bits_per_byte", "nats_per_char")},
        "accuracy": Ready("–" if accuracy is None else f"{accuracy:.2%}"),
        "characters": Ready(f"{characters:,}" if isinstance(characters, int) else "–"),
    }


def _protocol(e: dict[str, Any]) -> str:
    protocol = str(e.get("protocol"))
    return protocol if protocol == "stateful" else f"{protocol}, windows of {e.get('block_size')}"


def _architecture(record: Record) -> str:
    kind, size = record.config.get("model_type", "unknown"), record.parameters
    trained = f", after {record.step:,} steps of training" if record.step else ""
    return f"Architecture {kind}, {human(size) if size else 'an unknown number of'} weights{trained}."


def _limits(record: Record) -> list[Ready]:
    size = record.parameters
    if size < 3_000_000:
        grasp = "It spells, lays text out and catches a manner; a sentence rarely means something."
    elif size < 30_000_000:
        grasp = "It writes sentences that hold together for a line or two, and forgets what they were about."
    else:
        grasp = "It writes fluently; it doesn't know what is true."
    passes = _passes(record)
    seen = f" (which it read {passes:.1f} times)" if passes else ""
    limits = (
        f"{grasp} It answers no questions and follows no instructions.",
        f"It imitates its corpus{seen} and may repeat stretches of it word for word: share it only where the "
        "corpus may be shared, and expect the views of the corpus in what it writes.",
        "It knows the characters of its corpus only; what becomes of others is the tokenizer's setting "
        "`data.unknown`.",
    )
    return [Ready(limit) for limit in limits]


def _passes(record: Record) -> float | None:
    """How many times training read its text."""
    training = record.run.get("training")
    batch = training.get("global_batch_size") if isinstance(training, dict) else None
    block_size, splits = _data(record).get("block_size"), record.data.get("splits")
    characters = splits.get("train", {}).get("characters") if isinstance(splits, dict) else None
    if not (record.step and batch and block_size and characters):
        return None
    return record.step * batch * block_size / characters


def _licence(licence: str | None) -> Ready:
    if licence is None:
        return Ready("Its owner has stated none; ask before you use it for more than a look.")
    return Ready(f"{licence}. The code beside the weights is craft's, under Apache-2.0.")


def _prompt(folder: Path) -> str:
    """A Python expression for a prompt that the model's alphabet has."""
    import json

    try:
        vocabulary = json.loads((folder / "tokenizer.json").read_text(encoding="utf-8"))["model"]["vocab"]
        characters = [
            token for token in vocabulary if token == "\n" or (len(token) == 1 and token.isprintable())
        ]
    except (OSError, ValueError, KeyError, TypeError):
        characters = []
    if not characters or "\n" in characters:
        return r'"\n"'
    return f"chr({ord(characters[0])})"


def _finite(value: Any) -> float | None:
    known = isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)
    return float(value) if known else None
