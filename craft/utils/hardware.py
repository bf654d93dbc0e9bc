"""The machine: its processor, which number formats it computes in, and a trial of one.

What a processor doesn't compute in natively, libraries emulate: the results are those of the format, the time
may be thirty times that of float32. Some kernels have no emulation and fail.
"""

from __future__ import annotations

import copy
import math
import platform
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from craft.utils.errors import UserError, first_line
from craft.utils.logging import get_logger

logger = get_logger(__name__)

TRIAL_FLOPS = 1e9
SLOW = 1.5


@dataclass(frozen=True)
class Hardware:
    """What decides about number formats.

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

        device = None if use_cpu else torch.accelerator.current_accelerator(check_available=True)
        if device is None:
            return cls("cpu", native_bf16=bool(bf16_instructions()))
        return cls(device.type, torch.cuda.get_device_capability() if device.type == "cuda" else None)

    def computes_in(self, dtype: Any) -> bool:
        """Whether `dtype` (of torch) is worth computing in: native, or not known to be emulated."""
        import torch

        if dtype == torch.bfloat16 and self.device in ("cpu", "cuda"):
            return self.native_bf16 or (self.capability or (0, 0)) >= (8, 0)
        return dtype != torch.float16 or self.device != "cpu"

    def __str__(self) -> str:
        return f"capability {'.'.join(map(str, self.capability))}" if self.capability else self.device


def cpu_name() -> str:
    """The processor as Linux calls it, for example `AMD EPYC`; elsewhere as Python does."""
    info = Path("/proc/cpuinfo")
    lines = info.read_text(encoding="utf-8").splitlines() if info.exists() else []
    names = [line.partition(": ")[2] for line in lines if line.startswith("model name")]
    return names[0] if names else platform.processor() or platform.machine()


def bf16_instructions() -> list[str]:
    """The instructions by which this CPU multiplies bfloat16, as far as oneDNN may use them."""
    import torch

    known = {"_is_avx512_bf16_supported": "AVX512-BF16", "_is_amx_tile_supported": "AMX"}
    found = [name for test, name in known.items() if getattr(torch.cpu, test, lambda: False)()]
    # torch asks the processor; ONEDNN_MAX_CPU_ISA, or a build without oneDNN, may leave what it has unused.
    usable = torch.backends.mkldnn.is_available() and torch.ops.mkldnn._is_mkldnn_bf16_supported()
    return found if usable else []


def try_format(setting: str, model: Any, autocast_to: Any = None, *, backward: bool = False) -> None:
    """Runs copies of a model on a few ids, in a number format and in float32, before anything depends on it.

    Warns, with the ratio, if the format takes more than 1.5 times as long as float32.

    Args:
        setting: how the format was asked for, `training.precision=bf16`.
        autocast_to: the format (of torch) of autocast; by default that of the weights is tried.
        backward: compute gradients, too.

    Raises:
        UserError: if this machine or model can't compute in the format.
    """
    import torch

    name = setting.rpartition("=")[0]
    instead = f"use {name}=float32" if name.endswith("dtype") else "use training.precision=fp32, or auto"
    rows = int(min(64, max(2, TRIAL_FLOPS / (8 * 6 * model.num_parameters()))))
    ids = torch.zeros(rows, 8, dtype=torch.long, device=model.device)

    def seconds(tried: Any, dtype: Any) -> float:
        best = math.inf
        for _ in range(2):  # the first also pays for what is set up once
            start = time.perf_counter()
            with (
                torch.set_grad_enabled(backward),
                torch.autocast(ids.device.type, dtype, enabled=dtype is not None),
            ):
                result = tried(ids).logits.float().mean()
            if backward:
                result.backward()
            if torch.accelerator.is_available():
                torch.accelerator.synchronize()
            best = min(best, time.perf_counter() - start)
        return best

    with torch.random.fork_rng():
        usual = seconds(copy.deepcopy(model).float(), None)
        try:
            took = seconds(copy.deepcopy(model), autocast_to)
        except Exception as error:  # of any kernel
            reason = first_line(error)[:200]
            raise UserError(
                f"{setting} doesn't work on this machine ({reason}); {instead}", code="machine-unable"
            ) from error
    if took > SLOW * usual:
        logger.warning(
            f"{setting} takes {took / usual:.1f} times as long as float32 on this machine; {instead}"
        )
