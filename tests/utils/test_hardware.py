"""Number formats: what a processor computes in, and the trial of one."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from collections.abc import Callable
from typing import Any

import pytest
import torch
from refusals import refused

from craft.utils import hardware
from craft.utils.hardware import Hardware, try_format

BF16, FP16, FP32 = torch.bfloat16, torch.float16, torch.float32


def fails() -> None:
    raise RuntimeError("could not create a primitive\nand much more")


def measure(monkeypatch: pytest.MonkeyPatch, **times: float) -> dict[str, Callable[[], Any]]:
    """Steps whose measured times are given."""
    steps = {name: (lambda name=name: name) for name in times}
    monkeypatch.setattr(hardware, "seconds", lambda step: times[step()])
    return steps


@pytest.mark.precision
def test_only_instructions_that_onednn_may_use_count() -> None:
    """The emulation of one without bfloat16 counts, although the processor itself has it."""
    code = "from craft.utils.hardware import Hardware as h; print(h.detect(use_cpu=True).native_bf16)"
    environment = {**os.environ, "ONEDNN_MAX_CPU_ISA": "AVX2", "ATEN_CPU_CAPABILITY": "avx2"}
    done = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True)
    assert done.stdout == "False\n", done.stderr


@pytest.mark.parametrize(
    ("machine", "native"),
    [
        (Hardware("cpu"), {FP32}),
        (Hardware("cpu", native_bf16=True), {FP32, BF16}),
        (Hardware("cuda", (7, 5)), {FP32, FP16}),
        (Hardware("cuda", (8, 0)), {FP32, FP16, BF16}),
        (Hardware("mps"), {FP32, FP16, BF16}),
    ],
    ids=lambda value: str(value) if isinstance(value, Hardware) else None,
)
def test_a_device_computes_in_its_native_formats(machine: Hardware, native: set[torch.dtype]) -> None:
    assert {dtype for dtype in (FP32, BF16, FP16) if machine.computes_in(dtype)} == native


@pytest.mark.parametrize(("took", "ratio"), [(3.14, "3.1"), (1.6, "1.6"), (1.5, None), (0.5, None)])
def test_a_slow_format_gets_a_warning_with_its_ratio(
    took: float, ratio: str | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    warning = try_format("dtype=x", **measure(monkeypatch, step=took, exact=1.0), advice="use y")
    if ratio is None:
        assert warning is None
        return
    assert warning is not None
    assert all(words in warning for words in ("dtype=x", f" {ratio} times", "use y"))


def test_a_format_that_fails_is_refused_in_one_line() -> None:
    with refused("machine-unable", "dtype=x", "could not create a primitive", "use y") as caught:
        try_format("dtype=x", fails, lambda: None, "use y")
    assert "\n" not in str(caught.value)


def test_a_step_that_fails_in_float32_too_is_not_blamed_on_the_format() -> None:
    assert try_format("dtype=x", fails, fails, "use y") is None
    assert try_format("dtype=x", lambda: None, fails, "use y") is None


def test_the_first_call_which_sets_up_is_not_what_is_measured() -> None:
    waits = iter([0.2, 0.0, 0.0])
    assert hardware.seconds(lambda: time.sleep(next(waits))) < 0.1


def test_the_processor_has_a_name() -> None:
    assert hardware.cpu_name().strip() == hardware.cpu_name() != ""
