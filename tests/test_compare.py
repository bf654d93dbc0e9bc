"""Finished models beside each other, and grids that are trained before."""

from __future__ import annotations

import json
import shlex
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from refusals import refused
from safetensors.torch import load_file

from craft.compare import compare, save
from craft.config.command_line import split_text
from craft.config.compose import compose
from craft.evaluation.comparison import markdown
from craft.evaluation.finished import evaluate_model
from craft.grid import Cell, grid, run_grid
from craft.inference import load
from craft.models.transformer import TransformerForCausalLM
from craft.train import train
from craft.utils.history import HISTORY

TEXT = "".join(f"{n} green bottles hanging on the wall, if one fell: {n * n % 97}.\n" for n in range(20))
SETTINGS = [
    *("models.hidden_size=16", "models.num_hidden_layers=1", "data.block_size=8", "training.max_steps=4"),
    *(
        "training.save_steps=2",
        "training.eval_steps=2",
        "training.logging_steps=2",
        "training.precision=fp32",
    ),
    *("training.global_batch_size=4", "training.sample_chars=0", "training.report_to=none"),
]
GRID = ["my.txt", "models=char_lstm,transformer", "training.seed=1,2", *SETTINGS]
GUIDE = Path(__file__).parents[1] / "docs/guides/comparing.md"


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """The current folder, in which the grid was trained."""
    folder = tmp_path_factory.mktemp("compare")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        patch.setenv("CRAFT_CACHE", str(folder / "cache"))
        Path("my.txt").write_text(TEXT)
        for cell in grid(GRID):
            train(compose([*split_text(cell.words), f"training.output_dir={cell.run_dir}"]))
        yield folder


@pytest.fixture(scope="module")
def report(folder: Path) -> dict[str, Any]:
    cells = grid(GRID)
    return compare([str(cell.model_dir) for cell in cells], baselines=True, cells=cells)


def test_a_grid_is_every_combination_of_what_is_listed() -> None:
    cells = grid(
        ["my.txt", "experiments=a,b", "training.eval_protocols=[blocks,sliding-2]", "training.seed=1,2"]
    )
    assert [(cell.configuration, cell.seed) for cell in cells] == [("a", 1), ("a", 2), ("b", 1), ("b", 2)]
    assert cells[1].words == (
        *("my.txt", "experiments=a", "training.eval_protocols=[blocks,sliding-2]", "training.seed=2"),
    )
    (one,) = grid(["a,b.txt", "training.sample_prompt='a,b'"])
    assert one == Cell("run", None, ("a,b.txt", "training.sample_prompt='a,b'"))
    names = [cell.configuration for cell in grid(["models.hidden_size=8,16", "models=char_lstm,gpt2"])]
    assert names == [
        "hidden_size=8 char_lstm",
        "hidden_size=8 gpt2",
        "hidden_size=16 char_lstm",
        "hidden_size=16 gpt2",
    ]
    with refused("usage", "data.path=(a,b"):
        grid(["data.path=(a,b"])


def test_a_run_has_its_folder_whatever_grid_it_is_part_of() -> None:
    first, second = grid(["models=char_lstm,gpt2", "training.seed=1"])
    assert first.run_dir != second.run_dir
    assert grid(["training.seed=1,2,3", "models=char_lstm"])[0].run_dir == first.run_dir


def test_the_figures_are_those_of_craft_evaluate(folder: Path, report: dict[str, Any]) -> None:
    assert report["protocols"] == ["blocks", "stateful"]
    for model in report["models"]:
        where = Path(model["folder"])
        network, tokenizer = load(where)
        for protocol, figures in model["evaluations"].items():
            (alone,) = evaluate_model(network, tokenizer, where, protocols=[protocol])
            assert figures == alone.to_dict()
        assert model["parameters"] == network.num_parameters()
        assert model["training"]["units"] == 4 * 4 * 8
        assert model["training"]["flops"] == 4 * 4 * 8 * network.flops_per_token()
        assert model["training"]["seconds"] > 0
        assert model["units_per_second"] > 0
    assert sorted((model["configuration"], model["seed"]) for model in report["models"]) == [
        ("char_lstm", 1),
        ("char_lstm", 2),
        ("transformer", 1),
        ("transformer", 2),
    ]
    assert [each["seeds"] for each in report["configurations"]] == [2, 2]
    (difference,) = report["differences"]
    assert difference["seeds"] == (2, 2)
    assert 0 <= difference["share"] <= 1
    assert {"uniform", "1-gram"} <= {each["baseline"] for each in report["baselines"]}


def test_a_report_is_kept_as_json_table_and_picture(folder: Path, report: dict[str, Any]) -> None:
    pytest.importorskip("matplotlib")
    files = save(report)
    assert [file.suffix for file in files] == [".json", ".md", ".png"]
    kept = json.loads(files[0].read_text())
    assert markdown(kept) == markdown(report) == files[1].read_text().rstrip("\n")
    rows = [line for line in markdown(kept).splitlines() if line.startswith("|")]
    assert len({len(row) for row in rows}) == 1
    assert sum(row.startswith(("| char_lstm", "| transformer")) for row in rows) == 2
    assert files[2].stat().st_size > 0


