"""`craft doctor`: does everything that craft needs work on this machine?"""

from __future__ import annotations

import os
import platform
import sys
import time
from collections.abc import Callable, Iterator
from functools import partial
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

import click

from craft.utils.terminal import echo

PACKAGES = (
    "craft-lm",
    "torch",
    "transformers",
    "datasets",
    "accelerate",
    "tokenizers",
    "evaluate",
    "huggingface_hub",
)
OTHERS = ("safetensors", "numpy", "hydra-core", "omegaconf", "click", "wandb", "matplotlib")
TEXT = "Hello, wörld!\r\n\t🙂 e\u0301\n"
Check = tuple[str, Callable[[], str]]


@click.command("doctor")
@click.option("--quick", is_flag=True, help="Skip torch.compile, which takes up to a minute.")
def command(quick: bool) -> None:
    """Check that everything craft needs works on this machine.

    Prints versions, devices and number formats, then runs each part once: tokenizers, every model forward,
    backward and generating, torch.compile. Ends with status 1 if something fails.
    """
    for name, value in facts():
        echo(f"{name:<24} {value}")
    echo()
    failed = 0
    for name, check in checks(quick):
        start = time.perf_counter()
        try:
            result, mark = check(), "ok"
        except Exception as error:
            failed += 1
            result, mark = f"{type(error).__name__}: {' '.join(str(error).split())[:200]}", "FAILED"
        echo(f"{name:<24} {mark:<7} {time.perf_counter() - start:6.2f} s  {result}")
    echo(f"\n{failed} of the checks failed" if failed else "\neverything works")
    sys.exit(1 if failed else 0)


def facts() -> Iterator[tuple[str, str]]:
    """What is installed, and what the machine has."""
    yield "python", f"{platform.python_version()} ({platform.python_implementation()}, {sys.executable})"
    yield "system", f"{platform.system()} {platform.release()}, {platform.machine()}"
    for package in (*PACKAGES, *OTHERS):
        try:
            yield package, version(package)
        except PackageNotFoundError:
            yield (
                package,
                "not installed" if package != "matplotlib" else "not installed (only needed for plots)",
            )
    import torch

    from craft.utils.hardware import cpu_name

    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    threads = torch.get_num_threads()
    used = f"{cores} core{'s' * (cores != 1)} for this process, {threads} thread{'s' * (threads != 1)}"
    yield "processor", f"{cpu_name()}, {used}"
    yield "instructions", torch.backends.cpu.get_cpu_capability()
    yield "number formats", _formats()
    for index in range(torch.cuda.device_count()):
        device = torch.cuda.get_device_properties(index)
        memory = f"{device.total_memory / 2**30:.0f} GiB"
        yield f"cuda:{index}", f"{device.name}, {memory}, capability {device.major}.{device.minor}"
    if torch.backends.mps.is_available():
        yield "mps", "Apple GPU"
    elif not torch.cuda.is_available():
        yield "gpu", "none found"


def _formats() -> str:
    """What the processor computes in natively, and what that means for training on it."""
    from craft.utils.hardware import bf16_instructions

    if found := bf16_instructions():
        return f"float32, and bfloat16 by {' and '.join(found)}: training.precision=auto is bf16 on the CPU"
    return "float32; bfloat16 is imitated, up to 30 times slower: training.precision=auto is fp32 on the CPU"


def checks(quick: bool) -> Iterator[Check]:
    """Every check with its name; a check says what it saw, or raises."""
    import torch

    device = (
        torch.accelerator.current_accelerator() if torch.accelerator.is_available() else torch.device("cpu")
    )
    assert device is not None
    for dtype in (torch.float32, torch.bfloat16, torch.float16):
        yield f"{str(dtype)[6:]} on {device.type}", partial(_multiply, device, dtype)
    yield "tokenizers", _tokenizers
    from craft.config.fields import model_types

    for model_type in model_types():
        yield model_type, partial(_model, model_type, device)
    yield "outputs folder", _outputs
    if not quick:
        yield "torch.compile", partial(_compile, device)


def _multiply(device: object, dtype: object) -> str:
    """Matrix products, timed trivially: it shows which format is slow here, not how fast training is."""
    import torch

    size = 256
    a = torch.randn(size, size, device=device, dtype=dtype)
    float((a @ a).sum())
    start, repeats = time.perf_counter(), 3
    for _ in range(repeats):
        product = a @ a
    if not torch.isfinite(product.float()).all():
        raise ArithmeticError("a product of normal numbers is not finite")
    return f"{2 * size**3 * repeats / (time.perf_counter() - start) / 1e9:.0f} GFLOP/s"


def _tokenizers() -> str:
    from craft.data.tokenization import ByteTokenizer, CharTokenizer

    for tokenizer in (CharTokenizer.train([TEXT]), ByteTokenizer.create()):
        ids = tokenizer.encode_ids(TEXT).tolist()
        if ids != tokenizer(TEXT).input_ids:
            raise ValueError(
                f"{type(tokenizer).__name__}: the fast path and the tokenizer give different ids"
            )
        if tokenizer.decode(ids) != TEXT:
            raise ValueError(f"{type(tokenizer).__name__}: {tokenizer.decode(ids)!r} came back for {TEXT!r}")
    return "characters and bytes come back as they were"


def _model(model_type: str, device: object) -> str:
    import torch
    from transformers import AutoConfig, AutoModelForCausalLM

    import craft.models  # noqa: F401  (makes craft's classes known to AutoModel)

    torch.manual_seed(0)
    sizes = {"vocab_size": 64, "hidden_size": 32, "num_hidden_layers": 2, "max_position_embeddings": 32}
    model = AutoModelForCausalLM.from_config(AutoConfig.for_model(model_type, **sizes)).to(device)
    ids = torch.randint(4, 64, (2, 17), device=device)
    loss = model(input_ids=ids[:, :-1], labels=ids[:, 1:], shift_labels=ids[:, 1:]).loss
    loss.backward()
    if not all(p.grad is not None and torch.isfinite(p.grad).all() for p in model.parameters()):
        raise ArithmeticError("a gradient is missing or not finite")
    model.eval()
    written = model.generate(ids[:1, :4], max_new_tokens=8, min_new_tokens=8, do_sample=False, pad_token_id=0)
    if written.shape != (1, 12):
        raise ValueError(f"generate() returned a shape of {tuple(written.shape)} instead of (1, 12)")
    return f"loss {loss.item():.3f}, backward, 8 characters generated"


def _outputs() -> str:
    from craft.utils.outputs import OUTPUTS

    folder = OUTPUTS if OUTPUTS.is_dir() else Path.cwd()
    if not os.access(folder, os.W_OK):
        raise PermissionError(f"{folder.resolve()} is not writable")
    return f"{folder.resolve()} is writable"


def _compile(device: object) -> str:
    import torch

    x = torch.randn(64, device=device)
    plain = torch.nn.functional.gelu(x) * 2
    if not torch.allclose(torch.compile(lambda x: torch.nn.functional.gelu(x) * 2)(x), plain, atol=1e-5):
        raise ArithmeticError("compiled and plain code give different numbers")
    return "compiles, same numbers"
