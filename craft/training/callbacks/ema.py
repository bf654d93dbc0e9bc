"""An exponential moving average of the weights: smoother than any single step's, evaluated and exported."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from transformers import TrainerCallback


class EmaCallback(TrainerCallback):
    """Keeps copies of a model's parameters, moved towards them after every step, in a run with `ema_decay`.

    The decay grows with the number of updates as (1 + n) / (10 + n) until it reaches `ema_decay`, so that the
    average doesn't drag the random initial weights along. As a part of checkpoints it holds the weights to
    train on with, since the model there is the average.

    Attributes:
        shadows: the averages by name, tied parameters once; empty in a run without, and outside training.
    """

    def __init__(self, trainer: Any) -> None:
        self.trainer = trainer
        self.shadows: dict[str, Tensor] = {}

    def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        self.shadows = {} if args.ema_decay is None else _copies(self.trainer.model)
        self.updates = 0

    def on_optimizer_step(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        if self.shadows and not self.trainer.guard.skipping:
            self.update(args.ema_decay)

    @torch.no_grad()
    def update(self, decay: float) -> None:
        """Moves the average towards the weights, of which `1 - decay` is taken in the end."""
        self.updates += 1
        decay = min(decay, (1 + self.updates) / (10 + self.updates))
        weights = dict(self.trainer.model.named_parameters())
        torch._foreach_lerp_(list(self.shadows.values()), list(weights.values()), 1 - decay)

    @contextmanager
    def applied(self) -> Iterator[None]:
        """Inside, the model holds the average, if there is one; afterwards its own weights, bit for bit."""
        own = _copies(self.trainer.model) if self.shadows else {}
        _load(self.trainer.model, self.shadows)
        try:
            yield
        finally:
            _load(self.trainer.model, own)

    def settle(self) -> None:
        """Makes the average the model's weights for good: training is over."""
        _load(self.trainer.model, self.shadows)
        self.shadows = {}

    def state_dict(self) -> dict[str, Any]:
        if not self.shadows:
            return {}
        own = {name: p.detach() for name, p in self.trainer.model.named_parameters()}
        return {"updates": self.updates, "weights": own}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Takes the average from the model as it was loaded, and gives it the weights to train on with."""
        if state:
            if self.shadows:  # it may have been switched off, as allowed
                self.updates, self.shadows = state["updates"], _copies(self.trainer.model)
            _load(self.trainer.model, state["weights"])


def _copies(model: nn.Module) -> dict[str, Tensor]:
    return {name: p.detach().clone() for name, p in model.named_parameters()}


@torch.no_grad()
def _load(model: nn.Module, weights: dict[str, Tensor]) -> None:
    for name, weight in weights.items():
        model.get_parameter(name).copy_(weight)