def test_one_text_may_be_named_for_all(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    Path("other.txt").write_text(TEXT[::-1])
    models = [str(cell.model_dir) for cell in grid(GRID)[::2]]
    found = compare(models, text="other.txt", split="all", protocols=["sliding-4"])
    assert found["text"]["predictions"] == len(TEXT) - 1
    assert found["protocols"] == ["sliding-4"]
    assert [model["seed"] for model in found["models"]] == [1, 1]
    with refused("usage"):
        compare([models[0], models[0]])
    with refused("setting-conflict", "dynamic"):
        compare(models, protocols=["dynamic"])
    monkeypatch.setattr(TransformerForCausalLM, "reach", None)  # as of one with learned positions
    with refused("setting-conflict", "stateful"):
        compare(models, protocols=["stateful"])


def test_models_of_different_texts_are_not_compared(folder: Path) -> None:
    (cell,) = grid(["other_text.txt", "models=char_lstm", *SETTINGS])
    Path("other_text.txt").write_text(TEXT.replace("green", "blue"))
    train(compose([*split_text(cell.words), f"training.output_dir={cell.run_dir}"]))
    with refused("text-changed", "--text"):
        compare([str(cell.model_dir), str(grid(GRID)[0].model_dir)])


def test_what_is_finished_stays_and_what_was_interrupted_goes_on(folder: Path) -> None:
    cells = grid(GRID)
    finished = {cell.run_dir: (cell.run_dir / HISTORY).read_bytes() for cell in cells}
    killed = cells[-1]
    assert killed.model_dir is not None
    weights = load_file(killed.model_dir / "model.safetensors")
    shutil.rmtree(killed.model_dir)
    shutil.rmtree(killed.run_dir / "checkpoint-4")
    lines = (killed.run_dir / HISTORY).read_text().splitlines(keepends=True)
    (killed.run_dir / HISTORY).write_text("".join(line for line in lines if '"finished"' not in line))
    assert run_grid(cells) == []
    again = load_file(killed.model_dir / "model.safetensors")
    assert all(again[name].equal(weight) for name, weight in weights.items())
    for cell in cells[:-1]:
        assert (cell.run_dir / HISTORY).read_bytes() == finished[cell.run_dir]


def test_settings_that_are_no_run_are_refused_before_any_is_trained(folder: Path) -> None:
    cells = grid(["my.txt", "models=char_lstm", "models.hidden_size=16,-1", *SETTINGS[1:]])
    with refused("setting-value", "models.hidden_size=-1"):
        run_grid(cells)
    assert not any(cell.run_dir.exists() for cell in cells)


def test_a_run_that_fails_is_named(folder: Path) -> None:
    cells = grid(["models=char_lstm", "data=text_file", "data.path=missing.txt", *SETTINGS])
    assert run_grid(cells) == ["1/1 run"]
    assert cells[0].model_dir is None


@pytest.mark.slow
def test_ctrl_c_ends_the_run_in_training_well_and_the_same_command_goes_on(folder: Path) -> None:
    words = ["my.txt", "models=char_lstm", *SETTINGS, "training.max_steps=200"]
    command = [sys.executable, "-m", "craft", "compare", "--run", *words]
    (cell,) = grid(words)
    started = subprocess.Popen(command, stderr=subprocess.DEVNULL)
    while not list(cell.run_dir.glob("checkpoint-*")):
        time.sleep(0.1)
    started.send_signal(signal.SIGINT)
    assert started.wait() == 130
    assert cell.model_dir is None
    subprocess.run(command, check=True)
    assert cell.model_dir is not None


def commands() -> list[str]:
    found = GUIDE.read_text(encoding="utf-8").replace("\\\n", " ").splitlines()
    return [
        shlex.join(shlex.split(line, comments=True)) for line in found if line.startswith("craft compare")
    ]


@pytest.mark.parametrize("line", commands())
def test_a_command_of_the_guide_can_be_typed(folder: Path, line: str) -> None:
    from click.testing import CliRunner

    from craft.cli.compare import command

    words = shlex.split(line)[2:]
    if "--run" in words:
        words = [word for word in words if not word.startswith("--")]
        cells = grid(words)
        assert len(cells) >= 6
        for cell in cells:
            compose(split_text(cell.words))
        return
    models = dict(
        zip(("outputs/models/A", "outputs/models/B"), (str(cell.model_dir) for cell in grid(GRID)[::2]))
    )
    done = CliRunner().invoke(command, [models.get(word, word) for word in words], catch_exceptions=False)
    assert done.exit_code == 0
    asked = "sliding-4" if "sliding-4" in words else "blocks"
    if "--json" in words:
        assert json.loads(done.stdout)["protocols"][0] == asked
    else:
        assert f"bits/char, {asked}" in done.stdout
