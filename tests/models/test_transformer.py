"""The transformer: against two independent references, its backends, initialisation, and what it refuses."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from huggingface_hub.errors import StrictDataclassError
from transformers import AttentionInterface
from transformers.models.llama.modeling_llama import LlamaRotaryEmbedding

from craft.models import TransformerConfig, TransformerForCausalLM

from .tiny import TRANSFORMERS, VOCAB, make_transformer

PRESETS = Path(__file__).parents[2] / "configs" / "models"


def gpt2_logits(w: dict[str, torch.Tensor], ids: torch.Tensor, heads: int, layers: int) -> torch.Tensor:
    """GPT-2 as in its paper: learned positions, pre-LayerNorm, exact GELU, tied head; every bias optional."""

    def norm(x: torch.Tensor, name: str) -> torch.Tensor:
        x = (x - x.mean(-1, keepdim=True)) / (x.var(-1, keepdim=True, unbiased=False) + 0.01).sqrt()
        return x * w[f"{name}.weight"] + w.get(f"{name}.bias", 0)

    def linear(x: torch.Tensor, name: str) -> torch.Tensor:
        return x @ w[f"{name}.weight"].T + w.get(f"{name}.bias", 0)

    batch, steps = ids.shape
    x = w["model.embed_tokens.weight"][ids] + w["model.embed_positions.weight"][:steps]
    for n in range(layers):
        block = f"model.layers.{n}"
        y = norm(x, f"{block}.input_layernorm")
        q, k, v = (
            linear(y, f"{block}.self_attn.{p}_proj").view(batch, steps, heads, -1).transpose(1, 2)
            for p in "qkv"
        )
        scores = q @ k.transpose(2, 3) / math.sqrt(q.shape[-1])
        scores = scores.masked_fill(torch.ones(steps, steps).triu(1).bool(), -math.inf)
        y = (scores.softmax(-1) @ v).transpose(1, 2).reshape(batch, steps, -1)
        x = x + linear(y, f"{block}.self_attn.o_proj")
        y = linear(norm(x, f"{block}.post_attention_layernorm"), f"{block}.mlp.up_proj")
        x = x + linear(y * 0.5 * (1 + torch.erf(y / math.sqrt(2))), f"{block}.mlp.down_proj")
    return norm(x, "model.norm") @ w["lm_head.weight"].T


def modern_logits(w: dict[str, torch.Tensor], ids: torch.Tensor, config: TransformerConfig) -> torch.Tensor:
    """The modern block, one position and one head at a time, rotary pairs as complex numbers."""
    dim, heads, shared = config.head_dim, config.num_attention_heads, config.num_key_value_heads

    def unit(x: torch.Tensor) -> torch.Tensor:
        return x / (x.square().mean(-1, keepdim=True) + config.norm_eps).sqrt()

    def norm(x: torch.Tensor, name: str) -> torch.Tensor:
        return unit(x) * w.get(f"{name}.weight", 1)

    def linear(x: torch.Tensor, name: str) -> torch.Tensor:
        return x @ w[f"{name}.weight"].T + w.get(f"{name}.bias", 0)

    frequencies = config.rope_theta ** (-torch.arange(0, dim, 2) / dim)
    turns = torch.polar(torch.ones(len(ids), dim // 2), torch.arange(len(ids))[:, None] * frequencies)

    def turned(x: torch.Tensor) -> torch.Tensor:
        return torch.complex(x[:, : dim // 2], x[:, dim // 2 :]) * turns

    x = w["model.embed_tokens.weight"][ids]
    for n in range(config.num_hidden_layers):
        block = f"model.layers.{n}"
        y = norm(x, f"{block}.input_layernorm")
        q, k, v = (linear(y, f"{block}.self_attn.{p}_proj").split(dim, dim=1) for p in "qkv")
        mixed = []
        for head in range(heads):
            group = head // (heads // shared)
            query, key = turned(unit(q[head])), turned(unit(k[group]))
            rows = []
            for t in range(len(ids)):
                seen = slice(max(0, t - config.sliding_window + 1), t + 1)
                scores = (query[t].conj() * key[seen]).real.sum(-1) * 1.2 / math.sqrt(dim)
                rows.append(scores.softmax(0) @ v[group][seen])
            mixed.append(torch.stack(rows))
        x = x + linear(torch.cat(mixed, dim=1), f"{block}.self_attn.o_proj")
        y = norm(x, f"{block}.post_attention_layernorm")
        up = linear(y, f"{block}.mlp.up_proj")
        if config.mlp == "swiglu":
            gate = linear(y, f"{block}.mlp.gate_proj")
            up = gate * gate.sigmoid() * up
        else:
            up = up.clamp(min=0) ** 2
        x = x + linear(up, f"{block}.mlp.down_proj")
    return norm(x, "model.norm") @ w["lm_head.weight"].T


@pytest.mark.parametrize("bias", [False, True])
def test_gpt2_preset_equals_an_independent_gpt2(bias: bool, text: torch.Tensor) -> None:
    model = make_transformer("gpt2", bias=bias)
    assert any(name.endswith("bias") for name in model.state_dict()) == bias
    torch.testing.assert_close(
        model(text).logits, gpt2_logits(model.state_dict(), text, 4, 2), atol=1e-4, rtol=1e-4
    )


def test_gpt2_preset_has_nanogpts_parameters() -> None:
    """4 layers of 128, 65 characters, context 64: 804,096 parameters, 795,904 without the positions."""
    fields = yaml.safe_load((PRESETS / "gpt2.yaml").read_text(encoding="utf-8"))
    fields["max_position_embeddings"] = 64
    model = TransformerForCausalLM(TransformerConfig(**fields, vocab_size=65))
    assert model.num_parameters() == 804_096
    assert model.num_parameters() - 64 * 128 == 795_904


@pytest.mark.parametrize("kind", ["modern", "grouped", "windowed"])
def test_modern_block_equals_an_independent_one(kind: str) -> None:
    """Also beyond the context of 12, where every layer sees its last characters only."""
    model = make_transformer(kind)
    ids = torch.randint(0, VOCAB, (20,), generator=torch.Generator().manual_seed(1))
    expected = modern_logits(model.state_dict(), ids, model.config)
    torch.testing.assert_close(model(ids[None]).logits[0], expected, atol=1e-4, rtol=1e-4)


@torch.no_grad()
@pytest.mark.parametrize("kind", list(TRANSFORMERS))
@pytest.mark.parametrize("backend", ["eager", pytest.param("flex_attention", marks=pytest.mark.slow)])
def test_attention_backends_agree(kind: str, backend: str) -> None:
    model = make_transformer(kind)
    assert model.config._attn_implementation == "sdpa"
    steps = 12 if kind == "gpt2" else 16
    ids = torch.randint(1, VOCAB, (2, steps), generator=torch.Generator().manual_seed(1))
    mask = torch.ones_like(ids)
    mask[0, :3] = 0
    cases = [{"input_ids": ids}, {"input_ids": ids, "attention_mask": mask}]
    expected = [model(**case).logits[mask.bool()] for case in cases]
    model.set_attn_implementation(backend)
    for case, logits in zip(cases, expected):
        torch.testing.assert_close(model(**case).logits[mask.bool()], logits, atol=1e-4, rtol=1e-4)


def test_a_custom_attention_backend_gets_scale_window_and_dropout(text: torch.Tensor) -> None:
    """One that somebody else wrote, or that needs another machine: all that the others know of a model."""
    told: list[Any] = []

    def backend(module: Any, query: torch.Tensor, *rest: Any, **kwargs: Any) -> tuple[torch.Tensor, None]:
        told.append((module.is_causal, {name: kwargs.get(name) for name in known}))
        return query.transpose(1, 2), None

    AttentionInterface.register("recorder", backend)
    model = make_transformer("windowed", dropout=0.25, attention_scale=0.3)
    model.set_attn_implementation("recorder")
    for training in (False, True):
        told.clear()
        known = {"scaling": 0.3, "sliding_window": 5, "dropout": 0.25 * training, "max_length_q": 12}
        model.train(training)(text, max_length_q=12)
        assert told == [(True, known)] * 2


def test_attention_weights_are_given_by_eager(text: torch.Tensor) -> None:
    model = make_transformer()
    model.set_attn_implementation("eager")
    weights = model(text, output_attentions=True).attentions
    assert [w.shape for w in weights] == [(2, 4, 12, 12)] * 2
    torch.testing.assert_close(weights[0].sum(-1), torch.ones(2, 4, 12))
    assert not weights[0].triu(1).any()


def test_activation_checkpointing_changes_no_gradient(text: torch.Tensor) -> None:
    model = make_transformer().train()
    gradients, read = [], []
    model.model.layers[0].self_attn.register_forward_hook(lambda *_: read.append(1))
    for enable in (False, True):
        if enable:
            model.gradient_checkpointing_enable()  # the name that Python 3.10's transformers knows too
        model.zero_grad()
        model(text, labels=text).loss.backward()
        gradients.append(model.model.layers[0].self_attn.q_proj.weight.grad.clone())
    torch.testing.assert_close(*gradients)
    assert len(read) == 1 + 2  # with it, once more on the way back


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["modern", "gpt2"])
def test_compiles_into_one_graph(kind: str, text: torch.Tensor) -> None:
    model = make_transformer(kind)
    compiled = torch.compile(model, fullgraph=True)
    expected = model(text, labels=text)
    torch.testing.assert_close(compiled(text, labels=text).loss, expected.loss)


def spread(model: Any) -> dict[str, float]:
    return {n: p.std().item() for n, p in model.named_parameters() if p.ndim == 2 and "layers.1" not in n}


def test_initial_weights_of_the_modern_scheme() -> None:
    torch.manual_seed(0)
    fields = {"vocab_size": 200, "num_hidden_layers": 1}
    std = spread(TransformerForCausalLM(TransformerConfig(**fields)))
    half = 0.5 * 128**-0.5
    expected = {"embed_tokens": 1.0, "o_proj": 0, "down_proj": 0, "lm_head": 0}
    for name, value in std.items():
        wanted = next((v for part, v in expected.items() if part in name), half)
        assert value == pytest.approx(wanted, rel=0.05), name
    model = TransformerForCausalLM(TransformerConfig(**fields, zero_init=False, tie_word_embeddings=True))
    std = spread(model)
    assert std["model.layers.0.mlp.down_proj.weight"] == pytest.approx(0.5 * 512**-0.5, rel=0.05)
    assert std["model.embed_tokens.weight"] == pytest.approx(half, rel=0.05)
    model = TransformerForCausalLM(TransformerConfig(**fields, zero_init=False, bias=True))
    assert spread(model)["lm_head.weight"] == pytest.approx(half, rel=0.05)
    assert not any(parameter.any() for name, parameter in model.named_parameters() if "bias" in name)


def test_initial_weights_of_gpt2s_scheme() -> None:
    torch.manual_seed(0)
    fields = yaml.safe_load((PRESETS / "gpt2.yaml").read_text(encoding="utf-8"))
    for name, value in spread(TransformerForCausalLM(TransformerConfig(**fields))).items():
        residual = "o_proj" in name or "down_proj" in name
        assert value == pytest.approx(0.02 / (8**0.5 if residual else 1), rel=0.05), name
    fields["tie_word_embeddings"] = False
    untied = spread(TransformerForCausalLM(TransformerConfig(**fields)))
    assert untied["lm_head.weight"] == pytest.approx(0.02, rel=0.05)


def test_a_fresh_model_gives_all_characters_the_same_probability() -> None:
    model = TransformerForCausalLM(TransformerConfig(vocab_size=65))
    ids = torch.arange(65)[None]
    assert model(ids, labels=ids).loss.item() == pytest.approx(math.log(65))


def test_learned_positions_may_have_a_window(text: torch.Tensor) -> None:
    """Two layers of window 3 see five characters: the first of them matters, the one before doesn't."""
    model = make_transformer("gpt2", sliding_window=3)
    expected = model(text).logits[:, -1]
    for back, matters in ((6, False), (5, True)):
        other = text.clone()
        other[:, -back] = (other[:, -back] + 1) % VOCAB
        assert torch.allclose(model(other).logits[:, -1], expected, atol=1e-5) != matters


