"""An exponential moving average of the weights: smoother than any single step's, evaluated and exported."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import Any

import torch
from torch import Tensor, nn
from transformers import TrainerCallback


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


class EmaCallback(TrainerCallback):
    """Keeps the average of a run with `ema_decay`; a run without it has none.

    As a part of checkpoints it holds the weights to train on with, since the model there is the average.

    Attributes:
        average: exists in training only.
    """

    def __init__(self, trainer: Any) -> None:
        self.trainer = trainer
        self.average: WeightAverage | None = None

    def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        decay = args.ema_decay
        self.average = None if decay is None else WeightAverage(self.trainer.model, decay)

    def on_optimizer_step(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        if self.average is not None and not self.trainer.guard.skipping:
            self.average.update()

    def applied(self) -> AbstractContextManager[None]:
        """Inside, the model holds the average, if there is one."""
        return nullcontext() if self.average is None else self.average.applied()

    def settle(self) -> None:
        """Training is over: the average becomes the model's weights."""
        if self.average is not None:
            self.average.settle()
            self.average = None

    def state_dict(self) -> dict[str, Any]:
        if self.average is None:
            return {}
        own = {name: p.detach() for name, p in self.average.parameters.items()}
        return {"updates": self.average.updates, "weights": own}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        if not state:
            return
        own = {name: tensor.to(self.trainer.args.device) for name, tensor in state["weights"].items()}
        if self.average is None:  # the average was switched off, as allowed
            self.trainer.model.load_state_dict(own, strict=False)
        else:
            self.average.resume(own, state["updates"])
