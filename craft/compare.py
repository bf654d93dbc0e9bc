"""Several models beside each other: scores on one text, what they took to train, how fast they write.

`compare` takes finished models; `run_grid` trains them before, each in a process of its own, so that the end
of one is not the end of the others.
"""

from __future__ import annotations

import itertools
import json
import subprocess
import sys
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from craft.utils.errors import UserError
from craft.utils.history import finished_at
from craft.utils.logging import get_logger
from craft.utils.outputs import RUN_CONFIG, compared_run, comparison_file, resolve
from craft.utils.stopping import TrainingInterrupted, exit_code, signal_handler

logger = get_logger(__name__)

SCHEMA = 1
SEED = "training.seed="
WRITTEN, ROUNDS, PROMPT = 200, 3, 16
"""Ids that are written to measure speed, how often, and behind how many of the text."""


@dataclass(frozen=True)
class Cell:
    """A run of a grid.

    Args:
        configuration: its settings that differ from other cells', but for the seed.
        words: what `craft train` is told.
    """

    configuration: str
    seed: int | None
    words: tuple[str, ...]

    @property
    def run_dir(self) -> Path:
        """Where it is trained: the same folder for the same words, whatever grid they are part of."""
        seed = "" if self.seed is None else f"_seed_{self.seed}"
        return compared_run(f"{self.configuration}{seed}", self.words)

    @property
    def model_dir(self) -> Path | None:
        """The finished model, once there is one."""
        step = finished_at(self.run_dir)
        return None if step is None else self.run_dir.with_name(f"{self.run_dir.name}_step_{step}")


def grid(arguments: Sequence[str]) -> list[Cell]:
    """All combinations of what a command line of `craft train` lists with commas, as Hydra reads them:
    `models=char_lstm,transformer training.seed=1,2`; a value in brackets is one.

    Raises:
        UserError: for a value that Hydra can't read.
    """
    choices = [_choices(word) for word in arguments]
    swept = [i for i, options in enumerate(choices) if len(options) > 1 and not options[0].startswith(SEED)]
    cells = []
    for words in itertools.product(*choices):
        names = [words[i].partition("=") for i in swept]
        name = " ".join(v if "." not in key else f"{key.rpartition('.')[2]}={v}" for key, _, v in names)
        seeds = [word.removeprefix(SEED) for word in words if word.startswith(SEED)]
        seed = int(seeds[-1]) if seeds and seeds[-1].isdigit() else None
        cells.append(Cell(name or "run", seed, words))
    return cells


def _choices(word: str) -> list[str]:
    from hydra.core.override_parser.overrides_parser import OverridesParser
    from hydra.errors import HydraException

    from craft.config.command_line import OVERRIDE

    if "," not in word or not OVERRIDE.fullmatch(word):
        return [word]
    try:
        override = OverridesParser.create().parse_override(word)
        if not override.is_sweep_override():
            return [word]
        return [f"{override.key_or_group}={value}" for value in override.sweep_string_iterator()]
    except HydraException as error:
        reason = " ".join(str(error).split())
        raise UserError(f"can't read {word!r} as a list: {reason}; quote a comma", code="usage") from error


def run_grid(cells: Sequence[Cell], config_dir: Path | None = None) -> list[str]:
    """Trains what isn't finished yet, one run after the other; an interrupted one goes on.

    Returns:
        Which runs failed.

    Raises:
        UserError: for settings that are no run; nothing was trained then.
        TrainingInterrupted: after a signal, which the run in training has obeyed.
    """
    from craft.config.command_line import split_text
    from craft.config.compose import compose

    for cell in cells:
        compose(split_text(cell.words), config_dir=config_dir, choose=None)
    failed = []
    for number, cell in enumerate(cells, start=1):
        about = (
            f"{number}/{len(cells)} {cell.configuration}{'' if cell.seed is None else f', seed {cell.seed}'}"
        )
        if cell.model_dir is not None:
            logger.info(f"{about}: is finished, {cell.model_dir}")
            continue
        logger.info(f"{about}: {cell.run_dir}")
        own = [] if config_dir is None else ["--config-dir", str(config_dir)]
        if _train([*cell.words, f"training.output_dir={cell.run_dir}", "--resume", "auto", *own]):
            failed.append(about)
    return failed


