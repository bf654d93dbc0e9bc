"""Generation one character at a time, without end if wanted: the method `stream` of every generative model.

It uses transformers' own logits processors, stopping criteria and random numbers, so a stream equals
`generate` with the same settings and seed; only the loop around them differs, and does no more than needed.
Hub-safe: copied beside the weights by `save_pretrained`.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Any, NamedTuple

import torch
from torch import nn
from transformers import GenerationConfig, GenerationMixin, LogitsProcessorList, StoppingCriteriaList
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


def begin(input_ids: torch.Tensor, bos_token_id: Any) -> torch.Tensor:
    """`input_ids`, or for prompts of no characters [B, 0] what a text begins with: the begin token, [B, 1].

    Raises:
        ValueError: the prompts are empty and the generation config knows no `bos_token_id`.
    """
    if input_ids.ndim != 2 or input_ids.shape[1]:
        return input_ids
    if bos_token_id is None:
        raise ValueError(
            f"empty prompts of shape {list(input_ids.shape)} need a bos_token_id to begin with: pass one, "
            "set it in the generation config, or give prompts of shape [batch, length >= 1]"
        )
    return input_ids.new_full((input_ids.shape[0], 1), int(bos_token_id))


def first_ids(model: Any, inputs: Any, bos_token_id: Any, model_kwargs: dict[str, Any]) -> torch.Tensor:
    """What `generate` starts from: as in transformers, but empty prompts, too, begin with the begin token.

    Also those among others in a batch, which are nothing but padding: a row without any real character.
    """
    mask = model_kwargs.get("attention_mask")
    if inputs is None or model_kwargs.get("inputs_embeds") is not None:
        known = GenerationMixin._maybe_initialize_input_ids_for_generation
        return known(model, inputs, bos_token_id, model_kwargs)
    if inputs.shape[-1] == 0:
        inputs = begin(inputs, bos_token_id)
        if mask is not None:  # it masks no characters yet
            model_kwargs["attention_mask"] = torch.ones_like(inputs)
    elif bos_token_id is not None and mask is not None and mask.shape == inputs.shape:
        empty = mask.sum(dim=1) == 0
        if empty.any():
            inputs, mask = inputs.clone(), mask.clone()
            inputs[empty, -1], mask[empty, -1] = int(bos_token_id), 1
            model_kwargs["attention_mask"] = mask
    return inputs


def settings(model: Any, given: GenerationConfig | None, **overrides: Any) -> tuple[GenerationConfig, dict]:
    """What `generate` and `stream` go by: as in transformers, but a `max_length` that was asked for wins over
    the `max_new_tokens` of the model's own generation config, and that one is marked as nobody's wish."""
    config, rest = GenerationMixin._prepare_generation_config(model, given, **overrides)
    own = model.generation_config
    new, whole = (
        overrides.get(name) is not None or getattr(given, name, None) not in (None, getattr(own, name))
        for name in ("max_new_tokens", "max_length")
    )
    if whole and not new:
        config.max_new_tokens = None
    config._own_length = config.max_new_tokens is not None and not new
    return config, rest


def has_plain_weights(model: Any) -> bool:
    """Whether a fast path may lay the weights of the layers out anew: no adapters, nothing quantized, nothing
    sharded, nothing that is fetched from elsewhere (Accelerate's hooks) when its turn comes."""
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
    until the caller stops asking or every row has ended. A row that has ended yields the pad id.

    Args:
        input_ids: prompts [B, T] of equal length; empty ones begin with the begin token, which isn't yielded.
        overrides: any field of GenerationConfig, as for `generate`, and `tokenizer` with `stop_strings`.

    Raises:
        ValueError: padded prompts, empty ones without a begin token, what only `generate` does (beams, a
            cache to go on from, drafts), or an unknown setting; at once, before iterating.

    Examples:
        for ids in model.stream(prompt, do_sample=True, temperature=0.8, max_new_tokens=500): ...
    """
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
    no_length, no_min = (
        overrides.get(name) is None and all(getattr(config, name) is None for config in given)
        for name in ("max_length", "min_length")
    )
    config, rest = model._prepare_generation_config(generation_config, **overrides)
    mask = rest.pop("attention_mask", None)
    model._validate_model_kwargs(dict(rest))
    unread = [name for name, value in rest.items() if value is not None]
    if unread:
        raise ValueError(f"stream() starts from input_ids alone; use generate() for {', '.join(unread)}")
    if input_ids.ndim != 2:
        raise ValueError(f"stream() needs prompts of shape [batch, length], got {list(input_ids.shape)}")
    input_ids = begin(input_ids, config.bos_token_id)
    if mask is not None and not mask.all():
        raise ValueError("stream() takes prompts of equal length; use generate() for a padded batch")
    if (config.num_beams or 1) > 1:
        raise ValueError(f"stream() cannot search with num_beams={config.num_beams}; use generate()")
    mode = config.get_generation_mode()
    if mode not in (GenerationMode.GREEDY_SEARCH, GenerationMode.SAMPLE):
        raise ValueError(f"stream() knows no {mode.value.replace('_', ' ')}; use generate()")

    if model.device.type != "meta":  # weights that are fetched when their turn comes
        input_ids = input_ids.to(model.device)
    input_ids = input_ids.repeat_interleave(config.num_return_sequences or 1, dim=0)
    batch, length = input_ids.shape
    model._prepare_special_tokens(config, True, device=input_ids.device, batch_size=batch)
    endless = no_length and config.max_new_tokens is None
    config = model._prepare_generated_length(config, no_length, no_min, "input_ids", length, input_ids)
    limit = None if endless else config.max_length
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


@torch.no_grad()
def _steps(model: Any, planned: Plan) -> Iterator[torch.Tensor]:
    input_ids, processors, criteria, do_sample, pad, limit = planned
    batch, length = input_ids.shape
    remember = need_history((*processors, *criteria))
    text = torch.cat([input_ids, input_ids.new_empty(batch, length + 256)], dim=1) if remember else input_ids
    seen: Any = input_ids
    unfinished = torch.ones(batch, dtype=torch.long, device=input_ids.device)
    pads_rows = batch > 1 and any(hasattr(rule, "eos_token_id") for rule in criteria)

    logits, state = _read(model, model.prefill, input_ids)
    while True:
        scores = logits.float()
        for rule in processors:  # calling the list would inspect every rule's signature in every step
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
            unfinished = unfinished & ~criteria(seen, scores)
            if not unfinished.any():
                return
        logits, state = _read(model, model.step, ids, state)


def _read(model: Any, method: Any, *args: Any) -> tuple[torch.Tensor, Any]:
    """`method(*args)` without dropout. Between two characters the model is as the caller had it, who may
    leave the stream there and train on."""
    if not model.training:
        return method(*args)
    training = [module for module in model.modules() if module.training]
    model.eval()
    try:
        return method(*args)
    finally:
        for module in training:
            module.training = True
