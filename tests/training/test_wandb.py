"""What is really in the files that Weights & Biases writes offline."""

from __future__ import annotations

import json
import logging
import os
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import tiny_run

from craft.training.callbacks import wandb as tracking

wandb = pytest.importorskip("wandb")


@pytest.fixture(autouse=True)
def offline(monkeypatch: pytest.MonkeyPatch) -> Any:
    for name in [name for name in os.environ if name.startswith("WANDB_")]:
        monkeypatch.delenv(name)
    monkeypatch.setenv("NETRC", "/dev/null")
    monkeypatch.setattr(tracking, "_has_key", lambda wandb: False)
    yield
    if wandb.run is not None:
        wandb.finish()


def begin(run_dir: Path, run_id: str | None = None, name: str | None = None) -> tracking.WandbRun:
    """The W&B run of a trainer that isn't there."""
    args = SimpleNamespace(report_to=["wandb"], project="craft", run_name=name)
    trainer = SimpleNamespace(args=args, run_dir=run_dir, run_config={}, resumed=None)
    run = tracking.WandbRun(trainer)
    run.id = run_id
    run.begin()
    return run


def records(file: Path) -> list[Any]:
    """The records of an offline run; its format is that of LevelDB logs: blocks of 32 KiB, header 7 bytes."""
    from wandb.proto import wandb_internal_pb2

    data, place, parts, found = file.read_bytes(), 7, b"", []
    while place + 7 <= len(data):
        if 32768 - place % 32768 < 7:
            place += 32768 - place % 32768
            continue
        length, kind = int.from_bytes(data[place + 4 : place + 6], "little"), data[place + 6]
        parts += data[place + 7 : place + 7 + length]
        place += 7 + length
        if kind in (1, 4):
            record = wandb_internal_pb2.Record()
            record.ParseFromString(parts)
            found.append(record)
            parts = b""
    return found


def train(run_dir: Path, **changes: Any) -> str:
    """A run in a process of its own (one wandb service can't write two runs of one id); what it said."""
    code = f"""
import tiny_run
from craft.utils.logging import setup_logging
setup_logging()
tiny_run.run("char_lstm", {str(run_dir)!r}, report_to="wandb", **{changes!r})
"""
    here = Path(__file__).resolve()
    path = os.pathsep.join([str(here.parent), str(here.parents[2])])
    command = [sys.executable, "-c", code]
    ran = subprocess.run(command, env={**os.environ, "PYTHONPATH": path}, capture_output=True, text=True)
    assert ran.returncode == 0, ran.stderr
    return ran.stderr


def test_a_resumed_run_is_one_run(tmp_path: Path) -> None:
    run_dir = tmp_path / "outputs" / "models" / "tiny_run"
    said = [line for line in train(run_dir, max_steps=10, sample_chars=9).splitlines() if "W&B" in line]
    assert len(said) == 1
    assert said[0].startswith(f"W&B: offline, in {tmp_path}/outputs/logs/wandb")
    progress = json.loads((run_dir / "checkpoint-10" / "progress.json").read_text())
    run_id = progress["parts"]["wandb"]["id"]
    train(run_dir, resume=True)

    files = sorted((tmp_path / "outputs" / "logs" / "wandb").glob("offline-run-*/run-*.wandb"))
    assert [file.stem for file in files] == [f"run-{run_id}"] * 2
    rows: list[dict[str, Any]] = []
    for file in files:
        for record in records(file):
            if record.WhichOneof("record_type") == "history":
                items = record.history.item
                row = {item.key or "/".join(item.nested_key): json.loads(item.value_json) for item in items}
                rows.append(row)
    steps = [row["train/global_step"] for row in rows if "train/loss" in row]
    assert steps == [5, 10, 15, 20]
    evaluated = [row for row in rows if "eval/loss" in row]
    assert [row["train/global_step"] for row in evaluated] == [10, 20]
    assert evaluated[0]["eval/bits_per_char"] > 0
    assert sum("eval/sample" in row or any(k.startswith("eval/sample") for k in row) for row in rows) == 1


def test_a_recorded_run_goes_on_unrecorded(tmp_path: Path) -> None:
    train(tmp_path / "run", max_steps=4, sample_chars=5)
    trainer = tiny_run.trainer("char_lstm", tmp_path / "run", max_steps=10, sample_chars=5)
    assert trainer.train(True).global_step == 10
    progress = json.loads((tmp_path / "run" / "checkpoint-10" / "progress.json").read_text())
    assert progress["parts"]["wandb"]["id"] is not None


