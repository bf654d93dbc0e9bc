"""One Chromium for all pages of the tests, and small models with lively weights."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

from craft.building import build_model
from craft.data.tokenization import ByteTokenizer, CharTokenizer
from craft.exporting.html import export_html

from .browser import CHROMIUM, Browser

ALPHABET = "abcdeößмир世界👩🚀\u200d\u0301 \r\n\t<>&/\"'$script\u2028\ufeff"
"""With what could be taken for markup, for a sign of the template, or for a mark of the byte order."""
CONTEXT = 24
LSTM = {"model_type": "char_lstm", "hidden_size": 13, "num_hidden_layers": 2, "layer_norm_eps": 0.01}
MODERN = {
    "model_type": "char_transformer",
    "hidden_size": 16,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "norm_eps": 0.01,  # so that it shows
}
MODELS: dict[str, dict[str, Any]] = {
    "lstm": LSTM,
    "lstm-tied": {**LSTM, "layer_norm": "head", "tie_word_embeddings": True},
    "lstm-plain": {**LSTM, "layer_norm": "none", "hidden_size": 8, "num_hidden_layers": 1},
    "modern": MODERN,
    "grouped": {**MODERN, "num_key_value_heads": 2, "mlp": "swiglu", "bias": True, "norm_weight": True},
    "windowed": {
        **MODERN,
        **{"sliding_window": 5, "head_dim": 6, "tie_word_embeddings": True, "rope_theta": 50.0},
    },
    "stretched": {
        **MODERN,
        "rope_parameters": {"rope_type": "yarn", "rope_theta": 100.0, "factor": 4.0},
    },
    "gpt2": {
        **MODERN,
        **{"mlp": "gelu", "norm": "layernorm", "norm_weight": True, "qk_norm": False, "position": "learned"},
        **{"tie_word_embeddings": True, "bias": True, "sliding_window": 9},
    },
}


@pytest.fixture(scope="session")
def browser(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Browser]:
    if CHROMIUM is None:
        pytest.skip("chromium isn't installed")
    profile = tmp_path_factory.mktemp("profile")
    browser = Browser(profile)
    yield browser
    browser.close()
    shutil.rmtree(profile, ignore_errors=True)


def save(folder: Path, kind: str = "lstm", tokenizer: CharTokenizer | None = None) -> Path:
    """A model whose next character depends on all that came before, as a run leaves it."""
    tokenizer = tokenizer or CharTokenizer.train([ALPHABET])
    model = build_model(MODELS[kind], tokenizer, block_size=CONTEXT, documents=False)
    generator = torch.Generator().manual_seed(5)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            noise = 0.5 * torch.randn(parameter.shape, generator=generator)
            parameter.copy_(1 + noise if "norm" in name and name.endswith("weight") else noise)
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


TOKENIZERS = {
    "char": CharTokenizer.train([ALPHABET]),
    "unk": CharTokenizer.train(["abcde\n"], unknown="unk"),
    "bytes": CharTokenizer.train(["abcde\nöß"], unknown="bytes"),
    "byte": ByteTokenizer.create(),
}

TEXT = "abc ößмир 世界\n👩\u200d🚀e\u0301<b>\t" * 3
"""Longer than the contexts of the models; of every kind of character."""


def exported(tmp_path: Path, kind: str = "lstm", tokenizer: Any = None, **options: Any) -> Path:
    return export_html(save(tmp_path / "model", kind, tokenizer), tmp_path / "page.html", **options).file


@pytest.fixture(scope="session")
def page(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return exported(tmp_path_factory.mktemp("page"))
