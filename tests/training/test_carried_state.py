from __future__ import annotations

from types import SimpleNamespace

import pytest
import torch
from torch import Tensor

from craft.training.carried_state import CarriedState, joined


class Identity:
    """A model whose cache is a list of tensors."""

    def state_tensors(self, cache: list[Tensor]) -> list[Tensor]:
        return [tensor.detach() for tensor in cache]

    def state_from_tensors(self, tensors: list[Tensor]) -> list[Tensor]:
        return tensors


def arguments(rows: int, world: int, accumulation: int) -> SimpleNamespace:
    return SimpleNamespace(
        shares=world * accumulation,
        train_batch_size=rows // (world * accumulation),
        gradient_accumulation_steps=accumulation,
        world_size=world,
        device="cpu",
    )


def carried(streams: Tensor, world: int, accumulation: int) -> list[CarriedState]:
    """What the processes of a run hold after a step, if stream j's state is streams[j]."""
    size = len(streams) // (world * accumulation)
    states = []
    for rank in range(world):
        states.append(CarriedState(Identity(), arguments(len(streams), world, accumulation)))
        for slot in range(accumulation):
            first = (slot * world + rank) * size
            rows = streams[first : first + size]
            states[-1].after(slot, [rows, rows * 10])
    return states


STREAMS = torch.arange(24.0).reshape(12, 2)


@pytest.mark.parametrize("before", [(1, 1), (2, 1), (1, 3), (2, 3), (3, 2)])
@pytest.mark.parametrize("after", [(1, 1), (2, 2), (4, 1), (1, 6)])
def test_streams_are_cut_anew(before: tuple[int, int], after: tuple[int, int]) -> None:
    saved = [state.state_dict() for state in carried(STREAMS, *before)]
    assert all(torch.equal(a, b) for a, b in zip(joined(saved), [STREAMS, STREAMS * 10]))
    for rank, expected in enumerate(carried(STREAMS, *after)):
        state = CarriedState(Identity(), arguments(12, *after))
        state.load_rank_states(saved, rank)
        assert sorted(state.slots) == sorted(expected.slots)
        for slot, tensors in expected.slots.items():
            assert all(torch.equal(a, b) for a, b in zip(state.slots[slot], tensors))


def test_another_number_of_streams_starts_from_zero() -> None:
    saved = [state.state_dict() for state in carried(STREAMS, 1, 1)]
    state = CarriedState(Identity(), arguments(24, 1, 1))
    state.load_rank_states(saved, 0)
    assert state.slots == {}


def test_state_starts_from_zero_with_the_epoch_and_has_no_graph() -> None:
    state = CarriedState(Identity(), arguments(12, 1, 1))
    assert state.before(0, 3) is None
    state.after(0, [torch.ones(2, requires_grad=True) * 2])
    kept = state.before(0, 3)
    assert kept is not None
    assert not kept[0].requires_grad
    assert state.before(0, 0) is None
    assert state.before(1, 3) is None
