"""`craft doctor`: does everything that craft needs work on this machine?"""

from __future__ import annotations

import os
import platform
import re
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from functools import partial
from importlib.metadata import PackageNotFoundError, requires, version
from pathlib import Path

import click

from craft.utils.errors import one_line
from craft.utils.terminal import echo

TEXT = "Hello, wörld!\r\n\t🙂 e\u0301\n"
Check = tuple[str, Callable[[], str]]


@click.command("doctor")
def command() -> None:
    """Check that everything craft needs works on this machine.

    Prints versions, devices and number formats, then runs each part once: tokenizers, every model forward,
    backward and generating. Ends with status 1 if something fails.
    """
    for name, value in facts():
        echo(f"{name:<24} {value}")
    echo()
    failed = 0
    for name, check in checks():
        start = time.perf_counter()
        try:
            result, mark = check(), "ok"
        except Exception as error:
            failed += 1
            result, mark = f"{type(error).__name__}: {one_line(error)[:200]}", "FAILED"
        echo(f"{name:<24} {mark:<7} {time.perf_counter() - start:6.2f} s  {result}")
    echo(f"\n{failed} of the checks failed" if failed else "\neverything works")
    sys.exit(1 if failed else 0)


def facts() -> Iterator[tuple[str, str]]:
    """What is installed, and what the machine has."""
    yield "python", f"{platform.python_version()} ({platform.python_implementation()}, {sys.executable})"
    yield "system", f"{platform.system()} {platform.release()}, {platform.machine()}"
    with suppress(PackageNotFoundError):  # in a checkout that isn't installed
        yield "craft-lm", version("craft-lm")
        for requirement in requires("craft-lm") or ():
            if "extra ==" not in requirement:
                name = re.split(r"[^\w-]", requirement)[0]
                yield name, version(name)
    import torch

    from craft.utils.hardware import cpu_name

    threads = torch.get_num_threads()
    yield "processor", f"{cpu_name()}, {os.cpu_count()} cores, {threads} threads for this process"
    yield "instructions", torch.backends.cpu.get_cpu_capability()
    yield "number formats", _formats()
    for index in range(torch.cuda.device_count()):
        device = torch.cuda.get_device_properties(index)
        memory = f"{device.total_memory / 2**30:.0f} GiB"
        yield f"cuda:{index}", f"{device.name}, {memory}, capability {device.major}.{device.minor}"
    if not torch.cuda.is_available():
        yield "gpu", "Apple's" if torch.backends.mps.is_available() else "none found"


def _formats() -> str:
    """What the processor computes in natively, and what that means for training on it."""
    from craft.utils.hardware import bf16_instructions

    if found := bf16_instructions():
        return f"float32, and bfloat16 by {' and '.join(found)}: training.precision=auto is bf16 on the CPU"
    return "float32; bfloat16 is imitated, up to 30 times slower: training.precision=auto is fp32 on the CPU"


def checks() -> Iterator[Check]:
    """Every check with its name; a check says what it saw, or raises."""
    import torch

    from craft.config.fields import model_types

    gpu = torch.accelerator.is_available()
    device = torch.accelerator.current_accelerator() if gpu else torch.device("cpu")
    yield "tokenizers", _tokenizers
    for model_type in model_types():
        yield f"{model_type} on {device}", partial(_model, model_type, device)
    yield "outputs folder", _outputs


def _tokenizers() -> str:
    from craft.data.tokenization import ByteTokenizer, CharTokenizer

    for tokenizer in (CharTokenizer.train([TEXT]), ByteTokenizer.create()):
        ids = tokenizer.encode_ids(TEXT).tolist()
        if ids != tokenizer(TEXT).input_ids or tokenizer.decode(ids) != TEXT:
            raise ValueError(
                f"{type(tokenizer).__name__} gives {ids} and {tokenizer.decode(ids)!r} for {TEXT!r}"
            )
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

    folder = (OUTPUTS if OUTPUTS.is_dir() else Path()).resolve()
    if not os.access(folder, os.W_OK):
        raise PermissionError(f"{folder} is not writable")
    return f"{folder} is writable"
