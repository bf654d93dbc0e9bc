"""The keys of each section, which are the fields of the class that receives it, and help with wrong ones."""

from __future__ import annotations

from collections.abc import Mapping
from difflib import get_close_matches
from typing import Any

from craft.config.files import SECTIONS, config_folders, list_group
from craft.config.snapshot import Section, sections
from craft.utils.common import did_you_mean
from craft.utils.errors import UserError
from craft.utils.settings import UNKNOWN, Field, yaml_word

NEAR = 0.65
"""Likeness of two names of which one may be a slip for the other."""

START = {
    "init_from": Field("init_from", ("str", "null"), (), None),
    "init_revision": Field("init_revision", ("str", "null"), (), None),
    "extend_vocab": Field("extend_vocab", ("bool",), (), False),
}
"""Keys of the section `models` that belong to the run: the trained model it starts from, which version of it
if it is on the Hub, and whether characters that it doesn't know get ids."""

CALLED_ELSEWHERE = {
    "learning_rate": ("lr",),
    "per_device_train_batch_size": ("batch_size",),
    "max_steps": ("max_iters", "steps"),
    "num_train_epochs": ("epochs",),
    "eval_steps": ("eval_interval",),
    "logging_steps": ("log_interval",),
    "warmup_steps": ("warmup_iters", "warmup_ratio"),
    "adam_beta1": ("beta1",),
    "adam_beta2": ("beta2",),
    "max_grad_norm": ("grad_clip",),
    "optim": ("optimizer",),
    "num_hidden_layers": ("n_layer", "n_layers", "num_layers"),
    "num_attention_heads": ("n_head", "n_heads", "num_heads"),
    "hidden_size": ("n_embd", "d_model", "rnn_size"),
    "block_size": ("context", "context_length", "seq_length", "seq_len"),
    "use_cpu": ("device",),
    "output_dir": ("out_dir",),
    "path": ("text", "file"),
}
"""What other programs call a field; used for suggestions only."""
OTHER_NAMES = {other: name for name, others in CALLED_ELSEWHERE.items() for other in others}


def model_types() -> list[str]:
    """Every `model_type` of the package."""
    return [name for name in sections() if name not in SECTIONS]


def section_of(section: str, values: Mapping[str, Any]) -> Section:
    """What is known of a section; of `models` it depends on its `model_type`.

    Raises:
        UserError: if there is no such model.
    """
    if section != "models":
        return sections()[section]
    model_type, known = values.get("model_type"), model_types()
    if model_type not in known:
        raise UserError(
            f"unknown models.model_type={yaml_word(model_type)}{did_you_mean(str(model_type), known)} "
            f"(there are: {', '.join(known)})"
        )
    return sections()[str(model_type)]


def section_fields(section: str, values: Mapping[str, Any]) -> dict[str, Field]:
    """The fields that a section may have.

    Raises:
        UserError: see `section_of`.
    """
    fields = section_of(section, values).fields
    if section != "models":
        return fields
    return {"model_type": Field("model_type", (), tuple(model_types())), **START, **fields}


def defaults(section: str, values: Mapping[str, Any]) -> dict[str, Any]:
    """The defaults of the section's class."""
    fields = section_fields(section, values)
    return {name: field.default for name, field in fields.items() if field.default is not UNKNOWN}


def all_keys() -> list[str]:
    """Every key of every section, dotted."""
    models = {name: None for kind in model_types() for name in sections()[kind].fields}
    names = {section: sections()[section].fields for section in ("data", "training")}
    keys = [f"{section}.{name}" for section, fields in names.items() for name in fields]
    return keys + [f"models.{name}" for name in ("model_type", *START, *models)]


def suggest(key: str, model_type: object = None) -> str:
    """`', did you mean …?'` for an unknown key: another model's key, another section's of that name, what
    other programs call the same thing, or the nearest spelling.

    Args:
        model_type: of the run, if it is known.
    """
    if near := of_another_model(key, model_type) or elsewhere(key):
        return near
    name = key.rpartition(".")[2]
    names = {k.partition(".")[2]: k for k in reversed(all_keys())}
    same_section = {n: k for n, k in names.items() if k.partition(".")[0] == key.partition(".")[0]}
    # Names alone are compared: with the section before them any two would look alike.
    for known in (same_section, names):
        if found := get_close_matches(name, known, n=1, cutoff=NEAR):
            return f", did you mean {known[found[0]]!r}?"
    return ""


def of_another_model(key: str, model_type: object) -> str:
    """`', which belongs to …'` for a key that other models have."""
    section, _, name = key.partition(".")
    if section != "models" or model_type not in model_types():
        return ""
    owners = [kind for kind in model_types() if kind != model_type and name in sections()[kind].own]
    choices = " or ".join(_choice_of(kind) for kind in owners)
    return f", which belongs to another model than {model_type}: {choices}" if owners else ""


def _choice_of(model_type: str) -> str:
    """How a model is chosen with the defaults of its class: `models=transformer`."""
    import yaml

    for name, _, path in list_group("models", config_folders(None)):
        if yaml.safe_load(path.read_text(encoding="utf-8")) == {"model_type": model_type}:
            return f"models={name}"
    return f"models.model_type={model_type}"


def elsewhere(key: str) -> str:
    """`', did you mean …?'` with the key of that name in another section, or what it is called here."""
    keys = all_keys()
    name = key.rpartition(".")[2]
    for candidate in (name, OTHER_NAMES.get(name.lower(), "")):
        for section in SECTIONS:
            if f"{section}.{candidate}" in keys and f"{section}.{candidate}" != key:
                return f", did you mean '{section}.{candidate}'?"
    return ""
