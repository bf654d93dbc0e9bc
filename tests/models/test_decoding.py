"""stream(): the same text as generate(), without its end."""

from __future__ import annotations

from itertools import islice
from typing import Any

import pytest
import torch
from transformers import DynamicCache, GenerationConfig, StoppingCriteria
from transformers.generation import MaxLengthCriteria

from craft.data.tokenization import CharTokenizer
from craft.models import ring
from craft.models.decoding import has_plain_weights

from .tiny import MAKERS, VOCAB, make_lstm, make_transformer

ROTARY = [kind for kind in MAKERS if kind != "gpt2"]


def streamed(model: Any, prompt: torch.Tensor, **settings: Any) -> torch.Tensor:
    return torch.stack(list(model.stream(prompt, **settings)), dim=1)


def generated(model: Any, prompt: torch.Tensor, **settings: Any) -> torch.Tensor:
    return model.generate(prompt, **settings)[:, prompt.shape[1] :]


@pytest.mark.parametrize(
    "settings",
    [
        {"do_sample": False},
        {"do_sample": False, "repetition_penalty": 1.3, "no_repeat_ngram_size": 3},
        {"do_sample": True},
        {"do_sample": True, "temperature": 0.7, "top_k": 5, "top_p": 0.9, "num_return_sequences": 2},
    ],
    ids=["greedy", "greedy with processors", "sampled", "sampled with processors"],
)
def test_a_stream_equals_generate(model: Any, prompt: torch.Tensor, settings: dict[str, Any]) -> None:
    texts = []
    for make in (generated, streamed):
        torch.manual_seed(0)
        texts.append(make(model, prompt, max_new_tokens=7, **settings))
    assert torch.equal(*texts)


@pytest.mark.parametrize("kind", ROTARY)
@pytest.mark.parametrize("length", [1, 11, 12, 13, 40])
def test_a_stream_equals_generate_past_the_context(kind: str, length: int) -> None:
    """Prompts shorter, as long and longer than the context of 12; texts several times as long."""
    model = MAKERS[kind]()
    prompt = torch.randint(1, VOCAB, (2, length), generator=torch.Generator().manual_seed(length))
    settings = {"max_new_tokens": 50, "do_sample": False}
    assert torch.equal(streamed(model, prompt, **settings), generated(model, prompt, **settings))


