"""Fixtures of the model tests: every tiny model in turn, a prompt and a text."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from .tiny import MAKERS, VOCAB


@pytest.fixture(params=list(MAKERS))
def model(request: pytest.FixtureRequest) -> Any:
    return MAKERS[request.param]()


@pytest.fixture
def prompt() -> torch.Tensor:
    return torch.randint(1, VOCAB, (3, 5), generator=torch.Generator().manual_seed(2))


@pytest.fixture
def text() -> torch.Tensor:
    """[2, 12]: as long as the transformers' context."""
    return torch.randint(1, VOCAB, (2, 12), generator=torch.Generator().manual_seed(3))
