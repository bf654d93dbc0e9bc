"""Scoring a finished model over a whole text: the function behind `craft evaluate`."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from craft.inference import load
from craft.sharing.trust import trusted
from craft.utils.errors import UserError
from craft.utils.hub import meant_as_repo_id
from craft.utils.logging import get_logger
from craft.utils.outputs import OUTPUTS, RUN_CONFIG, evaluation_file, resolve

if TYPE_CHECKING:
    import numpy as np
    from transformers import PreTrainedModel

    from craft.data.arguments import DataArguments
    from craft.data.loaders import Corpus
    from craft.data.tokenization import CharTokenizer
    from craft.evaluation.scores import Evaluation

logger = get_logger(__name__)

SPLITS = ("train", "validation", "test", "all")


@dataclass(frozen=True)
class Scores:
    """What `evaluate` found out.

    Attributes:
        model: the folder or Hub id that was scored.
        model_type: for the name of the file.
        evaluations: one for each protocol.
    """

    model: str
    model_type: str
    evaluations: list[Evaluation]

    def save(self, root: Path = OUTPUTS) -> Path:
        """Writes the figures to `root/evaluation/eval_….json`, as a training run does, and says where."""
        file = evaluation_file(self.model_type, self.evaluations[0].dataset, root)
        save_scores(self.evaluations, self.model, file)
        return file


def evaluate(
    model: str | Path,
    data: str | None = None,
    protocols: Sequence[str] = (),
    split: str = "validation",
    batch_size: int = 64,
    root: Path = OUTPUTS,
    *,
    window: int | None = None,
    revision: str | None = None,
    trust_remote_code: bool = False,
    allow_changes: bool = False,
) -> Scores:
    """Scores a model over a whole split, once for each protocol.

    Args:
        model: as for `craft.inference.load`.
        data: a text file, folder, glob, URL or Hub data set; `None` for what the model was trained on.
        protocols: `blocks`, `sliding-N`, `stateful`; empty for the model's natural one (`stateful` where it
            carries a state, else `blocks`).
        split: `train`, `validation`, `test`, or `all` for every character of all three.
        batch_size: windows scored at once.
        window: characters of a window; `None` for the one that the model was trained on.
        revision, trust_remote_code: as for `craft.inference.load`.
        allow_changes: score what the model was trained on although it is another text by now.

    Raises:
        UserError: for an unknown model, protocol or split, for text that the model's tokenizer refuses, or
            that changed since training.
    """
    from craft.evaluation.protocols import natural_protocol, stride_of

    if split not in SPLITS:
        raise UserError(f"unknown split {split!r}; choose {', '.join(SPLITS[:-1])} or {SPLITS[-1]}")
    for protocol in protocols:
        stride_of(protocol)
    where = resolve(model, root)
    folder = trusted(where, revision, trust_remote_code)
    network, tokenizer = load(folder, trust_remote_code=trust_remote_code)

    from craft.data.loaders import load_corpus

    arguments = _data_arguments(folder, data)
    if data is None:
        _check_text(folder, load_corpus(arguments, tokenizer), split, allow_changes)
    if split == "all":
        arguments = dataclasses.replace(arguments, validation_size=0, test_size=0)
    context = getattr(network.config, "max_position_embeddings", None)
    if context and not (folder / RUN_CONFIG).is_file():  # whose window isn't known, so it is the model's own
        arguments = dataclasses.replace(arguments, block_size=context)
    if window is not None:
        arguments = dataclasses.replace(arguments, block_size=window)
    corpus = load_corpus(arguments, tokenizer=tokenizer)
    evaluations = score(
        network,
        tokenizer,
        _split(corpus, split),
        protocols or [natural_protocol(network)],
        block_size=arguments.block_size,
        batch_size=batch_size,
        split=split,
        dataset=corpus.name,
    )
    return Scores(where, network.config.model_type, evaluations)


def score(
    model: PreTrainedModel,
    tokenizer: CharTokenizer,
    ids: np.ndarray,
    protocols: Sequence[str],
    **settings: Any,
) -> list[Evaluation]:
    """Scores of a loaded model over a text that its tokenizer encoded, one for each protocol.

    Args:
        ids: int [n], n >= 2.
        **settings: as for `craft.evaluation.scores.evaluate_split`.

    Raises:
        UserError: as `evaluate_split`.
    """
    from craft.data.facts import split_facts
    from craft.evaluation.scores import evaluate_split

    lengths: dict[str, Any] = {"id_chars": tokenizer.id_chars, "id_bytes": tokenizer.id_bytes}
    found = [evaluate_split(model, ids, protocol=protocol, **lengths, **settings) for protocol in protocols]
    sha256 = split_facts(ids, tokenizer)["sha256"]
    return [dataclasses.replace(evaluation, sha256=sha256) for evaluation in found]


def save_scores(evaluations: Sequence[Evaluation], model: str, file: Path) -> None:
    """Writes the figures of a model as JSON.

    Args:
        model: the folder or Hub id that was scored.
    """
    file.parent.mkdir(parents=True, exist_ok=True)
    scores = {"model": model, "evaluations": [evaluation.to_dict() for evaluation in evaluations]}
    file.write_text(json.dumps(scores, indent=2) + "\n", encoding="utf-8")


def _check_text(folder: Path, corpus: Corpus, split: str, allow: bool) -> None:
    """Compares what is scored with what the model was trained with, by the hashes that its run left.

    Raises:
        UserError: if a split is another text, unless that is allowed.
    """
    import numpy as np

    from craft.data.facts import split_facts
    from craft.sharing.record import Record
    from craft.training.checkpointing.resume_rules import Changes, listed

    recorded = {name: facts["sha256"] for name, facts in Record.of(folder).splits.items()}
    if not any(recorded.values()):
        logger.warning(f"{folder} doesn't record what text it was trained with: this may be another one")
    changes: Changes = {}
    for name in SPLITS[:-1] if split == "all" else [split]:
        before, ids = recorded.get(name), getattr(corpus, name)
        if before and isinstance(ids, np.ndarray):
            now = split_facts(ids, corpus.tokenizer)["sha256"]
            if now != before:
                changes[f"sha256 of its {name} split"] = before[:12], now[:12]
    if changes and not allow:
        raise UserError(
            f"{corpus.name} changed since {folder.name} was trained with it: {listed(changes)}; put it back, "
            "name the text to score (craft evaluate MODEL my.txt), or go on all the same with --allow-changes"
        )
    if changes:
        logger.warning(f"scoring another text than in training, as allowed: {listed(changes)}")


def _split(corpus: Corpus, split: str) -> np.ndarray:
    """The ids of one split, or of all of them one after the other."""
    import numpy as np

    from craft.data.streaming import TextStream

    if isinstance(corpus.train, TextStream) and split in ("train", "all"):
        raise UserError(
            f"{corpus.name} is streamed, so its end isn't known and --split {split} can't be scored; choose "
            "--split validation, or name a text: craft evaluate MODEL my.txt"
        )
    if split != "all":
        ids = getattr(corpus, split)
        if ids is None:
            raise UserError(f"{corpus.name} has no {split} split, as in training; try --split all")
        return ids
    parts = [part for part in (corpus.train, corpus.validation, corpus.test) if isinstance(part, np.ndarray)]
    return parts[0] if len(parts) == 1 else np.concatenate(parts)


def _data_arguments(folder: Path, data: str | None) -> DataArguments:
    """The data of the run that made the model, or the user's text cut in the same proportions."""
    from craft.data.arguments import DataArguments

    saved = folder / RUN_CONFIG if (folder / RUN_CONFIG).is_file() else None
    if saved is None and data is None:
        raise UserError(
            f"{folder} has no {RUN_CONFIG}, so its data are unknown; name a text: craft evaluate MODEL my.txt"
        )
    own = DataArguments() if saved is None else _read(saved)
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


def _read(saved: Path) -> DataArguments:
    import yaml

    from craft.data.arguments import DataArguments

    try:
        run: Any = yaml.safe_load(saved.read_text(encoding="utf-8"))
        return DataArguments(**run["data"])
    except (yaml.YAMLError, UnicodeDecodeError, KeyError, TypeError, AttributeError) as error:
        reason = " ".join(str(error).split()).replace("DataArguments.__init__() got an ", "")
        raise UserError(f"{saved} isn't a run that craft saved: {reason}") from error
