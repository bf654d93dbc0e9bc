"""An exponential moving average of the weights: smoother than any single step's, evaluated and exported."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor, nn


class WeightAverage:
    """Shadow copies of a model's parameters, moved towards them after every step.

    The decay grows with the number of updates as (1 + n) / (10 + n) until it reaches `decay`, so that the
    average doesn't drag the random initial weights along.

    Args:
        model: the model; tied parameters are averaged once.
        decay: share of the old average that each update keeps, for example 0.999.
    """

    def __init__(self, model: nn.Module, decay: float) -> None:
        self.decay, self.updates = decay, 0
        self.parameters = dict(model.named_parameters())
        self.shadows = {name: p.detach().clone() for name, p in self.parameters.items()}

    @torch.no_grad()
    def update(self) -> None:
        self.updates += 1
        decay = min(self.decay, (1 + self.updates) / (10 + self.updates))
        torch._foreach_lerp_(list(self.shadows.values()), list(self.parameters.values()), 1 - decay)

    @contextmanager
    def applied(self) -> Iterator[None]:
        """Inside, the model holds the average; afterwards its own weights again, bit for bit."""
        own = {name: p.detach().clone() for name, p in self.parameters.items()}
        self._copy(self.shadows)
        try:
            yield
        finally:
            self._copy(own)

    def settle(self) -> None:
        """Makes the average the model's weights for good."""
        self._copy(self.shadows)

    def resume(self, own: dict[str, Tensor], updates: int) -> None:
        """Continues from a model that holds the average: that becomes the shadow, `own` the weights."""
        self.updates = updates
        self.shadows = {name: p.detach().clone() for name, p in self.parameters.items()}
        self._copy(own)

    @torch.no_grad()
    def _copy(self, source: dict[str, Tensor]) -> None:
        for name, parameter in self.parameters.items():
            parameter.copy_(source[name])
