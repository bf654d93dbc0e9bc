"""What every model does: losses, saving, loading with and without craft, costs, carried state."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
import transformers
from transformers import AutoConfig, AutoModel, AutoModelForCausalLM
from transformers.models.auto import modeling_auto

import craft.models
from craft.data.tokenization import CharTokenizer
from craft.models import CharLSTMForCausalLM, TransformerForCausalLM, TransformerForSequenceClassification

from .tiny import MAKERS, VOCAB, make_lstm, make_transformer


def test_labels_alone_are_shifted_and_shift_labels_are_not(model: Any, text: torch.Tensor) -> None:
    logits = model(text).logits
    shifted = F.cross_entropy(logits[:, :-1].reshape(-1, VOCAB), text[:, 1:].reshape(-1))
    torch.testing.assert_close(model(text, labels=text).loss, shifted)

    following = torch.cat([text, text[:, :1]], dim=1)[:, 1:]  # a view: not contiguous
    assert not following.is_contiguous()
    expected = F.cross_entropy(logits.reshape(-1, VOCAB), following.reshape(-1))
    torch.testing.assert_close(model(text, labels=following, shift_labels=following).loss, expected)
    torch.testing.assert_close(model(text, shift_labels=following).loss, expected)


def test_a_cache_goes_by_either_of_its_names(model: Any, text: torch.Tensor) -> None:
    """What transformers calls `past_key_values` it calls `cache` from 5.24 on, also where it generates."""
    whole = model(text).logits[:, 6:]
    for name in ("past_key_values", "cache"):
        for network, expected in ((model, whole), (model.model, model.model(text).last_hidden_state[:, 6:])):
            before = network(text[:, :6], use_cache=True)[1]  # behind the logits, or the hidden states
            torch.testing.assert_close(network(text[:, 6:], **{name: before})[0], expected)
    assert {"past_key_values", "cache"} <= set(model.config.keys_to_ignore_at_inference)


def test_losses_of_micro_batches_add_up(model: Any, text: torch.Tensor) -> None:
    """With `num_items_in_batch` two unequal micro-batches give the loss and gradient of the batch of both."""
    labels = text.clone()
    labels[0, 3:] = -100
    weight = model.lm_head.weight
    (whole,) = torch.autograd.grad(model(text, labels=labels, shift_labels=labels).loss, weight)
    items = (labels != -100).sum()
    parts = 0
    for row in (0, 1):
        kwargs = {"labels": labels[row, None], "shift_labels": labels[row, None], "num_items_in_batch": items}
        parts = parts + torch.autograd.grad(model(text[row, None], **kwargs).loss, weight)[0]
    torch.testing.assert_close(parts, whole)


def test_outputs_have_the_fields_of_transformers(model: Any, text: torch.Tensor) -> None:
    layers = model.config.num_hidden_layers
    out = model(text, output_hidden_states=True, logits_to_keep=2)
    assert out.logits.shape == (2, 2, VOCAB)
    assert len(out.hidden_states) == layers + 1
    assert out.past_key_values.get_seq_length() == 12
    base = model.model(text)
    torch.testing.assert_close(base.last_hidden_state, out.hidden_states[-1])
    torch.testing.assert_close(model.lm_head(base.last_hidden_state[:, -2:]), out.logits)
    chosen = torch.tensor([0, 7])
    torch.testing.assert_close(model(text, logits_to_keep=chosen).logits, model(text).logits[:, chosen])
    assert isinstance(model(text, return_dict=False), tuple)
    model.train()
    assert model(text).past_key_values is None
    assert model(text, use_cache=True).past_key_values is not None


def test_dropout_acts_in_training_only(text: torch.Tensor) -> None:
    for model in (
        make_lstm(dropout=0.5),
        make_transformer(dropout=0.5),
        make_transformer("gpt2", dropout=0.5),
    ):
        torch.testing.assert_close(model(text).logits, model(text).logits)
        model.train()
        assert not torch.allclose(model(text).logits, model(text).logits)


@pytest.mark.parametrize(("make", "places"), [(make_lstm, 1 + 2), (make_transformer, 1 + 2 * 2)])
def test_dropout_acts_after_every_layer_and_in_attention(make: Any, places: int, text: torch.Tensor) -> None:
    """Behind the embedding and every layer of the LSTM, every half block, and in attention of either kind."""
    model, acted = make(dropout=0.5).train(), []
    for module in model.modules():
        if isinstance(module, torch.nn.Dropout):
            module.register_forward_hook(lambda _, inputs, output: acted.append((inputs[0], output)))
    last = model.model(text).last_hidden_state
    assert len(acted) == places
    assert all(torch.equal(after[after != 0], 2 * before[after != 0]) for before, after in acted)
    if make is make_lstm:
        assert torch.equal(last, acted[-1][1])
        return
    for layer in model.model.layers:
        layer.dropout.p = 0.0
    model.model.dropout.p = 0.0
    for backend in ("sdpa", "eager"):
        model.set_attn_implementation(backend)
        assert not torch.allclose(model(text).logits, model(text).logits)


@pytest.mark.precision
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32])
def test_autocast_and_bfloat16_weights_stay_close(model: Any, text: torch.Tensor, dtype: torch.dtype) -> None:
    """float32 weights under autocast, or bfloat16 weights: loss and gradient are near the exact ones."""
    for parameter in model.parameters():
        parameter.data.mul_(0.5)
    exact = model(text, labels=text).loss
    (expected,) = torch.autograd.grad(exact, model.lm_head.weight)
    model.to(dtype)
    with torch.autocast("cpu", torch.bfloat16, enabled=dtype == torch.float32):
        out = model(text, labels=text, use_cache=True)
    out.loss.backward()
    torch.testing.assert_close(out.loss.float(), exact, atol=0.1, rtol=0.05)
    cosine = F.cosine_similarity(model.lm_head.weight.grad.float().flatten(), expected.flatten(), dim=0)
    assert cosine > 0.98
    assert out.past_key_values.layers[0].keys.dtype in (dtype, torch.bfloat16)


@pytest.mark.precision
def test_a_saved_model_loads_as_the_same_model(model: Any, text: torch.Tensor, tmp_path: Path) -> None:
    model.save_pretrained(tmp_path)
    for loaded in (type(model).from_pretrained(tmp_path), AutoModelForCausalLM.from_pretrained(tmp_path)):
        assert type(loaded) is type(model)
        fields, expected = loaded.config.to_dict(), model.config.to_dict()
        assert fields | {"_name_or_path": ""} == expected
        assert torch.equal(loaded(text).logits, model(text).logits)
        tied = loaded.lm_head.weight is loaded.get_input_embeddings().weight
        assert tied == model.config.tie_word_embeddings
    assert type(AutoModel.from_pretrained(tmp_path)) is type(model.model)
    assert type(AutoConfig.from_pretrained(tmp_path)) is type(model.config)
    half = AutoModelForCausalLM.from_pretrained(tmp_path, dtype=torch.bfloat16)
    assert half.lm_head.weight.dtype == torch.bfloat16
    assert half(text).logits.isfinite().all()


def test_only_parameters_are_saved_and_only_by_the_main_process(model: Any, tmp_path: Path) -> None:
    assert set(model.state_dict()) == {name for name, _ in model.named_parameters(remove_duplicate=False)}
    model.save_pretrained(tmp_path, is_main_process=False)
    assert not list(tmp_path.iterdir())


WITHOUT_CRAFT = """
import sys