def _train(words: Iterable[str]) -> int:
    """`craft train` in another process, to which signals are passed on; its exit status."""
    command = [sys.executable, "-m", "craft", "train", *words]
    # In a session of its own: else Ctrl-C in a terminal would reach it twice.
    child = subprocess.Popen(command, stdout=subprocess.DEVNULL, start_new_session=True)
    received: list[int] = []

    def pass_on(number: int, frame: object) -> None:
        received.append(number)
        child.send_signal(number)

    with signal_handler(pass_on):
        status = child.wait()
    if received:
        raise TrainingInterrupted(exit_code(received[0]))
    return status


@dataclass
class Contestant:
    """A finished model, loaded, with the text that it is scored on."""

    name: str
    configuration: str
    seed: int | None
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
    from craft.evaluation.baselines import baselines_of
    from craft.evaluation.finished import evaluate_text
    from craft.evaluation.protocols import default_protocol

    found = [_load(model, text, split) for model in models]
    for contestant, cell in zip(found, cells):
        contestant.configuration, contestant.seed = cell.configuration, cell.seed
    sha256 = _same_text(found, split)
    natural = list(dict.fromkeys(default_protocol(each.network) for each in found))
    asked = list(protocols) or (
        natural if len(natural) == 1 else ["blocks", *(n for n in natural if n != "blocks")]
    )
    able = {each.name: [p for p in asked if p != "stateful" or each.network.carries_state] for each in found}
    asked.sort(key=lambda protocol: any(protocol not in known for known in able.values()))
    if any(asked[0] not in known for known in able.values()):
        raise UserError(
            "--protocol stateful is for recurrent models alone; add --protocol blocks",
            code="setting-conflict",
        )
    speeds = _speeds(
        [
            next(c for c in found if c.configuration == name)
            for name in dict.fromkeys(c.configuration for c in found)
        ]
    )
    scores: dict[str, dict[str, list[Any]]] = {}
    described = []
    for each in found:
        logger.info(f"scoring   {each.name}")
        evaluations = {}
        for protocol in able[each.name]:
            (evaluations[protocol],) = evaluate_text(
                each.network, each.tokenizer, each.text, [protocol], split, 64
            )
            scores.setdefault(each.configuration, {}).setdefault(protocol, []).append(evaluations[protocol])
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
    from craft.sharing.record import fields, fields_or_empty
    from craft.sharing.trust import trusted

    where = resolve(model)
    folder = trusted(where)
    network, tokenizer = load(folder)
    seed = fields(fields_or_empty(folder / RUN_CONFIG).get("training")).get("seed")
    name = folder.resolve().name if Path(where).is_dir() else where  # of the Hub
    scored = text_to_score(network, tokenizer, folder, text, split)
    return Contestant(name, name, seed, folder, network, tokenizer, scored)


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


def _speeds(found: Sequence[Contestant]) -> dict[str, float]:
    """Of each configuration, how many units a second one text grows by: medians of interleaved rounds."""
    import torch

    from craft.benchmarks.harness import Comparison, measure, timed
    from craft.inference import Sampling

    def writes(each: Contestant) -> Any:
        config = Sampling(max_new_tokens=WRITTEN).generation_config(each.network)
        config.eos_token_id = None  # all write to the limit
        prompt = torch.tensor([each.text.ids[:PROMPT].tolist()], device=each.network.device)
        return timed(lambda: sum(1 for _ in each.network.stream(prompt, config)))

    contenders = {each.configuration: writes(each) for each in found}
    measured = measure(Comparison("writing", WRITTEN, "ids", contenders), ROUNDS)
    per_id = {
        each.configuration: float(each.tokenizer.id_units[each.text.ids[:100_000]].mean()) for each in found
    }
    return {row["name"]: row["rate"] * per_id[row["name"]] for row in measured["contenders"]}


def _describe(each: Contestant, speed: float, evaluations: dict[str, Any]) -> dict[str, Any]:
    from craft.training.logging import read_metrics
    from craft.utils.units import unit_of

    unit, network = unit_of(each.tokenizer), each.network
    last: dict[str, Any] = {}
    for entry in read_metrics(each.folder):
        last.update(entry)
    read = last.get(unit.plural)
    return {
        **{name: getattr(each, name) for name in ("name", "configuration", "seed")},
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
