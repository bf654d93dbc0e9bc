"""Which of several models is better, and whether the difference is more than noise.

A report is plain data: what `craft compare` saves, and what table and sentences are made from.

    text             dataset, split, sha256, unit, predictions
    protocols        asked for; the ranking goes by the first
    models           name, configuration, seed, folder, model_type, parameters, training (units read, FLOPs,
                     seconds), units_per_second of writing, evaluations (by protocol)
    configurations   the best first: name, seeds, and by protocol mean, error and what the error is of
    differences      of each configuration from the next one, see `Difference`
    baselines        what the same predictions cost without a model
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import numpy as np

from craft.evaluation.figures import paired_bootstrap
from craft.evaluation.scores import Evaluation
from craft.utils.common import human
from craft.utils.units import unit_named

NORMAL = 1.960
STUDENT = (12.706, 4.303, 3.182, 2.776, 2.571, 2.447, 2.365, 2.306, 2.262, 2.228)
"""Between which multiples of its standard error 95% of a normal, and of Student's t with 1, 2, … degrees of
freedom lie."""
Group = Sequence[Evaluation]
"""The scores of one configuration on one text by one protocol, one for each seed."""


@dataclass(frozen=True)
class Difference:
    """How much better (below 0) one configuration is than another one.

    Args:
        nats: the difference of their means, per `unit`.
        error: its standard error: how texts of this kind differ and, where there are several seeds, how these
            do.
        low, high: where it lies in 95 of 100 cases.
        share: in which share of resampled texts the first is better; None where the two don't make the same
            predictions, so that their errors add up.
    """

    first: str
    second: str
    nats: float
    error: float
    low: float
    high: float
    share: float | None
    unit: str
    seeds: tuple[int, int]

    def __str__(self) -> str:
        how = "not paired" if self.share is None else f"paired, {max(self.share, 1 - self.share):.1%}"
        alone = ", one seed each" if max(self.seeds) == 1 else ""
        size = f"{abs(self.nats):.4f} ± {self.error:.4f} nats/{self.unit} ({how}{alone})"
        if self.low <= 0 <= self.high:
            return f"no difference seen between {self.first} and {self.second}: {size}"
        better, worse = (self.first, self.second) if self.nats < 0 else (self.second, self.first)
        return f"{better} is better than {worse} by {size}"


def difference(names: tuple[str, str], a: Group, b: Group) -> Difference:
    """Compares two configurations; models that count different units by their nats per byte."""
    unit, share = a[0].unit if a[0].unit == b[0].unit else "byte", None
    values = [[e.nats / _size(e, unit) for e in group] for group in (a, b)]
    text = math.hypot(*(math.sqrt(group[0].variance) / _size(group[0], unit) for group in (a, b)))
    if _same_predictions([*a, *b]):
        first, second = (np.mean([np.asarray(e.stretches)[0] for e in group], axis=0) for group in (a, b))
        found = paired_bootstrap(first, second, counts=np.asarray(a[0].stretches)[1])
        text, share = found.standard_error * a[0].predictions / _size(a[0], unit), found.probability
    seeds = math.hypot(*(spread(group) / math.sqrt(len(group)) for group in values))
    freedom = len(a) + len(b) - 2
    student = STUDENT[min(freedom, len(STUDENT)) - 1] if freedom else 0.0
    gap, half = float(np.mean(values[0]) - np.mean(values[1])), math.hypot(NORMAL * text, student * seeds)
    error = math.hypot(text, seeds)
    return Difference(*names, gap, error, gap - half, gap + half, share, unit, (len(a), len(b)))


def _size(e: Evaluation, unit: str) -> int:
    """How many units a score is over."""
    return e.units if e.unit == unit else int(e.bytes or 0)


def _same_predictions(scores: Group) -> bool:
    """Whether stretches are of the same characters: of one text, cut at the same ids."""
    cuts = [None if each.stretches is None else each.stretches[1].tolist() for each in scores]
    return cuts[0] is not None and cuts.count(cuts[0]) == len(cuts) and len({e.sha256 for e in scores}) == 1


def spread(values: Sequence[float]) -> float:
    """The standard deviation that a sample lets expect of its population; 0 of one value."""
    return float(np.std(values, ddof=1)) if len(values) > 1 else 0.0


def rank(
    scores: Mapping[str, Mapping[str, Group]], protocols: Sequence[str]
) -> tuple[list[dict[str, Any]], list[Difference]]:
    """Configurations, the best first, and the difference of each from the next.

    Args:
        scores: by configuration and protocol.
        protocols: all have the first.
    """
    first = [by_protocol[protocols[0]][0] for by_protocol in scores.values()]
    metric = unit_named(first[0].unit).metric if len({e.unit for e in first}) == 1 else "bits_per_byte"
    ranked: list[dict[str, Any]] = []
    for name, by_protocol in scores.items():
        figures = {}
        for protocol, group in by_protocol.items():
            values = [e.figures()[metric] for e in group]
            alone = group[0].standard_error * values[0] / group[0].nats_per_unit
            several = len(values) > 1
            figures[protocol] = {
                "metric": metric,
                "mean": float(np.mean(values)),
                "error": spread(values) if several else alone,
                "error_of": "standard deviation over seeds" if several else "standard error over the text",
            }
        ranked.append({"name": name, "seeds": len(by_protocol[protocols[0]]), "figures": figures})
    ranked.sort(key=lambda each: each["figures"][protocols[0]]["mean"])
    names = [each["name"] for each in ranked]
    first_scores = {name: by_protocol[protocols[0]] for name, by_protocol in scores.items()}
    return ranked, [difference((a, b), first_scores[a], first_scores[b]) for a, b in pairwise(names)]


def markdown(report: Mapping[str, Any]) -> str:
    """The report as a table, with what it says below."""
    text, protocols, unit = report["text"], report["protocols"], unit_named(report["text"]["unit"])
    first = report["configurations"][0]["figures"][protocols[0]]
    label = first["metric"].replace("_per_", "/")
    writes = unit.speed.replace("_per_", "/").replace("second", "s")
    head = ["", "seeds", "weights", f"{unit.plural} read", "FLOPs", "minutes"]
    head += [*(f"{label}, {protocol}" for protocol in protocols), f"writes {writes}"]
    rows = []
    for each in report["configurations"]:
        of = [model for model in report["models"] if model["configuration"] == each["name"]]
        trained = {
            key: _mean([model["training"][key] for model in of]) for key in ("units", "flops", "seconds")
        }
        row = [each["name"], str(each["seeds"]), human(of[0]["parameters"]), _shown(trained["units"], human)]
        row += [
            _shown(trained["flops"], "{:.1e}".format),
            _shown(trained["seconds"], lambda s: f"{s / 60:.1f}"),
        ]
        for protocol in protocols:
            figure = each["figures"].get(protocol)
            row.append("–" if figure is None else f"{figure['mean']:.4f} ± {figure['error']:.4f}")
        rows.append([*row, f"{of[0]['units_per_second']:,.0f}"])
    for baseline in report["baselines"]:
        cells = ["–"] * len(protocols)
        cells[0] = f"{baseline[first['metric']]:.4f}"
        rows.append([baseline["baseline"], *["–"] * 5, *cells, "–"])
    widths = [max(len(row[i]) for row in (head, *rows)) for i in range(len(head))]
    lines = [
        "| " + " | ".join([row[0].ljust(widths[0]), *map(str.rjust, row[1:], widths[1:])]) + " |"
        for row in (
            head,
            ["-" * (width - 1) + ("-" if i == 0 else ":") for i, width in enumerate(widths)],
            *rows,
        )
    ]
    title = f"{text['dataset']}, {text['split']} split, {text['predictions']:,} predictions"
    about = f"{title}, sha256 {text['sha256'][:12]}. ± is the {first['error_of']}."
    return "\n".join([about, "", *lines, "", *(f"- {sentence}" for sentence in report["sentences"])])


def _mean(values: Sequence[float | None]) -> float | None:
    known = [value for value in values if value is not None]
    return float(np.mean(known)) if known else None


def _shown(value: float | None, form: Any) -> str:
    return "–" if value is None else str(form(value))
