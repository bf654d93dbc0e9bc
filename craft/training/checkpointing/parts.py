"""What a checkpoint holds beside the model: small objects with `state_dict()` and `load_state_dict()`.

That is torch's own protocol, `Stateful`, for a part that is the same in all processes and is written once.
One that differs is written by each process, and reads back what all of them wrote, since a run may go on with
another number of processes.
"""

from __future__ import annotations

import copy
import random
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any, Protocol

import numpy as np
import torch
from transformers.trainer_callback import ExportableState

from craft.utils.logging import get_logger

logger = get_logger(__name__)

State = dict[str, Any]


class RankStateful(Protocol):
    """A part that each process has for itself."""

    def state_dict(self) -> State: ...

    def load_rank_states(self, states: Sequence[State], rank: int) -> None:
        """Takes over from `states`, those of all processes that wrote the checkpoint, what is of `rank`."""


class Attributes:
    """Chosen attributes of an object, for one whose state is a few plain values.

    Args:
        owner: the object.
        names: of the attributes.
    """

    def __init__(self, owner: Any, *names: str) -> None:
        self.owner, self.names = owner, names

    def state_dict(self) -> State:
        return {name: getattr(self.owner, name) for name in self.names}

    def load_state_dict(self, state: State) -> None:
        for name in self.names:
            setattr(self.owner, name, state[name])


class Stopwatch:
    """Seconds spent in training, without what was spent evaluating and saving.

    Attributes:
        before: what earlier processes of the same run spent.
    """

    def __init__(self) -> None:
        self.elapsed = 0.0
        self.before = 0.0
        self._since: float | None = None
        self._lap = 0.0

    def state_dict(self) -> State:
        return {"elapsed": self.total()}

    def load_state_dict(self, state: State) -> None:
        self.before = self.elapsed = self._lap = state["elapsed"]

    def run(self) -> None:
        if self._since is None:
            self._since = time.perf_counter()

    def pause(self) -> None:
        self.elapsed, self._since = self.total(), None

    def total(self) -> float:
        """Seconds so far, also those of the processes that this one continues."""
        return self.elapsed + (time.perf_counter() - self._since if self._since is not None else 0.0)

    def lap(self) -> float:
        """Seconds since the last lap."""
        now = self.total()
        lap, self._lap = now - self._lap, now
        return lap


class Generators:
    """The random number generators of a process: Python's, numpy's, torch's, its device's."""

    def __init__(self, device: torch.device) -> None:
        self.device = device

    def state_dict(self) -> State:
        numpy: Any = np.random.get_state()
        name, keys, *rest = numpy
        states: State = {
            "python": random.getstate(),
            "numpy": (name, keys.tolist(), *rest),
            "torch": torch.random.get_rng_state(),
        }
        if self.device.type != "cpu":
            states[self.device.type] = torch.get_device_module(self.device).get_rng_state()
        return states

    def load_rank_states(self, states: Sequence[State], rank: int) -> None:
        if rank < len(states):  # a process that the saved run didn't have keeps its own
            self.load_state_dict(states[rank])

    def load_state_dict(self, state: State) -> None:
        """The device's generator stays as it is if the state was saved on another kind of device."""
        random.setstate(state["python"])
        name, keys, *rest = state["numpy"]
        np.random.set_state((name, np.array(keys, np.uint32), *rest))
        torch.random.set_rng_state(state["torch"])
        if (kind := self.device.type) != "cpu" and kind in state:
            torch.get_device_module(self.device).set_rng_state(state[kind])

    @contextmanager
    def preserved(self) -> Iterator[None]:
        """Afterwards they go on as if nothing had been drawn inside."""
        state = self.state_dict()
        try:
            yield
        finally:
            self.load_state_dict(state)


class StepSnapshot:
    """What a step changes in this process beside the weights, as it is now; random numbers don't go back."""

    def __init__(self, trainer: Any) -> None:
        self.trainer = trainer
        parts = {name: part for name, part in trainer.rank_parts().items() if name != "generators"}
        self.states: dict[str, State] = {n: copy.deepcopy(part.state_dict()) for n, part in parts.items()}

    def rollback(self) -> None:
        """Takes back what the step did since, and its gradients; more than once, if need be."""
        args, parts = self.trainer.args, self.trainer.rank_parts()
        self.trainer.model.zero_grad(set_to_none=True)
        for name, state in copy.deepcopy(self.states).items():
            parts[name].load_rank_states([state] * args.world_size, args.process_index)


class RunningLoss:
    """The loss of this process since the last logged step, which transformers keeps in `Trainer._tr_loss`."""

    def __init__(self, trainer: Any) -> None:
        self.trainer = trainer

    def state_dict(self) -> State:
        return {"loss": self.trainer._tr_loss}

    def load_rank_states(self, states: Sequence[State], rank: int) -> None:
        losses = [state["loss"] for state in states]
        if len(states) == self.trainer.args.world_size:
            loss = losses[rank]
        else:  # what is logged is the mean over processes
            loss = torch.stack(losses).mean(dim=0)
        self.trainer._tr_loss = loss.to(self.trainer.args.device)


class CallbackStates:
    """What those of the callbacks know that say so (`ExportableState`), by class and order."""

    def __init__(self, trainer: Any) -> None:
        self.trainer = trainer

    def _callbacks(self) -> dict[str, list[Any]]:
        found: dict[str, list[Any]] = {}
        for callback in self.trainer.callback_handler.callbacks:
            if isinstance(callback, ExportableState):
                found.setdefault(type(callback).__name__, []).append(callback)
        return found

    def state_dict(self) -> State:
        return {name: [one.state()["attributes"] for one in some] for name, some in self._callbacks().items()}

    def load_state_dict(self, state: State) -> None:
        found = self._callbacks()
        for name, saved in state.items():
            callbacks = found.get(name, [])
            if len(callbacks) < len(saved):
                logger.warning(
                    f"the checkpoint has the states of {len(saved)} {name}, this run {len(callbacks)}"
                )
            for callback, attributes in zip(callbacks, saved):  # a new one begins without
                for attribute, value in attributes.items():
                    setattr(callback, attribute, value)
