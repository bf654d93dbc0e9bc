"""Which number format a run computes in, and why: one decision, one sentence that says how it was reached.

"auto" asks the hardware. Kinds of models differ only on a CPU: bfloat16 halves the time of an LSTM there
(its matrix products dominate and run natively) but slows attention down (the backward of fused attention
takes about three times as long as in float32), so only recurrent models get it.
"""

from __future__ import annotations

import os
from dataclasses import dataclass

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
    recurrent: bool,
    hardware: Hardware | None = None,
    launcher: str | None = None,
) -> tuple[str, str]:
    """The precision to train in and the reason for it.

    Args:
        requested: "auto", "fp32", "bf16" or "fp16".
        recurrent: the model is recurrent (its class has `carries_state = True`).
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
    # The launcher's file serves every machine; without a GPU the run is the one that `craft train` would do.
    aside = "accelerate's fp16 doesn't exist on a CPU; " if on_cpu and launcher == "fp16" else ""
    if on_cpu and recurrent:
        if hardware.native_bf16:
            return "bf16", f"{aside}this CPU multiplies bfloat16 natively and the model is recurrent"
        return "fp32", f"{aside}this CPU doesn't multiply bfloat16 natively"
    return "fp32", f"{aside}the fastest for this model on {hardware}"
