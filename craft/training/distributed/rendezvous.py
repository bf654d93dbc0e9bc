"""Several processes: how they join, what they tell each other beside training, and who says what went wrong.

When a collective fails, the heartbeats (see `heartbeat`) say who is missing and where it was last seen. One
process has no heartbeat and pays nothing.
"""

from __future__ import annotations

import atexit
import os
import re
import socket
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import timedelta

import psutil
import torch.distributed as dist

from craft.training.distributed.heartbeat import Heartbeat
from craft.utils.errors import PeerLost, first_line

MARGIN = 15
"""Seconds that NCCL, which ends the process without a word, leaves it to find out by itself."""
COMMUNICATION = re.compile(
    r"gloo|nccl|connection (was )?(closed|reset|refused)|timed out waiting|broken pipe|no route to host", re.I
)

_heartbeat: Heartbeat | None = None


def join(seconds: int) -> None:
    """Joins the processes that a launcher started on CPUs. No wait for another one lasts longer than
    `seconds`, which Accelerate would not pass on.

    Raises:
        PeerLost: if not all of them come.
    """
    world, address, port = (os.environ.get(name, "") for name in ("WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT"))
    if "GLOO_SOCKET_IFNAME" not in os.environ and (interface := interface_to(address)):
        # By itself gloo asks for the address of the host's own name, which is 127.0.1.1 on many.
        os.environ["GLOO_SOCKET_IFNAME"] = interface
    try:
        dist.init_process_group("gloo", timeout=timedelta(seconds=seconds))
    except (RuntimeError, ValueError) as error:
        raise PeerLost(
            f"not all of {world} processes met at {address}:{port} within training.ddp_timeout={seconds} s "
            f"({first_line(error)[:200]}); is that address right, and reachable from every machine?"
        ) from error


def interface_to(address: str) -> str:
    """The network interface over which this machine reaches `address`; empty where that can't be known."""
    try:
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe:
            probe.connect((address, 1))  # sends nothing
            own = probe.getsockname()[0]
    except OSError:
        return ""
    interfaces = psutil.net_if_addrs().items()
    return next((name for name, found in interfaces if own in [each.address for each in found]), "")


def start_heartbeat(seconds: int) -> None:
    """Starts this process' heartbeat, once the processes have joined; nothing for one process."""
    global _heartbeat
    if _heartbeat is None and dist.is_initialized() and dist.get_world_size() > 1:
        store = dist.distributed_c10d._get_default_store().clone()  # with a connection of its own
        _heartbeat = Heartbeat(store, dist.get_rank(), dist.get_world_size(), seconds)
        _heartbeat.start()
        atexit.register(_heartbeat.stop)  # a thread inside of torch would not survive the interpreter


def report_step(step: int) -> None:
    """Notes how far this process is; called at every step."""
    if _heartbeat is not None:
        _heartbeat.step = step


def silent_peers() -> str:
    """A sentence about the processes that don't beat any more, if there are any; it takes seconds."""
    return "" if _heartbeat is None else _heartbeat.missing()


@contextmanager
def peer_failure_context(recovery_hint: Callable[[], str] = str, last: bool = False) -> Iterator[None]:
    """Turns failed communication into a sentence that names who is missing, and tells the other processes
    of any other error, so that they end without guesses of their own.

    Args:
        recovery_hint: how to go on, for the end of the sentence.
        last: afterwards this process has nothing more to do with the others.

    Raises:
        PeerLost: for a process that doesn't answer any more.
    """
    try:
        yield
    except Exception as error:
        if _heartbeat is None or isinstance(error, PeerLost) or getattr(error, "known_to_all", False):
            raise
        if is_communication_error(error):
            raise _heartbeat.diagnosis(error, recovery_hint()) from error
        _heartbeat.stop(failed=True)
        raise
    except BaseException:  # a signal that was obeyed
        if _heartbeat is not None:
            _heartbeat.stop()
        raise
    if last and _heartbeat is not None:
        _heartbeat.stop()


def is_communication_error(error: BaseException) -> bool:
    """Whether an exception says that other processes can't be reached, in whatever words."""
    if isinstance(error, dist.DistError):
        return True
    return isinstance(error, RuntimeError) and bool(COMMUNICATION.search(str(error)))
