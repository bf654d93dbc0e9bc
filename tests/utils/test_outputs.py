"""Names of outputs: made once, read back, sorted by age."""

from __future__ import annotations

import os
import re
from concurrent.futures import ThreadPoolExecutor
from datetime import datetime, timedelta
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from craft.utils import outputs
from craft.utils.common import did_you_mean, human, human_time
from craft.utils.errors import UserError


def test_every_name_of_a_run_shares_its_stamp() -> None:
    paths = outputs.RunPaths("char_lstm", "1.1M", "bf16", Path("outputs"), "20260102_030405")
    assert str(paths.run_dir) == "outputs/models/char_lstm_1.1M_bf16_20260102_030405"
    assert str(paths.export_dir(1200)) == "outputs/models/char_lstm_1.1M_bf16_20260102_030405_step_1200"
    assert str(paths.log_file) == "outputs/logs/train_char_lstm_20260102_030405.log"
    assert str(paths.sample_file) == "outputs/samples/sample_20260102_030405.txt"
    assert (
        str(paths.evaluation_file("text8")) == "outputs/evaluation/eval_char_lstm_text8_20260102_030405.json"
    )
    assert str(paths.figure("loss")) == "outputs/visualizations/loss_char_lstm_20260102_030405.png"


def test_a_run_folder_gives_its_paths_back_even_after_a_move(tmp_path: Path) -> None:
    paths = outputs.RunPaths("char_transformer", "0.8M", "fp32", tmp_path, text="0123abcd")
    paths.create()
    moved = paths.run_dir.rename(tmp_path / "elsewhere")
    again = outputs.RunPaths.of_run_dir(moved)
    assert again.run_dir == moved
    assert again.text == "0123abcd"
    assert again.log_file == paths.log_file
    assert again.export_dir(7) == tmp_path / "elsewhere_step_7"


def test_a_folder_that_is_no_run_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"holiday.*run\.json"):
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
def test_a_part_of_a_name_is_one_and_stays_it(text: str) -> None:
    part = outputs.slug(text)
    assert 0 < len(part.encode()) <= 100
    assert not set(part) & set('/\\:*?"<>|\0')
    assert not any(c.isspace() for c in part)
    assert part == part.strip("-.")
    assert outputs.slug(part) == part


def test_latest_is_the_newest_finished_model(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="no finished model"):
        outputs.latest_model(tmp_path)
    for age, name in ((10, "b_step_5"), (5, "a_step_5"), (1, "unfinished_run"), (0, ".staging-c_step_5")):
        folder = tmp_path / "models" / name
        folder.mkdir(parents=True)
        (folder / "config.json").write_text("{}")
        os.utime(folder / "config.json", (1e9 - age, 1e9 - age))
    assert outputs.latest_model(tmp_path).name == "a_step_5"


def test_stamps_sort_by_age() -> None:
    assert outputs.timestamp(datetime(2026, 1, 2, 3, 4, 5)) == "20260102_030405"


def test_a_second_is_given_out_once(tmp_path: Path) -> None:
    """Of many processes and commands that ask at once each gets its own, in the documented form."""
    with ThreadPoolExecutor(8) as pool:
        stamps = list(pool.map(lambda _: outputs.claim_stamp(tmp_path), range(40)))
    files = [outputs.sample_file(tmp_path), outputs.evaluation_file("m", "d", tmp_path)]
    stamps += [re.findall(r"\d{8}_\d{6}", file.name)[0] for file in files]
    assert len(set(stamps)) == 42
    assert all(re.fullmatch(r"\d{8}_\d{6}", stamp) for stamp in stamps)


def test_what_an_earlier_output_is_named_by_is_not_given_out_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As after a clock was set back, or where outputs of another machine were copied to."""
    now = datetime(2026, 1, 2, 23, 59, 58)
    monkeypatch.setattr(outputs, "datetime", type("Clock", (), {"now": staticmethod(lambda: now)}))
    (tmp_path / "samples").mkdir()
    (tmp_path / "samples" / "sample_20260102_235958.txt").touch()
    (tmp_path / "models" / "m_1K_fp32_20260102_235959_step_5").mkdir(parents=True)
    (tmp_path / ".stamps").mkdir()
    (tmp_path / ".stamps" / "20260101_235959").touch()
    assert outputs.claim_stamp(tmp_path) == "20260103_000000"
    assert (tmp_path / ".stamps" / "20260101_235959").exists()
    now += timedelta(days=2)
    outputs.claim_stamp(tmp_path)
    assert [path.name for path in (tmp_path / ".stamps").iterdir()] == ["20260104_235958"]


def test_numbers_and_hints_for_people() -> None:
    assert [human(n) for n in (7, 1_250, 803_000, 10_650_000, 2.5e9)] == [
        "7",
        "1.2K",
        "0.8M",
        "10.7M",
        "2.5B",
    ]
    assert [human_time(s) for s in (5, 65, 3725)] == ["0:05", "1:05", "1:02:05"]
    assert did_you_mean("lerning_rate", ["learning_rate", "seed"]) == ", did you mean 'learning_rate'?"
    assert did_you_mean("zzz", ["learning_rate"]) == ""


@pytest.mark.parametrize(
    ("typed", "phrase"),
    [
        ("latst", "no model at 'latst', did you mean 'latest'?"),
        ("roman.txt", "no model at 'roman.txt'; give a folder"),
    ],
)
def test_a_model_that_is_not_there(typed: str, phrase: str) -> None:
    with pytest.raises(UserError, match=re.escape(phrase)):
        outputs.resolve(typed)
