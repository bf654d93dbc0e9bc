"""Who is missing: heartbeats of several processes, here in threads around a store in memory."""

from __future__ import annotations

import os
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
import torch.distributed as dist
from refusals import refused

from craft.training.distributed import heartbeat as heartbeat_module
from craft.training.distributed import rendezvous
from craft.training.distributed.heartbeat import FAILED, Heartbeat
from craft.training.distributed.rendezvous import interface_to, is_communication_error, peer_failure_context
from craft.utils.errors import UserError

CLOSED = RuntimeError("[/pytorch/third_party/gloo/gloo/transport/tcp/pair.cc:547] Connection closed by peer")


@pytest.fixture
def heartbeats(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[Heartbeat]]:
    """Three of them, beating fast."""
    monkeypatch.setattr(heartbeat_module, "SECONDS", 0.05)
    monkeypatch.setattr(heartbeat_module, "SILENCE", 0.5)
    monkeypatch.setattr(heartbeat_module, "first_to_say", lambda text: True)
    store = dist.HashStore()
    made = [Heartbeat(store, rank, 3, timeout=2) for rank in range(3)]
    for heartbeat in made:
        heartbeat.interval = 0.05
        heartbeat.start()
    yield made
    for heartbeat in made:
        if heartbeat.is_alive():
            heartbeat.stop()


def kill(heartbeat: Heartbeat) -> None:
    """Its process was stopped or killed: it writes nothing any more, not even that it ends."""
    heartbeat._write = lambda: None  # type: ignore[method-assign]


def test_a_silent_process_is_named_with_its_step(heartbeats: list[Heartbeat]) -> None:
    for heartbeat in heartbeats:
        heartbeat.step = 41
    time.sleep(0.2)
    kill(heartbeats[2])
    heartbeats[0].step = 42  # which nobody can finish without the others
    host = os.uname().nodename
    with refused("peer-lost", f"rank 2 (on {host}) ", "step 42;", "training.ddp_timeout=2 s", "; resume"):
        raise heartbeats[0].diagnosis(CLOSED, "resume")


def test_several_silent_processes_are_all_named(heartbeats: list[Heartbeat]) -> None:
    kill(heartbeats[1])
    kill(heartbeats[2])
    message = str(heartbeats[0].diagnosis(CLOSED, ""))
    assert all(f"rank {rank} (on {os.uname().nodename})" in message for rank in (1, 2))


def test_what_another_process_has_said_is_not_repeated(heartbeats: list[Heartbeat]) -> None:
    heartbeats[1].stop(failed=True)
    assert str(heartbeats[0].diagnosis(CLOSED, "")) == ""


def test_a_process_that_is_done_is_not_missing(heartbeats: list[Heartbeat]) -> None:
    heartbeats[2].stop()
    assert heartbeats[0].missing() == ""
    kill(heartbeats[1])
    assert str(heartbeats[0].diagnosis(CLOSED, "")).startswith("rank 1 ")


def test_nobody_is_missing_but_nothing_moves(heartbeats: list[Heartbeat]) -> None:
    heartbeats[0].step, heartbeats[1].step, heartbeats[2].step = 7, 6, 7
    message = str(heartbeats[0].diagnosis(RuntimeError("Timed out waiting 2000ms for recv"), ""))
    values = ("Timed out waiting 2000ms", "rank 1 at step 6 ", "heartbeat.py:")
    assert all(value in message for value in values)


class Cut:
    """A store behind a link that was cut: it never answers."""

    def clone(self) -> Cut:
        return self

    def multi_get(self, keys: list[str]) -> list[bytes]:
        time.sleep(60)
        return []

    def set(self, key: str, value: str) -> None:
        pass

    def check(self, keys: list[str]) -> bool:
        return False


def test_a_store_that_does_not_answer_is_rank_0_and_its_machine(
    heartbeats: list[Heartbeat], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MASTER_ADDR", "10.0.0.1")
    heartbeats[1].step = 9
    heartbeats[1].store = Cut()
    message = str(heartbeats[1].diagnosis(CLOSED, ""))
    assert message.startswith("rank 0 (at 10.0.0.1) ")
    assert "step 9;" in message


def test_errors_of_communication_become_sentences_and_others_are_told(
    heartbeats: list[Heartbeat], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(rendezvous, "_heartbeat", heartbeats[0])
    kill(heartbeats[2])
    with refused("peer-lost", "rank 2 ", "like that"), peer_failure_context(lambda: "like that"):
        raise CLOSED
    monkeypatch.setattr(rendezvous, "_heartbeat", heartbeats[1])
    with refused("file-missing"), peer_failure_context():
        raise UserError("no such file", code="file-missing")
    assert heartbeats[0].store.check([FAILED])


def test_one_process_has_no_heartbeat(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(rendezvous, "_heartbeat", None)
    rendezvous.start_heartbeat(5)
    rendezvous.report_step(3)
    assert rendezvous._heartbeat is None
    with pytest.raises(RuntimeError) as caught, peer_failure_context():
        raise CLOSED
    assert caught.value is CLOSED


@pytest.mark.parametrize(
    ("error", "about_peers"),
    [
        (CLOSED, True),
        (RuntimeError("Timed out waiting 5000ms for recv operation to complete"), True),
        (RuntimeError("NCCL communicator was aborted on rank 1."), True),
        (dist.DistNetworkError("The client socket has failed to connect"), True),
        (RuntimeError("The size of tensor a (3) must match the size of tensor b (4)"), False),
        (torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB"), False),
        (TimeoutError("timed out waiting"), False),
    ],
)
def test_which_errors_are_about_other_processes(error: Exception, about_peers: bool) -> None:
    assert is_communication_error(error) is about_peers


@pytest.mark.skipif(not Path("/sys/class/net/lo").exists(), reason="needs Linux")
def test_the_network_interface_to_an_address_is_found() -> None:
    assert interface_to("127.0.0.1") == "lo"
    assert interface_to("no.such.host.invalid") == ""
