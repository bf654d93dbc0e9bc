"""Scores of a model that goes on learning while it is scored."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import tiny_run
import torch
from refusals import refused

from craft.evaluation.dynamic import RATES, Reader, evaluate_dynamic
from craft.evaluation.protocols import is_dynamic
from craft.evaluation.scores import evaluate_split

MODELS = ("char_lstm", "char_transformer")


@pytest.fixture(params=MODELS)
def model(request: pytest.FixtureRequest) -> Any:
    torch.manual_seed(0)
    return tiny_run.model(request.param)


def test_a_model_that_learns_nothing_scores_as_a_static_one(model: Any) -> None:
    train, ids = tiny_run.split_ids()
    reader = Reader(model, tiny_run.BLOCK)
    scales = reader.scales(train[:100])
    costs = torch.cat(list(reader.costs(ids[:200], 0.0, scales)))
    half = tiny_run.BLOCK // 2
    static = {"char_lstm": "stateful", "char_transformer": f"sliding-{half}"}[model.config.model_type]
    expected = evaluate_split(
        model, ids[:200], protocol=static, block_size=tiny_run.BLOCK, streams=1, batch_size=1
    )
    assert len(costs) == expected.predictions == 199
    if model.carries_state:  # the last window of a transformer is a whole one in `sliding`
        assert float(costs.sum()) == pytest.approx(expected.nats, rel=1e-5)
    assert reader.correct == pytest.approx(expected.correct, abs=3)


def test_each_stretch_is_scored_before_it_is_learnt(model: Any) -> None:
    """What comes later changes no cost before it, and the weights stay as they were."""
    train, ids = tiny_run.split_ids()
    before = {name: weight.clone() for name, weight in model.state_dict().items()}
    reader = Reader(model, tiny_run.BLOCK)
    scales = reader.scales(train[:100])
    changed = ids[:200].copy()
    changed[120:] = changed[119:199][::-1]
    costs, other = (torch.cat(list(reader.costs(text, 1e-2, scales))) for text in (ids[:200], changed))
    assert torch.equal(costs[:119], other[:119])
    assert not torch.allclose(costs[125:], other[125:])
    assert all(torch.equal(before[name], weight) for name, weight in model.state_dict().items())


def test_learning_while_reading_helps_with_a_text_of_its_own_kind(model: Any) -> None:
    train, ids = tiny_run.split_ids()
    text = np.tile(ids[:50], 20)
    settings: dict[str, Any] = {"block_size": tiny_run.BLOCK, "tokenizer": tiny_run.tokenizer()}
    learnt = evaluate_dynamic(model, train, text, protocol="dynamic-0.002", **settings)
    static = evaluate_split(model, text, protocol="blocks", **settings)
    assert learnt.protocol == "dynamic-0.002"
    assert learnt.nats < 0.97 * static.nats
    assert (learnt.predictions, learnt.characters, learnt.bytes) == (len(text) - 1,) * 3
    found = evaluate_dynamic(model, train[:150], text[:100], **settings)
    assert is_dynamic(found.protocol)
    assert float(found.protocol.removeprefix("dynamic-")) in RATES


@pytest.mark.parametrize("protocol", ["dynamic-", "dynamic-fast", "dynamic-0", "dynamic--1", "dynamic-inf"])
def test_a_rate_must_be_a_number_above_zero(protocol: str) -> None:
    with refused("setting-value", protocol, "dynamic-0.001"):
        is_dynamic(protocol)
