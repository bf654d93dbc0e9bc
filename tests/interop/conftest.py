"""Two small models, trained and saved by craft, for other people's tools to work with."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path

import pytest

HERE = Path(__file__).parent
LINES = [
    f"{n} green bottles on the wall; if {n % 7} men may mow some should fall: {n * n % 97} left.\n"
    for n in range(99)
]
OTHER = [f"{n * 3 % 89} men may mow a lot of that wall: {n % 5} women should follow.\n" for n in range(99)]
"""Another text over the same characters."""
SHAPES = {
    "char_lstm": ["models=char_lstm"],
    "char_transformer": [
        "models=transformer",
        "models.num_attention_heads=2",
        "models.num_key_value_heads=1",
    ],
}
CONTEXT = 32


@dataclass(frozen=True)
class Trained:
    """A model's folder, the folder of its run, and what it was trained on."""

    kind: str
    model: Path
    home: Path
    text: Path
    other: Path


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    for item in items:
        if HERE in item.path.parents:
            item.add_marker(pytest.mark.interop)


@pytest.fixture(scope="session", params=list(SHAPES))
def trained(request: pytest.FixtureRequest) -> Trained:
    """Each of them in turn."""
    return request.getfixturevalue(request.param.removeprefix("char_"))


@pytest.fixture(scope="session")
def lstm(tmp_path_factory: pytest.TempPathFactory) -> Trained:
    return make("char_lstm", tmp_path_factory.mktemp("lstm"))


@pytest.fixture(scope="session")
def transformer(tmp_path_factory: pytest.TempPathFactory) -> Trained:
    return make("char_transformer", tmp_path_factory.mktemp("transformer"))


def make(kind: str, home: Path) -> Trained:
    """Sixty steps of training: enough to have an opinion."""
    from craft.config.compose import compose
    from craft.train import train

    text, other = home / "bottles.txt", home / "meadow.txt"
    text.write_text("".join(LINES))
    other.write_text("".join(OTHER))
    settings = ["models.hidden_size=32", "models.num_hidden_layers=2", f"data.block_size={CONTEXT}"]
    settings += ["training.max_steps=60", "training.global_batch_size=8", "training.report_to=none"]
    settings += ["training.precision=fp32", "training.eval_steps=60", f"data.cache_dir={home / 'cache'}"]
    before = Path.cwd()
    os.chdir(home)
    try:
        result = train(compose(["data=text_file", "data.path=bottles.txt", *SHAPES[kind], *settings]))
    finally:
        os.chdir(before)
    assert result is not None
    return Trained(kind, home / result.model_dir, home, text, other)
