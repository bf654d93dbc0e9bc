"""generate() with every model: caches, beams, padding, chunks, the pipeline; and mutants to be caught."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from accelerate import cpu_offload
from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers
from transformers import DynamicCache, GenerationConfig, PreTrainedTokenizerFast, pipeline

from craft.models import char_lstm, recurrence, state_cache

from .tiny import OTHERS, TRANSFORMERS, VOCAB, make_lstm, make_transformer

GREEDY = {"do_sample": False, "max_new_tokens": 6, "pad_token_id": 0}
BEAM = {**GREEDY, "num_beams": 3, "length_penalty": 0.0}


def pad_left(rows: list[torch.Tensor]) -> tuple[torch.Tensor, torch.Tensor]:
    width = max(len(row) for row in rows)
    ids = torch.stack([torch.cat([row.new_zeros(width - len(row)), row]) for row in rows])
    mask = torch.stack([(torch.arange(width) >= width - len(row)).long() for row in rows])
    return ids, mask


def check_cache(model: Any, prompt: torch.Tensor) -> None:
    """Greedy text and logits with the cache equal those without."""
    cached, full = (
        model.generate(prompt, **GREEDY, use_cache=use, output_logits=True, return_dict_in_generate=True)
        for use in (True, False)
    )
    assert torch.equal(cached.sequences, full.sequences)
    torch.testing.assert_close(torch.stack(cached.logits), torch.stack(full.logits), atol=1e-4, rtol=1e-4)


def check_beam(model: Any, prompt: torch.Tensor) -> None:
    cached, full = (
        model.generate(prompt, **BEAM, num_return_sequences=2, use_cache=use) for use in (True, False)
    )
    assert torch.equal(cached, full)


def check_padding(model: Any, settings: dict[str, Any]) -> None:
    """A left-padded batch of unequal prompts equals each prompt alone."""
    rows = [torch.tensor(r) for r in ([3], [5, 1, 2, 6], [4, 4], [7, 8, 2, 9, 10, 1])]
    ids, mask = pad_left(rows)
    batch = model.generate(ids, attention_mask=mask, **settings)
    for row, out in zip(rows, batch):
        alone = model.generate(row[None], **settings)[0, len(row) :]
        assert torch.equal(out[ids.shape[1] :], alone)


def test_a_cache_changes_no_text(model: Any, prompt: torch.Tensor) -> None:
    check_cache(model, prompt)


def test_beam_search_with_cache_equals_without(model: Any, prompt: torch.Tensor) -> None:
    check_beam(model, prompt)


@pytest.mark.parametrize("settings", [GREEDY, BEAM], ids=["greedy", "beam"])
def test_left_padding_changes_no_text(model: Any, settings: dict[str, Any]) -> None:
    check_padding(model, settings)


def test_sampling_with_cache_equals_without(model: Any, prompt: torch.Tensor) -> None:
    texts = []
    for use in (True, False):
        torch.manual_seed(0)
        texts.append(
            model.generate(prompt, do_sample=True, num_return_sequences=2, max_new_tokens=6, use_cache=use)
        )
    assert texts[0].shape == (6, 11)
    assert torch.equal(*texts)


@pytest.mark.parametrize("size", [1, 2, 3])
def test_reading_the_prompt_in_chunks_changes_no_text(model: Any, size: int) -> None:
    ids, mask = pad_left([torch.tensor(r) for r in ([3, 4], [5, 1, 2, 6, 8])])
    whole = model.generate(ids, attention_mask=mask, **GREEDY)
    assert torch.equal(model.generate(ids, attention_mask=mask, **GREEDY, prefill_chunk_size=size), whole)


def test_a_continued_cache_goes_on_where_it_stopped(model: Any, prompt: torch.Tensor) -> None:
    whole = model.generate(prompt, **GREEDY)
    cache = DynamicCache(config=model.config)
    half = model.generate(prompt, **{**GREEDY, "max_new_tokens": 3}, past_key_values=cache)
    settings = {**GREEDY, "max_new_tokens": 3, "attention_mask": torch.ones_like(half)}
    rest = model.generate(half, **settings, past_key_values=cache)
    assert torch.equal(rest, whole)


@pytest.mark.parametrize("make", [make_lstm, make_transformer])
def test_a_static_cache_changes_no_text(make: Any, prompt: torch.Tensor) -> None:
    model = make()
    expected = model.generate(prompt, **GREEDY)
    assert torch.equal(model.generate(prompt, **GREEDY, cache_implementation="static"), expected)


def test_an_empty_prompt_among_others_begins_with_the_begin_token(model: Any) -> None:
    rows = [torch.tensor(r) for r in ([5, 1, 2], [], [4])]
    ids, mask = pad_left([row.long() for row in rows])
    out = model.generate(ids, attention_mask=mask, **GREEDY, bos_token_id=1)[:, 3:]
    assert torch.equal(out[1:2], model.generate(**GREEDY, bos_token_id=1)[:, 1:])
    assert not ids[1].any()  # the caller's own are left as they are
    assert not mask[1].any()
    for row in (0, 2):
        assert torch.equal(out[row], model.generate(rows[row][None], **GREEDY)[0, len(rows[row]) :])


def test_a_max_length_that_is_asked_for_wins_over_the_models_default(
    model: Any, prompt: torch.Tensor
) -> None:
    model.generation_config.max_new_tokens = 500
    assert model.generate(prompt, max_length=9).shape == (3, 9)
    assert model.generate(prompt, max_new_tokens=2, max_length=12).shape == (3, 7)
    assert len(list(model.stream(prompt, max_length=9))) == 4


def test_the_default_length_is_cut_to_the_learned_positions(prompt: torch.Tensor) -> None:
    model = make_transformer("gpt2")
    model.generation_config.max_new_tokens = 500
    assert model.generate(prompt).shape == (3, 12)
    assert model.generate(prompt, generation_config=copy.deepcopy(model.generation_config)).shape == (3, 12)
    for ask in (
        lambda: model.generate(prompt, max_new_tokens=499),
        lambda: model.generate(prompt, generation_config=GenerationConfig(max_new_tokens=400)),
        lambda: model.generate(prompt.repeat(1, 3)),
    ):
        with pytest.raises(ValueError, match="max_position_embeddings=12"):
            ask()


def test_early_exit_drafts_change_no_text(prompt: torch.Tensor) -> None:
    for kind in TRANSFORMERS:
        model = make_transformer(kind)
        expected = model.generate(prompt[:1], **GREEDY)
        assert torch.equal(model.generate(prompt[:1], **GREEDY, assistant_early_exit=1), expected)


def test_offloaded_weights_change_no_text(model: Any, prompt: torch.Tensor) -> None:
    """As with `device_map`, where a part of the model lies on the disk: Accelerate's hooks bring it."""
    expected = model.generate(prompt, **GREEDY)
    ids, mask = pad_left([prompt[0], prompt[1, :3]])
    padded = model.generate(ids, attention_mask=mask, **GREEDY)
    cpu_offload(model)
    assert all(parameter.is_meta for parameter in model.parameters())
    assert torch.equal(model.generate(prompt, **GREEDY), expected)
    assert torch.equal(model.generate(ids, attention_mask=mask, **GREEDY), padded)
    streamed = torch.stack(list(model.stream(prompt, **GREEDY)), dim=1)
    assert torch.equal(streamed, expected[:, prompt.shape[1] :])


