"""One small Hub for all tests here, and one run that was trained and pushed to it."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).resolve().parent))
from desk import SMALL, Desk
from server import Hub


@pytest.fixture(scope="session")
def hub() -> Iterator[Hub]:
    with Hub() as hub:
        yield hub


@pytest.fixture(scope="session")
def office(hub: Hub, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Desk]:
    """A desk whose process waits with its imports done, for many small commands (`warm`, `said`)."""
    desk = Desk(hub, tmp_path_factory.mktemp("office"))
    (desk.folder / "home").mkdir()
    yield desk
    desk.leave()


@pytest.fixture
def desk(hub: Hub, tmp_path: Path) -> Iterator[Desk]:
    (tmp_path / "home").mkdir()
    desk = Desk(hub, tmp_path)
    yield desk
    desk.leave()


@pytest.fixture(scope="session")
def trained(hub: Hub, tmp_path_factory: pytest.TempPathFactory) -> Desk:
    """A desk at which a run was trained and pushed, checkpoints and all, to ada/run."""
    desk = Desk(hub, tmp_path_factory.mktemp("trained"))
    (desk.folder / "home" / "texts").mkdir(parents=True)
    text = desk.folder / "home" / "texts" / "my <b>text.txt"
    text.write_bytes("Größe\r\nthe quick brown fox --- jumps over <b>the</b> lazy `dog`\n".encode() * 60)
    pushed = ["push_to_hub=true", "hub_model_id=ada/run", "hub_strategy=checkpoint"]
    settings = [*SMALL, *(f"training.{setting}" for setting in pushed), f"data.cache_dir={desk.folder}/cache"]
    desk.craft("train", str(text), *settings)
    return desk


@pytest.fixture(scope="session")
def model(trained: Desk) -> Path:
    """The finished model of that run."""
    (found,) = (trained.folder / "outputs" / "models").glob("*_step_12")
    return found
