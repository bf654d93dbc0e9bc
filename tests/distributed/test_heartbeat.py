"""Who is missing: heartbeats of several processes, here in threads around a store in memory."""

from __future__ import annotations

import os
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
import torch.distributed as dist

from craft.training.distributed import heartbeat as heartbeat_module
from craft.training.distributed import rendezvous
from craft.training.distributed.heartbeat import FAILED, Heartbeat
from craft.training.distributed.rendezvous import interface_to, is_communication_error, peer_failure_context
from craft.utils.errors import PeerLost, UserError

CLOSED = RuntimeError("[/pytorch/third_party/gloo/gloo/transport/tcp/pair.cc:547] Connection closed by peer")


@pytest.fixture
def heartbeats(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[Heartbeat]]:
    """Three of them, beating fast, with a time-out of two seconds."""
    monkeypatch.setattr(heartbeat_module, "SECONDS", 0.05)
    monkeypatch.setattr(heartbeat_module, "SILENCE", 0.3)
    monkeypatch.setattr(heartbeat_module, "first_to_say", lambda text: True)
    store = dist.HashStore()
    made = [Heartbeat(store, rank, 3, seconds=2) for rank in range(3)]
    for heartbeat in made:
        heartbeat.interval = 0.05
        heartbeat.start()
    yield made
    for heartbeat in made:
        if heartbeat.is_alive():
            heartbeat.final_note("done")


def stopped(heartbeat: Heartbeat) -> None:
    """Its process was stopped or killed: it writes nothing any more, not even that it ends."""
    heartbeat._exchange = lambda: None  # type: ignore[method-assign]


def test_a_silent_process_is_named_with_its_step(heartbeats: list[Heartbeat]) -> None:
    for heartbeat in heartbeats:
        heartbeat.step = 41
    time.sleep(0.2)
    stopped(heartbeats[2])
    heartbeats[0].step = 42  # which nobody can finish without the others
    message = str(heartbeats[0].diagnosis(CLOSED, "resume"))
    assert message.startswith(f"rank 2 (on {os.uname().nodename}) is missing: last seen at step 42, ")
    assert message.endswith(
        "s ago; killed, stopped, or cut off from the network (training.ddp_timeout=2 s); resume"
    )


def test_several_silent_processes(heartbeats: list[Heartbeat]) -> None:
    time.sleep(0.2)
    stopped(heartbeats[1])
    stopped(heartbeats[2])
    message = str(heartbeats[0].diagnosis(CLOSED, ""))
    assert "), rank 2 (on " in message
    assert " are missing: last seen before the first step" in message


def test_what_another_process_has_said_is_not_repeated(heartbeats: list[Heartbeat]) -> None:
    time.sleep(0.2)
    heartbeats[1].final_note(FAILED)
    assert str(heartbeats[0].diagnosis(CLOSED, "")) == ""


def test_one_that_failed_and_said_so_is_not_waited_for(
    heartbeats: list[Heartbeat], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Wherever this process hangs, and however long it would wait for a silent one."""
    ended: list[int] = []
    said: list[str] = []
    monkeypatch.setattr(heartbeat_module, "MARGIN", 0.3)
    monkeypatch.setattr(heartbeat_module.os, "_exit", ended.append)
    monkeypatch.setattr(heartbeat_module, "say_at_once", said.append)
    for each in heartbeats:
        each.seconds = 600
    time.sleep(0.2)
    heartbeats[1].final_note(FAILED)
    deadline = time.monotonic() + 60
    while len(ended) < 2 and time.monotonic() < deadline:
        time.sleep(0.05)
    assert (ended, said) == ([1, 1], [])


def test_a_process_that_is_done_is_not_missing(heartbeats: list[Heartbeat]) -> None:
    heartbeats[2].final_note("done")
    time.sleep(0.6)
    assert heartbeats[0].missing() == ""
    stopped(heartbeats[1])
    assert str(heartbeats[0].diagnosis(CLOSED, "")).startswith("rank 1 ")


def test_nobody_is_missing_but_nothing_moves(heartbeats: list[Heartbeat]) -> None:
    heartbeats[0].step, heartbeats[1].step, heartbeats[2].step = 7, 6, 7
    message = str(heartbeats[0].diagnosis(RuntimeError("Timed out waiting 2000ms for recv"), ""))
    assert message.startswith("no process is missing, but they can't work together (Timed out waiting 2000ms")
    assert "rank 1 at step 6 in " in message
    assert "heartbeat.py:" in message


def test_a_store_that_does_not_answer_is_rank_0_and_its_machine(
    heartbeats: list[Heartbeat], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MASTER_ADDR", "10.0.0.1")
    heartbeats[1].step = 9
    time.sleep(0.2)
    stopped(heartbeats[1])
    message = str(heartbeats[1].diagnosis(CLOSED, ""))
    assert message.startswith("rank 0 (at 10.0.0.1) is missing, or its whole machine: last seen at step 9, ")


def test_a_process_that_was_stopped_itself_accuses_nobody(monkeypatch: pytest.MonkeyPatch) -> None:
    """As after Ctrl-Z and fg, which stop and wake all of them."""
    store = dist.HashStore()
    mine, other = Heartbeat(store, 0, 2, seconds=60), Heartbeat(store, 1, 2, seconds=60)
    other.store.set("craft/heartbeat/0", '[0, 0, "host", "place", "", 0]')
    other._exchange()
    mine._exchange()
    slept = time.monotonic() + 1000
    monkeypatch.setattr(time, "monotonic", lambda: slept)
    mine._exchange()
    assert mine.missing() == ""
    mine._end_if_unheard()


def test_a_process_that_was_never_heard_of(monkeypatch: pytest.MonkeyPatch) -> None:
    heartbeat = Heartbeat(dist.HashStore(), 0, 2, seconds=60)
    slept = time.monotonic() + 50
    monkeypatch.setattr(time, "monotonic", lambda: slept)
    assert heartbeat.missing().startswith("another process is missing: it ended before it was heard of")


def test_errors_of_communication_become_sentences_and_others_are_told(
    heartbeats: list[Heartbeat], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(rendezvous, "_heartbeat", heartbeats[0])
    time.sleep(0.2)
    stopped(heartbeats[2])
    with pytest.raises(PeerLost, match=r"^rank 2 .*; like that$"), peer_failure_context(lambda: "like that"):
        raise CLOSED
    monkeypatch.setattr(rendezvous, "_heartbeat", heartbeats[1])
    with pytest.raises(UserError), peer_failure_context():
        raise UserError("no such file")
    assert heartbeats[1].note == FAILED


def test_one_process_has_no_heartbeat(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(rendezvous, "_heartbeat", None)
    rendezvous.start_heartbeat(5)
    rendezvous.report_step(3)
    assert rendezvous._heartbeat is None
    with pytest.raises(RuntimeError, match="Connection closed"), peer_failure_context():
        raise CLOSED


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
def test_the_interface_to_an_address() -> None:
    assert interface_to("127.0.0.1") == "lo"
    assert interface_to("no.such.host.invalid") == ""
