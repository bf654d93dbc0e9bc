"""`craft export --format onnx`: a text by onnxruntime alone is the one that craft writes."""

from __future__ import annotations

import errno
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from refusals import refused

onnxruntime = pytest.importorskip("onnxruntime")
pytest.importorskip("onnx")
pytest.importorskip("onnxscript")

import torch
from transformers import AutoTokenizer

from craft.data.tokenization import CharTokenizer
from craft.exporting.onnx import TOLERANCE, compare, export_onnx
from craft.exporting.onnx import write as write_onnx
from craft.exporting.step import AttentionStep, RecurrentStep
from craft.inference import load, sample
from craft.models import CharLSTMConfig, CharLSTMForCausalLM, TransformerConfig, TransformerForCausalLM
from craft.utils.errors import Failed
from craft.utils.files import STAGING

from .conftest import Trained


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("tiny")
    tokenizer = CharTokenizer.train(["abcdef\n"])
    CharLSTMForCausalLM(
        CharLSTMConfig(vocab_size=len(tokenizer), hidden_size=8, num_hidden_layers=1)
    ).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def exported(trained: Trained) -> Path:
    command = [sys.executable, "-m", "craft", "export", str(trained.model), "--format", "onnx"]
    done = subprocess.run(command, cwd=trained.home, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert "onnxruntime" in done.stdout
    return trained.home / "outputs" / "onnx" / trained.model.name


def write(folder: Path, prompt: str, characters: int) -> tuple[str, list[np.ndarray]]:
    """Greedy text by nothing of craft or torch, and the logits by which each character was chosen."""
    tokenizer = AutoTokenizer.from_pretrained(folder, trust_remote_code=False)
    session = onnxruntime.InferenceSession(folder / "model.onnx", providers=["CPUExecutionProvider"])
    config = json.loads((folder / "config.json").read_text())
    names = [each.name for each in session.get_inputs()]
    memory = {}
    for each in session.get_inputs():
        if each.name not in ("input_ids", "position_ids"):
            shape = [{"batch": 1, "past": 0}.get(size, size) for size in each.shape]
            memory[each.name] = np.zeros(shape, np.float32)
    ids, position, written, scores = tokenizer(prompt)["input_ids"], 0, [], []
    for _ in range(characters):
        inputs = {"input_ids": np.array([ids])}
        if "position_ids" in names:
            inputs["position_ids"] = np.arange(position, position + len(ids))[None]
        position += len(ids)
        logits, *after = session.run(None, {**inputs, **memory})
        memory = dict(zip(memory, after))
        if window := config.get("sliding_window"):
            memory = {name: cached[:, :, -(window - 1) :] for name, cached in memory.items()}
        scores.append(logits[0, -1].copy())
        logits[..., [0, 1, 2, 3]] = -np.inf  # special ids
        ids = [int(logits[0, -1].argmax())]
        written += ids
    return tokenizer.decode(written), scores


def test_a_loop_over_onnxruntime_writes_what_craft_writes(exported: Path, trained: Trained) -> None:
    model, tokenizer = load(trained.model)
    ((expected,),) = sample(model, tokenizer, ["9 green"], max_new_tokens=100, greedy=True)
    text, scores = write(exported, "9 green", 100)  # three times the transformer's context
    assert text == expected
    ids = tokenizer("9 green" + text, return_tensors="pt").input_ids
    with torch.inference_mode():
        logits = model(ids).logits[0, 6:-1].numpy()
    assert np.abs(np.stack(scores) - logits).max() < TOLERANCE


def test_latest_is_still_a_model_of_torch(exported: Path, trained: Trained) -> None:
    model, _ = load("latest", trained.home / "outputs")
    assert model.config.model_type == trained.kind
    with refused("setting-conflict", "--output"):
        export_onnx(trained.model, exported)


@pytest.mark.parametrize(
    ("error", "code", "values"),
    [
        (None, "model-invalid", ["nan", TOLERANCE]),
        (OSError(errno.ENOSPC, "No space left on device"), "disk-full", ["Errno 28"]),
        (RuntimeError("No space left on device (os error 28)"), "disk-full", ["os error 28"]),
    ],
    ids=["wrong", "full", "full in Rust"],
)
def test_an_export_that_fails_leaves_nothing(
    tmp_path: Path,
    tiny: Path,
    monkeypatch: pytest.MonkeyPatch,
    error: Exception | None,
    code: Any,
    values: list[object],
) -> None:
    def compare(step: Any, file: Path) -> float:
        assert file.is_file()
        assert not (tmp_path / "out").exists()
        if error is not None:
            raise error
        return float("nan")

    monkeypatch.setattr("craft.exporting.onnx.compare", compare)
    with refused(code, tmp_path / "out", *values) as caught:
        export_onnx(tiny, tmp_path / "out")
    assert type(caught.value) is Failed
    assert not list(tmp_path.iterdir())


def test_wrong_numbers_of_onnxruntime_are_noticed(
    tmp_path: Path, tiny: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = onnxruntime.InferenceSession.run
    wrong = lambda *given: [part + np.nan for part in run(*given)]  # noqa: E731
    monkeypatch.setattr(onnxruntime.InferenceSession, "run", wrong)
    with refused("model-invalid", "nan", TOLERANCE):
        export_onnx(tiny, tmp_path / "out")


def test_what_a_killed_export_left_is_no_obstacle(tmp_path: Path, tiny: Path) -> None:
    (left := tmp_path / f"{STAGING}out").mkdir()
    (left / "config.json").write_text("half")
    done = export_onnx(tiny, tmp_path / "out")
    assert {path.name for path in tmp_path.iterdir()} == {"out"}
    assert {"model.onnx", "config.json", "tokenizer.json"} <= {path.name for path in done.folder.iterdir()}
    config = json.loads((done.folder / "config.json").read_text())
    assert "auto_map" not in config  # else readers ask to run code
    assert 0 < done.difference < TOLERANCE


def test_a_place_that_is_taken_or_can_not_be_made_is_refused_before_the_work(
    tmp_path: Path, tiny: Path
) -> None:
    (tmp_path / "file").write_text("mine")
    (tmp_path / "link").symlink_to("nowhere")
    for place in ("file", "link", "."):
        with refused("setting-conflict", tmp_path / place, "--output"):
            export_onnx(tiny, tmp_path / place)
    with refused("file-unwritable", tmp_path / "file" / "x", "--output"):
        export_onnx(tiny, tmp_path / "file" / "x")
    assert (tmp_path / "file").read_text() == "mine"
    assert {path.name for path in tmp_path.iterdir()} == {"file", "link"}


@pytest.mark.precision
def test_bfloat16_weights_are_exported_as_float32(tmp_path: Path, tiny: Path) -> None:
    model, tokenizer = load(tiny)
    half = model.to(torch.bfloat16)
    for part in (half, tokenizer):
        part.save_pretrained(tmp_path / "half")
    done = export_onnx(tmp_path / "half", tmp_path / "onnx")
    assert done.difference < TOLERANCE
    assert json.loads((tmp_path / "onnx" / "config.json").read_text())["dtype"] == "float32"


SHAPES: dict[str, dict[str, Any]] = {
    "grouped": {"num_attention_heads": 4, "num_key_value_heads": 2, "mlp": "swiglu", "bias": True},
    "windowed": {"num_attention_heads": 2, "sliding_window": 5, "tie_word_embeddings": True},
    "gpt2": {"num_attention_heads": 2, "position": "learned", "norm": "layernorm", "qk_norm": False},
}


@pytest.mark.parametrize("kind", ["lstm", *SHAPES])
def test_every_shape_of_a_model_exports(kind: str, tmp_path: Path) -> None:
    common = {"vocab_size": 11, "hidden_size": 16, "num_hidden_layers": 2}
    model: Any
    if kind == "lstm":
        model = CharLSTMForCausalLM(CharLSTMConfig(**common, layer_norm="head", tie_word_embeddings=True))
    else:
        model = TransformerForCausalLM(
            TransformerConfig(**common, max_position_embeddings=20, **SHAPES[kind])
        )
    torch.manual_seed(2)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.normal_(std=0.4)
    step = (RecurrentStep if model.carries_state else AttentionStep)(model.eval())
    write_onnx(step, tmp_path / "model.onnx")
    assert 0 < compare(step, tmp_path / "model.onnx") < TOLERANCE
