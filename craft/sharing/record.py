"""What a run leaves beside its model, so that the folder tells its own story wherever it is copied."""

from __future__ import annotations

import json
import math
import re
import shutil
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from craft.utils.outputs import RUN_CONFIG

EVALUATION = "evaluation.json"
SAMPLE = "sample.txt"
CURVE = "loss_curve.png"
METRICS_FILE = "metrics.jsonl"
DATA = "data.json"
STATE = "trainer_state.json"
"""What transformers keeps in a checkpoint."""
PNG = b"\x89PNG\r\n\x1a\n"
MOST = 2**63
"""What no count of anything reaches."""


@dataclass(frozen=True)
class Record:
    """What is known of the model in a folder; empty where the run left nothing.

    Attributes:
        model_type: of its config.json.
        run: the resolved run; the sections `models`, `data` and `training` are always there.
        name: the corpus as the run called it.
        characters, vocabulary: of the corpus and its tokenizer.
        splits: by name, the `characters` and `sha256` of each.
        evaluations: scores as `Evaluation.to_dict` gives them; each has a protocol and a finite figure.
        sample: a text by the model.
        curve: whether a picture of the loss is there.
        step: the step of training it is from, if known.
        parameters: how many weights it has; 0 if that can't be read.
    """

    model_type: str
    run: dict[str, dict[str, Any]]
    name: str | None
    characters: int | None
    vocabulary: int | None
    splits: dict[str, dict[str, Any]]
    evaluations: list[dict[str, Any]]
    sample: str
    curve: bool
    step: int | None
    parameters: int

    @classmethod
    def of(cls, folder: Path) -> Record:
        """Reads what there is in a folder.

        Whatever isn't what craft writes there counts as missing, part by part: the files may be torn or
        another program's, and a card isn't worth a failure. Nobody else needs to doubt a record.
        """
        run, facts = _yaml(folder / RUN_CONFIG), _json(folder / DATA)
        scores = _json(folder / EVALUATION)
        step = _count(_json(folder / STATE).get("global_step"))
        kind = _word(_json(folder / "config.json").get("model_type"))
        return cls(
            model_type=kind if kind and re.fullmatch(r"[\w.-]{1,96}", kind, re.ASCII) else "",
            run={name: _section(run.get(name)) for name in ("models", "data", "training")},
            name=_word(facts.get("name")),
            characters=_count(facts.get("characters")),
            vocabulary=_count(facts.get("vocabulary")),
            splits={
                name: _fields(split, characters=_count, sha256=_digest)
                for name, split in _section(facts.get("splits")).items()
                if isinstance(split, dict)
            },
            evaluations=[e for e in map(_evaluation, _list(scores.get("evaluations"))) if e],
            sample=_text(folder / SAMPLE, errors="strict").removesuffix("\n"),
            curve=is_png(folder / CURVE),
            step=_count(scores.get("step")) if step is None else step,
            parameters=count_parameters(folder),
        )


def keep(
    folder: Path,
    *,
    step: int,
    data: dict[str, Any],
    evaluations: Sequence[dict[str, Any]],
    sample: str,
    metrics: Path,
    curve: Path,
) -> None:
    """Writes the record of a finished run beside its model, and the card that tells of it.

    Args:
        step: of training, that it is from.
        data: facts about the text.
        evaluations: scores as plain data.
        sample: a text by the model.
        metrics, curve: files to copy, if they exist.
    """
    from craft.sharing.card import write_card

    (folder / DATA).write_text(_dump(data), encoding="utf-8")
    scores = {"step": step, "evaluations": list(evaluations)}
    (folder / EVALUATION).write_text(_dump(scores), encoding="utf-8")
    (folder / SAMPLE).write_text(sample + "\n", encoding="utf-8", errors="replace", newline="")
    for source, name in ((metrics, METRICS_FILE), (curve, CURVE)):
        if source.is_file():
            shutil.copyfile(source, folder / name)
    write_card(folder)


