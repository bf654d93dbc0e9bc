"""The modules for `evaluate`, as a notebook uses them: combined, saved, without a network."""

from __future__ import annotations

import json
import math
import re
import socket
from pathlib import Path
from typing import Any

import evaluate
import numpy as np
import pytest
import torch

from craft.evaluation.figures import paired_bootstrap
from craft.evaluation.metrics import (
    BitsPerUnit,
    CalibrationError,
    DistinctN,
    NextUnitAccuracy,
    Novelty,
    PairedBootstrap,
    Repetition,
)
from craft.evaluation.scores import evaluate_split
from tests.training import tiny_run


@pytest.fixture(autouse=True)
def no_network(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    def refuse(*args: Any) -> None:
        raise AssertionError("the network was asked")

    monkeypatch.setattr(socket.socket, "connect", refuse)
    monkeypatch.setattr("evaluate.config.HF_METRICS_CACHE", tmp_path / "cache")


@pytest.mark.parametrize(
    ("unit", "bits", "nats"),
    [
        ("character", "bits_per_char", "nats_per_char"),
        ("byte", "bits_per_byte", "nats_per_byte"),
        ("pixel", "bits_per_dim", "nats_per_dim"),
        ("note", "bits_per_note", "nats_per_note"),
    ],
)
def test_bits_are_named_by_the_unit_and_divided_by_its_count(unit: str, bits: str, nats: str) -> None:
    costs = [math.log(2), math.log(8)]
    found = BitsPerUnit(unit).compute(nats=costs, units=[1, 1])
    assert found == {bits: pytest.approx(2), nats: pytest.approx(2 * math.log(2))}
    # é as two bytes: its first id stands for the character, the second for none.
    assert BitsPerUnit(unit).compute(nats=costs, units=[1, 0])[bits] == pytest.approx(4)


def test_metrics_in_one_combination_agree_with_the_scores_of_craft(tmp_path: Path) -> None:
    model, ids = tiny_run.model("char_lstm").eval(), tiny_run.split_ids()[1]
    with torch.no_grad():
        logs = model(torch.from_numpy(ids[None, :-1].astype(np.int64))).logits[0].log_softmax(-1)
    best, guesses = logs.max(-1)
    columns = {
        "predictions": guesses.numpy(),
        "references": ids[1:],
        "confidences": best.exp().numpy(),
        "nats": -logs[np.arange(len(ids) - 1), ids[1:].astype(np.int64)].numpy(),
        "units": np.ones(len(ids) - 1, np.int64),
    }
    metrics = [BitsPerUnit("byte"), NextUnitAccuracy("byte"), CalibrationError()]
    found = evaluate.combine(metrics).compute(**columns)
    scores = evaluate_split(model, ids, protocol="stateful", block_size=16)
    assert found == {
        "bits_per_byte": pytest.approx(scores.bits_per_unit, rel=1e-5),
        "nats_per_byte": pytest.approx(scores.nats_per_unit, rel=1e-5),
        "next_byte_accuracy": pytest.approx(scores.accuracy),
        "calibration_error": pytest.approx(scores.calibration_error, abs=1e-4),
    }
    in_batches = evaluate.combine(metrics)
    for half in (slice(None, 100), slice(100, None)):
        in_batches.add_batch(**{name: column[half] for name, column in columns.items()})
    assert in_batches.compute() == pytest.approx(found)
    file = evaluate.save(tmp_path / "scores.json", **found)
    assert json.loads(Path(file).read_text()).items() >= found.items()


def test_the_example_of_the_guide_runs(
    checkout: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    guide = (checkout / "docs/guides/evaluation.md").read_text(encoding="utf-8")
    (code,) = re.findall(r"^```python\n(.*?)^```", guide, re.DOTALL | re.MULTILINE)
    monkeypatch.chdir(tmp_path)
    exec(code, {})
    said = dict(
        re.findall(r"(\w+) ([\d.]+\d)", next(line for line in code.splitlines() if "compute()" in line))
    )
    found = json.loads(Path("scores.json").read_text())
    assert {name: found[name] for name in said} == pytest.approx(
        {name: float(value) for name, value in said.items()}, abs=1e-3
    )
    assert len(said) == 4


def test_measurements_in_one_combination(tmp_path: Path) -> None:
    pytest.importorskip("pydivsufsort", reason="the novelty extra is not installed")
    train = "It was the best of times, it was the worst of times"
    modules = [DistinctN(2), DistinctN(8), Repetition(), Novelty(train)]
    found = evaluate.combine(modules).compute(data=["It was the worst of times", "xyz"])
    assert (found["longest_overlap"], found["place"]) == (
        len("t was the worst of times"),
        train.rindex("t was"),
    )
    assert found["inside_20"] == pytest.approx(24 / 28)
    assert {"distinct_2", "distinct_8", "repetition", "known_words"} <= set(found)
    evaluate.save(tmp_path / "texts.json", **found)


def test_a_comparison_of_two_models(tmp_path: Path) -> None:
    b = np.random.default_rng(0).exponential(size=500)
    a = b - 0.01
    found = PairedBootstrap().compute(predictions1=a, predictions2=b, seed=3)
    assert found == paired_bootstrap(a, b, 3)._asdict()
    evaluate.save(tmp_path / "comparison.json", **found)