@pytest.mark.parametrize(
    ("constant", "value"),
    [("_ROTATIONS_AT_ONCE", 8), ("SMALL", 0)],
    ids=["a table of rotary angles that ends", "weights too large to copy"],
)
@pytest.mark.parametrize("kind", ROTARY)
def test_the_text_does_not_depend_on_what_is_kept_at_hand(
    kind: str, constant: str, value: int, prompt: torch.Tensor, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(ring, constant, value)
    settings = {"max_new_tokens": 30, "do_sample": False}
    model = MAKERS[kind]()
    assert torch.equal(streamed(model, prompt, **settings), generated(model, prompt, **settings))


def test_logits_processors_see_all_of_a_long_text() -> None:
    """Which is kept in a tensor that grows: here from 257 to 514."""
    model, start = make_lstm(), torch.tensor([[5]])
    for rule in ({"no_repeat_ngram_size": 3, "max_new_tokens": 300}, {"repetition_penalty": 1.5}):
        settings = {"do_sample": False, "max_new_tokens": 12, **rule}
        assert torch.equal(streamed(model, start, **settings), generated(model, start, **settings))


@pytest.mark.parametrize("make", [make_lstm, make_transformer])
def test_a_stream_ends_after_a_stop_string(make: Any) -> None:
    model, tokenizer = make(), CharTokenizer.train(["abcdefghi"])
    ids = tokenizer("abcab", return_tensors="pt").input_ids
    settings = {"do_sample": False, "max_new_tokens": 9, "tokenizer": tokenizer, "pad_token_id": 0}
    text = tokenizer.decode(generated(model, ids, **settings)[0])
    ended = streamed(model, ids, stop_strings=[text[2:4]], **settings)
    assert tokenizer.decode(ended[0]) == text[: text.index(text[2:4]) + 2]


@pytest.mark.precision
def test_logits_processors_get_float32_scores_without_gradients(prompt: torch.Tensor) -> None:
    """Of rounded ones, characters would be drawn more, or less, often than the model has it. No gradients."""
    seen: list[Any] = []

    def look(ids: torch.Tensor, scores: torch.Tensor) -> torch.Tensor:
        seen.append((scores.dtype, scores.requires_grad))
        return scores

    model = make_lstm().to(torch.bfloat16)
    streamed(model, prompt, do_sample=True, max_new_tokens=3, logits_processor=[look])
    assert seen == [(torch.float32, False)] * 3


def test_a_model_that_keeps_no_cache_by_default_streams(model: Any, prompt: torch.Tensor) -> None:
    """As fine-tuning often leaves it; of the prompt only the last character's logits are computed."""
    settings = {"max_new_tokens": 4, "do_sample": False}
    expected, read = streamed(model, prompt, **settings), []
    model.config.use_cache = model.generation_config.use_cache = False
    model.lm_head.register_forward_hook(lambda head, inputs, output: read.append(output.shape[:-1].numel()))
    assert torch.equal(streamed(model, prompt, **settings), expected)
    assert read == [3] * 4


@pytest.mark.parametrize(("sliding_window", "length"), [(None, 5), (5, 5), (20, 5), (None, 12), (None, 17)])
def test_learned_positions_that_run_out_are_restarted_with_the_last_half(
    sliding_window: int | None, length: int, text: torch.Tensor
) -> None:
    model = make_transformer("gpt2", sliding_window=sliding_window)
    ids = torch.cat([text[1:], text[:1, :length]], dim=1)[:, -length:]
    out = streamed(model, ids, max_new_tokens=40 - length, do_sample=False)
    window = ids[:, -12:]
    for expected in out[0]:
        assert model(window).logits[0, -1].argmax() == expected
        window = torch.cat([window, expected.view(1, 1)], dim=1)
        if window.shape[1] > 12:
            window = window[:, -6:]


def test_learned_positions_refuse_to_generate_past_the_context(prompt: torch.Tensor) -> None:
    model = make_transformer("gpt2")
    for ask in (
        lambda: model.generate(prompt, max_new_tokens=8),
        lambda: model(prompt.repeat(1, 3)),
        lambda: model(prompt.repeat(1, 3), attention_mask=torch.ones(3, 15)),
    ):
        with pytest.raises(ValueError, match=r"1[35] .*max_position_embeddings=12"):
            ask()


def test_a_stream_without_a_limit_goes_on(model: Any, prompt: torch.Tensor) -> None:
    ids = list(islice(model.stream(prompt, do_sample=True), 400))
    assert len(ids) == 400
    assert ids[0].shape == (3,)
    assert ids[0].dtype == torch.long


@pytest.mark.parametrize("make", [make_lstm, make_transformer])
def test_rows_end_at_eos_and_then_pad(make: Any, prompt: torch.Tensor) -> None:
    model = make()
    settings = {"do_sample": True, "eos_token_id": 4, "pad_token_id": 0, "max_new_tokens": 60}
    texts = []
    for way in (generated, streamed):
        torch.manual_seed(3)
        texts.append(way(model, prompt, **settings))
    assert torch.equal(*texts)
    ends = (texts[1] == 4).int().argmax(dim=1)
    assert texts[1].shape[1] == ends.max() + 1 < 60
    assert len(set(ends.tolist())) > 1
    shortest = int(ends.argmin())
    assert not texts[1][shortest, ends[shortest] + 1 :].any()


def test_a_stream_ends_by_criteria_and_by_length(prompt: torch.Tensor) -> None:
    model = make_lstm()

    class Every(StoppingCriteria):
        def __call__(self, input_ids: torch.Tensor, scores: Any, **kwargs: Any) -> torch.Tensor:
            return torch.full((len(input_ids),), input_ids.shape[1] >= 9)

    assert len(list(model.stream(prompt, stopping_criteria=[Every()]))) == 4
    assert len(list(model.stream(prompt, stopping_criteria=[MaxLengthCriteria(8)]))) == 3
    assert len(list(model.stream(prompt, max_length=12))) == 7
    assert len(list(model.stream(prompt, GenerationConfig(max_new_tokens=2)))) == 2
    model.generation_config.max_new_tokens = 5
    assert len(list(model.stream(prompt))) == 5
    assert len(list(islice(model.stream(prompt, max_new_tokens=None), 50))) == 50


@pytest.mark.parametrize(
    ("settings", "value"),
    [
        ({"num_beams": 2}, "beam search"),
        ({"input_ids": torch.tensor([1, 2])}, r"got \[2\]"),
        ({"input_ids": torch.zeros(3, 0, dtype=torch.long)}, r"got \[3, 0\]"),
        ({"attention_mask": torch.tensor([[0, 1, 1, 1, 1]] * 3)}, "padded"),
        ({"max_length": 5}, "max_length is 5"),
        ({"temperatur": 0.5}, "temperatur"),
        ({"prompt_lookup_num_tokens": 2}, "assisted generation"),
        ({"penalty_alpha": 0.5, "top_k": 3}, "contrastive search"),
        ({"past_key_values": DynamicCache()}, "past_key_values"),
    ],
)
def test_stream_refuses_what_only_generate_does_before_the_first_character(
    prompt: torch.Tensor, settings: dict[str, Any], value: str
) -> None:
    with pytest.raises(ValueError, match=value):
        make_lstm().stream(**{"input_ids": prompt, **settings})


def test_stream_puts_the_model_into_evaluation_mode(prompt: torch.Tensor) -> None:
    for model in (make_lstm(dropout=0.5), make_transformer(dropout=0.5)):
        expected = streamed(model, prompt, max_new_tokens=20, do_sample=False)
        assert torch.equal(streamed(model.train(), prompt, max_new_tokens=20, do_sample=False), expected)
        assert not any(module.training for module in model.modules())


class Adapter(torch.nn.Module):
    """What a LoRA library puts in the place of a linear layer."""

    def __init__(self, base: torch.nn.Linear) -> None:
        super().__init__()
        self.base_layer, self.weight = base, base.weight

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.base_layer(x) + 0.5 * x.sum(-1, keepdim=True)


def test_the_fast_path_does_not_bypass_an_adapter(prompt: torch.Tensor) -> None:
    model = make_transformer()
    settings = {"max_new_tokens": 6, "do_sample": False}
    plain = streamed(model, prompt, **settings)
    for layer in model.model.layers:
        layer.self_attn.v_proj = Adapter(layer.self_attn.v_proj)
    adapted = streamed(model, prompt, **settings, attention_mask=torch.ones_like(prompt))
    assert torch.equal(adapted, generated(model, prompt, **settings))
    assert not torch.equal(adapted, plain)


@pytest.mark.parametrize("make", [make_lstm, make_transformer])
def test_the_fast_path_leaves_quantized_weights_alone(make: Any) -> None:
    """Quantized or sharded ones are parameters of a class of their own."""

    class Other(torch.nn.Parameter):
        pass

    model = make()
    assert has_plain_weights(model)
    name, weight = next(model.model.layers[0].named_parameters())
    owner = model.model.layers[0].get_submodule(name.rpartition(".")[0])
    setattr(owner, name.rpartition(".")[2], Other(weight.data))
    assert not has_plain_weights(model)


def test_streamed_ids_may_be_trained_on(prompt: torch.Tensor) -> None:
    model = make_transformer()
    ids = streamed(model, prompt, max_new_tokens=6, do_sample=True)
    model(ids, labels=ids).loss.backward()
    assert model.lm_head.weight.grad.abs().sum() > 0


@pytest.mark.precision
@pytest.mark.parametrize("autocast", [None, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("make", [make_lstm, make_transformer])
def test_a_model_streams_in_half_precision(
    make: Any, autocast: torch.dtype | None, prompt: torch.Tensor
) -> None:
    """bfloat16 weights, or float32 ones under autocast; also where oneDNN has no LSTM of that format."""
    model = make() if autocast else make().to(torch.bfloat16)
    for length in (1, 5):
        with torch.autocast("cpu", autocast, enabled=autocast is not None):
            assert streamed(model, prompt[:, :length], max_new_tokens=20, do_sample=True).shape == (3, 20)
            assert generated(model, prompt[:, :length], max_new_tokens=3).shape == (3, 3)


def test_steps_leave_no_graph_where_gradients_are_on(model: Any, prompt: torch.Tensor) -> None:
    logits, state = model.eval().prefill(prompt)
    with torch.no_grad():
        expected, _ = model.step(logits.argmax(dim=-1), model.prefill(prompt)[1])
    after, _ = model.step(logits.argmax(dim=-1), state)
    assert not after.requires_grad
    torch.testing.assert_close(after, expected)
