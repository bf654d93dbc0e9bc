"""The machine: its processor, and which number formats it computes in.

What a processor doesn't compute in natively, libraries emulate: the results are those of the format, the time
may be thirty times that of float32.
"""

from __future__ import annotations

import platform
from dataclasses import dataclass
from pathlib import Path
from typing import Any


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
