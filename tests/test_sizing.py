"""The model that is chosen for a text, a machine and a time."""

from __future__ import annotations

import math
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from craft import sizing
from craft.benchmarks import sizes as runs_of_sizes
from craft.config.automatic import chosen_settings, size_table
from craft.config.command_line import split_text
from craft.config.compose import compose
from craft.config.schema import Run
from craft.runs import choose_as_before
from craft.sizing import Size, Text
from tests.refusals import refused

TABLE = [Size(**fields) for fields in size_table()["sizes"]]
RUNS = Path(__file__).parent.parent / runs_of_sizes.RUNS


@pytest.fixture
def text(tmp_path: Path) -> str:
    path = tmp_path / "my.txt"
    path.write_text("the quick brown fox jumps over the lazy dog\n" * 60)
    return str(path)


def composed(*words: str, choose: bool | None = None) -> Run:
    return compose(split_text(words), choose=choose)


def test_a_text_of_the_users_own_leaves_the_model_open(text: str) -> None:
    run = composed(text, "training.learning_rate=0.001", "training.max_minutes=3")
    assert set(chosen_settings()) - set(run.automatic) == {"training.learning_rate"}
    assert "models" in run.automatic
    assert Run.of(run.to_dict()) == run  # so that --print-config can be repeated


@pytest.mark.parametrize(
    "word",
    [
        *("models=char_lstm", "models.hidden_size=32", "training=cpu", "experiments=shakespeare_lstm"),
        *("training.max_steps=5", "training.num_train_epochs=2", "training.eval_protocol=blocks"),
        *("training.max_minutes=null", "data.streaming=true"),
    ],
)
def test_what_is_said_of_the_model_or_of_steps_leaves_nothing_open(word: str, text: str) -> None:
    more = ["data.unknown=bytes", "training.carry_state=false"] if word == "data.streaming=true" else []
    assert composed(text, word, *more).automatic == []
    if word != "training.max_minutes=null":
        with refused("setting-conflict", word, "--size auto"):
            composed(text, word, *more[:1], choose=True)


def test_what_is_typed_stays_and_what_it_takes_back_is_not_chosen(text: str, tmp_path: Path) -> None:
    run = composed(text, "training.per_device_train_batch_size=3", "data.block_size=16")
    assert {"training.global_batch_size", "data.block_size"} & set(run.automatic) == set()
    whole = sizing.completed(run, TABLE[0], 1.0, Text(3000, 2.0))
    assert sizing.ids_per_step(whole) == 3 * 16
    saved = tmp_path / "craft_run.yaml"
    saved.write_text(composed(text).to_yaml())
    again = compose(["training.learning_rate=0.25"], config_file=saved)
    assert set(again.automatic) == set(chosen_settings()) - {"training.learning_rate"}
    assert compose(["models.hidden_size=64"], config_file=saved).automatic == []


def test_without_a_text_a_size_is_chosen_only_if_asked_for() -> None:
    assert composed().automatic == []
    assert composed(choose=True).automatic == chosen_settings()
    assert "automatic" not in composed(choose=False).to_dict()


def test_a_run_that_is_resumed_keeps_what_was_chosen(text: str, tmp_path: Path) -> None:
    run = composed(text)
    began = sizing.completed(run, TABLE[1], 20.0, Text(90_000, 2.0))
    (tmp_path / "craft_run.yaml").write_text(began.to_yaml())
    assert choose_as_before(run, tmp_path) == began
    assert choose_as_before(began, tmp_path) == began


