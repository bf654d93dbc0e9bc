"""Decisions that all processes take alike, and failures of one of them that all hear of.

A process that gives up alone leaves the others waiting for it until their time is over. So what one does for
all, and what each does for itself but could fail at, ends with an exchange of who failed.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeVar

import torch.distributed as dist

from craft.training.distributed.rendezvous import is_communication_error
from craft.utils.errors import Code, CraftError, PeerLost, first_line

T = TypeVar("T")


def is_distributed() -> bool:
    """Whether there are other processes to agree with."""
    return dist.is_available() and dist.is_initialized() and dist.get_world_size() > 1


def on_rank0_broadcast(decide: Callable[[], T]) -> T:
    """What process 0 decides or does, in all processes; if it fails, all do, as in `raise_on_all_ranks`."""
    if not is_distributed():
        return decide()
    answer: list[Any] = [raise_on_all_ranks(lambda: decide() if dist.get_rank() == 0 else None)]
    dist.broadcast_object_list(answer)
    return answer[0]  # type: ignore[no-any-return]


def raise_on_all_ranks(do: Callable[[], T]) -> T:
    """What every process does for itself; if one of them fails, all do.

    A failed collective is raised at once: the others can't be asked any more.

    Raises:
        Exception: what `do` raised here.
        CraftError: what it raised in another process, or here after another one, marked as
            `printed_elsewhere`.
        PeerLost: if that was anything else; with nothing to say, since that process shows the traceback.
    """
    if not is_distributed():
        return do()
    result: Any = None
    error: Any = None
    try:
        result = do()
    except Exception as own:
        if is_communication_error(own):
            raise
        error = own
    failures: list[Any] = [None] * dist.get_world_size()
    dist.all_gather_object(failures, error and _described(error))
    first = next(filter(None, failures), None)
    if error is None:
        if first is None:
            return result  # type: ignore[no-any-return]
        kind, words, code = first
        error = kind(words, code=code) if kind else PeerLost()
        error.printed_elsewhere, error.__cause__ = True, RuntimeError(words)
    elif isinstance(error, CraftError) and first not in (None, _described(error)):
        error.printed_elsewhere = True  # of several, as on a disk that is full for all, the first is told
    error.known_to_all = True
    raise error


def _described(error: Exception) -> tuple[type[CraftError] | None, str, Code]:
    if isinstance(error, CraftError):
        return type(error), str(error), error.code
    return None, f"in process {dist.get_rank()}: {type(error).__name__}: {first_line(error)}", "peer-lost"
