"""Several processes: how they join, what they tell each other beside training, and who says what went wrong.

When a collective fails, the pulses (see `pulse`) say who is missing and where it was last seen. One process
has no pulse and pays nothing.
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

from craft.training.pulse import DONE, FAILED, MARGIN, Pulse, first_line
from craft.utils import launch
from craft.utils.common import PeerLost, UserError

COMMUNICATION = re.compile(
    r"gloo|nccl|connection (was )?(closed|reset|refused)|timed out waiting|broken pipe|no route to host", re.I
)

_pulse: Pulse | None = None


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


def watch(seconds: int) -> None:
    """Starts this process' pulse, once the processes have joined; nothing for one process."""
    global _pulse
    if _pulse is None and dist.is_initialized() and dist.get_world_size() > 1:
        store = dist.distributed_c10d._get_default_store().clone()  # with a connection of its own
        store.set_timeout(timedelta(seconds=seconds + MARGIN))
        _pulse = Pulse(store, dist.get_rank(), dist.get_world_size(), seconds)
        _pulse.start()
        atexit.register(_pulse.last_note, DONE)  # a thread inside of torch would not survive the interpreter


def patience() -> timedelta | None:
    """How long one process waits for another; None leaves it to torch."""
    return None if _pulse is None else timedelta(seconds=_pulse.seconds)


def sharding_wanted() -> bool:
    """Whether Accelerate's configuration or command line asks for FSDP."""
    return launch.flag("ACCELERATE_USE_FSDP")


def pass_on(signum: int) -> None:
    """Tells the other processes, with the next beat, that this one was asked to stop."""
    if _pulse is not None:
        _pulse.signum = signum


def passed_on() -> int:
    """The signal that another process was asked to stop by, as far as its pulse has told."""
    return 0 if _pulse is None else _pulse.others_signum


def at_step(step: int) -> None:
    """Notes how far this process is; called at every step."""
    if _pulse is not None:
        _pulse.step = step


def silent_peers() -> str:
    """A sentence about the processes that were not heard of lately, if there are any."""
    return "" if _pulse is None else _pulse.missing()


@contextmanager
def among_peers(way_out: Callable[[], str] = str, last: bool = False) -> Iterator[None]:
    """Turns failed communication into a sentence that names who is missing, and tells the other processes
    of any other error, so that they end without guesses of their own.

    Args:
        way_out: how to go on, for the end of the sentence.
        last: afterwards this process has nothing more to do with the others.

    Raises:
        PeerLost: for a process that doesn't answer any more.
    """
    try:
        yield
    except PeerLost:
        raise
    except Exception as error:
        if _pulse is None or getattr(error, "known_to_all", False):  # see `agreement`
            raise
        if not isinstance(error, UserError) and is_communication(error):
            raise _pulse.diagnosis(error, way_out()) from error
        _pulse.last_note(FAILED)
        raise
    except BaseException:  # a signal that was obeyed
        if _pulse is not None:
            _pulse.last_note(DONE)
        raise
    if last and _pulse is not None:
        _pulse.last_note(DONE)


def is_communication(error: BaseException) -> bool:
    """Whether an exception says that other processes can't be reached, in whatever words."""
    if isinstance(error, dist.DistError):
        return True
    return isinstance(error, RuntimeError) and bool(COMMUNICATION.search(str(error)))
