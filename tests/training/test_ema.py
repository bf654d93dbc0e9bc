from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import nn

from craft.training.callbacks.ema import EmaCallback


def average_of(model: nn.Module) -> EmaCallback:
    ema, nothing = EmaCallback(SimpleNamespace(model=model)), None
    args: Any = SimpleNamespace(ema_decay=0.5)
    ema.on_train_begin(args, nothing, nothing)
    return ema


def test_the_average_equals_one_computed_by_hand() -> None:
    layer = nn.Linear(1, 1, bias=False)
    layer.weight.data.fill_(1.0)
    ema = average_of(layer)
    expected = 1.0
    for n, value in enumerate([2.0, 4.0, 8.0, 16.0, 32.0, 64.0, 128.0, 256.0, 512.0], start=1):
        layer.weight.data.fill_(value)
        ema.update(0.5)
        decay = min(0.5, (1 + n) / (10 + n))
        expected = decay * expected + (1 - decay) * value
    assert ema.shadows["weight"].item() == pytest.approx(expected)
    with ema.applied():
        assert layer.weight.item() == pytest.approx(expected)
    assert layer.weight.item() == 512.0
    ema.settle()
    assert layer.weight.item() == pytest.approx(expected)


def test_weights_come_back_after_an_error() -> None:
    layer = nn.Linear(3, 3)
    ema, own = average_of(layer), torch.randn(3, 3)
    layer.weight.data.copy_(own)

    def fail() -> None:
        with ema.applied():
            raise RuntimeError

    with pytest.raises(RuntimeError):
        fail()
    assert torch.equal(layer.weight, own)


def test_tied_weights_are_averaged_once() -> None:
    one, two = nn.Linear(3, 3, bias=False), nn.Linear(3, 3, bias=False)
    two.weight = one.weight
    assert list(average_of(nn.Sequential(one, two)).shadows) == ["0.weight"]
