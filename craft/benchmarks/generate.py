"""Characters per second out of a model: craft's `stream` beside `generate()` of Hugging Face."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

from craft.benchmarks import networks
from craft.benchmarks.harness import Comparison, Contender, Options, timed
from craft.benchmarks.texts import make_ids

PROTOCOL = """Characters per second over all rows of the batch, prompt included in the time, from a prompt of
16 random characters far past the context of the model (whose window then slides, or whose state goes on).
Sampling is at temperature 0.8 from the whole distribution, greedy where it says so; fp32. Baseline:
generate() with its cache on the same weights. Llama and GPT-2 of transformers have about as many weights, and
positions enough for the whole text, because generate() can't slide their windows."""

PROMPT = 16
VARIANTS = ((1, False), (32, False), (1, True))  # (rows of the batch, greedy)


def comparisons(options: Options) -> Iterator[Comparison]:
    size = networks.Size(1, 32) if options.quick else networks.Size(4, 128)
    for context in (32,) if options.quick else (64, 256):
        model = networks.craft_model("transformer", size, context, options.seed)
        for batch, greedy in VARIANTS:
            title = f"transformer {size}, context {context}"
            yield generation(title, model, size, batch, greedy, options)
    lstm, similar = (size, size) if options.quick else (networks.Size(2, 256), networks.Size(5, 128))
    model = networks.craft_model("char_lstm", lstm, 64, options.seed)
    for batch, greedy in VARIANTS:
        yield generation(f"LSTM {lstm}", model, similar, batch, greedy, options)


def generation(
    title: str, model: Any, similar: networks.Size, batch: int, greedy: bool, options: Options
) -> Comparison:
    """One craft model beside transformers' models of the size `similar`, all from the same prompts."""
    import torch
    from transformers import GenerationConfig

    length = 40 if options.quick else 500
    prompts = torch.from_numpy(make_ids(batch * PROMPT, networks.VOCAB, options.seed)).view(batch, PROMPT)
    prompts = prompts.to(model.device)
    how: dict[str, Any] = {"do_sample": not greedy, "suppress_tokens": [0, 1, 2, 3]}  # characters only
    if not greedy:
        how |= {"temperature": 0.8, "top_k": 0}
    config = GenerationConfig(max_new_tokens=length, pad_token_id=0, **how)

    def with_generate(network: Any) -> Callable[[], float]:
        network.eval()
        # generate() takes from here what `config` leaves open; without an end token all write to the limit.
        network.generation_config = GenerationConfig()

        def work() -> float:
            torch.manual_seed(options.seed)
            mask = torch.ones_like(prompts)
            written = network.generate(prompts, attention_mask=mask, generation_config=config)
            return checked(written.shape[1] - PROMPT)

        return work

    def with_stream() -> float:
        torch.manual_seed(options.seed)
        return checked(sum(1 for _ in model.stream(prompts, config)))

    def checked(written: int) -> float:
        if written != length:
            raise RuntimeError(f"{written} characters written, {length} expected")
        return batch * length

    positions = PROMPT + length
    contenders = [
        Contender("craft, generate()", timed(with_generate(model))),
        Contender("craft, stream", timed(with_stream)),
    ]
    others = [build(similar, positions, options.seed) for build in (networks.llama, networks.gpt2)]
    contenders += [Contender(f"{type(o).__name__}, generate()", timed(with_generate(o))) for o in others]
    weights = {type(m).__name__: sum(p.numel() for p in m.parameters()) for m in (model, *others)}
    settings = {"batch": batch, "characters": length, "greedy": greedy, "weights": weights}
    name = f"{title}, batch {batch}, {'greedy' if greedy else 'sampling'}"
    return Comparison(name, "characters", contenders, contenders[0].name, settings)
