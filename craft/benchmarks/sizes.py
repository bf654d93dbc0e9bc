"""`python -m craft.benchmarks.sizes`: fits the forecast of `craft.sizing` to runs that were made.

Reads `flow/performance/sizes.csv`, one run a line, and writes `forecast` into `configs/sizes.yaml`. Of runs
that differ in dropout alone the best counts. What it prints is how well the runs of the other texts foretell
the losses of each: the interval that users see is twice the root of the mean square of these errors.
"""

from __future__ import annotations

import csv
import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import yaml

from craft.config.files import builtin_folder
from craft.sizing import Size, Text, features
from craft.utils.terminal import echo

RUNS = Path("flow/performance/sizes.csv")
RIDGE = 0.01
"""How much is taken off for the squares of the weights: there are few runs, and they are alike."""


@dataclass(frozen=True)
class SizeRun:
    """A run that was made: what read how much of which text, and the loss it came to in nats per id."""

    text: str
    minutes: float
    size: Size
    ids: int
    source: Text
    loss: float

    @property
    def target(self) -> float:
        """What the features are to sum up to."""
        return math.log(self.loss / self.source.packed)

    @property
    def features(self) -> list[float]:
        return features(self.size, self.source, self.ids)


def read_runs(file: Path) -> list[SizeRun]:
    """The runs of a table, of those that differ in dropout alone the best."""
    best: dict[tuple[str, float, str], SizeRun] = {}
    lines = [line for line in file.read_text(encoding="utf-8").splitlines() if not line.startswith("#")]
    for row in csv.DictReader(lines):
        size = Size(row["architecture"], int(row["layers"]), int(row["width"]), 1.0)
        source = Text(int(row["text_ids"]), float(row["packed"]))
        run = SizeRun(row["text"], float(row["minutes"]), size, int(row["ids"]), source, float(row["loss"]))
        key = (run.text, run.minutes, str(size))
        if key not in best or run.loss < best[key].loss:
            best[key] = run
    return list(best.values())


def fit(runs: Sequence[SizeRun]) -> np.ndarray:
    """Weights of the features, by ridge regression; the first feature, which is 1, is free."""
    inputs, targets = np.array([run.features for run in runs]), np.array([run.target for run in runs])
    penalty = RIDGE * np.eye(inputs.shape[1])
    penalty[0, 0] = 0.0
    return np.linalg.solve(inputs.T @ inputs + penalty, inputs.T @ targets)


def errors(runs: Sequence[SizeRun]) -> dict[str, np.ndarray]:
    """For each text, by how much the runs of the others miss the logarithms of its losses."""
    found = {}
    for text in dict.fromkeys(run.text for run in runs):
        weights = fit([run for run in runs if run.text != text])
        own = [run for run in runs if run.text == text]
        found[text] = np.array([weights @ run.features - run.target for run in own])
    return found


def main() -> None:
    runs = read_runs(RUNS)
    missed = errors(runs)
    for text, values in missed.items():
        worst = np.abs(values).max()
        echo(f"{text:<16} {len(values):2} runs, missed by the runs of other texts by {worst:.1%} at most")
    spread = float(np.sqrt(np.mean(np.concatenate(list(missed.values())) ** 2)))
    weights = [round(float(weight), 5) for weight in fit(runs)]
    file = builtin_folder() / "sizes.yaml"
    kept = file.read_text(encoding="utf-8").split("forecast:")[0]
    forecast = {
        "weights": weights,
        "error": round(2 * spread, 3),
        "ids": [find(run.ids for run in runs) for find in (min, max)],
        "text_ids": [find(run.source.ids for run in runs) for find in (min, max)],
    }
    told = yaml.safe_dump({"forecast": forecast}, sort_keys=False, default_flow_style=None, width=110)
    file.write_text(kept + told, encoding="utf-8")
    echo(f"{len(runs)} runs; written: {file}")


if __name__ == "__main__":
    main()