def test_input_embeddings_may_be_given_instead_of_ids(model: Any, text: torch.Tensor) -> None:
    embedded = model.get_input_embeddings()(text)
    torch.testing.assert_close(model(inputs_embeds=embedded).logits, model(text).logits)
    with pytest.raises(ValueError, match="input_ids and inputs_embeds"):
        model(input_ids=text, inputs_embeds=embedded)
    embedded = model.get_input_embeddings()(text[:, :5])
    assert torch.equal(
        model.generate(inputs_embeds=embedded, **GREEDY), model.generate(text[:, :5], **GREEDY)[:, 5:]
    )


def test_a_pipeline_over_unequal_prompts_writes_as_each_alone(model: Any) -> None:
    letters = {"<pad>": 0, **{letter: n + 1 for n, letter in enumerate("abcdefghijkl")}}
    assert len(letters) == VOCAB
    backend = Tokenizer(models.WordLevel(letters, unk_token="<pad>"))
    backend.pre_tokenizer = pre_tokenizers.Split(Regex("."), "isolated")
    backend.decoder = decoders.Fuse()
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=backend, pad_token="<pad>", padding_side="left")
    model.generation_config.pad_token_id = 0
    write = pipeline("text-generation", model=model, tokenizer=tokenizer)
    settings = {"do_sample": False, "max_new_tokens": 6, "return_full_text": False}
    prompts = ["abc", "defghi", "k"]
    together = [r[0]["generated_text"] for r in write(prompts, batch_size=3, **settings)]
    assert together == [write(p, **settings)[0]["generated_text"] for p in prompts]
    assert len(set(together)) > 1 or type(model) in OTHERS


MUTANTS = {
    "ignore the mask": ("padding", char_lstm.CharLSTMModel, "forward"),
    "let padding into the state": ("padding", recurrence, "padded_chunks"),
    "skip the beam reorder": ("beam", state_cache.StateCacheLayer, "reorder_cache"),
    "swap h and c": ("cache", state_cache.StateCacheLayer, "update"),
    "drop c": ("cache", state_cache.StateCacheLayer, "update"),
}


@pytest.mark.parametrize("mutant", list(MUTANTS))
def test_these_checks_catch_a_broken_model(
    mutant: str, prompt: torch.Tensor, monkeypatch: pytest.MonkeyPatch
) -> None:
    check, owner, method = MUTANTS[mutant]
    original: Any = getattr(owner, method)

    def broken(self: Any, *args: Any, **kwargs: Any) -> Any:
        if mutant == "skip the beam reorder":
            return None
        if mutant == "ignore the mask":
            return original(self, *args, **{**kwargs, "attention_mask": None})
        states, *rest = args
        other = states.flip(1) if mutant == "swap h and c" else states * torch.tensor([[1], [0]])
        return original(self, other, *rest, **kwargs)

    model = make_lstm()
    run = {
        "padding": lambda: check_padding(model, GREEDY),
        "beam": lambda: check_beam(model, prompt),
        "cache": lambda: check_cache(model, prompt),
    }[check]
    run()
    if mutant == "let padding into the state":
        owner, broken = char_lstm, lambda real: original(torch.ones_like(real))  # type: ignore[assignment]
    monkeypatch.setattr(owner, method, broken)
    with pytest.raises(AssertionError):
        run()
