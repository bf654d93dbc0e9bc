"""Quantization, dispatching and checkpointing by other people's code, on a model that craft saved."""

from __future__ import annotations

import copy
import subprocess
import sys
from typing import Any

import pytest
import torch
from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer

from craft.evaluation.finished import evaluate_model
from craft.inference import load, sample

from .conftest import Trained


def test_torchao_int8_weight_only(trained: Trained) -> None:
    quantization = pytest.importorskip("torchao.quantization")
    model, tokenizer = load(trained.model)
    quantized: Any = copy.deepcopy(model)
    quantization.quantize_(quantized, quantization.Int8WeightOnlyConfig())
    assert "Int8" in type(quantized.lm_head.weight).__name__ + repr(quantized.lm_head.weight)
    ids = torch.tensor([tokenizer("9 green bottles on the wall")["input_ids"]])
    with torch.inference_mode():
        exact, rounded = model(ids).logits.log_softmax(-1), quantized(ids).logits.log_softmax(-1)
    assert 0 < (exact - rounded).abs().max() < 0.2
    (text,) = sample(quantized, tokenizer, ["9 green"], max_new_tokens=30, greedy=True)[0]
    out = quantized.generate(
        torch.tensor([tokenizer("9 green")["input_ids"]]), max_new_tokens=30, do_sample=False
    )
    assert tokenizer.decode(out[0], skip_special_tokens=True) == "9 green" + text


def test_accelerate_loads_and_dispatches(trained: Trained) -> None:
    from accelerate import init_empty_weights, load_checkpoint_and_dispatch

    script = f"""
import torch
from accelerate import init_empty_weights, load_checkpoint_and_dispatch
from transformers import AutoConfig, AutoModelForCausalLM
config = AutoConfig.from_pretrained({str(trained.model)!r}, trust_remote_code=True)
with init_empty_weights():
    model = AutoModelForCausalLM.from_config(config, trust_remote_code=True)
model.tie_weights()
model = load_checkpoint_and_dispatch(model, {str(trained.model)!r}, device_map="auto")
print(model(torch.arange(4, 14)[None]).logits.sum().item())
"""
    done = subprocess.run([sys.executable, "-I", "-c", script], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    model, _ = load(trained.model)
    ids = torch.arange(4, 14)[None]
    with torch.inference_mode():
        expected = model(ids).logits
    assert float(done.stdout.splitlines()[-1]) == pytest.approx(expected.sum().item(), rel=1e-5)

    # Half of the layers on the disk, as on a machine with too little memory.
    config = AutoConfig.from_pretrained(trained.model)
    with init_empty_weights():
        empty = AutoModelForCausalLM.from_config(config)
    on_cpu = ["model.embed_tokens", "model.dropout", "model.layers.0", "lm_head"]
    if trained.kind == "char_transformer":
        on_cpu += ["model.rotary_emb", "model.norm"]
    places = {"model.layers.1": "disk", **dict.fromkeys(on_cpu, "cpu")}
    split = load_checkpoint_and_dispatch(
        empty, trained.model, device_map=places, offload_folder=trained.home / "offload"
    ).eval()
    with torch.inference_mode():
        torch.testing.assert_close(split(ids).logits, expected)


def test_gradient_checkpointing_changes_no_gradient(transformer: Trained) -> None:
    _, tokenizer = load(transformer.model)
    ids = torch.tensor([tokenizer("9 green bottles on the wall")["input_ids"]])

    def gradients(checkpointed: bool) -> list[torch.Tensor]:
        network, _ = load(transformer.model)
        network.train()
        if checkpointed:
            network.gradient_checkpointing_enable()
            assert network.is_gradient_checkpointing
        network(input_ids=ids, labels=ids).loss.backward()
        return [parameter.grad for parameter in network.parameters() if parameter.grad is not None]

    for plain, saved in zip(gradients(False), gradients(True)):
        torch.testing.assert_close(plain, saved)


def test_a_model_that_carries_its_state_refuses_gradient_checkpointing(lstm: Trained) -> None:
    with pytest.raises(ValueError, match="CharLSTMForCausalLM"):
        load(lstm.model)[0].gradient_checkpointing_enable()


def test_torch_export_of_a_saved_model(trained: Trained) -> None:
    model, _ = load(trained.model)
    free = {0: torch.export.Dim("batch", min=1), 1: torch.export.Dim("length", min=2, max=32)}
    example = {"input_ids": torch.zeros(2, 5, dtype=torch.long), "use_cache": False}
    program = torch.export.export(
        model, (), example, dynamic_shapes={"input_ids": free, "use_cache": None}
    ).module()
    for text in ("9 green bottles on the wall", "men may"):
        ids = torch.tensor([AutoTokenizer.from_pretrained(trained.model)(text)["input_ids"]])
        with torch.inference_mode():
            expected = model(ids).logits
        torch.testing.assert_close(program(input_ids=ids, use_cache=False).logits, expected)


def test_what_craft_saved_is_scored_the_same_after_a_round_trip(trained: Trained, tmp_path: Any) -> None:
    model = AutoModelForCausalLM.from_pretrained(trained.model)
    model.save_pretrained(tmp_path)
    AutoTokenizer.from_pretrained(trained.model).save_pretrained(tmp_path)
    text = str(trained.other)
    first, second = (evaluate_model(*load(m), m, text, split="all")[0] for m in (trained.model, tmp_path))
    assert first.nats == pytest.approx(second.nats)
