"""The metadata before a model card, by which the Hub lists, filters and compares models."""

from __future__ import annotations

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


def card_data(record: Record, name: str, licence: str, licence_text: str | None = None) -> Any:
    """What stands before the card, as the Hub's `ModelCardData`.

    Args:
        licence_text: the file beside the card that holds the words of a licence that the Hub doesn't list.
    """
    from huggingface_hub import EvalResult, ModelCardData

    data = record.run["data"]
    corpus, language = hub_data_set(data), data.get("language")
    scored = [(e, figure) for e in record.evaluations for figure in FIGURES if e[figure[2]] is not None]
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
        for e, (kind, words, key) in scored
    ]
    listed = licence in LICENCES
    return ModelCardData(
        language=language if is_language(language) else None,
        license=licence if listed else "other",
        license_name=None if listed else licence,
        license_link=licence_text if not listed or licence == "other" else None,
        library_name="transformers",
        pipeline_tag="text-generation",
        tags=["character-level", "craft", *filter(None, [record.model_type])],
        datasets=[corpus] if corpus else None,
        metrics=list(dict.fromkeys(figure[0] for _, figure in scored)) or None,
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
