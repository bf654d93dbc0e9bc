"""Under which names a server answers, and which pages may use it."""

from __future__ import annotations

import socket

import pytest
from refusals import refused

from craft.utils.hosts import is_loopback, listen, refusal_reason

KNOWN = ["named.example"]
OURS = ["localhost", "LocalHost:8000", "127.0.0.1:1", "127.0.0.2", "[::1]", "[::1]:80", "named.example:8000"]
ADDRESSES = ["10.0.0.7", "[fe80::1]:8000", "169.254.1.1"]
THEIRS = [
    *("evil.example", "127.0.0.1.evil.example", "localhost.evil.example:80", "10.0.0.7.evil.example:8000"),
    *("10.0.0", "[::1", "", "x:y"),
]


@pytest.mark.parametrize("host", OURS + ADDRESSES)
def test_a_server_answers_to_its_names_and_to_addresses_which_nobody_can_point_elsewhere(host: str) -> None:
    assert refusal_reason(host, "", KNOWN) is None
    assert refusal_reason(host, f"http://{host}", KNOWN) is None
    for origin in ("https://evil.example", "http://10.0.0.8", "null", "file://"):
        assert origin in str(refusal_reason(host, origin, KNOWN))


@pytest.mark.parametrize("host", THEIRS)
def test_a_name_that_somebody_has_point_here_is_not_answered(host: str) -> None:
    """The page and its server seem to be one to the browser; only the name gives it away."""
    for origin in ("", f"http://{host}"):
        assert "--allow-host" in str(refusal_reason(host, origin, KNOWN))


@pytest.mark.parametrize("page", OURS + THEIRS + ADDRESSES)
def test_only_pages_of_this_machine_may_use_the_server(page: str) -> None:
    refusal = refusal_reason("localhost", f"http://{page}", KNOWN)
    assert (refusal is None) == (page in OURS)


def test_loopback_is_known_by_name_and_address() -> None:
    assert [is_loopback(name) for name in ("localhost", "127.0.0.9", "::1", "0.0.0.0", "a.example")] == [
        *(True, True, True),
        *(False, False),
    ]


def test_a_port_that_is_taken_is_refused() -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        with refused("setting-value", f"127.0.0.1:{port}", "--port"):
            listen("127.0.0.1", port)
