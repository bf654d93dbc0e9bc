"""A finished model over a whole text: `evaluate_model` for Python, its two halves for commands."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from craft.data.arguments import DataArguments
from craft.data.facts import recorded_hashes, split_facts
from craft.data.loaders import Corpus, load_corpus
from craft.data.streaming import TextStream
from craft.evaluation import SPLITS
from craft.evaluation.dynamic import evaluate_dynamic
from craft.evaluation.protocols import default_protocol, is_dynamic
from craft.evaluation.scores import Evaluation, score
from craft.utils.errors import UserError
from craft.utils.hub import meant_as_repo_id
from craft.utils.logging import get_logger
from craft.utils.outputs import RUN_CONFIG

logger = get_logger(__name__)


def evaluate_model(
    model: Any,
    tokenizer: Any,
    folder: Path,
    data: str | None = None,
    protocols: Sequence[str] = (),
    split: str = "validation",
    batch_size: int = 64,
    *,
    window: int | None = None,
    allow_changes: bool = False,
) -> list[Evaluation]:
    """Scores a model over a whole split, once for each protocol.

    Args:
        model, tokenizer: as `craft.inference.load` gives them.
        folder: where the model lies, with the record of its run.
        data: a text file, folder, glob, URL or Hub data set; `None` for what the model was trained on.
        protocols: `blocks`, `sliding-N`, `stateful`, `nanogpt-sampled`, `dynamic`; empty for the model's
            default (`stateful` where it carries a state, else `blocks`).
        split: `train`, `validation`, `test`, or `all` for all three as one text.
        batch_size: windows scored at once.
        window: ids of a window; `None` for the one that the model was trained on.
        allow_changes: score what the model was trained on although it is another text by now.

    Raises:
        UserError: for an unknown protocol or split, for text that the model's tokenizer refuses, or that
            changed since training.
    """
    text = text_to_score(model, tokenizer, folder, data, split, window=window, allow_changes=allow_changes)
    return evaluate_text(model, tokenizer, text, protocols, split, batch_size)


@dataclasses.dataclass(frozen=True)
class ScoredText:
    """A corpus, the ids of the split of it that is scored, the window, and the seed of the model."""

    corpus: Corpus
    ids: np.ndarray
    block_size: int
    seed: int | None


def evaluate_text(
    model: Any, tokenizer: Any, text: ScoredText, protocols: Sequence[str], split: str, batch_size: int
) -> list[Evaluation]:
    """Scores a model over a text that was loaded, see `evaluate_model`."""
    learning = [protocol for protocol in protocols if is_dynamic(protocol)]
    static = [protocol for protocol in protocols if protocol not in learning]
    if not protocols:
        static = [default_protocol(model)]
    if learning and (split in ("train", "all") or not isinstance(text.corpus.train, np.ndarray)):
        raise UserError(
            f"protocol {learning[0]!r} finds its rate on a training text that isn't scored; choose --split "
            "validation or test of a text that isn't streamed",
            code="setting-conflict",
        )
    about: dict[str, Any] = {"block_size": text.block_size, "split": split, "dataset": text.corpus.name}
    about["seed"] = text.seed
    found = score(model, tokenizer, text.ids, static, batch_size=batch_size, **about) if static else []
    for protocol in learning:
        train: Any = text.corpus.train
        found.append(
            evaluate_dynamic(model, train, text.ids, tokenizer=tokenizer, protocol=protocol, **about)
        )
    return found


def text_to_score(
    model: Any,
    tokenizer: Any,
    folder: Path,
    data: str | None,
    split: str,
    *,
    window: int | None = None,
    allow_changes: bool = False,
) -> ScoredText:
    """What of a model's own text, or of `data`, is scored; see `evaluate_model`."""
    if split not in SPLITS:
        raise UserError(f"unknown split {split!r}; choose one of {', '.join(SPLITS)}", code="setting-value")
    arguments = _data_arguments(folder, data)
    context = getattr(model.config, "max_position_embeddings", None)
    if context and not (folder / RUN_CONFIG).is_file():  # whose window isn't known, so it is the model's own
        arguments = dataclasses.replace(arguments, block_size=context)
    if window is not None:
        arguments = dataclasses.replace(arguments, block_size=window)
    corpus = None
    if data is None:
        corpus = load_corpus(arguments, tokenizer)
        _check_text(folder, corpus, split, allow_changes)
    if split == "all":  # as one text, which isn't cut
        arguments = dataclasses.replace(arguments, validation_size=0, test_size=0)
        corpus = None
    if corpus is None:
        corpus = load_corpus(arguments, tokenizer)
    return ScoredText(corpus, _split(corpus, split), arguments.block_size, trained_seed(folder))


