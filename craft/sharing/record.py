"""What a run leaves beside its model, so that the folder tells its own story wherever it is copied."""

from __future__ import annotations

import json
import shutil
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from craft.utils.outputs import RUN_CONFIG

EVALUATION = "evaluation.json"
SAMPLE = "sample.txt"
CURVE = "loss_curve.png"
METRICS = "metrics.jsonl"
DATA = "data.json"
STATE = "trainer_state.json"


@dataclass(frozen=True)
class Record:
    """What is known of the model in a folder; empty where the run left nothing.

    Attributes:
        config: its config.json.
        run: the resolved run.
        data: facts about the text: characters, and the hash of each split.
        evaluations: scores, as `Evaluation.to_dict` gives them.
        sample: a text by the model.
        step: the step of training it is from, if known.
        parameters: how many weights it has.
    """

    config: dict[str, Any]
    run: dict[str, Any]
    data: dict[str, Any]
    evaluations: list[dict[str, Any]]
    sample: str
    step: int | None
    parameters: int

    @classmethod
    def of(cls, folder: Path) -> Record:
        """Reads what there is in a folder. Damaged files count as missing: a card isn't worth a failure."""
        state = _json(folder / STATE)
        step = state.get("global_step")
        tail = folder.name.rpartition("_step_")[2]
        if step is None and tail.isdigit():
            step = int(tail)
        return cls(
            config=_json(folder / "config.json"),
            run=_yaml(folder / RUN_CONFIG),
            data=_json(folder / DATA),
            evaluations=[e for e in _json(folder / EVALUATION).get("evaluations", []) if isinstance(e, dict)],
            sample=_text(folder / SAMPLE),
            step=step,
            parameters=count_parameters(folder),
        )


def keep(
    folder: Path,
    *,
    data: dict[str, Any],
    evaluations: Sequence[dict[str, Any]],
    sample: str,
    metrics: Path,
    curve: Path,
) -> None:
    """Writes the record of a finished run beside its model, and the card that tells of it.

    Args:
        data: facts about the text.
        evaluations: scores as plain data.
        sample: a text by the model.
        metrics, curve: files to copy, if they exist.
    """
    from craft.sharing.card import write_card

    (folder / DATA).write_text(_dump(data), encoding="utf-8")
    (folder / EVALUATION).write_text(_dump({"evaluations": list(evaluations)}), encoding="utf-8")
    (folder / SAMPLE).write_text(sample + "\n", encoding="utf-8", errors="replace", newline="")
    for source, name in ((metrics, METRICS), (curve, CURVE)):
        if source.is_file():
            shutil.copyfile(source, folder / name)
    write_card(folder)


def count_parameters(folder: Path) -> int:
    """Weights in the safetensors files of a folder, read off their headers."""
    total = 0
    for file in folder.glob("model*.safetensors"):
        try:
            with file.open("rb") as opened:
                header = json.loads(opened.read(int.from_bytes(opened.read(8), "little")))
            tensors = [tensor for name, tensor in header.items() if name != "__metadata__"]
            total += sum(_product(tensor["shape"]) for tensor in tensors)
        except (OSError, ValueError, KeyError, TypeError, AttributeError):
            return 0
    return total


def _product(shape: Sequence[int]) -> int:
    product = 1
    for size in shape:
        product *= size
    return product


def _dump(value: Any) -> str:
    return json.dumps(value, indent=2, ensure_ascii=False) + "\n"


def _text(file: Path) -> str:
    try:
        return file.read_bytes().decode("utf-8", errors="replace").removesuffix("\n")
    except OSError:
        return ""


def _json(file: Path) -> dict[str, Any]:
    try:
        found = json.loads(_text(file))
    except ValueError:
        return {}
    return found if isinstance(found, dict) else {}


def _yaml(file: Path) -> dict[str, Any]:
    import yaml

    try:
        found = yaml.safe_load(_text(file))
    except yaml.YAMLError:
        return {}
    return found if isinstance(found, dict) else {}
