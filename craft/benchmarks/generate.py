"""Characters per second out of a model: craft's `stream` beside `generate()` of Hugging Face.

Counted over all rows of the batch, prompt included in the time, from a prompt of 16 random characters far
past the context of the model (whose window then slides, or whose state goes on). Sampling is at temperature
0.8 from the whole distribution; fp32. Baseline: generate() with its cache on the same weights. Llama and
GPT-2 of transformers have about as many weights, and positions enough for the whole text, because
generate() can't slide their windows.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import torch
from transformers import GenerationConfig

from craft.benchmarks import networks
from craft.benchmarks.harness import Comparison, Options, timed
from craft.benchmarks.texts import make_ids

PROMPT = 16


def comparisons(options: Options) -> Iterator[Comparison]:
    size, lstm, similar = networks.Size(4, 128), networks.Size(2, 256), networks.Size(5, 128)
    if options.quick:
        size = lstm = similar = networks.SMALL
    for batch in (1, 32):
        model = networks.craft_model("transformer", size, 64)
        yield generation(f"transformer {size}, context 64", model, size, batch, options)
        model = networks.craft_model("char_lstm", lstm, 64)
        yield generation(f"LSTM {lstm}", model, similar, batch, options)


def generation(title: str, model: Any, similar: networks.Size, batch: int, options: Options) -> Comparison:
    """One craft model beside transformers' models of the size `similar`, all from the same prompts."""
    length = 40 if options.quick else 500
    prompts = torch.from_numpy(make_ids(batch * PROMPT)).view(batch, PROMPT).to(networks.DEVICE)
    config = GenerationConfig(
        max_new_tokens=length,
        pad_token_id=0,
        do_sample=True,
        temperature=0.8,
        top_k=0,
        suppress_tokens=[0, 1, 2, 3],  # characters only
    )

    def with_generate(network: Any) -> Callable[[], float]:
        network.eval()
        # generate() takes from here what `config` leaves open; without an end token all write to the limit.
        network.generation_config = GenerationConfig()

        def work() -> None:
            torch.manual_seed(0)
            mask = torch.ones_like(prompts)
            written = network.generate(prompts, attention_mask=mask, generation_config=config)
            assert written.shape[1] == PROMPT + length

        return timed(work)

    def stream() -> None:
        torch.manual_seed(0)
        assert sum(1 for _ in model.stream(prompts, config)) == length

    others = [networks.upstream_model(name, similar, PROMPT + length) for name in ("llama", "gpt2")]
    contenders = {"craft, generate()": with_generate(model), "craft, stream": timed(stream)}
    contenders |= {f"{type(other).__name__}, generate()": with_generate(other) for other in others}
    weights = {type(network).__name__: network.num_parameters() for network in (model, *others)}
    settings = {"batch": batch, "weights": weights}
    return Comparison(f"{title}, batch {batch}", batch * length, "characters", contenders, settings)