@pytest.mark.parametrize(("processes", "ids"), [(2, 2_000), (3, 90_000), (8, 700)])
def test_batches_are_shared_out_evenly(
    processes: int, ids: int, text: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("craft.utils.launch.world_size", lambda: processes)
    for size in TABLE:
        whole = sizing.completed(composed(text), size, 1.0, Text(ids, 2.0))
        assert whole.training["global_batch_size"] % processes == 0 < whole.training["global_batch_size"]


@pytest.mark.parametrize("size", TABLE, ids=str)
@pytest.mark.parametrize("ids", [300, 90_000])
def test_a_size_completes_a_run(size: Size, ids: int, text: str) -> None:
    run = composed(text, "training.learning_rate=0.001")
    whole = sizing.completed(run, size, 20.0, Text(ids, 2.0))
    assert whole.automatic == []
    assert whole.models["dropout"] == sizing.dropout_for(20.0) > 0.1
    assert whole.training["weight_decay"] == sizing.weight_decay_for(20.0) > sizing.weight_decay_for(1.0)
    assert whole.models["hidden_size"] == size.width
    assert whole.training["learning_rate"] == 0.001  # as typed
    assert whole.training["max_minutes"] == run.training["max_minutes"]
    usual = size.settings["training.global_batch_size"]
    assert whole.training["global_batch_size"] == (1 if ids == 300 else usual)


@given(st.sampled_from(TABLE), st.floats(1.0, 3.0), st.floats(6e5, 6e6))
def test_more_text_read_is_expected_to_help_as_long_as_it_is_new(
    size: Size, packed: float, ids: float
) -> None:
    text = Text(30_000_000, packed)
    assert sizing.forecast(size, text, ids) > sizing.forecast(size, text, 1.2 * ids)
    assert 0.5 < sizing.forecast(size, text, ids) / packed < 1.8


def test_beyond_what_was_tried_the_forecast_is_that_of_the_border() -> None:
    (_, most), (shortest, longest) = size_table()["forecast"]["ids"], size_table()["forecast"]["text_ids"]
    for size in TABLE:
        assert sizing.forecast(size, Text(longest, 2.0), 100 * most) == sizing.forecast(
            size, Text(longest, 2.0), most
        )
        page, tried = (sizing.forecast(size, Text(ids, 2.0), most) for ids in (shortest // 50, shortest))
        assert page == tried


def test_dropout_grows_with_the_times_that_a_text_is_read() -> None:
    rates = [sizing.dropout_for(epochs) for epochs in (0.01, 0.5, 1, 4, 16, 64, 1e6)]
    assert rates[:3] == [0, 0, 0]
    assert rates == sorted(rates)
    assert 0.1 < rates[-2] < rates[-1] == 0.5


def test_the_forecast_in_the_package_is_that_of_the_runs_beside_it() -> None:
    runs = runs_of_sizes.read_runs(RUNS)
    assert {run.text for run in runs} >= {"dutch", "shakespeare", "python"}
    kept = size_table()["forecast"]
    assert kept["weights"] == pytest.approx(list(runs_of_sizes.fit(runs)), abs=1e-5)
    for run in runs:
        expected = sizing.forecast(run.size, run.source, run.ids)
        assert abs(math.log(expected / run.loss)) < 2 * kept["error"]


def test_a_fit_finds_the_law_of_its_runs(tmp_path: Path) -> None:
    lines = ["# made up", "text,minutes,architecture,layers,width,dropout,steps,ids,text_ids,packed,loss"]
    for text, text_ids in (("a", 90_000), ("b", 1_000_000), ("c", 20_000_000)):
        for size in TABLE:
            for minutes, ids in ((1, 1_000_000), (5, 5_000_000)):
                loss = 2 * math.exp(-0.1 * math.log(ids / 1e6) - 0.02 * math.log(size.matrices / 1e6))
                shape = f"{size.architecture},{size.layers},{size.width}"
                for dropout, worse in ((0, 1.1), (0.2, 1.0)):
                    lines.append(f"{text},{minutes},{shape},{dropout},1,{ids},{text_ids},2.0,{worse * loss}")
    file = tmp_path / "runs.csv"
    file.write_text("\n".join(lines))
    runs = runs_of_sizes.read_runs(file)
    assert len(runs) == 3 * 2 * len(TABLE)  # of two that differ in dropout, one
    weights = runs_of_sizes.fit(runs)
    for run in runs:
        assert weights @ run.features == pytest.approx(run.target, abs=0.01)
    assert max(abs(error).max() for error in runs_of_sizes.errors(runs).values()) < 0.1
