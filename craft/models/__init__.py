"""The models: every module that defines an `XConfig` with a `model_type` becomes known to transformers.

Importing the package registers each `XConfig`, `XModel`, `XForCausalLM` and further head
with the Auto classes, and offers them under `craft.models`. A new model is one new file. `save_pretrained`
copies the files of a model beside its weights, where they load without craft: all but this one import only
the standard library, torch, transformers, huggingface_hub and each other (`from .base import …`).
"""

from __future__ import annotations

import importlib
import pkgutil
from typing import Any

import transformers
from transformers.models.auto import modeling_auto

from .base import REQUIRED_CLASSES, LanguageModel, classes_of

__all__ = ["LanguageModel", "register"]

NAME_TABLES = {
    "AutoModel": "MODEL_MAPPING_NAMES",
    "AutoModelForCausalLM": "MODEL_FOR_CAUSAL_LM_MAPPING_NAMES",
    "AutoModelForSequenceClassification": "MODEL_FOR_SEQUENCE_CLASSIFICATION_MAPPING_NAMES",
    "AutoModelForTokenClassification": "MODEL_FOR_TOKEN_CLASSIFICATION_MAPPING_NAMES",
    "AutoModelForQuestionAnswering": "MODEL_FOR_QUESTION_ANSWERING_MAPPING_NAMES",
}
"""Auto class -> transformers' plain table of its names, which its own `register` leaves alone: pipelines,
label smoothing and upstream's tests look there for what a class is."""


REGISTERED: dict[str, Any] = {}
"""`model_type` -> `XForCausalLM` of all that was registered, in this package or by a module of the user's."""


def register(module_name: str) -> list[str]:
    """Make the model classes of an importable module known to the Auto classes and to the settings `models`;
    return their names, if any.

    Raises:
        ImportError: it defines an `XConfig` with a `model_type`, but no `XModel` or no `XForCausalLM`.
    """
    module = importlib.import_module(module_name)
    own = {
        name: value for name, value in vars(module).items() if getattr(value, "__module__", "") == module_name
    }
    stems = [
        n.removesuffix("Config") for n, v in own.items() if n.endswith("Config") and hasattr(v, "model_type")
    ]
    names = [stem + ending for stem in stems for ending in REQUIRED_CLASSES.values()]
    missing = [name for name in names if not hasattr(module, name)]
    if missing:
        raise ImportError(f"{module_name} must also define {', '.join(missing)}")
    offered = []
    for stem in stems:
        config = getattr(module, f"{stem}Config")
        transformers.AutoConfig.register(config.model_type, config, exist_ok=True)
        REGISTERED[config.model_type] = getattr(module, f"{stem}ForCausalLM")
        for auto, found in classes_of(config).items():
            offered.append(found.__name__)
            if auto in NAME_TABLES:
                getattr(transformers, auto).register(config, found, exist_ok=True)
                getattr(modeling_auto, NAME_TABLES[auto])[config.model_type] = found.__name__
    return offered


for _found in pkgutil.iter_modules(__path__):
    _module = f"{__name__}.{_found.name}"
    for _name in register(_module):
        globals()[_name] = getattr(importlib.import_module(_module), _name)
        __all__.append(_name)


def __getattr__(name: str) -> Any:
    raise AttributeError(f"{__name__} has no attribute {name!r}; it offers {', '.join(sorted(__all__))}")
