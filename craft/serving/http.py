"""uvicorn whose patience ends: with clients that fall silent, and with what runs when it has to stop."""

from __future__ import annotations

import asyncio
import signal
import socket
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import uvicorn
from uvicorn.protocols.http.h11_impl import H11Protocol
from uvicorn.server import HANDLED_SIGNALS

from craft.serving.refusals import Refusal

GRACE = 5
"""Seconds that running requests have to end once the server is told to stop."""
SEND_BUFFER = 1 << 16
WAITING = 128
"""Connections that may wait to be taken."""
OWN_FILES = 64
"""What the process opens besides connections, with room to spare."""


@dataclass(frozen=True)
class Room:
    """How many connections a process has files for; each of them is one.

    Args:
        connections: kept at once; those beyond are hung up on.
        backlog: taken at a time, before they are counted.
    """

    connections: int = 700
    backlog: int = 64

    @classmethod
    def within(cls, files: int) -> Room:
        """For a process that may open so many files; negative: any number."""
        if files < 0:
            return cls()
        backlog = min(cls.backlog, max(1, files // 16))
        # One lot may wait to be counted, and another, hung up on, to be closed, when the next is taken.
        return cls(min(cls.connections, max(1, files - OWN_FILES - 3 * backlog)), backlog)

    @classmethod
    def here(cls) -> Room:
        """For this process, as it was started (`ulimit -n`)."""
        try:
            import resource
        except ImportError:  # Windows, which has no such limit
            return cls()
        return cls.within(resource.getrlimit(resource.RLIMIT_NOFILE)[0])


class Connection(H11Protocol):
    """A client's connection. uvicorn's waits for ever for the rest of a request's head, and for a client that
    doesn't take what it is sent; this one hangs up after `patience` seconds of either."""

    def __init__(self, patience: float, most: int, **parts: Any) -> None:
        super().__init__(**parts)
        self.patience, self.most = patience, most

    def connection_made(self, transport: Any) -> None:
        super().connection_made(transport)
        if len(self.connections) > self.most:
            transport.abort()
        # By itself the system would take megabytes, whole books, in the place of a client that doesn't.
        transport.get_extra_info("socket").setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, SEND_BUFFER)
        self._expect_a_request()

    def on_response_complete(self) -> None:
        super().on_response_complete()
        self._expect_a_request()

    def _expect_a_request(self) -> None:
        self.loop.call_later(self.patience, self._abort_unless_after, self.cycle)

    def _abort_unless_after(self, last: Any) -> None:
        if self.cycle is last:  # no other request has begun
            self.transport.abort()

    def pause_writing(self) -> None:
        super().pause_writing()
        self._stalled = self.loop.call_later(self.patience, self.transport.abort)

    def resume_writing(self) -> None:
        super().resume_writing()
        self._stalled.cancel()

    def send_400_response(self, msg: str) -> None:
        """As other refusals are written, unless an answer has begun."""
        if self.cycle is None or self.cycle.response_complete or not self.cycle.response_started:
            body = Refusal(400, msg).body()
            head = "HTTP/1.1 400 Bad Request", "Content-Type: application/json", "Connection: close"
            self.transport.write("\r\n".join((*head, f"Content-Length: {len(body)}", "\r\n")).encode() + body)
        self.transport.close()


class Server(uvicorn.Server):
    """Serves one application on one socket until SIGTERM or Ctrl-C; the process is to end after it.

    Args:
        ready: called when requests are answered.
    """

    def __init__(self, app: Any, patience: float, ready: Callable[[], None]) -> None:
        room = Room.here()
        connection = partial(Connection, patience, room.connections)
        parts: dict[str, Any] = {"http": connection, "ws": "none", "lifespan": "off"}
        quiet: dict[str, Any] = {"log_level": "error", "access_log": False, "server_header": False}
        super().__init__(uvicorn.Config(app, backlog=room.backlog, **parts, **quiet))
        self.ready = ready

    async def startup(self, sockets: Sequence[Any] | None = None) -> None:
        await super().startup(sockets=list(sockets or []))
        for listener in sockets or []:
            listener.listen(WAITING)  # more than are taken at a time: the system keeps them without a file
        self.ready()

    async def serve(self, sockets: Sequence[Any] | None = None) -> None:
        for number in HANDLED_SIGNALS:
            signal.signal(number, self.handle_exit)
        try:
            await self._serve(list(sockets or []))
        finally:  # the process ends with the server, which takes a second in which it needn't be told again
            for number in HANDLED_SIGNALS:
                signal.signal(number, signal.SIG_IGN)

    async def shutdown(self, sockets: Sequence[Any] | None = None) -> None:
        loop = asyncio.get_running_loop()
        loop.call_later(GRACE, self._end_requests)
        loop.call_later(GRACE + 1, self._hang_up)
        await super().shutdown(list(sockets or []))

    def _end_requests(self) -> None:
        for task in self.server_state.tasks:
            task.cancel()  # the gate then says why the answer ends

    def _hang_up(self) -> None:
        for connection in list(self.server_state.connections):
            connection.transport.abort()
