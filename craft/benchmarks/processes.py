"""Measuring a whole process: its time from start to exit and its own peak of memory."""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import IO

from craft.benchmarks import machine
from craft.benchmarks.harness import Sample


def process(arguments: list[str], expected: int = 0) -> Callable[[], Sample]:
    """A `run` that starts this Python with `arguments`, waits for its end, and takes its peak of memory."""

    def run() -> Sample:
        with tempfile.TemporaryFile() as printed:
            start = _now()
            child = _start(arguments, printed)
            peak = _wait(child)
            end = _now()
            printed.seek(0)
            _check(child, expected, printed.read())
        sample = Sample.between(start, end, 1)
        sample.rss_peak = peak
        return sample

    return run


def process_output(arguments: list[str]) -> str:
    """What this Python prints when started with `arguments`.

    Raises:
        RuntimeError: if it fails.
    """
    child = _start(arguments, subprocess.PIPE)
    printed, _ = child.communicate()
    _check(child, 0, printed)
    return printed.decode("utf-8")


def _start(arguments: list[str], printed: int | IO[bytes]) -> subprocess.Popen[bytes]:
    # The child must find the craft that is being measured, whether that is installed or not.
    path = [str(Path(machine.__file__).parents[2]), os.environ.get("PYTHONPATH", "")]
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(filter(None, path))}
    return subprocess.Popen(
        [sys.executable, *arguments],
        env=environment,
        stdin=subprocess.DEVNULL,
        stdout=printed,
        stderr=subprocess.STDOUT,
    )


def _wait(child: subprocess.Popen[bytes]) -> int | None:
    """Wait for a process; its peak of resident memory in bytes, which only a living process tells (Linux).
    The peak in `wait4` is no use: the kernel counts into it what the parent held when it forked."""
    peak = None
    while True:
        try:
            child.wait(timeout=0.005)
            return peak
        except subprocess.TimeoutExpired:
            peak = machine.status_bytes(child.pid, "VmHWM") or peak


def _now() -> machine.Moment:
    """The clocks, that of the CPU counting the children that have ended."""
    times = os.times()
    return machine.Moment(time.perf_counter(), times.children_user + times.children_system)


def _check(child: subprocess.Popen[bytes], expected: int, printed: bytes) -> None:
    """A failure is not a measurement: raise RuntimeError on another exit status than `expected`."""
    if child.returncode != expected:
        shown = printed.decode("utf-8", "replace")
        raise RuntimeError(f"{child.args!r} ended with {child.returncode}, not {expected}:\n{shown}")