def test_fields_left_null_are_derived() -> None:
    config = TransformerConfig(max_position_embeddings=64)
    assert (config.head_dim, config.num_key_value_heads, config.intermediate_size) == (32, 4, 512)
    assert config.sliding_window == 64
    assert TransformerConfig(num_key_value_heads=2).head_dim == 32
    assert TransformerConfig(hidden_size=10, head_dim=8).head_dim == 8
    assert config.attention_scale == pytest.approx(1.2 / 32**0.5)
    assert config.rope_parameters == {"rope_type": "default", "rope_theta": 10000.0}
    assert TransformerConfig(rope_theta=500.0).rope_parameters["rope_theta"] == 500.0
    assert TransformerConfig(mlp="swiglu").intermediate_size == 344
    learned = TransformerConfig(position="learned", qk_norm=False)
    assert (learned.sliding_window, learned.rope_parameters, learned.max_position_embeddings) == (
        None,
        None,
        256,
    )
    assert learned.attention_scale == pytest.approx(32**-0.5)


@pytest.mark.parametrize("kind", list(TRANSFORMERS))
def test_texts_packed_into_a_row_do_not_see_each_other(kind: str, text: torch.Tensor) -> None:
    model = make_transformer(kind)
    positions = torch.tensor([[0, 1, 2, 3, 4, 0, 1, 2, 3, 4, 5, 6]] * 2)
    packed = model(text, position_ids=positions, use_cache=False).logits
    for part in (slice(0, 5), slice(5, 12)):
        torch.testing.assert_close(packed[:, part], model(text[:, part]).logits)