class Hidden:
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] == "craft":
            raise ModuleNotFoundError(name)

sys.meta_path.insert(0, Hidden())
import torch
from transformers import AutoConfig, AutoModel, AutoModelForCausalLM
from transformers.models.auto import modeling_auto
for folder in sys.argv[1:]:
    text = torch.load(f"{folder}/text.pt")
    config = AutoConfig.from_pretrained(folder, trust_remote_code=True)
    model = AutoModelForCausalLM.from_pretrained(folder, trust_remote_code=True)
    base = AutoModel.from_pretrained(folder, trust_remote_code=True)
    assert type(config).__module__.startswith("transformers_modules") and "craft" not in sys.modules
    settings = {"max_new_tokens": 6, "do_sample": False}
    result = {
        "logits": model(text).logits,
        "hidden": base(text).last_hidden_state,
        "text": model.generate(text[:, :5], **settings)[:, 5:],
        "stream": torch.stack(list(model.stream(text[:, :5], **settings)), dim=1),
    }
    torch.save(result, f"{folder}/result.pt")
    model.save_pretrained(f"{folder}/again")
"""


def test_a_process_without_craft_loads_the_same_model(text: torch.Tensor, tmp_path: Path) -> None:
    folders = {name: tmp_path / name.replace("-", "_") for name in ("lstm-tied", "modern", "gpt2")}
    for name, folder in folders.items():
        MAKERS[name]().save_pretrained(folder)
        torch.save(text, folder / "text.pt")
    subprocess.run(
        [sys.executable, "-I", "-c", WITHOUT_CRAFT, *map(str, folders.values())],
        check=True,
        timeout=300,
        env={**os.environ, "HF_HOME": str(tmp_path / "hub"), "HF_HUB_OFFLINE": "1"},
    )
    for name, folder in folders.items():
        model = MAKERS[name]()
        result = torch.load(folder / "result.pt")
        assert torch.equal(result["logits"], model(text).logits)
        assert torch.equal(result["hidden"], model.model(text).last_hidden_state)
        assert torch.equal(result["text"], result["stream"])
        again = {path.name for path in (folder / "again").iterdir()}
        assert {"base.py", "decoding.py", "config.json", "model.safetensors"} <= again
        assert set(json.loads((folder / "again/config.json").read_text())["auto_map"]) >= {
            "AutoConfig",
            "AutoModel",
            "AutoModelForCausalLM",
        }


def test_importing_the_models_registers_their_classes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert type(AutoModelForCausalLM.from_config(AutoConfig.for_model("char_lstm"))) is CharLSTMForCausalLM
    assert modeling_auto.MODEL_FOR_CAUSAL_LM_MAPPING_NAMES["char_lstm"] == "CharLSTMForCausalLM"
    with pytest.raises(AttributeError, match=r"CharGRU.*CharLSTMConfig, "):
        _ = craft.models.CharGRU
    assert craft.models.register("craft.models.base") == []
    source = (
        "from transformers import PreTrainedConfig",
        "class HalfConfig(PreTrainedConfig): model_type = 'half'",
    )
    (tmp_path / "half_a_model.py").write_text("\n".join(source))
    monkeypatch.syspath_prepend(tmp_path)
    with pytest.raises(ImportError, match="HalfModel, HalfForCausalLM"):
        craft.models.register("half_a_model")


def test_a_carried_state_may_be_taken_apart_and_fed_back(text: torch.Tensor) -> None:
    """Two halves with the state carried over tensors equal the whole, and no gradient flows between them."""
    model = make_lstm()
    assert (model.carries_state, TransformerForCausalLM.carries_state) == (True, False)
    whole = model(text).logits
    embedded = model.get_input_embeddings()(text[:, :7]).detach().requires_grad_()
    cache = model(inputs_embeds=embedded).past_key_values  # through which, itself, it does
    model(text[:, 7:], past_key_values=cache).logits.sum().backward()
    assert embedded.grad.all()
    first = model.train()(text[:, :7], use_cache=True)
    tensors = model.state_tensors(first.past_key_values)
    assert [t.shape[0] for t in tensors] == [2] * 4
    assert not any(t.requires_grad for t in tensors)
    second = model(text[:, 7:], past_key_values=model.state_from_tensors(tensors), use_cache=True)
    torch.testing.assert_close(torch.cat([first.logits, second.logits], dim=1), whole)
    half = model.state_from_tensors([tensor.bfloat16() for tensor in tensors])
    model(text[:, 7:], past_key_values=half)  # of a run in another precision
    tensors[0][0] += 1  # the state of one row is that row's business
    other = model(text[:, 7:], past_key_values=model.state_from_tensors(tensors)).logits
    assert torch.equal(other[1], second.logits[1])
    assert not torch.allclose(other[0], second.logits[0])


def test_flops_count_every_multiplying_weight() -> None:
    lstm = CharLSTMForCausalLM(craft.models.CharLSTMConfig(vocab_size=65))
    matrices = 2 * 4 * 256 * 512 + 65 * 256
    assert lstm.flops_per_token() == 6 * matrices
    tied = CharLSTMForCausalLM(craft.models.CharLSTMConfig(vocab_size=65, tie_word_embeddings=True))
    assert tied.flops_per_token() == 6 * matrices
    fields = {"vocab_size": 65, "max_position_embeddings": 64}
    transformer = TransformerForCausalLM(craft.models.TransformerConfig(**fields))
    assert transformer.flops_per_token() == 6 * (4 * 12 * 128 * 128 + 65 * 128) + 12 * 4 * 128 * 64
    wide = TransformerForCausalLM(craft.models.TransformerConfig(**fields, head_dim=64))
    matrices = 4 * (4 * 128 * 256 + 8 * 128 * 128) + 65 * 128
    assert wide.flops_per_token() == 6 * matrices + 12 * 4 * (4 * 64) * 64
    convolution = CharLSTMForCausalLM(craft.models.CharLSTMConfig(vocab_size=65, hidden_size=4))
    before = convolution.flops_per_token()
    convolution.model.convolution = torch.nn.Conv1d(4, 8, 3)
    assert convolution.flops_per_token() == before + 6 * 4 * 8 * 3


def test_muon_takes_matrices_of_blocks_only() -> None:
    for model, blocks in ((make_lstm(), 4), (make_transformer("gpt2"), 1)):
        for name, parameter in model.named_parameters():
            inside = "layers" in name and parameter.ndim == 2
            assert model.muon_blocks(name) == (blocks if inside else 0), name
            if inside:
                assert parameter.shape[0] % blocks == 0


HEADS = """
import sys
sys.modules["craft"] = None
import torch, transformers
for auto in ("SequenceClassification", "TokenClassification", "QuestionAnswering"):
    folder = f"{sys.argv[1]}/{auto}"
    model = getattr(transformers, f"AutoModelFor{auto}").from_pretrained(folder, trust_remote_code=True)
    torch.testing.assert_close(model(torch.load(f"{sys.argv[1]}/text.pt"))[0], torch.load(f"{folder}/out.pt"))
