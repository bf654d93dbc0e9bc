"""Every benchmark runs in its tiny form, does the work it says, and yields figures one can divide."""

from __future__ import annotations

import copy
import math
from pathlib import Path

import pytest
import torch
from click.testing import CliRunner

from craft.benchmarks import NAMES, networks, texts, train
from craft.benchmarks.harness import Options, run_benchmark
from craft.cli.benchmark import command
from craft.data.char_dataset import CharDataset


@pytest.mark.parametrize("name", NAMES)
def test_quick_mode_yields_positive_figures(name: str) -> None:
    report = run_benchmark(name, Options(repeats=1, quick=True))
    assert report["comparisons"]
    for comparison in report["comparisons"]:
        rows = {row["name"]: row for row in comparison["contenders"]}
        assert len(rows) == len(comparison["contenders"]) >= 2
        assert rows[comparison["baseline"]]["ratio"] == 1
        for row in rows.values():
            for figure in (row["rate"], row["ratio"], *row["seconds"]):
                assert 0 < figure < math.inf, (comparison["name"], row["name"])
            assert len(row["seconds"]) == 1


@pytest.mark.parametrize("task", train.TASKS, ids=lambda task: task.preset)
def test_the_trainer_and_the_bare_loop_train_the_same(task: train.Task) -> None:
    """A comparison of speeds means something only if both do the same arithmetic."""
    by_hand, by_trainer = (networks.craft_model(task.preset, networks.SMALL, 16) for _ in range(2))
    untrained = copy.deepcopy(by_hand.state_dict())
    ids = texts.make_ids(2000)
    data = CharDataset(ids, 16, 4, seed=0, order="streams" if by_hand.carries_state else "shuffled")
    train.bare_loop(by_hand, data, steps=4, precision="fp32")
    train.trainer(by_trainer, data, steps=3, precision="fp32")  # one more follows what it measures
    for name, weights in by_hand.state_dict().items():
        torch.testing.assert_close(by_trainer.state_dict()[name], weights, rtol=1e-4, atol=1e-5)
    assert any(not torch.equal(weights, untrained[name]) for name, weights in by_hand.state_dict().items())


def test_the_command_prints_a_table_and_writes_the_report(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    done = CliRunner().invoke(command, ["encode", "--quick", "--repeats", "2"])
    assert done.exit_code == 0, done.output
    (file,) = Path("outputs/benchmarks").glob("benchmark_encode_*.json")
    assert str(file) in done.output.replace("\n", "")
    assert "craft encode_ids" in done.output


def test_an_unknown_benchmark_is_refused_with_the_known_ones() -> None:
    done = CliRunner().invoke(command, ["trian"])
    assert done.exit_code == 2
    assert "trian" in done.output
    assert all(name in done.output for name in NAMES)


@pytest.mark.parametrize("alphabet", [texts.ASCII, texts.MIXED])
def test_a_text_has_its_whole_alphabet_and_its_size_and_is_the_same_each_time(alphabet: str) -> None:
    text = texts.make_text(alphabet, 10_000)
    assert set(text) == set(alphabet)
    assert 10_000 <= len(text.encode("utf-8")) < 60_000
    assert text == texts.make_text(alphabet, 10_000)


def test_ids_are_characters_of_the_vocabulary() -> None:
    ids = texts.make_ids(10_000)
    assert (ids.min(), ids.max()) == (4, 68)