@pytest.mark.parametrize("kind", list(TRANSFORMERS))
def test_padding_takes_no_position_and_is_not_seen(kind: str, text: torch.Tensor) -> None:
    """Read at once, and with what follows a cache."""
    model = make_transformer(kind)
    mask = torch.ones_like(text)
    mask[0, :3] = 0
    expected = [model(text[:1, 3:]).logits[0], model(text[1:]).logits[0]]
    whole = model(text, attention_mask=mask).logits
    first = model(text[:, :7], attention_mask=mask[:, :7])
    rest = model(text[:, 7:], attention_mask=mask, past_key_values=first.past_key_values).logits
    for logits in (whole, torch.cat([first.logits, rest], dim=1)):
        torch.testing.assert_close(logits[0, 3:], expected[0])
        torch.testing.assert_close(logits[1], expected[1])


def test_positions_that_are_given_win_over_those_of_the_mask(text: torch.Tensor) -> None:
    model = make_transformer("gpt2")
    mask, positions = torch.ones_like(text[:, :4]), torch.tensor([[3, 4, 5, 6]])
    expected = model(text[:, :4], position_ids=positions).logits
    assert torch.equal(model(text[:, :4], attention_mask=mask, position_ids=positions).logits, expected)
    assert not torch.allclose(model(text[:, :4]).logits, expected)


