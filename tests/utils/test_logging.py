from __future__ import annotations

import logging
from collections.abc import Iterator
from pathlib import Path

import pytest

from craft.utils.logging import first_to_say, get_logger, rank_prefix, setup_logging


@pytest.fixture
def process(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[pytest.MonkeyPatch]:
    """One of two processes of a launcher; `setenv("RANK", …)` says which."""
    (tmp_path / "attempt_0").mkdir()
    monkeypatch.setenv("WORLD_SIZE", "2")
    monkeypatch.setenv("RANK", "0")
    monkeypatch.setenv("TORCHELASTIC_ERROR_FILE", str(tmp_path / "attempt_0" / "0" / "error.json"))
    yield monkeypatch
    for handler in list(logging.getLogger("craft").handlers):
        logging.getLogger("craft").removeHandler(handler)
    logging.getLogger("craft").propagate = True


def test_of_several_processes_the_first_one_says_it(process: pytest.MonkeyPatch, tmp_path: Path) -> None:
    assert first_to_say("no such file")
    process.setenv("TORCHELASTIC_ERROR_FILE", str(tmp_path / "attempt_0" / "1" / "error.json"))
    assert not first_to_say("no such file")
    assert first_to_say("another thing")
    process.setenv("WORLD_SIZE", "1")
    assert first_to_say("no such file")


def test_messages_name_the_rank_of_several_processes(process: pytest.MonkeyPatch) -> None:
    process.setenv("RANK", "1")
    assert rank_prefix() == "rank 1: "
    process.setenv("WORLD_SIZE", "1")
    assert rank_prefix() == ""


def test_other_processes_only_warn_and_nothing_is_said_twice(
    process: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    logger = get_logger("test")
    setup_logging(tmp_path / "log.txt")
    logger.warning("slow")
    process.setenv("RANK", "1")
    setup_logging(tmp_path / "other.txt", main_process=False)
    logger.info("not shown")
    logger.warning("slow")  # as rank 0 did
    logger.warning("only here")
    assert capsys.readouterr().err.splitlines() == ["slow", "rank 1: only here"]
    assert "slow" in (tmp_path / "log.txt").read_text()
    assert not (tmp_path / "other.txt").exists()


def test_a_log_that_cannot_be_written_any_more_costs_one_line(
    process: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    if not Path("/dev/full").exists():
        pytest.skip("needs /dev/full")
    setup_logging(Path("/dev/full"))
    for _ in range(3):
        get_logger("test").info("a line")
    lines = capsys.readouterr().err.splitlines()
    assert lines.count("a line") == 3
    assert len([line for line in lines if "/dev/full" in line]) == 1
    assert len(lines) == 4
