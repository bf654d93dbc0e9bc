"""Generation one character at a time, without end if wanted: the method `stream` of every generative model.

It uses transformers' own logits processors, stopping criteria and random numbers, so a stream equals
`generate` with the same settings and seed; only the loop around them differs, and does no more than needed.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Any, NamedTuple

import torch
from torch import nn
from transformers import GenerationConfig, LogitsProcessorList, StoppingCriteriaList
from transformers.generation import GenerationMode, logits_process, stopping_criteria

# These look at the scores, or at the last character alone, so nobody has to remember the text for them.
_WITHOUT_HISTORY = (
    logits_process.TemperatureLogitsWarper,
    logits_process.TopKLogitsWarper,
    logits_process.TopPLogitsWarper,
    logits_process.MinPLogitsWarper,
    logits_process.TypicalLogitsWarper,
    logits_process.EpsilonLogitsWarper,
    logits_process.EtaLogitsWarper,
    logits_process.SuppressTokensLogitsProcessor,
    logits_process.InfNanRemoveLogitsProcessor,
    logits_process.LogitNormalization,
    stopping_criteria.EosTokenCriteria,
    stopping_criteria.MaxTimeCriteria,
)


def has_plain_weights(model: Any) -> bool:
    """Whether a fast path may copy the weights of the layers into another layout: no adapters, nothing
    quantized, sharded, or offloaded by Accelerate."""
    own, layers = __name__.rpartition(".")[0], model.model.layers
    return (
        all(type(m).__module__.startswith(("torch.nn.modules.", own)) for m in layers.modules())
        and all(type(p) is nn.Parameter for p in layers.parameters())
        and not any(hasattr(m, "_hf_hook") for m in model.modules())
    )


def stream(
    model: Any,
    input_ids: torch.Tensor,
    generation_config: GenerationConfig | None = None,
    logits_processor: list[Any] | None = None,
    stopping_criteria: list[Any] | None = None,
    **overrides: Any,
) -> Iterator[torch.Tensor]:
    """Yield the next id of every row, int64 [B], until a limit or criterion says stop.

    Without `max_new_tokens` or `max_length` (here, in the generation config or in the model's) it goes on
    until the caller stops asking or every row has ended. A row that has ended yields the pad id. The model is
    put into evaluation mode.

    Args:
        input_ids: prompts [B, T] of equal length, at least one id.
        overrides: any field of GenerationConfig, as for `generate`, and `tokenizer` with `stop_strings`.

    Raises:
        ValueError: padded or empty prompts, what only `generate` does (beams, a cache to go on from, drafts),
            or an unknown setting; at once, before iterating.

    Examples:
        for ids in model.stream(prompt, do_sample=True, temperature=0.8, max_new_tokens=500): ...
    """
    model.eval()
    return _steps(
        model,
        plan(model, input_ids, generation_config, logits_processor, stopping_criteria, **overrides),
    )


class Plan(NamedTuple):
    """What `stream` goes by: where it begins, what is done to the scores, when it stops."""

    input_ids: torch.Tensor
    processors: LogitsProcessorList
    criteria: StoppingCriteriaList
    do_sample: bool
    pad: Any
    limit: int | None


def plan(
    model: Any,
    input_ids: torch.Tensor,
    generation_config: GenerationConfig | None = None,
    logits_processor: list[Any] | None = None,
    stopping_criteria: list[Any] | None = None,
    **overrides: Any,
) -> Plan:
    """The arguments of `stream`, checked and made into what its steps need."""
    tokenizer = overrides.pop("tokenizer", None)
    given = (generation_config or GenerationConfig(), model.generation_config)
    lengths = (overrides.get("max_length"), *(config.max_length for config in given))
    config, rest = model._prepare_generation_config(generation_config, **overrides)
    mask = rest.pop("attention_mask", None)
    model._validate_model_kwargs(dict(rest))
    unread = [name for name, value in rest.items() if value is not None]
    if unread:
        raise ValueError(f"stream() starts from input_ids alone; use generate() for {', '.join(unread)}")
    if input_ids.ndim != 2 or not input_ids.shape[1]:
        raise ValueError(f"stream() needs prompts of shape [batch, length >= 1], got {list(input_ids.shape)}")
    if mask is not None and not mask.all():
        raise ValueError("stream() takes prompts of equal length; use generate() for a padded batch")
    mode = config.get_generation_mode()
    if mode not in (GenerationMode.GREEDY_SEARCH, GenerationMode.SAMPLE):
        raise ValueError(f"stream() knows no {mode.value.replace('_', ' ')}; use generate()")

    if model.device.type != "meta":  # weights that Accelerate offloaded
        input_ids = input_ids.to(model.device)
    input_ids = input_ids.repeat_interleave(config.num_return_sequences or 1, dim=0)
    batch, length = input_ids.shape
    model._prepare_special_tokens(config, True, device=input_ids.device, batch_size=batch)
    limit = next((value for value in lengths if value is not None), None)
    if config.max_new_tokens is not None:
        limit = length + config.max_new_tokens
    if limit is not None and limit <= length:
        raise ValueError(f"nothing to generate: the prompt has {length} ids and max_length is {limit}")
    processors = model._get_logits_processor(
        config,
        input_ids_seq_length=length,
        encoder_input_ids=input_ids,
        logits_processor=LogitsProcessorList(logits_processor or []),
        device=input_ids.device,
        model_kwargs={},
    )
    config.max_length = None  # counted by the loop below, without a tensor
    criteria = model._get_stopping_criteria(config, StoppingCriteriaList(stopping_criteria or []), tokenizer)
    pad = config._pad_token_tensor
    return Plan(input_ids, processors, criteria, bool(config.do_sample), pad, limit)


def need_history(rules: Iterable[Any]) -> bool:
    """Whether one of these logits processors or stopping criteria looks back further than one character."""
    return not all(isinstance(rule, _WITHOUT_HISTORY) for rule in rules)


def _with_fixed_mask(rule: Any, scores: torch.Tensor) -> Any:
    """The same rule; that of `suppress_tokens`, which makes its mask in every call, with one that is kept."""
    if type(rule) is not logits_process.SuppressTokensLogitsProcessor:
        return rule
    mask = rule(None, torch.zeros_like(scores[:1])).isneginf()
    return lambda seen, scores: scores.masked_fill(mask, -torch.inf)


@torch.no_grad()
def _steps(model: Any, planned: Plan) -> Iterator[torch.Tensor]:
    input_ids, processors, criteria, do_sample, pad, limit = planned
    batch, length = input_ids.shape
    remember = need_history((*processors, *criteria))
    text = torch.cat([input_ids, input_ids.new_empty(batch, length + 256)], dim=1) if remember else input_ids
    seen: Any = input_ids
    unfinished = torch.ones(batch, dtype=torch.long, device=input_ids.device)
    pads_rows = batch > 1 and any(hasattr(rule, "eos_token_id") for rule in criteria)

    logits, state = model.prefill(input_ids)
    rules = [_with_fixed_mask(rule, logits.float()) for rule in processors]
    while True:
        scores = logits.float()
        for rule in rules:  # calling the list would inspect every rule's signature in every step
            scores = rule(seen, scores)
        if do_sample:
            ids = torch.multinomial(scores.softmax(dim=-1), num_samples=1).squeeze(1)
        else:
            ids = scores.argmax(dim=-1)
        if pads_rows:
            ids = ids * unfinished + pad * (1 - unfinished)
        yield ids
        length += 1
        if length == limit:
            return
        if remember:
            if length > text.shape[1]:
                text = torch.cat([text, torch.empty_like(text)], dim=1)
            text[:, length - 1] = ids
            seen = text[:, :length]
        if criteria:
            if not remember:
                seen = ids[:, None]
            for criterion in criteria:
                unfinished = unfinished & ~criterion(seen, scores)
            if not unfinished.any():
                return
        logits, state = model.step(ids, state)
