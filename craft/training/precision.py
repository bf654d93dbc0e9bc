"""Which number format a run computes in, and why: one decision, one sentence that says how it was reached.

"auto" asks the hardware. On a CPU that multiplies bfloat16 natively it nearly halves the time of a step, if
attention is computed plainly: the backward of fused attention takes about three times as long there as in
float32, and would eat the gain.
"""

from __future__ import annotations

import os
from dataclasses import dataclass
from typing import Any

from craft.utils.common import UserError, did_you_mean

PRECISIONS = ("auto", "fp32", "bf16", "fp16")


@dataclass(frozen=True)
class Hardware:
    """What decides about precision.

    Args:
        device: "cpu", "cuda", "mps", …
        capability: compute capability of the CUDA device, otherwise None.
        native_bf16: the CPU multiplies bfloat16 matrices natively (AVX512-BF16 or AMX).
    """

    device: str
    capability: tuple[int, int] | None = None
    native_bf16: bool = False

    @classmethod
    def detect(cls, use_cpu: bool = False) -> Hardware:
        import torch

        if not use_cpu and torch.cuda.is_available():
            return cls("cuda", torch.cuda.get_device_capability())
        if not use_cpu and torch.accelerator.is_available():
            return cls(torch.accelerator.current_accelerator().type)
        native = torch.cpu._is_avx512_bf16_supported() or torch.cpu._is_amx_tile_supported()
        return cls("cpu", native_bf16=native)

    def __str__(self) -> str:
        return f"capability {'.'.join(map(str, self.capability))}" if self.capability else self.device


def choose_precision(
    requested: str,
    *,
    hardware: Hardware | None = None,
    launcher: str | None = None,
) -> tuple[str, str]:
    """The precision to train in and the reason for it.

    Args:
        requested: "auto", "fp32", "bf16" or "fp16".
        hardware: by default this machine's.
        launcher: what `accelerate launch` was told ("fp16", "bf16", "no"); by default the environment's
            ACCELERATE_MIXED_PRECISION. It decides only when `requested` is "auto".

    Returns:
        ("fp32" | "bf16" | "fp16", the reason as half a sentence).

    Raises:
        UserError: for an unknown name, or a format that this hardware would silently replace.
    """
    if requested not in PRECISIONS:
        near = did_you_mean(requested, PRECISIONS)
        raise UserError(f"training.precision={requested!r} isn't known{near}; use auto, fp32, bf16 or fp16")
    hardware = hardware or Hardware.detect()
    launcher = os.environ.get("ACCELERATE_MIXED_PRECISION", "no") if launcher is None else launcher
    on_cpu, capability = hardware.device == "cpu", hardware.capability
    if requested == "fp16" and on_cpu:
        raise UserError("training.precision=fp16 needs a GPU, and this run is on a CPU; use bf16 or fp32")
    if requested == "bf16" and capability is not None and capability < (8, 0):
        raise UserError(f"training.precision=bf16 needs a GPU of capability 8.0 (here {hardware}); use fp16")
    if requested != "auto":
        return requested, "asked for"
    if launcher in ("fp16", "bf16") and not (on_cpu and launcher == "fp16"):
        return launcher, "accelerate's mixed_precision"
    if capability is not None:
        if capability >= (8, 0):
            return "bf16", f"the GPU has {hardware}"
        if capability >= (7, 0):
            return "fp16", f"the GPU has {hardware}: float16 tensor cores, no bfloat16"
        return "fp32", f"the GPU has {hardware}: no tensor cores"
    if on_cpu:
        # The launcher's file serves every machine; without a GPU the run is the one `craft train` would do.
        aside = "accelerate's fp16 doesn't exist on a CPU; " if launcher == "fp16" else ""
        if hardware.native_bf16:
            return "bf16", f"{aside}this CPU multiplies bfloat16 natively"
        return "fp32", f"{aside}this CPU doesn't multiply bfloat16 natively"
    return "fp32", f"the safe choice on {hardware}"


def suit_attention(model: Any, precision: str, *, on_cpu: bool) -> None:
    """Exchanges fused attention for plain attention where it is slower: in bfloat16 on a CPU."""
    if on_cpu and precision == "bf16" and getattr(model.config, "_attn_implementation", None) == "sdpa":
        model.set_attn_implementation("eager")
