"""The audit passes honest models, and each way to cheat is caught by the check that is made for it."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import tiny_run
import torch
from torch.nn.functional import one_hot, pad

from craft.data.tokenization import ByteTokenizer, CharTokenizer
from craft.evaluation import audit as module
from craft.evaluation import dynamic
from craft.evaluation.audit import audit, passed, to_dict
from craft.evaluation.protocols import default_protocol
from craft.evaluation.scores import evaluate_split

KINDS = ("char_lstm", "char_transformer")
IDS = np.concatenate(tiny_run.split_ids())


def failures(model: Any, tokenizer: Any = None, ids: np.ndarray = IDS) -> set[str]:
    """Names of the checks that fail."""
    tokenizer = tokenizer or tiny_run.tokenizer()
    block = tiny_run.BLOCK
    score = evaluate_split(
        model, ids, protocol=default_protocol(model), block_size=block, tokenizer=tokenizer
    )
    checks = list(audit(model.eval(), tokenizer, ids, [score], block))
    failed = {check.name for check in checks if check.passed is False}
    assert passed(checks) == (not failed) == to_dict(checks)["passed"]
    return failed


def cheat(kind: str, change: Callable[..., Any]) -> Any:
    """A model whose forward pass gives `change(model, ids, logits, labels, use_cache)`."""
    model = (
        tiny_run.model(kind, initializer_range=0.3) if kind == "char_transformer" else tiny_run.model(kind)
    )
    honest = type(model)

    def forward(self: Any, input_ids: Any = None, **more: Any) -> Any:
        outputs = honest.forward(self, input_ids, **more)
        if outputs.logits.shape[1] == input_ids.shape[1]:  # else it goes on writing
            told, cached = more.get("shift_labels"), bool(more.get("use_cache"))
            outputs.logits = change(self, input_ids, outputs.logits, told, cached)
        return outputs

    model.__class__ = type(honest.__name__, (honest,), {"forward": forward})
    return model.eval()


def hint(ids: torch.Tensor, logits: torch.Tensor) -> torch.Tensor:
    return logits + 4.0 * one_hot(ids, logits.shape[-1])


def next_in_window(ids: torch.Tensor, logits: torch.Tensor) -> torch.Tensor:
    """Helps with all but the last place, by what follows in the window."""
    following = pad(one_hot(ids[:, 1:], logits.shape[-1]), (0, 0, 0, 1))
    return logits + 4.0 * following


@pytest.mark.parametrize("kind", KINDS)
def test_honest_models_pass(kind: str) -> None:
    assert failures(tiny_run.model(kind)) == set()
    for few in (IDS[:2], IDS[:3], IDS[:20]):
        assert failures(tiny_run.model(kind), ids=few) == set()


@pytest.mark.parametrize(
    "tokenizer",
    [
        ByteTokenizer.create(),
        ByteTokenizer.create("pixel"),
        *(CharTokenizer.train(["abc "], p) for p in ("unk", "bytes")),
    ],
    ids=["byte", "pixel", "unk", "bytes"],
)
def test_every_tokenizer_counts_right(tokenizer: Any) -> None:
    ids = tokenizer.encode_ids("a café, \u4e16\u754c \U0001f469\u200d\U0001f680" * 3)
    model = tiny_run.model("char_lstm")
    model.resize_token_embeddings(len(tokenizer))
    assert failures(model, tokenizer, ids) == set()


class Halved(torch.Tensor):
    """Logits whose costs are half of what they are."""

    @classmethod
    def __torch_function__(cls, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        found = super().__torch_function__(function, types, args, kwargs or {})
        return found / 2 if function is torch.nn.functional.nll_loss else found


@pytest.mark.parametrize("kind", KINDS)
def test_costs_that_are_no_probabilities_are_caught(kind: str) -> None:
    halving = cheat(kind, lambda model, ids, logits, *_: logits.as_subclass(Halved))
    assert "probabilities" in failures(halving)
    broken = cheat(kind, lambda model, ids, logits, *_: logits.masked_fill(logits > 1e-2, torch.inf))
    assert "probabilities" in failures(broken)


@pytest.mark.parametrize("kind", KINDS)
def test_a_look_ahead_is_caught(kind: str) -> None:
    peeking = cheat(kind, lambda model, ids, logits, *_: next_in_window(ids, logits))
    assert failures(peeking) >= {"future", "dynamic"}
    counting = cheat(
        kind, lambda model, ids, logits, *_: logits + one_hot(ids, logits.shape[-1]).sum(1, True)
    )
    assert "future" in failures(counting)


def test_a_look_ahead_by_one_protocol_alone_is_caught() -> None:
    windowed = cheat(
        "char_lstm",
        lambda model, ids, logits, told, cached: logits if cached else next_in_window(ids, logits),
    )
    assert "future" in failures(windowed)


@pytest.mark.parametrize("kind", KINDS)
def test_a_look_at_the_other_windows_is_caught(kind: str) -> None:
    aside = cheat(kind, lambda model, ids, logits, *_: hint(ids.roll(-1, 0), logits))
    assert failures(aside) >= {"other rows"}
    assert "future" not in failures(aside)


@pytest.mark.parametrize("kind", KINDS)
def test_what_is_remembered_from_the_last_reading_is_caught(kind: str) -> None:
    def remember(model: Any, ids: torch.Tensor, logits: torch.Tensor, *_: Any) -> torch.Tensor:
        seen = model.__dict__.setdefault("seen", {})
        logits = logits.clone()
        for row, text in enumerate(ids.tolist()):
            for place in range(len(text) - 1):
                if (after := seen.get(tuple(text[: place + 1]))) is not None:
                    logits[row, place, after] += 4.0
        seen.update(
            {tuple(text[: n + 1]): text[n + 1] for text in ids.tolist() for n in range(len(text) - 1)}
        )
        return logits

    assert "memory" in failures(cheat(kind, remember))


@pytest.mark.parametrize("kind", KINDS)
def test_what_is_read_off_the_labels_is_caught(kind: str) -> None:
    told = cheat(kind, lambda model, ids, logits, told, _: logits if told is None else hint(told, logits))
    assert failures(told) == {"labels"}
    model = tiny_run.model(kind)
    honest = type(model)

    def compute_loss(self: Any, *args: Any, **targets: Any) -> Any:
        loss, more = honest.compute_loss(self, *args, **targets)
        return loss / 2, more

    model.__class__ = type(honest.__name__, (honest,), {"compute_loss": compute_loss})
    assert failures(model.eval()) == {"labels"}


@pytest.mark.parametrize("kind", KINDS)
def test_a_score_after_the_update_is_caught(kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    learning = cheat(
        kind,
        lambda model, ids, logits, *_: next_in_window(ids, logits) if torch.is_grad_enabled() else logits,
    )
    assert failures(learning) - {"labels"} == {"dynamic"}
    honest = dynamic.Reader.costs

    def twice(self: Any, ids: np.ndarray, rate: float, scales: Any) -> Any:
        """The costs by a model that has read the text before."""
        for begin in range(0, len(ids) - 1, self.length):
            stretch = ids[begin : begin + self.length + 1]
            start, model = self.start, self._copy()
            for costs in self._losses(model, stretch):
                costs.mean().backward()
            with torch.no_grad():
                for weight in model.parameters():
                    weight -= 0.1 * (0 if weight.grad is None else weight.grad)
            self.start = model
            yield from honest(self, stretch, 0.0, scales)
            self.start = start

    monkeypatch.setattr(dynamic.Reader, "costs", twice)
    assert failures(tiny_run.model(kind)) == {"dynamic"}


def test_a_tokenizer_that_counts_twice_is_caught() -> None:
    tokenizer = tiny_run.tokenizer()
    tokenizer.__class__ = type(
        "Twice", (CharTokenizer,), {"id_units": property(lambda self: 2 * self.id_chars)}
    )
    assert failures(tiny_run.model("char_lstm"), tokenizer) == {"counts"}
    doubled = {"id_bytes": property(lambda self: 2 * self.processor.id_bytes)}
    tokenizer.__class__ = type("Twice", (CharTokenizer,), doubled)
    assert failures(tiny_run.model("char_lstm"), tokenizer) == {"counts"}


def test_a_figure_that_cannot_be_cashed_in_is_caught(monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("constriction", reason="the extra 'compress' isn't installed")
    model = tiny_run.model("char_lstm")
    honest = type(model)
    worse = lambda self, ids, state: (honest.step(self, ids, state)[0] * 3, state)  # noqa: E731
    model.__class__ = type(honest.__name__, (honest,), {"step": worse})
    assert failures(model.eval()) == {"compression"}
    shaky = lambda self, ids, state: (torch.randn(len(ids), self.config.vocab_size), state)  # noqa: E731
    model.__class__ = type(honest.__name__, (honest,), {"step": shaky})
    assert failures(model.eval()) == {"compression"}
    monkeypatch.setattr(module, "find_spec", lambda name: None)
    checks = list(audit(model, tiny_run.tokenizer(), IDS, [], tiny_run.BLOCK))
    assert [check.name for check in checks if check.passed is None] == ["compression"]
    assert "craft-lm[compress]" in str(checks[-1])
