"""Under which names a server on this machine answers, and the socket it listens on.

A page in a browser reaches `127.0.0.1` as well as its owner does. It may have its own name point there (DNS
rebinding), which the header `Host` shows, or just send its requests, which `Origin` shows; neither can be
set by the page. An address in `Host` is harmless: nobody can have it point elsewhere.
"""

from __future__ import annotations

import socket
from collections.abc import Collection
from ipaddress import IPv4Address, IPv6Address, ip_address
from urllib.parse import urlsplit

from craft.utils.errors import UserError


def refusal_reason(host: str, origin: str, known: Collection[str]) -> str | None:
    """What is wrong with these headers, if a page of somebody else made a browser send them.

    Args:
        host, origin: the headers, empty if there are none.
        known: lower-case names of the server besides `localhost`.
    """
    name, page = _host_name(host), _host_name(origin)
    if name not in known and name != "localhost" and _address(name) is None:
        return f"this server doesn't answer as {host[:100]!r}; see its option --allow-host"
    if origin and page != name and page not in known and not is_loopback(page):
        return f"pages of {origin[:100]!r} can't use this server; see its option --allow-host"
    return None


def is_loopback(name: str) -> bool:
    """Whether only this machine reaches itself by that name or address."""
    address = _address(name)
    return name == "localhost" if address is None else address.is_loopback


def listen(host: str, port: int) -> socket.socket:
    """An open socket.

    Raises:
        UserError: if nobody can listen there.
    """
    try:
        family = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0][0]
        return socket.create_server((host, port), family=family)
    except (OSError, OverflowError, UnicodeError) as error:
        reason = getattr(error, "strerror", None) or error
        raise UserError(
            f"can't listen on {host}:{port}: {reason}; choose another --host or --port (0: any free one)",
            code="setting-value",
        ) from error


def _address(name: str) -> IPv4Address | IPv6Address | None:
    try:
        return ip_address(name)
    except ValueError:
        return None


def _host_name(where: str) -> str:
    """The host in lower case, of `host:port` or `scheme://host:port`, if there is one."""
    try:
        return urlsplit(where if "://" in where else f"//{where}").hostname or ""
    except ValueError:
        return ""