"""


def test_a_language_model_loads_under_the_heads_of_classifiers(text: torch.Tensor, tmp_path: Path) -> None:
    """As every decoder in transformers does: the backbone's weights under a new head, and no craft needed."""
    base = make_transformer(pad_token_id=0, num_labels=3)
    base.save_pretrained(tmp_path / "base")
    torch.save(text, tmp_path / "text.pt")
    for auto, shape in {
        "SequenceClassification": (2, 3), "TokenClassification": (2, 12, 3), "QuestionAnswering": (2, 12)
    }.items():  # fmt: skip
        model = getattr(transformers, f"AutoModelFor{auto}").from_pretrained(tmp_path / "base")
        hidden = model.model(text).last_hidden_state
        torch.testing.assert_close(hidden, base.model(text).last_hidden_state)
        head = model.qa_outputs if auto == "QuestionAnswering" else model.score
        torch.nn.init.normal_(head.weight)
        scores = model(text)[0]
        assert scores.shape == shape
        assert scores.std() > 0
        torch.save(scores, tmp_path / "out.pt")
        model.save_pretrained(tmp_path / auto)
        (tmp_path / "out.pt").rename(tmp_path / auto / "out.pt")
    subprocess.run(
        [sys.executable, "-I", "-c", HEADS, str(tmp_path)],
        env={**os.environ, "HF_HOME": str(tmp_path / "hub"), "HF_HUB_OFFLINE": "1"},
        stdin=subprocess.DEVNULL,
        check=True,
    )


def test_a_text_is_classified_in_a_pipeline(tmp_path: Path) -> None:
    config = make_transformer(pad_token_id=0).config
    tokenizer = CharTokenizer.train(["abcdefghi"], unknown="unk")
    TransformerForSequenceClassification(config).save_pretrained(tmp_path)
    tokenizer.save_pretrained(tmp_path)
    classify = transformers.pipeline("text-classification", model=str(tmp_path))
    assert {answer["label"] for answer in classify(["abc", "deafbed"], batch_size=2)} <= {
        "LABEL_0",
        "LABEL_1",
    }