def test_an_empty_mode_and_no_key_mean_offline(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WANDB_MODE", "")
    assert begin(tmp_path, "abc12345").id == "abc12345"
    assert wandb.run.settings.mode == "offline"


def test_variables_of_the_user_are_in_the_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    said = {
        "WANDB_DIR": str(tmp_path / "elsewhere"),
        "WANDB_MODE": "dryrun",
        "WANDB_NAME": "from the variable",
        "WANDB_NOTES": "a note",
        "WANDB_PROJECT": "my-project",
        "WANDB_RUN_GROUP": "my-group",
        "WANDB_RUN_ID": "abc12345",
        "WANDB_TAGS": "first,second",
    }
    for name, value in said.items():
        monkeypatch.setenv(name, value)
    train(tmp_path / "run", max_steps=1, eval_strategy="no")
    (file,) = (tmp_path / "elsewhere" / "wandb").glob("offline-run-*/run-abc12345.wandb")
    run = next(r.run for r in records(file) if r.WhichOneof("record_type") == "run")
    named = (run.project, run.display_name, run.notes, run.run_group, list(run.tags))
    assert named == ("my-project", "from the variable", "a note", "my-group", ["first", "second"])


@pytest.mark.parametrize(
    ("variables", "configured", "expected"),
    [
        ({}, None, {"name": "run", "resume": "allow", "project": "craft"}),
        ({"WANDB_NAME": "varied", "WANDB_RESUME": "never"}, None, {"name": "varied", "resume": "never"}),
        ({"WANDB_NAME": "varied"}, "mine", {"name": "mine"}),
        ({"WANDB_NAME": "", "WANDB_PROJECT": ""}, None, {"name": "run", "project": "craft"}),
        ({"WANDB_ENTITY": "my-team"}, None, {}),
    ],
    ids=str,
)
def test_variables_and_settings_name_the_run(
    variables: dict[str, str],
    configured: str | None,
    expected: dict[str, str],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """What isn't passed on, as the entity, wandb reads from its variable itself."""
    told: dict[str, Any] = {}

    def init(**settings: Any) -> Any:
        told.update(settings)
        return SimpleNamespace(offline=True, id=settings["id"])

    monkeypatch.setattr(wandb, "init", init)
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    begin(tmp_path / "run", name=configured)
    assert expected.items() <= told.items()
    assert "entity" not in told


@pytest.mark.parametrize(("variable", "value"), [("WANDB_DISABLED", "true"), ("WANDB_MODE", "disabled")])
def test_training_goes_on_where_wandb_is_switched_off(
    variable: str, value: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(variable, value)
    monkeypatch.setenv("WANDB_DIR", "/proc/nowhere")  # not looked at then
    trainer = tiny_run.trainer("char_lstm", tmp_path / "run", report_to="wandb", max_steps=1)
    assert trainer.train().global_step == 1
    assert (trainer.wandb.id, wandb.run) == (None, None)


@pytest.mark.parametrize(
    ("variable", "value"),
    [("WANDB_DIR", f"{__file__}/logs"), ("WANDB_MODE", "ofline"), ("WANDB_RESUME", "perhaps")],
)
def test_variables_that_wandb_does_not_take_stop_no_training(
    variable: str,
    value: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    monkeypatch.setenv(variable, value)
    trainer = tiny_run.trainer("char_lstm", tmp_path, report_to="wandb", max_steps=1, eval_strategy="no")
    assert trainer.train().global_step == 1
    assert trainer.wandb.id is None
    assert "training.report_to=none" in caplog.text


def test_a_run_begun_by_the_user_is_used(tmp_path: Path) -> None:
    mine = wandb.init(mode="offline", dir=str(tmp_path), settings=wandb.Settings(silent=True))
    run = begin(tmp_path)
    assert run.id == mine.id
    run.finish(1)
    assert wandb.run is mine


def test_trouble_with_wandb_stops_no_training(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def refuse(**kwargs: Any) -> None:
        raise wandb.errors.CommError("the server said no\nand more")

    monkeypatch.setattr(wandb, "init", refuse)
    with caplog.at_level(logging.WARNING, logger="craft"):
        trainer = tiny_run.trainer("char_lstm", tmp_path, report_to="wandb", max_steps=4, eval_strategy="no")
        assert trainer.train().global_step == 4
    (said,) = (record.message for record in caplog.records if "W&B" in record.message)
    assert "the server said no" in said
    assert "\n" not in said