def count_parameters(folder: Path) -> int:
    """Weights in the safetensors files of a folder, read off their headers; 0 if one is damaged."""
    try:
        return sum(map(parameters_in, folder.glob("model*.safetensors")))
    except (OSError, ValueError):
        return 0


def parameters_in(file: Path) -> int:
    """Weights in a safetensors file.

    Raises:
        ValueError: if it isn't one, or isn't whole.
    """
    size = file.stat().st_size
    with file.open("rb") as opened:
        length = int.from_bytes(opened.read(8), "little")
        if not 2 <= length <= size - 8:
            raise ValueError("it has no header of safetensors")
        try:
            header = json.loads(opened.read(length))
            tensors = [tensor for name, tensor in header.items() if name != "__metadata__"]
            ends = [int(tensor["data_offsets"][1]) for tensor in tensors]
            counts = [math.prod(map(int, tensor["shape"])) for tensor in tensors]
        except (ValueError, KeyError, IndexError, TypeError, AttributeError, RecursionError) as error:
            raise ValueError("its header can't be read") from error
    if 8 + length + max(ends, default=0) != size:
        raise ValueError(
            f"its header tells of {8 + length + max(ends, default=0):,} bytes, and it has {size:,}"
        )
    return sum(counts)


def is_png(file: Path) -> bool:
    try:
        with file.open("rb") as opened:
            return opened.read(len(PNG)) == PNG
    except OSError:
        return False


def _dump(value: Any) -> str:
    return json.dumps(value, indent=2, ensure_ascii=False) + "\n"


def _evaluation(found: Any) -> dict[str, Any] | None:
    figures = ("bits_per_char", "bits_per_byte", "nats_per_char", "accuracy")
    kinds = {"protocol": _word, "split": _word, "block_size": _count, "characters": _count}
    e = _fields(found, **kinds, **dict.fromkeys(figures, _figure))
    return e if e["protocol"] and any(e[name] is not None for name in figures) else None


def _fields(found: Any, **kinds: Callable[[Any], Any]) -> dict[str, Any]:
    """The named fields of a mapping; None where one isn't of its kind."""
    given = found if isinstance(found, dict) else {}
    return {name: kind(given.get(name)) for name, kind in kinds.items()}


def _section(found: Any, depth: int = 3) -> dict[str, Any]:
    """Plain data under names, without what YAML can hold besides."""
    given = found if isinstance(found, dict) else {}
    return {name: _plain(value, depth) for name, value in given.items() if isinstance(name, str)}


def _plain(value: Any, depth: int) -> Any:
    if isinstance(value, dict) and depth:
        return _section(value, depth - 1)
    if isinstance(value, list) and depth:
        return [_plain(each, depth - 1) for each in value]
    return value if isinstance(value, str | int | float) else None


def _word(value: Any) -> str | None:
    return value if isinstance(value, str) and value else None


def _count(value: Any) -> int | None:
    known = isinstance(value, int) and not isinstance(value, bool) and 0 <= value < MOST
    return value if known else None


def _figure(value: Any) -> float | None:
    known = isinstance(value, int | float) and not isinstance(value, bool) and abs(value) < MOST
    return float(value) if known else None  # NaN is less than nothing


def _digest(value: Any) -> str | None:
    return value if isinstance(value, str) and re.fullmatch("[0-9a-f]{64}", value) else None


def _text(file: Path, errors: str = "replace") -> str:
    try:
        return file.read_bytes().decode("utf-8", errors)
    except (OSError, UnicodeDecodeError):
        return ""


def _json(file: Path) -> dict[str, Any]:
    try:
        found = json.loads(_text(file))
    except (ValueError, RecursionError):
        return {}
    return found if isinstance(found, dict) else {}


def _list(found: Any) -> list[Any]:
    return found if isinstance(found, list) else []


def _yaml(file: Path) -> dict[str, Any]:
    import yaml

    try:
        found = yaml.safe_load(_text(file))
    except Exception:  # its constructors of dates and numbers raise whatever comes of a wrong one
        return {}
    return found if isinstance(found, dict) else {}
