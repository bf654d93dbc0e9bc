"""Names of outputs: made once, read back, sorted by age."""

from __future__ import annotations

import os
import re
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from refusals import refused

from craft.utils import outputs


def test_every_name_of_a_run_shares_its_stamp() -> None:
    paths = outputs.RunPaths("char_lstm", "1.1M", "bf16", "20260102_030405")
    assert str(paths.run_dir) == "outputs/models/char_lstm_1.1M_bf16_20260102_030405"
    assert str(paths.export_dir(1200)) == "outputs/models/char_lstm_1.1M_bf16_20260102_030405_step_1200"
    assert str(paths.log_file) == "outputs/logs/train_char_lstm_20260102_030405.log"
    assert str(paths.sample_file) == "outputs/samples/sample_20260102_030405.txt"
    assert (
        str(paths.evaluation_file("text8")) == "outputs/evaluation/eval_char_lstm_text8_20260102_030405.json"
    )
    assert str(paths.figure("loss")) == "outputs/visualizations/loss_char_lstm_20260102_030405.png"


def test_a_run_folder_gives_its_paths_back_even_after_a_move(tmp_path: Path) -> None:
    paths = outputs.RunPaths("char_transformer", "0.8M", "fp32", "20260102_030405", tmp_path, text="0123abcd")
    paths.create()
    moved = paths.run_dir.rename(tmp_path / "elsewhere")
    again = outputs.RunPaths.of_run_dir(moved)
    assert again.run_dir == moved
    assert again.text == "0123abcd"
    assert again.log_file == paths.log_file
    assert again.export_dir(7) == tmp_path / "elsewhere_step_7"


def test_a_folder_that_is_no_run_is_refused(tmp_path: Path) -> None:
    with refused("run-missing", "holiday", "run.json"):
        outputs.RunPaths.of_run_dir(tmp_path / "holiday")


def test_user_text_cannot_leave_the_folder() -> None:
    assert outputs.evaluation_file("../../etc", "a/b c").parent == Path("outputs/evaluation")
    assert outputs.slug("///") == "unnamed"
    assert len(outputs.slug("a" * 300)) == 100  # a file system takes 255 for the whole name


@pytest.mark.parametrize(
    ("name", "kept"),
    [
        ("Мой корпус", "Мой-корпус"),
        ("红楼梦 (1791)", "红楼梦-1791"),
        ("हिन्दी की किताब", "हिन्दी-की-किताब"),
        ("gro\u0308ße", "größe"),
        ('a\u202eb\u2028c\0d/e\\f:g*h?i"j<k>l|m😀n\ud800o', "a-b-c-d-e-f-g-h-i-j-k-l-m-n-o"),
        ("..", "unnamed"),
    ],
)
def test_letters_of_any_script_stay_in_names(tmp_path: Path, name: str, kept: str) -> None:
    assert outputs.slug(name) == kept
    file = outputs.evaluation_file("char_lstm", name * 100, tmp_path, "20260102_030405")
    assert len(file.name.encode()) < 255
    file.parent.mkdir(parents=True)
    file.write_text("{}")


@given(st.text())
def test_a_slug_is_one_part_of_a_path_and_its_own_slug(text: str) -> None:
    part = outputs.slug(text)
    assert 0 < len(part.encode()) <= 100
    assert not set(part) & set('/\\:*?"<>|\0')
    assert not any(c.isspace() for c in part)
    assert part == part.strip("-.")
    assert outputs.slug(part) == part


def test_latest_is_the_newest_finished_model(tmp_path: Path) -> None:
    with refused("model-missing", tmp_path / "models"):
        outputs.resolve("latest", tmp_path)
    for age, name in ((10, "b_step_5"), (5, "a_step_5"), (1, "unfinished_run"), (0, ".staging-c_step_5")):
        folder = tmp_path / "models" / name
        folder.mkdir(parents=True)
        (folder / "config.json").write_text("{}")
        os.utime(folder / "config.json", (1e9 - age, 1e9 - age))
    assert outputs.resolve("latest", tmp_path) == str(tmp_path / "models" / "a_step_5")


def test_a_run_stands_for_its_newest_model_or_checkpoint(tmp_path: Path) -> None:
    run = tmp_path / "run"
    run.mkdir()
    with refused("model-missing", run):
        outputs.resolve(run)
    for age, folder in ((9, run / "checkpoint-4"), (1, tmp_path / "run_step_5"), (5, run / "checkpoint-5")):
        folder.mkdir()
        (folder / "config.json").write_text("{}")
        os.utime(folder / "config.json", (1e9 - age, 1e9 - age))
    assert outputs.resolve(run) == str(tmp_path / "run_step_5")
    (run / "config.json").write_text("{}")
    assert outputs.resolve(run) == str(run)


def test_a_name_on_the_hub_stays_as_it_stands() -> None:
    assert outputs.resolve("ada/char-lstm") == "ada/char-lstm"


@pytest.mark.parametrize("typed", ["latst", "roman.txt"])
def test_a_model_that_is_not_there_is_refused(typed: str) -> None:
    with refused("model-missing", typed, "latest"):
        outputs.resolve(typed)


def test_a_second_is_given_out_once(tmp_path: Path) -> None:
    """Of many processes and commands that ask at once each gets its own, in the documented form."""
    with ThreadPoolExecutor(8) as pool:
        stamps = list(pool.map(lambda _: outputs.unique_timestamp(tmp_path), range(40)))
    files = [outputs.sample_file(tmp_path), outputs.evaluation_file("m", "d", tmp_path)]
    stamps += [re.findall(r"\d{8}_\d{6}", file.name)[0] for file in files]
    assert len(set(stamps)) == 42
    assert all(re.fullmatch(r"\d{8}_\d{6}", stamp) for stamp in stamps)


def test_what_craft_wrote_is_known_by_files_that_lie_together(tmp_path: Path) -> None:
    outputs.unique_timestamp(tmp_path)
    assert outputs.written_by_craft(tmp_path)
    own = tmp_path / "texts"
    own.mkdir()
    (own / outputs.RUN_CONFIG).touch()
    assert not outputs.written_by_craft(own)
    (own / outputs.RUN_NAMES).touch()
    assert outputs.written_by_craft(own)
