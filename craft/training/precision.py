"""Which number format a run computes in, and why: one decision, one sentence that says how it was reached.

"auto" asks the hardware. On a CPU that multiplies bfloat16 natively it nearly halves the time of a step, if
attention is computed plainly: the backward of fused attention takes about three times as long there as in
float32, and would eat the gain.
"""

from __future__ import annotations

import os
from typing import Any

from craft.utils.common import did_you_mean
from craft.utils.errors import UserError
from craft.utils.hardware import Hardware

PRECISIONS = ("auto", "fp32", "bf16", "fp16")
ASKED, LAUNCHED = "asked for", "accelerate's mixed_precision"
"""The reasons that are somebody's wish, not a choice that suits the hardware."""


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
        raise UserError(
            "training.precision=fp16 needs a GPU, and this run is on a CPU; use training.precision=auto"
        )
    if requested == "bf16" and capability is not None and capability < (8, 0):
        raise UserError(f"training.precision=bf16 needs a GPU of capability 8.0 (here {hardware}); use fp16")
    if requested != "auto":
        return requested, ASKED
    if launcher in ("fp16", "bf16") and not (on_cpu and launcher == "fp16"):
        return launcher, LAUNCHED
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
