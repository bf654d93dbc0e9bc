"""Decisions that all processes must take alike: made by the first, and failures that one of them meets.

A process that alone gives up leaves the others waiting for it until their time is over.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeVar

import torch.distributed as dist

from craft.utils.common import TrainingFailed, UserError

T = TypeVar("T")


def decided_by_first(decide: Callable[[], T]) -> T:
    """What process 0 decides, in all processes; if it refuses, all of them do.

    Raises:
        UserError, TrainingFailed: as `decide` did.
    """
    if not _several():
        return decide()
    answer: list[Any] = [None, None, None]
    if dist.get_rank() == 0:
        try:
            answer[0] = decide()
        except (UserError, TrainingFailed) as error:
            answer[1:] = [isinstance(error, UserError), str(error)]
    dist.broadcast_object_list(answer)
    if answer[2] is not None:
        raise (UserError if answer[1] else TrainingFailed)(answer[2])
    return answer[0]  # type: ignore[no-any-return]


def first_of_all(trouble: str) -> str:
    """The trouble of the first process that has any, in all processes; empty if none has."""
    if not _several():
        return trouble
    troubles: list[Any] = [None] * dist.get_world_size()
    dist.all_gather_object(troubles, trouble)
    return next((f"{text} (process {rank})" for rank, text in enumerate(troubles) if text), "")


def _several() -> bool:
    return dist.is_available() and dist.is_initialized() and dist.get_world_size() > 1
