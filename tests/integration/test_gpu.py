"""What only a GPU can show: float16 and its loss scale, compilation, a real run, resuming."""

from __future__ import annotations

import importlib.util
import json
import math
import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

pytestmark = [pytest.mark.gpu, pytest.mark.skipif(not torch.cuda.is_available(), reason="needs CUDA")]

SMALL = {
    "char_lstm": ["models=char_lstm", "models.hidden_size=64"],
    "char_transformer": ["models=transformer", "models.hidden_size=64", "models.num_attention_heads=2"],
}
QUICK = [
    "training.max_steps=40",
    "training.eval_steps=20",
    "training.save_steps=20",
    "training.logging_steps=10",
    "training.global_batch_size=8",
    "data.block_size=32",
    "training.report_to=none",
    "training.sample_chars=20",
]


def craft(folder: Path, *arguments: str) -> str:
    """What `craft` showed on stdout and stderr; one GPU of however many there are."""
    environment = {**os.environ, "CRAFT_CACHE": str(folder / "cache")}
    environment.setdefault("CUDA_VISIBLE_DEVICES", "0")
    done = subprocess.run(
        [sys.executable, "-m", "craft", *arguments],
        cwd=folder,
        env=environment,
        capture_output=True,
        text=True,
        timeout=540,
    )
    assert done.returncode == 0, f"{arguments}\n{done.stdout}\n{done.stderr}"
    return done.stdout + done.stderr


def the_run(folder: Path) -> Path:
    (run,) = (p for p in (folder / "outputs" / "models").iterdir() if "_step_" not in p.name)
    return run


def finished(folder: Path) -> Path:
    (model,) = (folder / "outputs" / "models").glob("*_step_*")
    return model


def metrics(folder: Path) -> list[dict[str, Any]]:
    lines = (the_run(folder) / "metrics.jsonl").read_text(encoding="utf-8").splitlines()
    return [json.loads(line) for line in lines]


def values(folder: Path, key: str) -> list[float]:
    return [entry[key] for entry in metrics(folder) if key in entry]


@pytest.mark.parametrize("kind", list(SMALL))
@pytest.mark.parametrize("precision", ["fp16", "bf16"])
def test_half_precision_learns_and_is_saved_in_full(
    kind: str, precision: str, tiny_text: Path, tmp_path: Path
) -> None:
    if precision == "bf16" and not torch.cuda.is_bf16_supported(including_emulation=False):
        pytest.skip("this GPU has no bfloat16")
    shown = craft(tmp_path, "train", str(tiny_text), *SMALL[kind], *QUICK, f"training.precision={precision}")
    assert f"precision {precision}" in shown
    losses = values(tmp_path, "loss")
    assert len(losses) == 4
    assert all(math.isfinite(loss) for loss in losses)
    assert losses[-1] < losses[0]
    assert f"_{precision}_" in finished(tmp_path).name
    weights = load_file(finished(tmp_path) / "model.safetensors")
    assert {tensor.dtype for tensor in weights.values()} == {torch.float32}
    assert all(tensor.isfinite().all() for tensor in weights.values())
    # Only float16 scales its loss, and the scale is part of what a resumed run needs.
    checkpoint = the_run(tmp_path) / "checkpoint-40"
    assert (checkpoint / "scaler.pt").is_file() == (precision == "fp16")


@pytest.mark.parametrize("kind", list(SMALL))
def test_a_compiled_run_saves_plain_weights(kind: str, tiny_text: Path, tmp_path: Path) -> None:
    """Where a model can't be compiled the run says so in a line, and goes on without."""
    craft(tmp_path, "train", str(tiny_text), *SMALL[kind], *QUICK, "training.torch_compile=true")
    weights = load_file(finished(tmp_path) / "model.safetensors")
    assert weights
    assert not [name for name in weights if "_orig_mod" in name]
    assert all(math.isfinite(loss) for loss in values(tmp_path, "loss"))
    written = craft(tmp_path, "generate", "latest", "-p", "the quick", "-n", "20", "--greedy")
    assert written.startswith("the quick")


def test_a_run_whose_compiler_is_missing_trains_without(tiny_text: Path, tmp_path: Path) -> None:
    """TVM stands for any compiler that torch knows by name and this machine doesn't have."""
    if importlib.util.find_spec("tvm") is not None:
        pytest.skip("TVM is installed")
    compiled = ["training.torch_compile=true", "training.torch_compile_backend=tvm"]
    shown = craft(tmp_path, "train", str(tiny_text), *SMALL["char_transformer"], *QUICK, *compiled)
    assert "training without torch.compile" in shown
    assert finished(tmp_path).name.endswith("_step_40")


def test_nanogpts_gpu_run_learns_shakespeare(shakespeare: Path, tmp_path: Path) -> None:
    craft(
        tmp_path,
        *("train", "experiments=nanogpt_gpu", f"data.path={shakespeare}", "training.max_steps=200"),
        *("training.eval_steps=100", "training.save_steps=100", "training.report_to=none"),
    )
    (file,) = (tmp_path / "outputs" / "evaluation").glob("*.json")
    scores = {e["protocol"]: e for e in json.loads(file.read_text(encoding="utf-8"))["evaluations"]}
    assert scores["blocks"]["predictions"] == 111_539
    assert scores["blocks"]["nats_per_char"] < 2.2


@pytest.mark.parametrize("kind", list(SMALL))
def test_a_resumed_run_ends_like_one_that_was_never_stopped(
    kind: str, tiny_text: Path, tmp_path: Path
) -> None:
    """To a tolerance: a GPU adds up in whatever order it likes."""
    craft(tmp_path, "train", str(tiny_text), *SMALL[kind], *QUICK, "training.precision=fp32")
    run, whole = the_run(tmp_path), finished(tmp_path)
    losses, evaluations = values(tmp_path, "loss"), values(tmp_path, "eval_loss")
    shutil.rmtree(run / "checkpoint-40")  # as if it had been killed behind step 20
    shutil.rmtree(whole)
    shown = craft(tmp_path, "train", "--resume")
    assert f"resuming from {(run / 'checkpoint-20').relative_to(tmp_path)} at step 20" in shown
    assert len(losses) == 4
    assert values(tmp_path, "loss") == pytest.approx(losses, abs=5e-3)
    assert values(tmp_path, "eval_loss") == pytest.approx(evaluations, abs=5e-3)
    assert finished(tmp_path).name == whole.name
