"""The model card: what a stranger should know before using a model; `metadata.py` has what the Hub reads.

The template escapes whatever is put into it, so that no name, sample or path of a corpus can end the YAML,
add HTML or change the page. Only what is made here for its place (`Ready`) goes in as it is.
"""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any

from craft.sharing.metadata import corpus_name, front_matter, protocol_words
from craft.sharing.privacy import hub_data_set, name_of, public_run, public_text
from craft.sharing.record import CURVE, Record
from craft.utils.common import UserError, human
from craft.utils.files import replace_text
from craft.utils.labels import LICENCE_TEXTS, is_licence, wrong_licence
from craft.utils.markup import block, inline

CARD = "README.md"
TEMPLATE = Path(__file__).with_name("card.md.jinja")
HERE = "path/to/this/folder"
"""The model in a card that doesn't know where it will be."""
UNKNOWN_LICENCE = "unknown"
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
"""Characters of a sample and of a setting that are shown."""


class Ready(str):
    """Markdown that is escaped already."""


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

    if licence is not None and (wrong := wrong_licence(licence, "--license ")):
        raise UserError(wrong)
    record = Record.of(folder)
    stated = record.run["training"].get("hub_license")
    if licence is None and is_licence(stated):
        licence = stated
    environment = jinja2.Environment(
        finalize=lambda value: value if isinstance(value, Ready) else inline(str(value)),
        undefined=jinja2.StrictUndefined,
        autoescape=False,  # Markdown isn't HTML: `finalize` escapes for both
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
    )
    template = environment.from_string(TEMPLATE.read_text(encoding="utf-8"))
    title = (repo_id or name or name_of(folder.name)).rpartition("/")[2]
    return template.render(
        metadata=Ready(front_matter(record, title, licence or UNKNOWN_LICENCE, _licence_text(folder))),
        title=public_text(title),
        unit="byte" if record.run["data"].get("tokenizer") == "byte" else "character",
        architecture=_architecture(record),
        model_literal=Ready(f'"{repo_id or HERE}"'),
        model_word=Ready(repo_id or "FOLDER"),
        prompt_literal=Ready(_prompt(folder)),
        corpus=_corpus(record),
        splits=_splits(record),
        settings=_settings(record),
        evaluations=[_row(e) for e in record.evaluations],
        curve=Ready(CURVE) if record.curve else "",
        sample=_sample(record),
        limits=_limits(record),
        licence=_licence(licence),
    )


def _corpus(record: Record) -> Ready | None:
    if not record.run["data"]:
        return None
    shown = public_run(record.run)["data"]
    kinds = {"builtin": "built into craft", "hub": "files of its owner", "files": "files of its owner"}
    of_the_hub = hub_data_set(record.run["data"]) is not None
    words = ["a data set of the Hub" if of_the_hub else kinds.get(str(shown.get("source")), "a text")]
    path = str(shown.get("path", ""))
    if of_the_hub or path.startswith("http"):
        words.append(path)
    if shown.get("revision"):
        words.append(f"revision {shown['revision']}")
    sentence = f"{inline(corpus_name(record))} ({', '.join(map(inline, words))})"
    if record.characters is not None:
        sentence += f": {record.characters:,} characters"
    if record.vocabulary is not None:
        sentence += f", {record.vocabulary:,} ids"
    return Ready(sentence + ".")


def _splits(record: Record) -> list[dict[str, Any]]:
    rows = []
    for name, facts in record.splits.items():
        characters, digest = facts["characters"], facts["sha256"]
        unknown = Ready("–") if characters or digest else "a stream"
        rows.append(
            {
                "name": name,
                "characters": unknown if characters is None else f"{characters:,}",
                "sha256": digest or unknown,
            }
        )
    return rows


def _sample(record: Record) -> str:
    text = public_text(record.sample)
    cut = f"{text[:LONGEST_SAMPLE]} …" if len(text) > LONGEST_SAMPLE else text
    return Ready(block(cut)) if text else ""


def _settings(record: Record) -> list[tuple[Any, Any]]:
    rows: list[tuple[Any, Any]] = []
    shown = public_run(record.run)
    for section, names in SHOWN.items():
        for key, value in shown[section].items():
            if value is not None and (names is None or key in names):
                text = value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)
                words = Ready(text) if isinstance(value, int | float) else text[:LONGEST_SETTING]
                rows.append((Ready(f"{section}.{inline(key)}"), words))
    return rows


def _row(e: dict[str, Any]) -> dict[str, Any]:
    def cell(key: str, form: str) -> Ready:
        return Ready("–" if e[key] is None else format(e[key], form))

    return {
        "split": e["split"] or Ready("–"),
        "protocol": protocol_words(e),
        **{key: cell(key, ".4f") for key in ("bits_per_char", "bits_per_byte", "nats_per_char")},
        "accuracy": cell("accuracy", ".2%"),
        "characters": cell("characters", ","),
    }


def _architecture(record: Record) -> str:
    size = human(record.parameters) if record.parameters else "an unknown number of"
    trained = f", after {record.step:,} steps of training" if record.step else ""
    return f"Architecture {record.model_type or 'unknown'}, {size} weights{trained}."


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
    batch = record.run["training"].get("global_batch_size")
    block_size = record.run["data"].get("block_size")
    characters = record.splits.get("train", {}).get("characters")
    if not (isinstance(batch, int) and isinstance(block_size, int) and record.step and characters):
        return None
    return record.step * batch * block_size / characters


def _licence_text(folder: Path) -> str | None:
    return next((name for name in LICENCE_TEXTS if (folder / name).is_file()), None)


def _licence(licence: str | None) -> Ready:
    if licence is None:
        return Ready("Its owner has stated none; ask before you use it for more than a look.")
    return Ready(f"{licence}. The code beside the weights is craft's, under Apache-2.0.")


def _prompt(folder: Path) -> str:
    """A Python expression for a prompt that the model's alphabet has."""
    try:
        vocabulary = json.loads((folder / "tokenizer.json").read_text(encoding="utf-8"))["model"]["vocab"]
        words = [token for token in vocabulary if isinstance(token, str)]
    except (OSError, ValueError, KeyError, TypeError, RecursionError):
        words = []
    characters = [token for token in words if len(token) == 1 and token.isprintable()]
    if not characters or "\n" in words:
        return r'"\n"'
    return f"chr({ord(characters[0])})"
