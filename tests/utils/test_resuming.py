"""Which run is resumed."""

from __future__ import annotations

import os
from pathlib import Path

from refusals import refused

from craft.utils.history import add_event
from craft.utils.outputs import RUN_CONFIG
from craft.utils.resuming import Finished, run_to_resume


def test_resume_takes_a_named_run_or_the_newest(tmp_path: Path) -> None:
    with refused("run-missing", tmp_path / "models"):
        run_to_resume("latest", tmp_path)
    for name in ("a_0.8M_fp32_20260101_000000", "b_0.8M_fp32_20250101_000000_step_10"):
        (tmp_path / "models" / name).mkdir(parents=True)
        (tmp_path / "models" / name / RUN_CONFIG).write_text("x", encoding="utf-8")
    folder = run_to_resume("latest", tmp_path)
    assert folder == tmp_path / "models/a_0.8M_fp32_20260101_000000"
    assert run_to_resume(str(folder)) == folder
    with refused("run-missing", tmp_path, RUN_CONFIG):
        run_to_resume(str(tmp_path))


def test_the_newest_unfinished_run_is_resumed(tmp_path: Path) -> None:
    models = tmp_path / "models"
    for age, name in enumerate(("c", "c_step_5", "b", "a", "a_step_10")):  # the newest first
        folder = models / name
        folder.mkdir(parents=True)
        (folder / RUN_CONFIG).write_text("x")
        if name in ("a", "c"):
            add_event(folder, "finished", step=5 if name == "c" else 10)
        os.utime(folder, (1e9 - age, 1e9 - age))
    assert run_to_resume("latest", tmp_path) == models / "b"
    assert run_to_resume(str(models / "a")) == Finished(models / "a")
    add_event(models / "b", "finished", step=3)
    os.utime(models / "b", (1e9 - 2, 1e9 - 2))
    none = run_to_resume("latest", tmp_path)
    assert none == Finished(models / "c")
    assert all(value in str(none) for value in (str(models / "c"), "training.max_steps"))
    with refused("usage", models / "a"):
        run_to_resume(str(models / "a" / "checkpoint-20"))


def test_a_history_says_whether_a_run_is_finished(tmp_path: Path) -> None:
    """A finished run that trains on is unfinished again, although its earlier model lies beside it."""
    run = tmp_path / "models" / "a"
    run.mkdir(parents=True)
    (run / RUN_CONFIG).write_text("x")
    (tmp_path / "models" / "a_step_10").mkdir()
    (tmp_path / "models" / "a_step_10" / "config.json").write_text("{}")
    for event, step, finished in (("started", 0, False), ("finished", 10, True), ("resumed", 10, False)):
        add_event(run, event, step=step)
        assert isinstance(run_to_resume("latest", tmp_path), Finished) is finished
    add_event(run, "finished", step=20)
    with (run / "history.jsonl").open("a") as file:
        file.write('{"event": "resu')  # a kill while it was written
    assert f"{run}_step_20" in str(run_to_resume(str(run)))