@pytest.mark.parametrize("mlp", ["relu2", "swiglu"])
def test_every_entry_of_the_parallel_plan_names_a_layer(mlp: str) -> None:
    model = make_transformer(mlp=mlp)
    names = {name.replace(".0.", ".*.") for name, _ in model.model.named_modules()}
    plan = set(model.config.base_model_tp_plan)
    assert plan <= names
    assert {name for name in names if name.startswith("layers.*") and name.endswith("_proj")} == plan


@pytest.mark.parametrize("scaling", ["linear", "dynamic", "yarn"])
def test_scaled_rotary_positions_stream_as_they_generate(scaling: str, prompt: torch.Tensor) -> None:
    model = make_transformer(rope_parameters={"rope_type": scaling, "rope_theta": 10000.0, "factor": 4.0})
    settings = {"max_new_tokens": 25, "do_sample": False}
    expected = model.generate(prompt, **settings)[:, prompt.shape[1] :]
    assert torch.equal(torch.stack(list(model.stream(prompt, **settings)), dim=1), expected)


@pytest.mark.parametrize("scaling", ["default", "linear", "dynamic", "yarn"])
def test_rotary_angles_are_those_of_llama(scaling: str) -> None:
    """Also within and beyond the context of 12, and in bfloat16, which can't count that far itself."""
    rope = {"rope_type": scaling, "rope_theta": 10000.0, "factor": 4.0}
    model = make_transformer(rope_parameters=rope)
    theirs, x = LlamaRotaryEmbedding(model.config), torch.zeros(1)
    for positions in (torch.arange(9)[None], torch.tensor([[11, 30, 1001]])):
        for ours, expected in zip(model.model.rotary_emb(x, positions), theirs(x, positions)):
            torch.testing.assert_close(ours, expected)
            rounded = model.model.rotary_emb(x.bfloat16(), positions)
        torch.testing.assert_close(rounded[1].float(), expected, atol=0.01, rtol=0.01)


