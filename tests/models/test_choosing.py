"""Every way that generate() offers to choose characters, for every model; what is refused; what it costs."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode
from transformers import CompileConfig, DynamicCache, GenerationConfig, QuantizedCache, StaticCache

from craft.data.tokenization import CharTokenizer

from .tiny import MAKERS, VOCAB, make_lstm, make_transformer

BASE = {"max_new_tokens": 6, "pad_token_id": 0}
SAMPLED = {
    "temperature": {"temperature": 0.5},
    "top-k": {"top_k": 3},
    "top-p": {"top_p": 0.6, "top_k": 0},
    "min-p": {"min_p": 0.2},
    "typical": {"typical_p": 0.5},
    "repetition penalty": {"repetition_penalty": 1.5},
    "several of each": {"num_return_sequences": 3, "epsilon_cutoff": 0.01},
    "beams": {"num_beams": 3},
}
GREEDY = {
    "repetition penalty": {"repetition_penalty": 1.5},
    "no repetition": {"no_repeat_ngram_size": 2},
    "forbidden": {"bad_words_ids": [[5], [6, 7]]},
    "biased": {"sequence_bias": [[[4], 5.0]]},
    "allowed": {"prefix_allowed_tokens_fn": lambda batch, ids: [4, 5, 6]},
    "at least": {"min_new_tokens": 5, "eos_token_id": [4, 5, 6, 7, 8]},
    "guided": {"guidance_scale": 1.5},
    "beams": {"num_beams": 4, "num_return_sequences": 4, "length_penalty": 0.5, "early_stopping": True},
}


class Recorder(TorchDispatchMode):
    """Counts operations, and the elements of what they make."""

    def __init__(self) -> None:
        super().__init__()
        self.operations = self.elements = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        self.operations += 1
        for tensor in result if isinstance(result, (tuple, list)) else (result,):
            self.elements += tensor.numel() if isinstance(tensor, torch.Tensor) else 0
        return result


@pytest.mark.parametrize("way", list(SAMPLED))
def test_sampled_text_depends_on_the_seed_and_not_on_the_cache(
    model: Any, prompt: torch.Tensor, way: str
) -> None:
    """The same seed, with and without a cache, gives the same text; and not the greedy one."""
    texts = []
    for use_cache in (True, False):
        torch.manual_seed(0)
        texts.append(model.generate(prompt, do_sample=True, use_cache=use_cache, **BASE, **SAMPLED[way]))
    assert torch.equal(*texts)
    assert len(texts[0]) == 3 * SAMPLED[way].get("num_return_sequences", 1)


@pytest.mark.parametrize("way", list(GREEDY))
def test_greedy_and_beam_text_does_not_depend_on_the_cache(
    model: Any, prompt: torch.Tensor, way: str
) -> None:
    cached, full = (
        model.generate(prompt, do_sample=False, use_cache=use, **BASE, **GREEDY[way]) for use in (True, False)
    )
    assert torch.equal(cached, full)
    new = cached[:, prompt.shape[1] :]
    if way == "forbidden":
        assert 5 not in new
    if way == "allowed":
        assert set(new.unique().tolist()) <= {4, 5, 6}


@pytest.mark.parametrize("make", [make_lstm, make_transformer])
def test_stop_strings_max_time_and_streamers_work(make: Any) -> None:
    model, tokenizer = make(), CharTokenizer.train(["abcdefghi"])
    ids = tokenizer("abcab", return_tensors="pt").input_ids
    text = tokenizer.decode(model.generate(ids, do_sample=False, **{**BASE, "max_new_tokens": 7})[0, 5:])
    stop = text[2:4]  # over two characters
    ended = model.generate(ids, do_sample=False, stop_strings=[stop], tokenizer=tokenizer, **BASE)
    assert tokenizer.decode(ended[0, 5:]) == text[: text.index(stop) + 2]
    assert model.generate(ids, max_time=0.0, do_sample=False, **BASE).shape == (1, 6)

    class Collector:
        ids: list[int] = []  # noqa: RUF012
        ended = False

        def put(self, value: torch.Tensor) -> None:
            self.ids = self.ids + value.flatten().tolist()

        def end(self) -> None:
            self.ended = True

    streamer = Collector()
    out = model.generate(ids, streamer=streamer, do_sample=False, **BASE)
    assert (streamer.ids, streamer.ended) == (out[0].tolist(), True)


def test_a_transformer_generates_the_same_when_compiled(prompt: torch.Tensor) -> None:
    """In one graph, without a break, over a static cache, also for a left-padded batch read in chunks."""
    model = make_transformer()
    mask = torch.ones_like(prompt)
    mask[0, :3] = 0
    settings = {"do_sample": False, "max_new_tokens": 5, "pad_token_id": 0, "attention_mask": mask}
    expected = model.generate(prompt, **settings)
    compiled = CompileConfig(fullgraph=True, dynamic=False, backend="eager", mode=None)
    compiled._compile_all_devices = True
    torch.compiler.reset()
    for more in ({}, {"prefill_chunk_size": 2}):
        static = model.generate(
            prompt, **settings, **more, cache_implementation="static", compile_config=compiled,
            return_dict_in_generate=True,
        )  # fmt: skip
        assert torch.equal(static.sequences, expected)
        assert isinstance(static.past_key_values, StaticCache)
        assert hasattr(model, "_compiled_call")
    beams = {**settings, "num_beams": 2}
    assert torch.equal(
        model.generate(prompt, **beams, cache_implementation="static"), model.generate(prompt, **beams)
    )


def test_continuous_batching_changes_no_text() -> None:
    """Prompts of unequal length, one of them and its text longer than the context of 12."""
    model = make_transformer()
    prompts = [[5, 6, 7], [6], [4, 9, 8, 7, 6, 5, 4, 9, 8, 7, 6, 5, 4, 9]]
    settings = GenerationConfig(max_new_tokens=12, do_sample=False, eos_token_id=-1, pad_token_id=0)
    results = model.generate_batch(prompts, generation_config=settings, progress_bar=False)
    by_prompt = {tuple(result.prompt_ids): result.generated_tokens for result in results.values()}
    for ids in prompts:
        alone = model.generate(torch.tensor([ids]), do_sample=False, max_new_tokens=12, pad_token_id=0)
        assert by_prompt[tuple(ids)] == alone[0, len(ids) :].tolist()


def test_assisted_decoding_is_refused_for_a_recurrent_state(prompt: torch.Tensor) -> None:
    model = make_lstm()
    for assistant in ({"assistant_model": make_lstm()}, {"prompt_lookup_num_tokens": 2}):
        with pytest.raises(ValueError, match="stateful"):
            model.generate(prompt[:1], **assistant, **BASE)


@pytest.mark.parametrize("make", [make_lstm, make_transformer])
def test_generate_refuses_group_beams_constraints_and_quantized_caches(
    make: Any, prompt: torch.Tensor
) -> None:
    """Groups of beams and constraints are code on the Hub by now; a state and a window can't be quantized."""
    model = make()
    for what, settings in {
        "Group Beam Search": {
            "num_beam_groups": 2,
            "diversity_penalty": 0.5,
        },
        "Constrained Beam Search": {"force_words_ids": [[5]]},
        "full attention": {"cache_implementation": "quantized"},
    }.items():
        with pytest.raises(ValueError, match=what):
            model.generate(prompt, num_beams=4, **settings, **BASE)
    with pytest.raises(ValueError, match="full attention"):
        QuantizedCache("quanto", model.config)


