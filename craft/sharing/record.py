"""The metadata that a run stores beside its model."""

from __future__ import annotations

import json
import math
import re
import shutil
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from craft.utils.errors import UserError
from craft.utils.outputs import DATA, RUN_CONFIG
from craft.utils.units import UNITS, Unit, unit_named

EVALUATION = "evaluation.json"
SAMPLE = "sample.txt"
CURVE = "loss_curve.png"
METRICS_FILE = "metrics.jsonl"
TRAINER_STATE = "trainer_state.json"
"""What transformers keeps in a checkpoint."""
RECORD = (RUN_CONFIG, DATA, EVALUATION, METRICS_FILE, SAMPLE, CURVE)
"""What is shared with a model."""
Fields = dict[str, Any]


@dataclass(frozen=True)
class Record:
    """What is known of the model in a folder; empty or None where the run left nothing.

    Whatever isn't what craft writes there counts as missing: files may be torn or another program's, and a
    card isn't worth a failure. Nobody else needs to doubt a record.

    Attributes:
        unit: what its figures count, by its tokenizer.
        run: the resolved run; the sections `models`, `data` and `training` are always there.
        corpus: its `name`, and how many `characters` (or other units) and ids (`vocabulary`) it has.
        splits: by name, the `characters` (or other units) and `sha256` of each.
        evaluations: scores as `Evaluation.to_dict` gives them; each has a protocol and a finite figure.
        has_code: whether the model needs the Python files beside its weights.
        step: the step of training it is from.
    """

    model_type: str
    unit: Unit
    run: dict[str, Fields]
    corpus: Fields
    splits: dict[str, Fields]
    evaluations: list[Fields]
    sample: str
    has_curve: bool
    has_code: bool
    step: int | None
    parameters: int

    @classmethod
    def of(cls, folder: Path) -> Record:
        """Reads what there is in a folder."""
        names = (RUN_CONFIG, DATA, EVALUATION, TRAINER_STATE, "config.json", "tokenizer_config.json")
        run, facts, scores, state, config, tokenizer = (fields_or_empty(folder / name) for name in names)
        try:
            unit = unit_named(tokenizer.get("unit", "character"))
        except UserError:
            unit = UNITS["character"]
        numbers = dict.fromkeys(unit.figures, float)
        score = {"protocol": str, "split": str, "block_size": int, "audited": bool, unit.plural: int}
        score |= numbers
        split, splits = {unit.plural: int, "sha256": str}, fields(facts.get("splits"))
        evaluations = scores.get("evaluations")
        known = [_typed(each, score) for each in (evaluations if isinstance(evaluations, list) else [])]
        kind = _typed(config, {"model_type": str})["model_type"] or ""
        sample, parameters = folder / SAMPLE, 0
        with suppress(ValueError):  # damaged weights
            parameters = sum(map(parameters_in, folder.glob("model*.safetensors")))
        steps = _typed(state, {"global_step": int})["global_step"], _typed(scores, {"step": int})["step"]
        return cls(
            model_type=kind if re.fullmatch(r"[\w.-]{1,96}", kind, re.ASCII) else "",
            unit=unit,
            run={name: fields(run.get(name)) for name in ("models", "data", "training")},
            corpus=_typed(facts, {"name": str, unit.plural: int, "vocabulary": int}),
            splits={name: _typed(s, split) for name, s in splits.items() if isinstance(s, dict)},
            evaluations=[e for e in known if e["protocol"] and any(e[name] is not None for name in numbers)],
            sample=sample.read_text("utf-8", "replace").removesuffix("\n") if sample.is_file() else "",
            has_curve=(folder / CURVE).is_file(),
            has_code="auto_map" in config,
            step=next((step for step in steps if step is not None), None),
            parameters=parameters,
        )


def write_record(
    folder: Path, step: int, data: Fields, evaluations: Sequence[Fields], sample: str, copies: dict[str, Path]
) -> None:
    """Writes the record of a finished run beside its model.

    Args:
        step: of training, that it is from.
        data: facts about the text.
        evaluations: scores as plain data.
        sample: a text by the model.
        copies: files to copy, if they exist, by their names there.
    """
    for name, content in ((DATA, data), (EVALUATION, {"step": step, "evaluations": list(evaluations)})):
        text = json.dumps(content, indent=2, ensure_ascii=False) + "\n"
        (folder / name).write_text(text, encoding="utf-8")
    (folder / SAMPLE).write_text(sample + "\n", encoding="utf-8", errors="replace", newline="")
    for name, source in copies.items():
        if source.is_file():
            shutil.copyfile(source, folder / name)


def read_fields(file: Path) -> Fields:
    """The fields of a JSON or YAML file, as plain data.

    Raises:
        ValueError: in a few words, if it holds none.
    """
    import yaml

    try:
        text = file.read_bytes().decode("utf-8")
        found = json.loads(text) if file.suffix == ".json" else yaml.safe_load(text)
        plain = json.dumps(found, ensure_ascii=False).encode()  # no dates, circles or half characters
    except Exception as error:  # PyYAML's constructors raise whatever comes
        raise ValueError(" ".join(str(error).split()) or type(error).__name__) from error
    if not isinstance(found, dict):
        raise ValueError("it holds no fields")
    return json.loads(plain)


def fields_or_empty(file: Path) -> Fields:
    """As `read_fields`; none if there are none."""
    try:
        return read_fields(file)
    except ValueError:
        return {}


def parameters_in(file: Path) -> int:
    """Weights in a safetensors file.

    Raises:
        ValueError: in a few words, if it isn't one, or isn't whole.
    """
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(file, framework="np") as opened:
            return sum(math.prod(opened.get_slice(name).get_shape()) for name in opened.keys())  # noqa: SIM118
    except (SafetensorError, OSError) as error:
        raise ValueError(str(error)) from error


def _typed(found: Any, schema: dict[str, type]) -> Fields:
    """The fields of a schema, each None unless it is of its type; words aren't empty, numbers have an end."""
    given = fields(found)

    def checked(value: Any, kind: type) -> Any:
        fits = type(value) is kind or (kind is float and type(value) is int)
        if fits and kind is not str:  # no count is that large, and NaN is less than nothing
            fits = abs(value) < 2**63 and (kind is float or value >= 0)
        return kind(value) if fits and value != "" else None

    return {name: checked(given.get(name), kind) for name, kind in schema.items()}


def fields(found: Any) -> Fields:
    """A mapping as it is; of anything else none."""
    return found if isinstance(found, dict) else {}
