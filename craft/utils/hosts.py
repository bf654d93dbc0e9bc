"""Under which names a server on this machine answers, and the socket it listens on.

A page in a browser reaches `127.0.0.1` as well as its owner does. It may have its own name point there (DNS
rebinding), which the header `Host` shows, or just send its requests, which `Origin` shows; neither can be
set by the page. An address in `Host` is harmless: nobody can have it point elsewhere.
"""

from __future__ import annotations

import errno
import socket
from collections.abc import Iterable
from ipaddress import ip_address
from typing import Any
from urllib.parse import urlsplit

from craft.utils.errors import UserError


class Hosts:
    """The hosts that a request may be for, and whose pages it may come from.

    Args:
        known: names and addresses besides those of this machine's loopback.
        everywhere: the server listens to the network, where it answers to this machine's own names and to any
            address, since it can't know by which others it is reached; a page must come from the same.
    """

    def __init__(self, known: Iterable[str], everywhere: bool = False) -> None:
        own = (socket.gethostname(), socket.getfqdn()) if everywhere else ()
        self.known, self.everywhere = {name.lower() for name in (*known, *own)}, everywhere

    def objection(self, host: str, origin: str) -> str | None:
        """What is wrong with these headers, if a page of somebody else made a browser send them."""
        name, page = _name(host), _name(origin)
        if not self._ours(name) and not (self.everywhere and _address(name)):
            return f"this server doesn't answer as {host[:100]!r}; see its option --allow-host"
        if origin and not self._ours(page) and page != name:
            return f"pages of {origin[:100]!r} can't use this server; see its option --allow-host"
        return None

    def _ours(self, name: str) -> bool:
        return name in self.known or is_loopback(name)


def is_loopback(name: str) -> bool:
    """Whether only this machine reaches itself by that name or address."""
    return name == "localhost" or bool(getattr(_address(name), "is_loopback", False))


def listen(host: str, port: int) -> socket.socket:
    """An open socket.

    Raises:
        UserError: if nobody can listen there.
    """
    try:
        family = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0][0]
        return socket.create_server((host, port), family=family)
    except (OSError, OverflowError, UnicodeError) as error:
        reason = (getattr(error, "strerror", None) or str(error)).split(" (while")[0]
        taken = getattr(error, "errno", None) in (errno.EADDRINUSE, errno.EACCES)
        other = "--port (0: any free one)" if taken else "--host"
        raise UserError(f"can't listen on {host}:{port}: {reason}; choose another {other}") from error


def _address(name: str) -> Any:
    try:
        return ip_address(name)
    except ValueError:
        return None


def _name(where: str) -> str:
    """The host in lower case, of `host:port` or `scheme://host:port`, if there is one."""
    try:
        return urlsplit(where if "://" in where else f"//{where}").hostname or ""
    except ValueError:
        return ""
