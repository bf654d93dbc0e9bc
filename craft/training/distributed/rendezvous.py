"""Several processes: how they join, what they tell each other beside training, and who says what went wrong.

When a collective fails, the heartbeats (see `heartbeat`) say who is missing and where it was last seen. One
process has no heartbeat and pays nothing.
"""

from __future__ import annotations

import atexit
import os
import re
import socket
import struct
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import timedelta

import torch.distributed as dist

from craft.training.distributed.heartbeat import DONE, FAILED, MARGIN, Heartbeat, first_line
from craft.utils import launch
from craft.utils.errors import PeerLost, UserError

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
            f"({first_line(error)}); is that address right, and reachable from every machine?"
        ) from error


def interface_to(address: str) -> str:
    """The network interface over which this machine reaches `address`; empty where that can't be known."""
    try:
        import fcntl

        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe:
            probe.connect((address, 1))  # sends nothing
            own = probe.getsockname()[0]
            for _, name in socket.if_nameindex():
                try:
                    packed = fcntl.ioctl(probe.fileno(), 0x8915, struct.pack("256s", name.encode()))
                except OSError:  # it has no address
                    continue
                if socket.inet_ntoa(packed[20:24]) == own:
                    return name
    except (ImportError, OSError):
        pass
    return ""


def start_heartbeat(seconds: int) -> None:
    """Starts this process' heartbeat, once the processes have joined; nothing for one process."""
    global _heartbeat
    if _heartbeat is None and dist.is_initialized() and dist.get_world_size() > 1:
        store = dist.distributed_c10d._get_default_store().clone()  # with a connection of its own
        store.set_timeout(timedelta(seconds=seconds + MARGIN))
        _heartbeat = Heartbeat(store, dist.get_rank(), dist.get_world_size(), seconds)
        _heartbeat.start()
        # A thread inside of torch would not survive the interpreter.
        atexit.register(_heartbeat.final_note, DONE)


def collective_timeout() -> timedelta | None:
    """How long one process waits for another; None leaves it to torch."""
    return None if _heartbeat is None else timedelta(seconds=_heartbeat.seconds)


def sharding_requested() -> bool:
    """Whether Accelerate's configuration or command line asks for FSDP."""
    return launch.flag("ACCELERATE_USE_FSDP")


def announce_signal(signum: int) -> None:
    """Tells the other processes, with the next beat, that this one was asked to stop."""
    if _heartbeat is not None:
        _heartbeat.signum = signum


def announced_signal() -> int:
    """The signal that another process was asked to stop by, as far as its heartbeat has told."""
    return 0 if _heartbeat is None else _heartbeat.others_signum


def report_step(step: int) -> None:
    """Notes how far this process is; called at every step."""
    if _heartbeat is not None:
        _heartbeat.step = step


def silent_peers() -> str:
    """A sentence about the processes that were not heard of lately, if there are any."""
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
    except PeerLost:
        raise
    except Exception as error:
        if _heartbeat is None or getattr(error, "known_to_all", False):  # see `agreement`
            raise
        if not isinstance(error, UserError) and is_communication_error(error):
            raise _heartbeat.diagnosis(error, recovery_hint()) from error
        _heartbeat.final_note(FAILED)
        raise
    except BaseException:  # a signal that was obeyed
        if _heartbeat is not None:
            _heartbeat.final_note(DONE)
        raise
    if last and _heartbeat is not None:
        _heartbeat.final_note(DONE)


def is_communication_error(error: BaseException) -> bool:
    """Whether an exception says that other processes can't be reached, in whatever words."""
    if isinstance(error, dist.DistError):
        return True
    return isinstance(error, RuntimeError) and bool(COMMUNICATION.search(str(error)))
