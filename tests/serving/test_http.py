"""How many connections a server has room for."""

from __future__ import annotations

import subprocess
import sys

import pytest

pytest.importorskip("uvicorn")

from craft.serving.http import OWN_FILES, Room

FILES = [*range(1, 2049), 4096, 1 << 20]


def test_connections_and_what_waits_to_be_counted_fit_the_files() -> None:
    rooms = [Room.within(files) for files in FILES]
    for files, room in zip(FILES, rooms):
        assert min(room.connections, room.backlog) >= 1
        if files >= 128:
            assert room.connections + 3 * room.backlog + OWN_FILES <= files
    assert [room.connections for room in rooms] == sorted(room.connections for room in rooms)
    assert (Room.within(256), Room.within(1024)) == (Room(144, 16), Room(700, 64))
    assert Room.within(-1) == Room.within(1 << 20) == Room()  # as "unlimited" is told


@pytest.mark.skipif(sys.platform == "win32", reason="has no such limit")
def test_the_limit_of_the_process_is_what_counts() -> None:
    program = "import resource; _, most = resource.getrlimit(resource.RLIMIT_NOFILE)\n"
    program += "resource.setrlimit(resource.RLIMIT_NOFILE, (200, most))\n"
    program += "from craft.serving.http import Room; print(Room.here() == Room.within(200))"
    assert subprocess.check_output([sys.executable, "-c", program], text=True) == "True\n"


def test_a_system_without_such_a_limit_has_room(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "resource", None)
    assert Room.here() == Room()
