"""The same command at the beginning and after every fault: what it goes on with."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace

import pytest

from craft.config.schema import Run
from craft.runs import what_to_resume
from craft.utils.errors import UserError
from craft.utils.history import add_event
from craft.utils.resuming import Finished


def asked(folder: Path | None, resume: str | None = None, **training: object) -> object:
    run = Run({}, {}, {**({"output_dir": str(folder)} if folder else {}), **training})
    return what_to_resume(run, SimpleNamespace(process_index=0), resume)  # type: ignore[arg-type]


def test_a_launcher_that_starts_again_goes_on_with_the_folder(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setenv("TORCHELASTIC_MAX_RESTARTS", "3")
    assert asked(tmp_path) is None
    (tmp_path / "run.json").write_text("{}")  # begun, and lost before anything was saved
    assert asked(tmp_path) is None
    assert not (tmp_path / "run.json").exists()
    (tmp_path / "run.json").write_text("{}")
    (tmp_path / "checkpoint-10").mkdir()
    assert asked(tmp_path) == tmp_path
    assert (tmp_path / "run.json").exists()
    assert asked(tmp_path, "another") == "another"
    with caplog.at_level("WARNING", logger="craft"):
        assert asked(None) is None
    assert "set training.output_dir=FOLDER" in caplog.text


def test_without_restarts_only_when_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TORCHELASTIC_MAX_RESTARTS", "0")
    (tmp_path / "checkpoint-10").mkdir()
    assert asked(tmp_path) is None
    assert asked(tmp_path, "auto") == tmp_path
    with pytest.raises(UserError, match="--resume auto goes on with the run"):
        asked(None, "auto")


@pytest.mark.parametrize("checkpoints", [False, True])
def test_a_finished_run_is_finished_and_not_begun_anew(tmp_path: Path, checkpoints: bool) -> None:
    """Whether it kept checkpoints or not; another run of that folder isn't it."""
    (tmp_path / "run.json").write_text("{}")
    run = Run({}, {}, {"output_dir": str(tmp_path)})
    (tmp_path / "craft_run.yaml").write_text(run.to_yaml())
    if checkpoints:
        (tmp_path / "checkpoint-7").mkdir()
    add_event(tmp_path, "started", step=0)
    assert not isinstance(asked(tmp_path, "auto"), Finished)
    (tmp_path / "run.json").write_text("{}")
    add_event(tmp_path, "finished", step=7)
    said = str(asked(tmp_path, "auto"))
    assert said.startswith(f"{tmp_path} is finished, its model is {tmp_path}_step_7; to train it on: ")
    assert asked(tmp_path, "auto", max_steps=9) == (tmp_path if checkpoints else None)
    assert (tmp_path / "run.json").exists()
