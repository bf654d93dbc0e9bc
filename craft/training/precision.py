"""Which number format a run computes in, and why: one decision, one sentence that says how it was reached.

"auto" asks the hardware. On a CPU that multiplies bfloat16 natively it nearly halves the time of a step, if
attention is computed plainly: the backward of fused attention takes about three times as long there as in
float32, and would eat the gain.
"""

from __future__ import annotations

import os
from typing import Any

from craft.utils.errors import UserError
from craft.utils.hardware import Hardware, try_format

ASKED, LAUNCHED = "asked for", "accelerate's mixed_precision"
PRECISIONS = ("auto", "fp32", "bf16", "fp16")


def choose_precision(
    requested: str,
    *,
    hardware: Hardware | None = None,
    launcher: str | None = None,
) -> tuple[str, str]:
    """Chooses the precision to train in.

    Args:
        requested: one of `PRECISIONS`.
        hardware: by default this machine's.
        launcher: what `accelerate launch` was told ("fp16", "bf16", "no"); by default the environment's
            ACCELERATE_MIXED_PRECISION. It decides only when `requested` is "auto".

    Returns:
        ("fp32" | "bf16" | "fp16", the reason as half a sentence).

    Raises:
        UserError: for a format that this hardware would silently replace.
    """
    hardware = hardware or Hardware.detect()
    launcher = os.environ.get("ACCELERATE_MIXED_PRECISION", "no") if launcher is None else launcher
    on_cpu, capability = hardware.device == "cpu", hardware.capability
    if (requested == "fp16" and on_cpu) or (requested == "bf16" and (capability or (8, 0)) < (8, 0)):
        needs = "a GPU" if requested == "fp16" else "a GPU of capability 8.0"
        raise UserError(
            f"training.precision={requested} needs {needs}, and this run is on: {hardware}; use "
            "training.precision=auto",
            code="machine-unable",
        )
    if requested != "auto":
        return requested, ASKED
    if launcher in ("fp16", "bf16") and not (on_cpu and launcher == "fp16"):
        return launcher, LAUNCHED
    if on_cpu:
        # The launcher's file serves every machine; without a GPU the run is the one `craft train` would do.
        aside = "accelerate's fp16 doesn't exist on a CPU; " if launcher == "fp16" else ""
        if hardware.native_bf16:
            return "bf16", f"{aside}this CPU multiplies bfloat16 natively"
        return "fp32", f"{aside}this CPU doesn't multiply bfloat16 natively"
    if capability and capability >= (7, 0):
        return ("bf16" if capability >= (8, 0) else "fp16"), f"the fastest of a GPU of {hardware}"
    return "fp32", f"the safe choice on {hardware}"


def suit_attention(model: Any, precision: str, *, on_cpu: bool) -> None:
    """Exchanges fused attention for plain attention where it is slower: in bfloat16 on a CPU."""
    if on_cpu and precision == "bf16" and getattr(model.config, "_attn_implementation", None) == "sdpa":
        model.set_attn_implementation("eager")


def try_precision(model: Any, args: Any) -> None:
    """Tries the number format that somebody asked for; what the hardware suggested needs no trial.

    Raises:
        UserError: if this machine or model can't take it.
    """
    import torch

    formats = {"bf16": torch.bfloat16, "fp16": torch.float16}
    if model.dtype in formats.values():
        try_format(f"models.dtype={str(model.dtype)[6:]}", model, backward=True)
    elif args.precision in formats and args.precision_reason in (ASKED, LAUNCHED):
        setting = "training.precision" if args.precision_reason == ASKED else LAUNCHED
        try_format(f"{setting}={args.precision}", model, formats[args.precision], backward=True)
