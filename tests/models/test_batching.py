"""Rows of one batch that join and leave at any character: each is written as it would be alone."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from transformers import GenerationConfig

from craft.models.batching import Batch, Row
from craft.models.char_lstm import CharLSTMConfig, CharLSTMForCausalLM
from craft.models.transformer import TransformerConfig, TransformerForCausalLM

VOCAB = 20
CLOSE = 1e-4
SHAPE: dict[str, Any] = {"vocab_size": VOCAB, "hidden_size": 32, "num_hidden_layers": 2}
ROTARY = SHAPE | {"max_position_embeddings": 12, "zero_init": False}
MODELS: dict[str, Any] = {
    "lstm": lambda: CharLSTMForCausalLM(CharLSTMConfig(**SHAPE)),
    "rotary": lambda: TransformerForCausalLM(TransformerConfig(**ROTARY, num_key_value_heads=2)),
    "learned": lambda: TransformerForCausalLM(TransformerConfig(**ROTARY, position="learned", bias=True)),
    "windowed": lambda: TransformerForCausalLM(
        TransformerConfig(**ROTARY, position="learned", sliding_window=5)
    ),
    "stepped apart": lambda: adapted(TransformerForCausalLM(TransformerConfig(**ROTARY))),
}
SETTINGS: list[dict[str, Any]] = [
    {"do_sample": False},
    {"do_sample": True, "temperature": 0.8},
    {"do_sample": True, "top_k": 5},
    {"do_sample": True, "repetition_penalty": 1.3},
]


class Adapted(torch.nn.Linear):
    """A layer that isn't torch's, which a fast path doesn't know."""


def adapted(model: Any) -> Any:
    for layer in model.model.layers:
        layer.self_attn.o_proj.__class__ = Adapted
    return model


def write_together(model: Any, length: int) -> tuple[list[Row], list[list[torch.Tensor]]]:
    """Sixteen texts that begin and end at different steps, and the logits that each was written by."""
    begun: list[Row] = []
    logits: list[list[torch.Tensor]] = []
    batch, live, step = Batch(model), set[Row](), 0
    while live or len(begun) < 16:
        while len(begun) < 16 and len(begun) <= step // 2:
            n = len(begun)
            prompt = torch.randint(VOCAB, (1 + n % 9,), generator=torch.Generator().manual_seed(n)).tolist()
            begun.append(Row(model, prompt, GenerationConfig(**SETTINGS[n % len(SETTINGS)]), seed=n))
            logits.append([])
            batch.join(begun[-1])
            live.add(begun[-1])
        for rows, _, scores in batch.groups:
            for row, own in zip(rows, scores.clone()):
                logits[begun.index(row)].append(own)
        batch.step()
        over = {row for row in live if len(row.ids) >= length + begun.index(row)}
        if over:
            batch.leave(over)
        live, step = live - over, step + 1
    return begun, logits


@torch.inference_mode()
def logits_alone(model: Any, ids: list[int], begin: int) -> list[torch.Tensor]:
    logits, state = model.prefill(torch.tensor([ids[:begin]]))
    read = [logits[0]]
    for token in ids[begin:-1]:
        logits, state = model.step(torch.tensor([token]), state)
        read.append(logits[0].clone())
    return read


@pytest.mark.parametrize("kind", MODELS)
def test_rows_that_join_and_leave_are_written_as_alone(kind: str) -> None:
    torch.manual_seed(0)
    model = MODELS[kind]().eval()
    rows, logits = write_together(model, length=30)
    ties = 0
    for n, row in enumerate(rows):
        begin = 1 + n % 9
        alone = logits_alone(model, row.ids, begin)
        assert len(alone) == len(logits[n]) >= 21
        torch.testing.assert_close(torch.stack(logits[n]), torch.stack(alone), atol=CLOSE, rtol=0)
        torch.manual_seed(n)
        count, config = len(row.ids) - begin, GenerationConfig(**SETTINGS[n % len(SETTINGS)])
        stream = model.stream(torch.tensor([row.ids[:begin]]), config, max_new_tokens=count)
        text = [int(ids) for ids in stream]
        if text != row.ids[begin:]:  # only where two alternatives are as good as equal
            at = next(k for k, token in enumerate(text) if token != row.ids[begin + k])
            random, noise = torch.Generator().manual_seed(n), torch.ones(VOCAB)
            scores = alone[at][None]
            for rule in row.rules:
                scores = rule(torch.tensor([row.ids[: begin + at]]), scores)
            if row.samples:
                for _ in range(at + 1):
                    noise.exponential_(generator=random)
                scores = scores.log_softmax(-1) - noise.log()
            assert abs(scores[0, text[at]] - scores[0, row.ids[begin + at]]) < CLOSE
            ties += 1
    assert ties <= 1


def test_a_row_that_cannot_be_read_leaves_the_others_alone() -> None:
    model = MODELS["lstm"]().eval()
    batch, config = Batch(model), GenerationConfig(do_sample=False)
    good = Row(model, [5, 6], config)
    batch.join(good)
    with pytest.raises(IndexError):
        batch.join(Row(model, [VOCAB], config))
    assert batch.step() == [good]
    assert len(good.ids) == 3
