"""Several finished models beside each other: scores on one text, what training took, how fast they write."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from craft.grid import Cell
from craft.utils.errors import UserError
from craft.utils.logging import get_logger
from craft.utils.outputs import comparison_file, resolve

logger = get_logger(__name__)

SCHEMA = 1
WRITTEN, ROUNDS, PROMPT = 200, 3, 16
"""Ids that are written to measure speed, how often, and behind how many of the text."""


@dataclass
class Contestant:
    """A finished model, loaded, with the text that it is scored on."""

    name: str
    configuration: str
    folder: Path
    network: Any
    tokenizer: Any
    text: Any


def compare(
    models: Sequence[str | Path],
    text: str | None = None,
    split: str = "validation",
    protocols: Sequence[str] = (),
    baselines: bool = False,
    cells: Sequence[Cell] = (),
) -> dict[str, Any]:
    """Scores finished models on the same split of the same text.

    Args:
        models: folders, Hub ids or `latest`.
        text: what to score instead of the text that each was trained on.
        protocols: by default those that the models are made for, and `blocks` if they differ.
        baselines: whether n-grams and packers are set beside the models.
        cells: of a grid, those that the models are from, in their order.

    Returns:
        A report, see `craft.evaluation.comparison`.

    Raises:
        UserError: if a model can't be loaded or scored, or the texts differ.
    """
    from craft.benchmarks.harness import describe_machine
    from craft.evaluation import comparison
    from craft.evaluation.baselines import baselines_of, check_split
    from craft.evaluation.finished import evaluate_text
    from craft.evaluation.protocols import check_protocol, default_protocol, is_dynamic, reads_on

    if baselines:
        check_split(split)
    if any(map(is_dynamic, protocols)):
        raise UserError(
            "'dynamic' scores are another kind of figure, so no table has them beside others; use craft "
            "evaluate MODEL --protocol dynamic",
            code="setting-conflict",
        )
    found = [_load(model, text, split) for model in models]
    for contestant, cell in zip(found, cells):
        contestant.configuration = cell.configuration
    sha256 = _same_text(found, split)
    natural = list(dict.fromkeys(default_protocol(each.network) for each in found))
    asked = list(dict.fromkeys(protocols or (natural if len(natural) == 1 else ["blocks", *natural])))
    able = {each.name: [p for p in asked if p != "stateful" or reads_on(each.network)] for each in found}
    asked.sort(key=lambda protocol: any(protocol not in known for known in able.values()))
    if any(asked[0] not in known for known in able.values()):
        raise UserError(
            "--protocol stateful isn't for all of these models; add --protocol blocks",
            code="setting-conflict",
        )
    for each in found:
        for protocol in able[each.name]:
            check_protocol(protocol, each.network, each.text.block_size)
    speeds = _speeds({each.configuration: each for each in reversed(found)})
    scores: dict[str, dict[str, list[Any]]] = {}
    described = []
    for each in found:
        logger.info(f"scoring   {each.name}")
        scored = evaluate_text(each.network, each.tokenizer, each.text, able[each.name], split, 64)
        evaluations = {evaluation.protocol: evaluation for evaluation in scored}
        for protocol, evaluation in evaluations.items():
            scores.setdefault(each.configuration, {}).setdefault(protocol, []).append(evaluation)
        described.append(_describe(each, speeds[each.configuration], evaluations))
    ranked, differences = comparison.rank(scores, asked)
    first = found[0]
    extra = baselines_of(first.text.corpus, first.text.ids, split) if baselines else []
    return {
        "schema": SCHEMA,
        "text": {
            "dataset": first.text.corpus.name,
            "split": split,
            "sha256": sha256,
            "unit": described[0]["unit"],
            "predictions": len(first.text.ids) - 1,
        },
        "protocols": asked,
        "models": described,
        "configurations": ranked,
        "differences": [asdict(each) for each in differences],
        "sentences": [str(each) for each in differences],
        "baselines": [each.to_dict() for each in extra],
        **describe_machine(),
    }


def _load(model: str | Path, text: str | None, split: str) -> Contestant:
    from craft.evaluation.finished import text_to_score
    from craft.inference import load
    from craft.sharing.trust import trusted

    where = resolve(model)
    folder = trusted(where)
    network, tokenizer = load(folder)
    name = folder.resolve().name if Path(where).is_dir() else where  # of the Hub
    scored = text_to_score(network, tokenizer, folder, text, split)
    return Contestant(name, name, folder, network, tokenizer, scored)


def _same_text(found: Sequence[Contestant], split: str) -> str:
    """The hash of the text that all are scored on."""
    from craft.data.facts import split_facts

    hashes = {each.name: split_facts(each.text.ids, each.tokenizer)["sha256"] for each in found}
    if len(hashes) < len(found):
        raise UserError("two of the models have the same name; rename the folder of one", code="usage")
    if len(set(hashes.values())) > 1:
        texts = ", ".join(f"{each.name}: {each.text.corpus.name} {hashes[each.name][:12]}" for each in found)
        raise UserError(
            f"the {split} splits of these models are different texts ({texts}); name one by --text FILE, "
            "all of it with --split all",
            code="text-changed",
        )
    return next(iter(hashes.values()))


def _speeds(found: dict[str, Contestant]) -> dict[str, float]:
    """Of each configuration, how many units a second one text grows by: medians of interleaved rounds."""
    import torch

    from craft.benchmarks.harness import Comparison, measure, timed
    from craft.inference import Sampling

    def writes(each: Contestant) -> Any:
        config = Sampling(max_new_tokens=WRITTEN).generation_config(each.network)
        config.eos_token_id = None  # all write to the limit
        prompt = torch.tensor([each.text.ids[:PROMPT].tolist()], device=each.network.device)
        return timed(lambda: sum(1 for _ in each.network.stream(prompt, config)))

    contenders = {name: writes(each) for name, each in found.items()}
    rows = measure(Comparison("writing", WRITTEN, "ids", contenders), ROUNDS)["contenders"]
    per_id = {name: each.tokenizer.id_units[each.text.ids[:100_000]].mean() for name, each in found.items()}
    return {row["name"]: row["rate"] * float(per_id[row["name"]]) for row in rows}


def _describe(each: Contestant, speed: float, evaluations: dict[str, Any]) -> dict[str, Any]:
    from craft.training.logging import read_metrics
    from craft.utils.units import unit_of

    unit, network = unit_of(each.tokenizer), each.network
    last: dict[str, Any] = {}
    for entry in read_metrics(each.folder):
        last.update(entry)
    read = last.get(unit.plural)
    return {
        "name": each.name,
        "configuration": each.configuration,
        "seed": each.text.seed,
        "folder": str(each.folder),
        "model_type": network.config.model_type,
        "unit": unit.name,
        "parameters": network.num_parameters(),
        "training": {
            "units": read,
            "flops": None if read is None else read * network.flops_per_token(),
            "seconds": last.get("wall"),
        },
        "units_per_second": speed,
        "evaluations": {protocol: evaluation.to_dict() for protocol, evaluation in evaluations.items()},
    }


def save(report: dict[str, Any]) -> list[Path]:
    """Writes a report as JSON and Markdown, and draws the runs' validation where their metrics are there."""
    from craft.evaluation.comparison import markdown
    from craft.training.logging import read_metrics
    from craft.views.png import draw_runs
    from craft.views.runs import run_curves

    file = comparison_file()
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text(json.dumps(report, indent=1) + "\n", encoding="utf-8")
    table = file.with_suffix(".md")
    table.write_text(markdown(report) + "\n", encoding="utf-8")
    first: dict[str, list[dict[str, Any]]] = {}
    for model in report["models"]:
        first.setdefault(model["configuration"], read_metrics(Path(model["folder"])))
    try:
        picture = [draw_runs(run_curves(first), file.with_suffix(".png"))]
    except UserError as error:
        logger.info(f"no picture: {error}")
        picture = []
    return [file, table, *picture]
