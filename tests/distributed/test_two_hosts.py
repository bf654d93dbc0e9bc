"""Two hosts, each with an address of its own, train one model; they are killed, cut off and started again."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from hosts import Hosts, two_hosts

SETTINGS = [
    *("a.txt", "models=transformer", "models.hidden_size=16", "models.num_attention_heads=2"),
    *("models.dropout=0.1", "data.block_size=16", "training.precision=fp32", "training.report_to=none"),
    *("training.global_batch_size=4", "training.max_steps=120", "training.logging_steps=5"),
    *("training.eval_steps=60", "training.save_steps=10", "training.sample_chars=0"),
]


@pytest.fixture
def hosts(tmp_path: Path) -> Iterator[Hosts]:
    text = "".join(f"the quick brown fox {i} jumps over the lazy dog\n" for i in range(60))
    (tmp_path / "a.txt").write_text(text)
    os.environ["CRAFT_CACHE"] = str(tmp_path / "cache")
    with two_hosts(tmp_path) as made:
        yield made
    del os.environ["CRAFT_CACHE"]


def steps(hosts: Hosts, *outputs: str) -> list[dict[str, Any]]:
    """The lines of logged steps that were printed so far."""
    lines = [line for name in outputs for line in (hosts.folder / f"{name}.out").read_text().splitlines()]
    return [json.loads(line) for line in lines if line.startswith('{"step"')]


def final(hosts: Hosts, *outputs: str) -> str:
    (line,) = (
        line
        for name in outputs
        for line in (hosts.folder / f"{name}.out").read_text().splitlines()
        if line.startswith("FINAL ")
    )
    return line


def said(hosts: Hosts, output: str) -> str:
    return (hosts.folder / f"{output}.err").read_text()


def wait_for(condition: Callable[[], Any], *running: subprocess.Popen[str]) -> None:
    deadline = time.monotonic() + 240
    while not condition():
        assert all(process.poll() is None for process in running)
        assert time.monotonic() < deadline
        time.sleep(0.1)


def finish(*running: subprocess.Popen[str]) -> list[int]:
    return [process.wait(timeout=240) for process in running]


def test_two_hosts_train_like_one_process(hosts: Hosts) -> None:
    words = [*SETTINGS, "models.dropout=0", "training.max_steps=20", "training.eval_steps=10"]
    both = [hosts.launch(host, *words, "training.output_dir=both", output=f"host{host}") for host in (0, 1)]
    alone = ("-m", "craft", "train", *words, "training.output_dir=one")
    one = hosts.start(0, sys.executable, *alone, output="one")
    assert finish(*both, one) == [0, 0, 0], said(hosts, "host0") + said(hosts, "one")
    single, shared = steps(hosts, "one"), steps(hosts, "host0")
    assert [line["step"] for line in shared] == [5, 10, 15, 20]
    for name in ("loss", "eval_loss"):
        expected = [line[name] for line in single if name in line]
        assert [line[name] for line in shared if name in line] == pytest.approx(expected, abs=1e-5)
    assert final(hosts, "host0")
    assert (hosts.folder / "host1.out").read_text() == ""  # the first process speaks for all
    assert "step 20/20" not in said(hosts, "host1")
    assert sorted(path.name for path in hosts.folder.glob("both*")) == ["both", "both_step_20"]


@pytest.mark.chaos
def test_killed_workers_and_hosts_and_a_short_cut_change_nothing(hosts: Hosts) -> None:
    """Four runs of the same command end with the same weights, whatever happens to them on the way."""

    def begin(name: str) -> list[subprocess.Popen[str]]:
        words = [*SETTINGS, f"training.output_dir={name}"]
        both = [hosts.launch(host, *words, output=f"{name}{host}", c10d=True) for host in (0, 1)]
        if name != "whole":
            wait_for(lambda: len(steps(hosts, f"{name}0", f"{name}1")) >= 5, *both)
        return both

    assert finish(*begin("whole")) == [0, 0]
    expected = final(hosts, "whole0", "whole1")

    both = begin("blip")
    hosts.cable("down")
    time.sleep(5)
    hosts.cable("up")
    assert finish(*both) == [0, 0]
    assert final(hosts, "blip0", "blip1") == expected
    assert "missing" not in said(hosts, "blip0") + said(hosts, "blip1")

    both = begin("worker")
    os.kill(hosts.workers(1)[0], signal.SIGKILL)
    assert finish(*both) == [0, 0]
    assert final(hosts, "worker0", "worker1") == expected
    assert "resuming from worker/checkpoint-" in said(hosts, "worker0") + said(hosts, "worker1")

    both = begin("host")
    hosts.kill(both[1])
    again = hosts.launch(1, *SETTINGS, "training.output_dir=host", output="host2", c10d=True)
    assert finish(both[0], again) == [0, 0]
    assert final(hosts, "host0", "host2") == expected


@pytest.mark.chaos
def test_a_cut_link_ends_in_a_sentence_on_both_hosts(hosts: Hosts) -> None:
    words = [*SETTINGS, "training.max_steps=100000", "training.output_dir=cut", "training.ddp_timeout=6"]
    both = [hosts.launch(host, *words, output=f"host{host}") for host in (0, 1)]
    wait_for(lambda: len(steps(hosts, "host0")) >= 5, *both)
    hosts.cable("down")
    assert finish(*both) == [1, 1]
    assert f"rank 0: rank 1 (on {hosts.names[1]}) " in said(hosts, "host0")
    assert f"rank 1: rank 0 (at {hosts.addresses[0]}) " in said(hosts, "host1")
    for host in ("host0", "host1"):
        assert said(hosts, host).count("error: ") == 1
