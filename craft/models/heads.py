"""What a model is besides a language model, and which of transformers' Auto classes finds it.

Hub-safe: copied beside the weights by `save_pretrained`.
"""

from __future__ import annotations

import sys
from typing import Any

REQUIRED_CLASSES = {"AutoConfig": "Config", "AutoModel": "Model", "AutoModelForCausalLM": "ForCausalLM"}
ENDINGS = {
    **REQUIRED_CLASSES,
    "AutoModelForSequenceClassification": "ForSequenceClassification",
    "AutoModelForTokenClassification": "ForTokenClassification",
    "AutoModelForQuestionAnswering": "ForQuestionAnswering",
}
"""Auto class -> how the name of its class ends in the module of a config; each has the required ones."""


def classes_of(config_class: type) -> dict[str, type[Any]]:
    """Auto class -> the class beside `XConfig` that it finds, of those there are."""
    module, stem = sys.modules[config_class.__module__], config_class.__name__.removesuffix("Config")
    found = {auto: getattr(module, stem + ending, None) for auto, ending in ENDINGS.items()}
    return {auto: found_class for auto, found_class in found.items() if found_class is not None}
