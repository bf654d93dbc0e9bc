"""What a measurement was taken on: hardware, versions, commit, and how much memory the process has held.

Linux lets a process reset its own peak of resident memory, so each measurement has its own peak; elsewhere
the peak is that of the whole process so far. torch is looked at only if something else has imported it.
"""

from __future__ import annotations

import os
import platform
import subprocess
import sys
import time
from contextlib import suppress
from importlib import metadata
from pathlib import Path
from typing import Any, NamedTuple

PACKAGES = ("craft-lm", "torch", "transformers", "tokenizers", "datasets", "accelerate", "numpy")

# Dense half-precision peak of one device in FLOP/s, from the vendors' data sheets (without sparsity), the
# longest matching name wins. It is the usual denominator of MFU, whatever the precision of the run.
HALF_PRECISION_PEAK = {
    "B200": 2250e12, "GH200": 989e12, "H200": 989e12, "H100": 989e12, "H100 PCIe": 756e12, "A100": 312e12,
    "L40S": 362e12, "L4": 121e12, "A10": 125e12, "V100": 125e12, "T4": 65e12,
    "RTX 4090": 165e12, "RTX 3090": 71e12,
}  # fmt: skip


def cuda() -> Any | None:
    """`torch.cuda` if torch has been imported and sees a device, else None."""
    torch = sys.modules.get("torch")
    return torch.cuda if torch is not None and torch.cuda.is_available() else None


def cpu_name() -> str:
    """The processor as the system calls it, for example `AMD EPYC`."""
    try:
        for line in Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines():
            if line.startswith("model name"):
                return line.split(":", 1)[1].strip()
    except OSError:
        pass
    if sys.platform == "darwin":
        found = _output(["sysctl", "-n", "machdep.cpu.brand_string"])
        if found:
            return found
    return platform.processor() or platform.machine()


def usable_cores() -> int:
    """Cores this process may run on, which in a container can be fewer than the machine has."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def hardware_name() -> str:
    """One short name for file names and titles: the GPU if there is one, else `{cpu}-{cores}c`."""
    gpu = cuda()
    return gpu.get_device_name() if gpu else f"{cpu_name()}-{usable_cores()}c"


def peak_flops(device_name: str) -> float | None:
    """The half-precision peak of a GPU in FLOP/s; None if its name isn't in the table."""
    known = [name for name in HALF_PRECISION_PEAK if name.lower() in device_name.lower()]
    return HALF_PRECISION_PEAK[max(known, key=len)] if known else None


def commit() -> dict[str, Any] | None:
    """`{"id", "modified"}` of the checkout craft runs from; None if this craft isn't tracked by git."""
    package = Path(__file__).resolve().parent.parent
    # An environment inside somebody's repository isn't a checkout of craft: ask for the file, not for the
    # folder.
    if _output(["git", "ls-files", "__init__.py"], package) != "__init__.py":
        return None
    changes = _output(["git", "status", "--porcelain", "--untracked-files=no", "."], package)
    return {"id": _output(["git", "rev-parse", "HEAD"], package), "modified": bool(changes)}


def describe() -> dict[str, Any]:
    """Hardware, versions and commit, as they go into the JSON of a report."""
    torch, gpu = sys.modules.get("torch"), cuda()
    versions = {"python": platform.python_version()}
    for package in PACKAGES:
        try:
            versions[package] = metadata.version(package)
        except metadata.PackageNotFoundError:
            continue
    return {
        "hardware": {
            "name": hardware_name(),
            "cpu": cpu_name(),
            "cores": usable_cores(),
            "threads": torch.get_num_threads() if torch else None,
            "gpu": gpu.get_device_name() if gpu else None,
            "system": platform.platform(),
        },
        "versions": versions,
        "commit": commit(),
    }


class Moment(NamedTuple):
    """Both clocks, in seconds: the wall's, and the CPU time of all threads of this process."""

    wall: float
    cpu: float


def now() -> Moment:
    """The time once the GPU, if there is one, has finished what it was given."""
    gpu = cuda()
    if gpu:
        gpu.synchronize()
    return Moment(time.perf_counter(), time.process_time())


def rss() -> int | None:
    """Resident memory of this process now, in bytes; None where the system doesn't tell."""
    return status_bytes("self", "VmRSS")


def reset_peak() -> None:
    """Start a new peak of resident (Linux) and of CUDA memory."""
    with suppress(OSError):
        Path("/proc/self/clear_refs").write_text("5", encoding="ascii")
    gpu = cuda()
    if gpu:
        gpu.reset_peak_memory_stats()


def peak_rss() -> int | None:
    """The peak of resident memory since `reset_peak`, in bytes (of the whole process where it can't be
    reset)."""
    peak = status_bytes("self", "VmHWM")
    if peak is not None:
        return peak
    try:
        import resource
    except ImportError:  # Windows
        return None
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)


def peak_cuda() -> int | None:
    """The peak of allocated CUDA memory since `reset_peak`, in bytes; None without CUDA."""
    gpu = cuda()
    return gpu.max_memory_allocated() if gpu else None


def status_bytes(pid: int | str, field: str) -> int | None:
    """A memory field of `/proc/{pid}/status` in bytes; None once the process has gone or without /proc."""
    try:
        for line in Path(f"/proc/{pid}/status").read_text(encoding="utf-8").splitlines():
            if line.startswith(field + ":"):
                return int(line.split()[1]) * 1024
    except OSError:
        pass
    return None


def _output(command: list[str], folder: Path | None = None) -> str | None:
    """What a command prints, stripped; None if it fails or doesn't exist."""
    try:
        done = subprocess.run(command, cwd=folder, capture_output=True, text=True, timeout=10)
    except (OSError, subprocess.TimeoutExpired):
        return None
    return done.stdout.strip() if done.returncode == 0 else None
