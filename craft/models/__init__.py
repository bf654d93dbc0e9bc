"""The model room: every module here that defines `XConfig` with a `model_type` becomes known to transformers.

Importing the package registers `XConfig`, `XModel` and `XForCausalLM` of each module with AutoConfig, AutoModel
and AutoModelForCausalLM, and offers them under `craft.models`. A new model is one new file.
"""

from __future__ import annotations

import importlib
import pkgutil
from typing import Any

from transformers import AutoConfig, AutoModel, AutoModelForCausalLM

from .base import LanguageModel

__all__ = ["LanguageModel", "register"]


def register(module_name: str) -> list[str]:
    """Make the model classes of an importable module known to the Auto classes; return their names (maybe none).

    Raises:
        ImportError: it defines an `XConfig` with a `model_type`, but no `XModel` or no `XForCausalLM`.
    """
    module = importlib.import_module(module_name)
    stems = [
        name.removesuffix("Config")
        for name, value in vars(module).items()
        if name.endswith("Config") and getattr(value, "__module__", "") == module.__name__ and value.model_type
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
    globals().update({name: getattr(module, name) for name in names})
    return names


for _module in pkgutil.iter_modules(__path__):
    __all__ += register(f"{__name__}.{_module.name}")


def __getattr__(name: str) -> Any:
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}; it offers {', '.join(sorted(__all__))}")