def trained_seed(folder: Path) -> int | None:
    """The seed of the run that made a model, where the folder of the model says it."""
    saved = folder / RUN_CONFIG
    return _read(saved)[1] if saved.is_file() else None


def _check_text(folder: Path, corpus: Corpus, split: str, allow: bool) -> None:
    """Compares what is scored with what the model was trained with, by the hashes that its run left.

    Raises:
        UserError: if a split is another text, unless that is allowed.
    """
    recorded = recorded_hashes(folder)
    if not recorded:
        logger.warning(f"{folder} doesn't record what text it was trained with: this may be another one")
    changes = []
    for name in SPLITS[:-1] if split == "all" else [split]:
        ids = getattr(corpus, name)
        if name in recorded and isinstance(ids, np.ndarray):
            now = split_facts(ids, corpus.tokenizer)["sha256"]
            if now != recorded[name]:
                changes.append(f"sha256 of its {name} split {recorded[name][:12]} -> {now[:12]}")
    changed = ", ".join(changes)
    if changes and not allow:
        raise UserError(
            f"{corpus.name} changed since {folder.name} was trained with it: {changed}; put it back, name "
            "the text to score (craft evaluate MODEL my.txt), or go on all the same with --allow-changes",
            code="text-changed",
        )
    if changes:
        logger.warning(f"scoring another text than in training, as allowed: {changed}")


def _split(corpus: Corpus, split: str) -> np.ndarray:
    """The ids of one split, or of all of them one after the other."""
    if isinstance(corpus.train, TextStream) and split in ("train", "all"):
        raise UserError(
            f"{corpus.name} is streamed, so its end isn't known and --split {split} can't be scored; choose "
            "--split validation, or name a text: craft evaluate MODEL my.txt",
            code="setting-conflict",
        )
    if split != "all":
        ids = getattr(corpus, split)
        if ids is None:
            raise UserError(
                f"{corpus.name} has no {split} split, as in training; try --split all", code="text-missing"
            )
        return ids
    parts = [part for part in (corpus.train, corpus.validation, corpus.test) if isinstance(part, np.ndarray)]
    return parts[0] if len(parts) == 1 else np.concatenate(parts)


def _data_arguments(folder: Path, data: str | None) -> DataArguments:
    """The data of the run that made the model, or the user's text cut in the same proportions."""
    saved = folder / RUN_CONFIG
    if not saved.is_file() and data is None:
        raise UserError(
            f"{folder} has no {RUN_CONFIG}, so its data are unknown; name a text: "
            "craft evaluate MODEL my.txt",
            code="text-missing",
        )
    own = _read(saved)[0] if saved.is_file() else DataArguments()
    if data is None:
        return own
    # A count of characters was meant for the run's own text: it may be more than all of this one.
    sizes = {name: getattr(own, name) for name in ("validation_size", "test_size") if getattr(own, name) < 1}
    return DataArguments(
        source="hub" if meant_as_repo_id(data) else "files",
        path=data,
        block_size=own.block_size,
        errors=own.errors,
        text_column=own.text_column,
        encoding=own.encoding,
        separator=own.separator,
        cache_dir=own.cache_dir,
        **sizes,
    )


def _read(saved: Path) -> tuple[DataArguments, int | None]:
    """The data of a run that craft saved, and its seed."""
    import yaml

    try:
        run: Any = yaml.safe_load(saved.read_text(encoding="utf-8"))
        return DataArguments(**run["data"]), run.get("training", {}).get("seed")
    except (yaml.YAMLError, UnicodeDecodeError, KeyError, TypeError, AttributeError) as error:
        reason = " ".join(str(error).split()).replace("DataArguments.__init__() got an ", "")
        raise UserError(f"{saved} isn't a run that craft saved: {reason}", code="file-unreadable") from error
