"""What the workflow refuses before it trains, and what it says at the end."""

from __future__ import annotations

import logging
import shlex
from pathlib import Path

import pytest

from craft.building import new_model
from craft.data.tokenization import CharTokenizer
from craft.runs import writable
from craft.train import farewell
from craft.utils.common import UserError
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
    farewell(Path(name), RunPaths("m", "1K", "fp32", folder=Path("run")), TOKENIZER)
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
