"""craft: character-level language models as first-class Hugging Face citizens.

`import craft` is free: public names are resolved on first use, so that the command line answers at once.
"""

from __future__ import annotations

import importlib
from typing import Any

__version__ = "0.1.0"

_PUBLIC = {
    "CharLSTMConfig": "craft.models",
    "CharLSTMModel": "craft.models",
    "CharLSTMForCausalLM": "craft.models",
    "TransformerConfig": "craft.models",
    "TransformerModel": "craft.models",
    "TransformerForCausalLM": "craft.models",
    "CharTokenizer": "craft.data.tokenization",
    "ByteTokenizer": "craft.data.tokenization",
    "load_tokenizer": "craft.data.tokenization",
    "DataArguments": "craft.data.arguments",
    "load_corpus": "craft.data.loaders",
    "CharDataset": "craft.data.char_dataset",
    "CraftTrainingArguments": "craft.training.arguments",
    "LanguageModelTrainer": "craft.training.base",
    "evaluate_split": "craft.evaluation.scores",
    "compose": "craft.config.compose",
    "load": "craft.inference",
    "train": "craft.train",
}

__all__ = ["__version__", *_PUBLIC]


def __getattr__(name: str) -> Any:
    if name not in _PUBLIC:
        raise AttributeError(f"module 'craft' has no attribute {name!r}")
    return getattr(importlib.import_module(_PUBLIC[name]), name)


def __dir__() -> list[str]:
    return sorted(__all__)
