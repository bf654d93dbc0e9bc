"""Runs in processes of their own: killed, torn, interrupted, continued, and spread over two ranks.

A continued run must end with the very bytes of one that was never stopped.
"""

from __future__ import annotations

import json
import multiprocessing
import os
import signal
import socket
import sys
from multiprocessing import forkserver
from pathlib import Path
from typing import Any

import pytest
from safetensors.torch import load_file

TESTS = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(TESTS / "training"))

import tiny_run  # noqa: E402

from craft.training.logging import read_metrics  # noqa: E402

TIMES = ("elapsed", "wall", "chars_per_second", "eval_runtime", "train_runtime")
processes = multiprocessing.get_context("forkserver")


@pytest.fixture(scope="module", autouse=True)
def imported_once() -> None:
    """The server that all processes are forked from imports torch and craft first, and only it."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("PYTHONPATH", os.pathsep.join([str(TESTS / "training"), str(TESTS.parent)]))
        processes.set_forkserver_preload(["tiny_run"])
        forkserver.ensure_running()


def launch(kind: str, output_dir: Path, world: int = 1, **spec: Any) -> list[int | None]:
    """Runs `tiny_run.run` in `world` processes and gives their exit codes."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    started = []
    for rank in range(world):
        keywords = {**spec, "rank": rank, "world": world, "port": port}
        started.append(processes.Process(target=tiny_run.run, args=(kind, str(output_dir)), kwargs=keywords))
        started[-1].start()
    for process in started:
        process.join(timeout=120)
    codes = [process.exitcode for process in started]
    for process in started:
        process.kill()
    return codes


def final(run_dir: Path, step: int = 20) -> dict[str, str]:
    """What must be equal at the end, as hashes: weights, averages, optimizer, generators, carried states."""
    folder = run_dir / f"checkpoint-{step}"
    manifest = json.loads((folder / "manifest.json").read_text())["files"]
    kept = {name: entry["sha256"] for name, entry in manifest.items() if name.endswith(".safetensors")}
    assert not list(folder.glob("*.pt*"))
    return kept


def events(run_dir: Path) -> list[dict[str, Any]]:
    """`metrics.jsonl` without what a clock decides."""
    timed = [{k: v for k, v in e.items() if k not in TIMES} for e in read_metrics(run_dir)]
    return [{k: v for k, v in e.items() if not k.endswith("_per_second")} for e in timed]


HARD = {"dropout": 0.2, "gradient_accumulation_steps": 2, "ema_decay": 0.9}


@pytest.mark.parametrize(
    ("kind", "optim"),
    [("char_lstm", "adamw_torch_fused"), ("char_lstm", "muon"), ("char_transformer", "adamw_torch_fused")],
)
def test_a_killed_run_ends_like_one_that_was_not(tmp_path: Path, kind: str, optim: str) -> None:
    """SIGKILL in the second epoch, between saves and between logs; then while a checkpoint is written."""
    whole, killed = tmp_path / "whole", tmp_path / "killed"
    spec = {**HARD, "optim": optim}
    assert launch(kind, whole, **spec) == [0]
    assert launch(kind, killed, signal_at=(18, signal.SIGKILL), **spec) == [-signal.SIGKILL]
    assert max(e["step"] for e in events(killed)) == 15
    assert launch(kind, killed, resume=True, kill_in_save=20, **spec) == [-signal.SIGKILL]
    assert [p.name for p in killed.glob(".staging-*")] == [".staging-checkpoint-20"]
    assert not (killed / "checkpoint-20").exists()
    assert launch(kind, killed, resume=True, **spec) == [0]
    assert [path.name for path in killed.glob(".*")] == [".lock"]
    assert final(killed) == final(whole)
    assert events(killed) == events(whole)


def test_a_kill_in_the_first_epoch_and_at_its_end(tmp_path: Path) -> None:
    """Resumed from step 4, and from the last step of an epoch, where generators are restored elsewhere."""
    whole, killed = tmp_path / "whole", tmp_path / "killed"
    spec = {**HARD, "save_steps": 4, "optim": "muon"}
    assert launch("char_transformer", whole, **spec) == [0]
    assert launch("char_transformer", killed, signal_at=(7, signal.SIGKILL), **spec) == [-signal.SIGKILL]
    assert launch("char_transformer", killed, resume=True, signal_at=(18, signal.SIGKILL), **spec) != [0]
    assert (killed / f"checkpoint-{tiny_run.STEPS_PER_EPOCH}").is_dir()
    assert launch("char_transformer", killed, resume=True, **spec) == [0]
    assert final(killed) == final(whole)


@pytest.mark.parametrize(("number", "status"), [(signal.SIGTERM, 0), (signal.SIGINT, 130)])
def test_a_signal_saves_and_the_run_goes_on_exactly(tmp_path: Path, number: int, status: int) -> None:
    whole, stopped = tmp_path / "whole", tmp_path / "stopped"
    assert launch("char_lstm", whole, **HARD) == [0]
    assert launch("char_lstm", stopped, signal_at=(6, number), **HARD) == [status]
    assert (stopped / "checkpoint-7").is_dir()
    assert all(e["step"] <= 7 for e in events(stopped))
    assert launch("char_lstm", stopped, resume=True, **HARD) == [0]
    assert final(stopped) == final(whole)
    assert events(stopped) == events(whole)


def losses(run_dir: Path) -> list[float]:
    return [e[key] for e in events(run_dir) for key in ("loss", "eval_loss") if key in e]


@pytest.mark.parametrize(("kind", "accumulation"), [("char_lstm", 2), ("char_transformer", 1)])
def test_two_processes_see_what_one_sees(tmp_path: Path, kind: str, accumulation: int) -> None:
    """The same global batch gives the same losses, carried states included, also when the run moves."""
    alone, both, moved = tmp_path / "alone", tmp_path / "both", tmp_path / "moved"
    assert launch(kind, alone) == [0]
    spec = {
        "gradient_accumulation_steps": accumulation,
        "average_tokens_across_devices": accumulation > 1,  # another way to divide, with the same result
    }
    assert launch(kind, both, world=2, **spec) == [0, 0]
    assert len(losses(alone)) == 6
    assert losses(both) == pytest.approx(losses(alone), abs=1e-5)

    # The signal reaches one rank only, and both stop.
    assert launch(kind, moved, world=2, signal_at=(9, signal.SIGTERM), signal_rank=1, **spec) == [0, 0]
    saved = [load_file(moved / "checkpoint-10" / f"rank_{rank}.safetensors") for rank in (0, 1)]
    assert any(name.startswith("carried_state.state.") for name in saved[0]) == (kind == "char_lstm")
    assert launch(kind, moved, resume=True) == [0]  # in one process, with the streams of both
    assert losses(moved) == pytest.approx(losses(alone), abs=1e-5)
