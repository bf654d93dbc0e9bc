"""Decisions that all processes must take alike, and failures that one of them meets.

A process that alone gives up leaves the others waiting for it until their time is over. So what one does for
all, and what each does for itself but could fail at, ends with a word between them.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeVar

import torch.distributed as dist

from craft.training.distributed.heartbeat import first_line
from craft.training.distributed.rendezvous import is_communication_error
from craft.utils.errors import Failed, PeerLost, TrainingFailed, UserError

T = TypeVar("T")

KINDS = {kind.__name__: kind for kind in (UserError, Failed, TrainingFailed)}
"""Failures whose message is for everybody; of any other the process that had it shows the traceback."""


def on_rank0_broadcast(decide: Callable[[], T]) -> T:
    """What process 0 decides or does, in all processes; if it fails, all of them do.

    Raises:
        Exception: in process 0 what `decide` raised; in the others the same, marked as `retold`, if it is one
            of `KINDS`.
        PeerLost: in the others, otherwise; with nothing to say, since process 0 says it.
    """
    if not is_distributed():
        return decide()
    answer: list[Any] = [None, None]
    own: Exception | None = None
    if dist.get_rank() == 0:
        try:
            answer[0] = decide()
        except Exception as error:
            own, answer[1] = error, _told(error)
    dist.broadcast_object_list(answer)
    _raise(own, answer[1])
    return answer[0]  # type: ignore[no-any-return]


def raise_on_all_ranks(do: Callable[[], T]) -> T:
    """What every process does for itself; if one of them fails, all of them do, as in `on_rank0_broadcast`.

    A failed collective is raised at once: the others can't be asked any more.
    """
    if not is_distributed():
        return do()
    result: Any = None
    own: Exception | None = None
    try:
        result = do()
    except Exception as error:
        if is_communication_error(error):
            raise
        own = error
    told: list[Any] = [None] * dist.get_world_size()
    dist.all_gather_object(told, own and _told(own))
    _raise(own, next((words for words in told if words), None))
    return result  # type: ignore[no-any-return]


def is_distributed() -> bool:
    """Whether there are other processes to agree with."""
    return dist.is_available() and dist.is_initialized() and dist.get_world_size() > 1


def _told(error: Exception) -> tuple[str, str]:
    kind = type(error).__name__
    if type(error) in KINDS.values():
        return kind, str(error)
    return "", f"in process {dist.get_rank()}: {kind}: {first_line(error)}"


def _raise(own: Exception | None, told: tuple[str, str] | None) -> None:
    if own is not None:
        own.known_to_all = True  # type: ignore[attr-defined]
        raise own
    if told is None:
        return
    kind, words = told
    error = KINDS[kind](words) if kind else PeerLost("")
    error.retold = True
    error.known_to_all = True  # type: ignore[union-attr]
    raise error from (None if kind else RuntimeError(words))
