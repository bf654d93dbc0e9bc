"""What the workflow refuses before it trains, and what it says at the end."""

from __future__ import annotations

import logging
import shlex
from pathlib import Path

import pytest
from transformers import PreTrainedConfig

from craft.building import new_model
from craft.data.tokenization import CharTokenizer
from craft.runs import learnt_by_heart, remedies, writable
from craft.train import farewell
from craft.utils.errors import UserError
from craft.utils.outputs import RunPaths

TOKENIZER = CharTokenizer.train(["abc\n"])
TINY = {"model_type": "char_transformer", "hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2}


@pytest.mark.parametrize(
    ("fields", "phrase"),
    [
        ({"bos_token_id": 8}, r"models\.bos_token_id=8 .*0 to 7"),
        ({"eos_token_id": 999}, r"models\.eos_token_id=999"),
        ({"vocab_size": 5}, r"models\.vocab_size=5 .* 8 ids"),
        ({"attn_implementation": "nonsense"}, r"models: .*nonsense"),
    ],
)
def test_a_model_that_does_not_fit_its_text(fields: dict[str, object], phrase: str) -> None:
    assert new_model(TINY, TOKENIZER, 8).config.vocab_size == 8
    with pytest.raises(UserError, match=phrase) as caught:
        new_model({**TINY, **fields}, TOKENIZER, 8)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("name", ["run_step_3", "my runs/run 'a' \"b\"_step_3"])
def test_the_next_commands_can_be_pasted(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    said: list[str] = []
    monkeypatch.setattr(logging.getLogger("craft.train"), "info", said.append)
    farewell(Path(name), RunPaths("m", "1K", "fp32", "20260102_030405", folder=Path("run")), TOKENIZER)
    generate, evaluate, pipeline = (shlex.split(line) for line in said[0].splitlines()[-3:])
    assert generate == ["craft", "generate", name]
    assert evaluate == ["craft", "evaluate", name]
    assert pipeline[:2] == ["python", "-c"]
    assert compile(pipeline[2], "", "exec")
    assert repr(name) in pipeline[2]


def test_a_folder_that_cannot_be_written(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("x", encoding="utf-8")
    refused = pytest.raises(UserError, match=r"file/logs can't be written: Not a directory")
    with refused, writable(tmp_path / "file/logs"):
        (tmp_path / "file/logs").mkdir()


@pytest.mark.parametrize(
    ("losses", "best", "told"),
    [
        ({50: 2.0, 100: 1.5, 150: 1.0, 200: 0.5}, 100, True),
        ({50: 2.0, 100: 1.5, 150: 1.0, 200: 0.5}, 151, False),  # late enough
        ({50: 2.0, 100: 1.5, 150: 1.0, 200: 1.6}, 100, False),  # it went astray instead
        ({}, 100, False),
    ],
)
def test_a_text_that_was_learnt_by_heart(losses: dict[int, float], best: int, told: bool) -> None:
    history = [{"step": step, "loss": loss} for step, loss in losses.items()] + [
        {"step": 200, "eval_loss": 9}
    ]
    assert learnt_by_heart(history, best, 200) is told


@pytest.mark.parametrize(
    ("fields", "said"),
    [
        ({"dropout": 0.0}, "more text, models.dropout=0.2 or a smaller model"),
        ({"dropout": 0.1}, "more text, models.dropout=0.2 or a smaller model"),
        ({"dropout": 0.2}, "more text or a smaller model"),
        ({"dropout": 0.3}, "more text or a smaller model"),
        ({}, "more text or a smaller model"),  # which has no such field
    ],
)
def test_nobody_is_told_to_do_what_the_run_does(fields: dict[str, float], said: str) -> None:
    assert remedies(PreTrainedConfig(**fields)) == said
