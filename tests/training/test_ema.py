from __future__ import annotations

import pytest
import torch
from torch import nn

from craft.training.callbacks.ema import WeightAverage


def test_the_average_by_hand() -> None:
    layer = nn.Linear(1, 1, bias=False)
    layer.weight.data.fill_(1.0)
    average = WeightAverage(layer, decay=0.5)
    expected = 1.0
    for n, value in enumerate([2.0, 4.0, 8.0, 16.0, 32.0, 64.0, 128.0, 256.0, 512.0], start=1):
        layer.weight.data.fill_(value)
        average.update()
        decay = min(0.5, (1 + n) / (10 + n))
        expected = decay * expected + (1 - decay) * value
    assert average.shadows["weight"].item() == pytest.approx(expected)
    with average.applied():
        assert layer.weight.item() == pytest.approx(expected)
    assert layer.weight.item() == 512.0
    average.settle()
    assert layer.weight.item() == pytest.approx(expected)


def test_weights_come_back_after_an_error() -> None:
    layer = nn.Linear(3, 3)
    average = WeightAverage(layer, decay=0.9)
    own = torch.randn(3, 3)
    layer.weight.data.copy_(own)

    def fail() -> None:
        with average.applied():
            raise RuntimeError

    with pytest.raises(RuntimeError):
        fail()
    assert torch.equal(layer.weight, own)


def test_tied_weights_are_averaged_once() -> None:
    one, two = nn.Linear(3, 3, bias=False), nn.Linear(3, 3, bias=False)
    two.weight = one.weight
    assert list(WeightAverage(nn.Sequential(one, two), 0.9).shadows) == ["0.weight"]
