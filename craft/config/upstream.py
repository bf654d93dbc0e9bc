"""Sections `models` for the causal language models of transformers, as their config classes define them.

What is left open is left to those classes, so a run holds what was written alone.
"""

from __future__ import annotations

import functools
from dataclasses import replace

from craft.config.snapshot import Section, of_model
from craft.utils.settings import UNKNOWN

CONTEXT = "max_position_embeddings"


def upstream_types() -> list[str]:
    """Every `model_type` of which transformers has a causal language model, but craft's own."""
    from transformers.models.auto.configuration_auto import CONFIG_MAPPING_NAMES
    from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING_NAMES

    return [name for name in MODEL_FOR_CAUSAL_LM_MAPPING_NAMES if name in CONFIG_MAPPING_NAMES]


@functools.cache
def upstream_section(model_type: str) -> Section | None:
    """The fields of a model of transformers, by all names that its config takes; None if there is none.

    The length of its context has one name, since it follows the window of the data.
    """
    if model_type not in upstream_types():
        return None
    from transformers import CONFIG_MAPPING

    config = CONFIG_MAPPING[model_type]
    fields = dict(of_model(config, carries_state=False).fields)
    for name, own in config.attribute_map.items():
        if own in fields:
            fields[name] = replace(fields.pop(own) if name == CONTEXT else fields[own], name=name)
    return Section({name: replace(field, default=UNKNOWN) for name, field in fields.items()}, own=())