def test_a_mask_of_four_dimensions_may_share_a_prefix() -> None:
    """Three endings after one prefix in one row, each seeing the prefix and itself, equal three rows."""
    model = make_transformer()
    prefix, endings = [5, 6, 7], [4, 9, 11]
    rows = torch.tensor([[*prefix, ending] for ending in endings])
    shared = torch.tensor([[*prefix, *endings]])
    seen = torch.ones(6, 6).tril()
    seen[4, 3] = seen[5, 3] = seen[5, 4] = 0
    mask = torch.where(seen == 1, 0.0, torch.finfo(torch.float32).min)[None, None]
    positions = torch.tensor([[0, 1, 2, 3, 3, 3]])
    logits = model(shared, attention_mask=mask, position_ids=positions).logits[0, 3:]
    torch.testing.assert_close(logits, model(rows).logits[:, -1])


def cost(step: Any) -> tuple[int, int]:
    with Recorder() as recorder:
        step()
    return recorder.operations, recorder.elements


@pytest.mark.parametrize(
    "settings", [{"do_sample": False}, {"do_sample": True, "top_k": 5, "temperature": 0.8}]
)
def test_the_millionth_character_of_an_lstm_costs_what_the_tenth_did(settings: dict[str, Any]) -> None:
    """In operations, in memory made, and in memory kept: by stream(), and by forward with the state."""
    model, start = make_lstm(), torch.tensor([[5]])
    costs, kept, step, read = {}, {}, model.step, []

    def remember(ids: torch.Tensor, state: Any) -> Any:
        read[:] = [ids, *(part for layer in state.states for part in layer)]
        return step(ids, state)

    model.step = remember
    stream = model.stream(start, **settings)
    for n in range(1, 2001):
        if n in (10, 2000):
            costs[n] = cost(lambda: next(stream))
            kept[n] = sum(t.numel() for t in read)
        else:
            next(stream)
    assert costs[10] == costs[2000]
    assert kept[10] == kept[2000] == 1 + 2 * 2 * 12

    cache = DynamicCache(config=model.config)
    with torch.no_grad():
        model(start, past_key_values=cache, use_cache=True)
        for far in (10, 1_000_000):
            for layer in cache.layers:
                layer.cumulative_length = far
            costs[far] = cost(lambda: model(start, past_key_values=cache, use_cache=True))
            kept[far] = sum(t.numel() for t in model.state_tensors(cache))
    assert costs[10] == costs[1_000_000]
    assert kept[10] == kept[1_000_000] == 2 * 2 * 12


@pytest.mark.parametrize("kind", ["modern", "windowed"])
def test_a_transformer_costs_no_more_beyond_its_window(kind: str) -> None:
    stream = MAKERS[kind]().stream(torch.tensor([[5]]), do_sample=False)
    costs = {n: cost(lambda: next(stream)) for n in range(1, 60)}
    assert costs[20] == costs[59]


def test_the_tokenizer_of_these_tests_has_the_models_vocabulary() -> None:
    assert len(CharTokenizer.train(["abcdefghi"])) == VOCAB
