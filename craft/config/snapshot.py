"""The fields of every section, read from the classes that receive them and kept between two starts.

Importing the classes takes seconds, reading what was kept of them a hundredth of one. So from the second
start on, unknown names and wrong types are answered at once. What is kept belongs to these versions of craft
and transformers, and to these files of craft; where it can't be kept, it is read anew each time.
"""

from __future__ import annotations

import functools
import hashlib
import inspect
import json
import sys
from contextlib import suppress
from dataclasses import asdict, dataclass
from importlib.metadata import version
from typing import Any

from craft.config.files import CRAFT
from craft.utils.files import replace_text
from craft.utils.settings import UNKNOWN, Field, fields_of

FROM_TEXT = ("vocab_size", "bos_token_id", "eos_token_id", "pad_token_id")
"""Fields of a model's config that follow from the text, and so are no settings."""

CHOICES = {
    "dtype": ("float32", "bfloat16", "float16"),
    "attn_implementation": ("eager", "sdpa", "flex_attention", *(f"flash_attention_{n}" for n in (2, 3, 4))),
}
"""Words of fields that every model's config takes as text."""

NOT_USED = ("id2label", "label2id", "problem_type", "is_encoder_decoder", "return_dict")
"""Fields that mean nothing in training, likewise."""


@dataclass(frozen=True)
class Section:
    """The fields that a section may have.

    Args:
        own: those that craft's own class defines, or gives another default.
        carries_state: of a model: whether it carries a state from window to window.
    """

    fields: dict[str, Field]
    own: tuple[str, ...]
    carries_state: bool = False


@functools.cache
def sections() -> dict[str, Section]:
    """Every section: `data`, `training`, and a model by its `model_type`, also one of a plugin."""
    found, models = _sections_of_craft(), sys.modules.get("craft.models")
    own = {name: m for name, m in getattr(models, "REGISTERED", {}).items() if name not in found}
    return {
        **found,
        **{name: of_model(model.config_class, model.carries_state) for name, model in own.items()},
    }


def _sections_of_craft() -> dict[str, Section]:
    from craft.data.cache import Cache

    place = Cache().root / f"settings-{hashlib.sha256(bytes(CRAFT)).hexdigest()[:8]}.json"
    stamp = _stamp()
    with suppress(OSError, ValueError, KeyError, TypeError, AttributeError):
        kept = json.loads(place.read_text(encoding="utf-8"))
        if kept.get("stamp") == stamp:
            return {name: _load(section) for name, section in kept["sections"].items()}
    found = _read_classes()
    with suppress(OSError):
        place.parent.mkdir(parents=True, exist_ok=True)
        kept = {"stamp": stamp, "sections": {name: _dump(section) for name, section in found.items()}}
        replace_text(place, json.dumps(kept))
    return found


@functools.cache  # a process that runs on while files are edited has the classes of its start
def _stamp() -> str:
    """Another one for other versions, and for other files of craft, which may be edited in a checkout."""
    files = [*CRAFT.glob("data/arguments.py"), *CRAFT.glob("config/*.py"), *CRAFT.glob("utils/settings.py")]
    files += [*CRAFT.glob("models/*.py"), *CRAFT.glob("training/*.py")]
    states = [(str(file), file.stat().st_mtime_ns, file.stat().st_size) for file in sorted(files)]
    return hashlib.sha256(repr((version("transformers"), states)).encode()).hexdigest()


def _dump(section: Section) -> dict[str, Any]:
    fields = [asdict(field) for field in section.fields.values()]
    for field in fields:
        if field["default"] is UNKNOWN or not isinstance(field["default"], str | int | float | None):
            del field["default"]
    return {"fields": fields, "own": section.own, "carries_state": section.carries_state}


def _load(kept: dict[str, Any]) -> Section:
    fields = [
        Field(**{**field, "types": tuple(field["types"]), "choices": tuple(field["choices"])})
        for field in kept["fields"]
    ]
    return Section({field.name: field for field in fields}, tuple(kept["own"]), kept["carries_state"])


def _read_classes() -> dict[str, Section]:
    import craft.models
    from craft.data.arguments import data_fields
    from craft.training.arguments import own_fields, training_fields

    found = {
        "data": Section(data_fields(), tuple(data_fields())),
        "training": Section(training_fields(), tuple(own_fields())),
    }
    for name in sorted(name for name in craft.models.__all__ if name.endswith("ForCausalLM")):
        model = getattr(craft.models, name)
        found[model.config_class.model_type] = of_model(model.config_class, model.carries_state)
    return found


def of_model(config: type, carries_state: bool) -> Section:
    """The fields of a model's config, and two switches that its constructor takes without declaring them."""
    import torch
    from transformers import PreTrainedConfig

    fields = fields_of(config, torch=torch)
    found = {name: field for name, field in fields.items() if name not in (*FROM_TEXT, *NOT_USED)}
    found["attn_implementation"] = Field("attn_implementation", ("str", "null"), (), None)
    found["output_attentions"] = Field("output_attentions", ("bool",), (), False)
    lineage = [cls for cls in reversed(config.__mro__) if issubclass(cls, PreTrainedConfig)][1:]
    own = dict.fromkeys(name for cls in lineage for name in inspect.get_annotations(cls) if name in found)
    for name, words in CHOICES.items():
        found[name] = found[name].of(*words)
    return Section(found, tuple(own), carries_state)
