from __future__ import annotations

import os
import signal
import threading

import pytest
import torch

from craft.training.signals import StopRequest


@pytest.mark.parametrize(("number", "status"), [(signal.SIGTERM, 0), (signal.SIGINT, 130)])
def test_a_signal_asks_to_stop(number: int, status: int, capfd: pytest.CaptureFixture[str]) -> None:
    before = signal.getsignal(number)
    stop = StopRequest()
    with stop.listening():
        assert not stop.agreed()
        os.kill(os.getpid(), number)
        os.kill(os.getpid(), number)  # at once: the same keystroke, told by terminal and launcher
        assert stop.agreed()
    assert stop.exit_code == status
    assert signal.getsignal(number) is before
    assert capfd.readouterr().err.count("finishing this step and saving") == 1
    with stop.listening():
        assert not stop.agreed()


def test_a_later_signal_exits_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    exits: list[int] = []
    now = [10.0]
    monkeypatch.setattr("time.monotonic", lambda: now[0])
    monkeypatch.setattr(os, "_exit", exits.append)
    with StopRequest().listening():
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
        assert not stop.agreed()  # the others were told 0 for this process; they learn of it a step later
        assert stop.agreed()
    assert stop.signum == signal.SIGTERM


def test_the_first_own_signal_after_another_process_was_asked(monkeypatch: pytest.MonkeyPatch) -> None:
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
        assert stop.agreed()
        os.kill(os.getpid(), signal.SIGTERM)
        assert exits == []
        now[0] += 1.5
        os.kill(os.getpid(), signal.SIGTERM)
    assert exits == [128 + signal.SIGTERM]


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
