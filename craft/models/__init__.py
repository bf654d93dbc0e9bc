"""The model room: every module that defines an `XConfig` with a `model_type` becomes known to transformers.

Importing the package registers `XConfig`, `XModel` and `XForCausalLM` of each module with AutoConfig,
AutoModel and AutoModelForCausalLM, and offers them under `craft.models`. A new model is one new file.
"""

from __future__ import annotations

import importlib
import pkgutil
from typing import Any

from transformers import AutoConfig, AutoModel, AutoModelForCausalLM
from transformers.models.auto import modeling_auto

from .base import LanguageModel

__all__ = ["LanguageModel", "register"]


def register(module_name: str) -> list[str]:
    """Make the model classes of an importable module known to the Auto classes; return their names, if any.

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
    names = [stem + ending for stem in stems for ending in ("Config", "Model", "ForCausalLM")]
    missing = [name for name in names if not hasattr(module, name)]
    if missing:
        raise ImportError(f"{module_name} must also define {', '.join(missing)}")
    for stem in stems:
        config, model, head = (getattr(module, stem + e) for e in ("Config", "Model", "ForCausalLM"))
        AutoConfig.register(config.model_type, config, exist_ok=True)
        AutoModel.register(config, model, exist_ok=True)
        AutoModelForCausalLM.register(config, head, exist_ok=True)
        # Plain tables of names, which `register` leaves alone: pipelines, label smoothing and upstream's
        # tests look there for what a class is.
        modeling_auto.MODEL_MAPPING_NAMES[config.model_type] = model.__name__
        modeling_auto.MODEL_FOR_CAUSAL_LM_MAPPING_NAMES[config.model_type] = head.__name__
    return names


for _found in pkgutil.iter_modules(__path__):
    _module = f"{__name__}.{_found.name}"
    for _name in register(_module):
        globals()[_name] = getattr(importlib.import_module(_module), _name)
        __all__.append(_name)


def __getattr__(name: str) -> Any:
    raise AttributeError(f"{__name__} has no attribute {name!r}; it offers {', '.join(sorted(__all__))}")
