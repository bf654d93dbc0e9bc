"""Under which names a server answers, and which pages may use it."""

from __future__ import annotations

import pytest

from craft.utils.hosts import Hosts

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
    hosts = Hosts(["named.example", "127.0.0.1"])
    for objection in (hosts.objection(host, ""), hosts.objection("localhost", f"http://{host}")):
        if host in OURS:
            assert objection is None
        else:
            assert objection is not None
            assert "--allow-host" in objection


def everyone(monkeypatch: pytest.MonkeyPatch) -> Hosts:
    monkeypatch.setattr("socket.gethostname", lambda: "Box")
    monkeypatch.setattr("socket.getfqdn", lambda: "box.home.example")
    return Hosts(["0.0.0.0", "proxy.example"], everywhere=True)


@pytest.mark.parametrize(
    "host", [*OURS[:-1], "box", "box.home.example:1", "proxy.example", "10.0.0.7", "[fe80::1]:8000"]
)
def test_a_server_for_everyone_answers_to_its_names_and_any_address(
    monkeypatch: pytest.MonkeyPatch, host: str
) -> None:
    hosts = everyone(monkeypatch)
    assert hosts.objection(host, "") is None
    assert hosts.objection(host, f"http://{host}") is None
    for origin in ("https://evil.example", "http://10.0.0.8", "null", "file://"):
        assert origin in str(hosts.objection(host, origin))


@pytest.mark.parametrize(
    "host", ["evil.example", "box.evil.example", "10.0.0.7.evil.example:8000", "10.0.0", ""]
)
def test_a_name_that_somebody_has_point_here_is_not_answered(
    monkeypatch: pytest.MonkeyPatch, host: str
) -> None:
    """The page and its server seem to be one to the browser; only the name gives it away."""
    hosts = everyone(monkeypatch)
    for origin in ("", f"http://{host}"):
        assert "--allow-host" in str(hosts.objection(host, origin))
