"""A campaign of faults: how long it is, where its chances come from, and what it found."""

from __future__ import annotations

import json
import os
import random
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).resolve().parent))

import runs


def pytest_addoption(parser: pytest.Parser) -> None:
    group = parser.getgroup("chaos")
    group.addoption("--kills", type=int, default=16, help="How many SIGKILLs in all.  [16]")
    group.addoption("--minutes", type=float, default=0, help="Kill for as long as this, if longer.")
    group.addoption("--chaos-seed", default=None, help="Repeat the chances of an earlier campaign.")


def pytest_configure(config: pytest.Config) -> None:
    drawn = os.environ.setdefault("CRAFT_CHAOS_SEED", str(random.SystemRandom().randrange(10**6)))
    if config.getoption("--chaos-seed") is None:  # the processes of xdist find what the first one drew
        config.option.chaos_seed = drawn


def pytest_report_header(config: pytest.Config) -> str:
    return f"chaos seed {config.getoption('--chaos-seed')}"


@pytest.fixture(scope="session", autouse=True)
def server() -> None:
    runs.prepare()


@pytest.fixture(scope="session")
def seed(request: pytest.FixtureRequest) -> str:
    return str(request.config.getoption("--chaos-seed"))


@pytest.fixture
def kills(request: pytest.FixtureRequest) -> int:
    """How many processes each case of a campaign is to lose."""
    return max(1, round(request.config.getoption("--kills") / len(runs.CASES)))


@pytest.fixture
def until(request: pytest.FixtureRequest) -> float:
    """The moment before which a case of a campaign doesn't end."""
    workers = max(1, int(os.environ.get("PYTEST_XDIST_WORKER_COUNT", 1)))
    share = 60 * request.config.getoption("--minutes") * workers / len(runs.CASES)
    return time.monotonic() + share


@pytest.fixture
def report(request: pytest.FixtureRequest) -> Iterator[dict[str, object]]:
    """What a test found, kept under outputs/chaos if $CRAFT_CHAOS_REPORT names a folder."""
    found: dict[str, object] = {}
    yield found
    if folder := os.environ.get("CRAFT_CHAOS_REPORT"):
        Path(folder).mkdir(parents=True, exist_ok=True)
        name = request.node.name.replace("/", "-")
        (Path(folder) / f"{name}.json").write_text(json.dumps(found, indent=1), encoding="utf-8")
