"""Under which names a server answers, and which pages may use it."""

from __future__ import annotations

import pytest

from craft.serving.names import Names
from craft.serving.refusals import Refusal

OURS = ["localhost", "LocalHost:8000", "127.0.0.1:1", "127.0.0.2", "[::1]", "[::1]:80", "named.example:8000"]
THEIRS = [
    "evil.example",
    "127.0.0.1.evil.example",
    "localhost.evil.example:80",
    "169.254.1.1",
    "[::1",
    "",
    "x:y",
]


@pytest.mark.parametrize("host", OURS + THEIRS)
def test_only_names_of_this_machine_are_answered(host: str) -> None:
    names = Names(["named.example", "127.0.0.1"])
    for headers in ({b"host": host.encode()}, {b"host": b"localhost", b"origin": f"http://{host}".encode()}):
        if host in OURS:
            names.check(headers)
        else:
            with pytest.raises(Refusal, match="--allow-host") as caught:
                names.check(headers)
            assert caught.value.status == 403


def everyone(monkeypatch: pytest.MonkeyPatch) -> Names:
    monkeypatch.setattr("socket.gethostname", lambda: "Box")
    monkeypatch.setattr("socket.getfqdn", lambda: "box.home.example")
    return Names(["0.0.0.0", "proxy.example"], everywhere=True)


@pytest.mark.parametrize(
    "host", [*OURS[:-1], "box", "box.home.example:1", "proxy.example", "10.0.0.7", "[fe80::1]:8000"]
)
def test_a_server_for_everyone_answers_to_its_names_and_any_address(
    monkeypatch: pytest.MonkeyPatch, host: str
) -> None:
    names = everyone(monkeypatch)
    names.check({b"host": host.encode()})
    names.check({b"host": host.encode(), b"origin": f"http://{host}".encode()})
    for origin in (b"https://evil.example", b"http://10.0.0.8", b"null", b"file://"):
        with pytest.raises(Refusal, match="pages of"):
            names.check({b"host": host.encode(), b"origin": origin})


@pytest.mark.parametrize(
    "host", ["evil.example", "box.evil.example", "10.0.0.7.evil.example:8000", "10.0.0", ""]
)
def test_a_name_that_somebody_has_point_here_is_not_answered(
    monkeypatch: pytest.MonkeyPatch, host: str
) -> None:
    """The page and its server seem to be one to the browser; only the name gives it away."""
    names = everyone(monkeypatch)
    for headers in ({}, {b"origin": f"http://{host}".encode()}):
        with pytest.raises(Refusal, match="--allow-host") as caught:
            names.check({b"host": host.encode(), **headers})
        assert caught.value.status == 403
