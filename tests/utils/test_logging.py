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


def test_the_first_process_says_it(process: pytest.MonkeyPatch, tmp_path: Path) -> None:
    assert first_to_say("no such file")
    process.setenv("TORCHELASTIC_ERROR_FILE", str(tmp_path / "attempt_0" / "1" / "error.json"))
    assert not first_to_say("no such file")
    assert first_to_say("another thing")
    process.setenv("WORLD_SIZE", "1")
    assert first_to_say("no such file")


def test_ranks_in_messages(process: pytest.MonkeyPatch) -> None:
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
    logger.warning("slow")  # once more than rank 0
    logger.warning("only here")
    assert capsys.readouterr().err.splitlines() == ["slow", "rank 1: slow", "rank 1: only here"]
    assert "slow" in (tmp_path / "log.txt").read_text()
    assert not (tmp_path / "other.txt").exists()
