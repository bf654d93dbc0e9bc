"""Under which names a server answers: what keeps other people's web pages away from it.

A page in a browser reaches `127.0.0.1` as well as its owner does. It may have its own name point there (DNS
rebinding), which the header `Host` shows, or just send its requests, which `Origin` shows; neither can be
set by the page. An address in `Host` is harmless: nobody can have it point elsewhere.
"""

from __future__ import annotations

import ipaddress
import socket
from collections.abc import Iterable, Mapping
from urllib.parse import urlsplit

from craft.serving.refusals import Refusal


class Names:
    """The hosts that a request may be for, and the pages it may come from.

    Args:
        known: names and addresses besides those of this machine's loopback.
        everywhere: the server listens to the network, where it answers to this machine's own names and to any
            address, since it can't know by which others it is reached; a page must come from the same.
    """

    def __init__(self, known: Iterable[str], everywhere: bool = False) -> None:
        own = (socket.gethostname(), socket.getfqdn()) if everywhere else ()
        self.known, self.everywhere = {name.lower() for name in (*known, *own)}, everywhere

    def check(self, headers: Mapping[bytes, bytes]) -> None:
        """Refuses what a page of somebody else made a browser send.

        Raises:
            Refusal: with status 403.
        """
        host, origin = (headers.get(header, b"").decode("latin-1") for header in (b"host", b"origin"))
        at_an_address = _address(_name(host) or "") is not None
        if not self._ours(host) and not (self.everywhere and at_an_address):
            raise Refusal(403, f"this server doesn't answer as {host[:100]!r}; see its option --allow-host")
        if origin and not self._ours(origin) and _name(origin) != _name(host):
            raise Refusal(
                403, f"pages of {origin[:100]!r} can't use this server; see its option --allow-host"
            )

    def _ours(self, where: str) -> bool:
        name = _name(where)
        return name is not None and (name in self.known or is_loopback(name))


def is_loopback(name: str) -> bool:
    """Whether only this machine reaches itself by that name or address."""
    address = _address(name)
    return name == "localhost" if address is None else address.is_loopback


def _address(name: str) -> ipaddress.IPv4Address | ipaddress.IPv6Address | None:
    try:
        return ipaddress.ip_address(name)
    except ValueError:
        return None


def _name(where: str) -> str | None:
    """The host in lower case, of `host:port` or `scheme://host:port`; None if there is none."""
    try:
        return urlsplit(where if "://" in where else f"//{where}").hostname
    except ValueError:
        return None
