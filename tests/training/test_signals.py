from __future__ import annotations

import os
import signal
import threading

import pytest
import torch

from craft.training.signals import StopRequest
from craft.utils.stopping import TrainingInterrupted, exit_on_signal

STATUS = {signal.SIGTERM: 0, signal.SIGUSR1: 0, signal.SIGINT: 130}


@pytest.mark.parametrize(
    ("number", "status"), [(signal.SIGTERM, 0), (signal.SIGUSR1, 0), (signal.SIGINT, 130)]
)
def test_a_signal_asks_to_stop(number: int, status: int, capfd: pytest.CaptureFixture[str]) -> None:
    before = signal.getsignal(number)
    stop = StopRequest()
    with stop.listening():
        stop.begun = True
        assert not stop.requested_anywhere()
        os.kill(os.getpid(), number)
        os.kill(os.getpid(), number)  # at once: the same keystroke, told by terminal and launcher
        assert stop.requested_anywhere()
    assert stop.exit_code == status
    assert signal.getsignal(number) is before
    assert capfd.readouterr().err.count("finishing this step and saving") == 1
    with stop.listening():
        stop.begun = True
        assert not stop.requested_anywhere()


def test_a_later_signal_exits_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    exits: list[int] = []
    now = [10.0]
    monkeypatch.setattr("time.monotonic", lambda: now[0])
    monkeypatch.setattr(os, "_exit", exits.append)
    stop = StopRequest()
    with stop.listening():
        stop.begun = True
        os.kill(os.getpid(), signal.SIGINT)
        assert exits == []
        now[0] += 1.5
        os.kill(os.getpid(), signal.SIGINT)
    assert exits == [130]


def test_a_signal_during_the_agreement_is_not_lost(monkeypatch: pytest.MonkeyPatch) -> None:
    def reduced(flag: torch.Tensor, **kwargs: object) -> None:
        os.kill(os.getpid(), signal.SIGTERM)

    monkeypatch.setattr("torch.distributed.is_initialized", lambda: True)
    monkeypatch.setattr("torch.distributed.get_backend", lambda: "gloo")
    monkeypatch.setattr("torch.distributed.all_reduce", reduced)
    stop = StopRequest()
    with stop.listening():
        stop.begun = True
        # The others were told 0 for this process; they learn of it a step later.
        assert not stop.requested_anywhere()
        assert stop.requested_anywhere()
    assert stop.signum == signal.SIGTERM


def test_a_process_told_after_another_saves_instead_of_exiting(monkeypatch: pytest.MonkeyPatch) -> None:
    """A scheduler tells the processes one after another: the last one told must save, not exit."""
    exits: list[int] = []
    now = [10.0]
    monkeypatch.setattr("time.monotonic", lambda: now[0])
    monkeypatch.setattr(os, "_exit", exits.append)
    monkeypatch.setattr("torch.distributed.is_initialized", lambda: True)
    monkeypatch.setattr("torch.distributed.get_backend", lambda: "gloo")
    monkeypatch.setattr("torch.distributed.all_reduce", lambda flag, **kwargs: flag.fill_(signal.SIGTERM))
    stop = StopRequest()
    with stop.listening():
        stop.begun = True
        assert stop.requested_anywhere()
        os.kill(os.getpid(), signal.SIGTERM)
        assert exits == []
        now[0] += 1.5
        os.kill(os.getpid(), signal.SIGTERM)
    assert exits == [128 + signal.SIGTERM]


def test_a_signal_before_there_is_anything_to_save_ends_at_once(capfd: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(TrainingInterrupted) as end, StopRequest().listening():
        os.kill(os.getpid(), signal.SIGINT)
    assert end.value.code == 130
    assert "Ctrl-C: stopped before the first step; nothing is lost" in capfd.readouterr().err


@pytest.mark.parametrize(
    ("number", "status"), [(signal.SIGTERM, 0), (signal.SIGUSR1, 0), (signal.SIGINT, 130)]
)
def test_a_signal_outside_training_ends_the_program_with_one_line(
    number: int, status: int, capfd: pytest.CaptureFixture[str]
) -> None:
    before = signal.getsignal(number)
    with exit_on_signal("nothing yet") as leave:
        leave.state = "all is saved"
        with pytest.raises(TrainingInterrupted) as end:
            os.kill(os.getpid(), number)
    assert end.value.code == status
    assert capfd.readouterr().err.endswith(": all is saved\n")
    assert signal.getsignal(number) is before


def test_a_launcher_that_dies_is_a_signal(monkeypatch: pytest.MonkeyPatch) -> None:
    stop = StopRequest()
    with stop.listening():
        stop.launcher = os.getppid()
        assert not stop.requested
        stop.launcher = 2**22 + 1
        assert stop.requested_anywhere()
    assert stop.exit_code == 0


def test_in_a_thread_signals_are_left_alone() -> None:
    handlers: list[object] = []

    def listen() -> None:
        with StopRequest().listening():
            handlers.append(signal.getsignal(signal.SIGTERM))

    before = signal.getsignal(signal.SIGTERM)
    thread = threading.Thread(target=listen)
    thread.start()
    thread.join()
    assert handlers == [before]