@pytest.mark.parametrize("norm", ["rmsnorm", "layernorm"])
@pytest.mark.parametrize("norm_weight", [False, True])
@pytest.mark.parametrize("bias", [False, True])
def test_norm_weights_and_biases_follow_the_config(norm: str, norm_weight: bool, bias: bool) -> None:
    model = make_transformer(norm=norm, norm_weight=norm_weight, bias=bias)
    names = {name.rpartition("norm.")[2] for name in model.state_dict() if "norm." in name}
    assert names == {n for n, there in (("weight", norm_weight), ("bias", norm_weight and bias)) if there} - (
        {"bias"} if norm == "rmsnorm" else set()
    )
    biased = {m.bias is not None for n, m in model.named_modules() if n.endswith("_proj")}
    assert (biased, model.lm_head.bias) == ({bias}, None)


def test_rope_theta_matters(text: torch.Tensor) -> None:
    models = [make_transformer(rope_theta=theta) for theta in (10000.0, 100.0)]
    assert not torch.allclose(*(m(text).logits[:, -1] for m in models))


@pytest.mark.parametrize(
    ("fields", "words"),
    [
        ({"num_attention_heads": 3}, ["hidden_size=128", "num_attention_heads=3"]),
        ({"num_key_value_heads": 3}, ["num_attention_heads=4", "num_key_value_heads=3"]),
        ({"num_hidden_layers": -1}, ["num_hidden_layers", "got -1"]),
        ({"num_attention_heads": None}, ["num_attention_heads", "None"]),
        ({"mlp": "relu"}, ["mlp", "relu2", "gelu", "swiglu", "got relu"]),
        ({"norm": "batch"}, ["norm", "rmsnorm", "layernorm", "got batch"]),
        ({"position": "alibi"}, ["position", "rope", "learned", "got alibi"]),
        ({"dropout": -0.1}, ["dropout", "0", "got -0.1"]),
        ({"head_dim": 5}, ["head_dim=5", "even"]),
        ({"hidden_size": 12}, ["head_dim=3", "hidden_size=12", "num_attention_heads=4"]),
        ({"vocab_size": 0}, ["vocab_size", "got 0"]),
        ({"sliding_window": 0}, ["sliding_window", "got 0"]),
        ({"eos_token_id": -1}, ["eos_token_id", "got -1"]),
        ({"initializer_range": 0}, ["initializer_range", "got 0"]),
        ({"dropout": 1}, ["dropout", "smaller than 1", "got 1"]),
        ({"rope_parameters": {"rope_typ": "yarn"}}, ["rope_parameters.rope_typ", "rope_type"]),
        ({"rope_parameters": {"rope_type": "yern"}}, ["rope_parameters.rope_type=yern", "yarn", "linear"]),
    ],
)
def test_a_field_out_of_range_is_named(fields: dict[str, Any], words: list[str]) -> None:
    with pytest.raises((ValueError, StrictDataclassError)) as caught:
        TransformerConfig(**fields)
    for word in words:
        assert word in str(caught.value)


def test_a_field_is_checked_when_it_is_set() -> None:
    with pytest.raises(StrictDataclassError):
        TransformerConfig().dropout = 1.5
