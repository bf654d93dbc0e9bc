"""Number formats: what a machine computes in."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest
import torch

from craft.utils import hardware
from craft.utils.hardware import Hardware

BF16, FP16, FP32 = torch.bfloat16, torch.float16, torch.float32


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


def test_the_processor_has_a_name() -> None:
    assert hardware.cpu_name().strip() == hardware.cpu_name() != ""
