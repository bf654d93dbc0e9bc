"""The metadata before a model card, by which the Hub lists, filters and compares models."""

from __future__ import annotations

import math
import re
from typing import Any

from craft.sharing.privacy import hub_data_set, hub_model, name_of, public_words
from craft.sharing.record import Record
from craft.utils.labels import LICENCES, is_language

FIGURES = (
    ("bits_per_character", "bits per character", "bits_per_char"),
    ("bits_per_byte", "bits per byte", "bits_per_byte"),
    ("accuracy", "accuracy of the likeliest character", "accuracy"),
)
"""Metrics of the metadata: type, name, and where an evaluation has it."""
OWN_TEXT = "text"
"""The type of a corpus that isn't a data set of the Hub; its own name might be that of one that is."""


def front_matter(record: Record, name: str, licence: str, licence_text: str | None) -> str:
    """The metadata in YAML that reads the same in every parser: ASCII, one line for each value, and quotes
    around whatever isn't a plain word."""
    import yaml

    class Dumper(yaml.SafeDumper):
        pass

    def text(dumper: yaml.SafeDumper, value: str) -> yaml.Node:
        plain = re.fullmatch(r"[A-Za-z][\w /-]*", value, re.ASCII)
        return dumper.represent_scalar("tag:yaml.org,2002:str", value, style=None if plain else '"')

    Dumper.add_representer(str, text)
    shown = metadata(record, name, licence, licence_text)
    return yaml.dump(shown, Dumper=Dumper, sort_keys=False, allow_unicode=False, width=math.inf).rstrip("\n")


def metadata(record: Record, name: str, licence: str, licence_text: str | None = None) -> dict[str, Any]:
    """What stands before the card, as the Hub defines it.

    Args:
        licence_text: the file beside the card that holds the words of a licence that the Hub doesn't list.
    """
    from huggingface_hub import EvalResult, ModelCardData

    data, base = record.run["data"], hub_model(record.run["models"])
    corpus, language = hub_data_set(data), data.get("language")
    results = [
        EvalResult(
            task_type="text-generation",
            task_name="Character-level language modelling",
            dataset_type=corpus or OWN_TEXT,
            dataset_name=corpus_name(record),
            dataset_split=e["split"],
            metric_type=kind,
            metric_name=f"{words} ({protocol_words(e)})",
            metric_value=e[key],
            metric_args={
                "protocol": e["protocol"],
                "block_size": e["block_size"],
                "predicted_characters": e["characters"],
            },
        )
        for e in record.evaluations
        for kind, words, key in FIGURES
        if e[key] is not None
    ]
    card = ModelCardData(
        language=language if is_language(language) else None,
        license=licence if licence in LICENCES else "other",
        license_name=None if licence in LICENCES else licence,
        license_link=licence_text if licence not in LICENCES or licence == "other" else None,
        library_name="transformers",
        pipeline_tag="text-generation",
        tags=["character-level", "craft", *([record.model_type] if record.model_type else [])],
        datasets=[corpus] if corpus else None,
        metrics=[kind for kind, _, key in FIGURES if any(e[key] is not None for e in record.evaluations)]
        or None,
        base_model=base,
        model_name=name,
        eval_results=results or None,
    )
    return _encodable(card.to_dict())


def _encodable(value: Any) -> Any:
    """Without what UTF-8 can't hold: unpaired surrogates, as names of files may have them."""
    if isinstance(value, dict):
        return {key: _encodable(each) for key, each in value.items()}
    if isinstance(value, list):
        return [_encodable(each) for each in value]
    return value.encode("utf-8", "replace").decode() if isinstance(value, str) else value


def corpus_name(record: Record) -> str:
    """The corpus as its owner calls it."""
    data = record.run["data"]
    path = data.get("path") or "a text"
    names = [name_of(str(each)) for each in (path if isinstance(path, list) else [path])]
    return public_words(str(record.name or data.get("name") or ", ".join(names)))


def protocol_words(e: dict[str, Any]) -> str:
    """`blocks, windows of 64`: the protocol of a score, with what it depends on."""
    windows = (
        "" if e["protocol"] == "stateful" or e["block_size"] is None else f", windows of {e['block_size']}"
    )
    return f"{e['protocol']}{windows}"
