"""The keys of each section, which are the fields of the class that receives it, and help with wrong ones."""

from __future__ import annotations

from collections.abc import Mapping
from difflib import get_close_matches
from typing import Any

from craft.config.snapshot import Section, sections
from craft.utils.common import did_you_mean
from craft.utils.errors import UserError
from craft.utils.settings import SECTIONS, UNKNOWN, Field, yaml_word

CUTOFF = 0.65
"""Likeness of two names of which one may be a slip for the other."""

INIT_FIELDS = {
    "init_from": Field("init_from", ("str", "null"), (), None),
    "init_revision": Field("init_revision", ("str", "null"), (), None),
    "extend_vocab": Field("extend_vocab", ("bool",), (), False),
}
"""Keys of the section `models` that belong to the run: the trained model it starts from, which version of it
if it is on the Hub, and whether characters that it doesn't know get ids."""

OTHER_NAMES = {
    "lr": "learning_rate",
    **dict.fromkeys(("max_iters", "steps"), "max_steps"),
    "epochs": "num_train_epochs",
    "eval_interval": "eval_steps",
    "log_interval": "logging_steps",
    **dict.fromkeys(("warmup_iters", "warmup_ratio"), "warmup_steps"),
    "beta1": "adam_beta1",
    "beta2": "adam_beta2",
    "grad_clip": "max_grad_norm",
    "optimizer": "optim",
    **dict.fromkeys(("n_layer", "n_layers", "num_layers"), "num_hidden_layers"),
    **dict.fromkeys(("n_head", "n_heads", "num_heads"), "num_attention_heads"),
    **dict.fromkeys(("n_embd", "d_model", "rnn_size"), "hidden_size"),
    **dict.fromkeys(("context", "context_length", "seq_length", "seq_len"), "block_size"),
    "batch_size": "per_device_train_batch_size",
    "device": "use_cpu",
    "out_dir": "output_dir",
    **dict.fromkeys(("text", "file"), "path"),
}
"""What other programs call a field, and its name here; used for suggestions only."""


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
    model_type, known = str(values.get("model_type")), model_types()
    if model_type in known:
        return sections()[model_type]
    near = did_you_mean(model_type, known)
    if not near:  # else it is said at once, without transformers
        from craft.config.upstream import upstream_section, upstream_types

        if found := upstream_section(model_type):
            return found
        near = did_you_mean(model_type, upstream_types())
    raise UserError(
        f"unknown models.model_type={yaml_word(values.get('model_type'))}{near} "
        f"(there are: {', '.join(known)}, and every causal language model of transformers)",
        code="setting-value",
    )


def section_fields(section: str, values: Mapping[str, Any]) -> dict[str, Field]:
    """The fields that a section may have.

    Raises:
        UserError: see `section_of`.
    """
    fields = section_of(section, values).fields
    if section != "models":
        return fields
    return {"model_type": Field("model_type", ("str",)), **INIT_FIELDS, **fields}


def defaults(section: str, values: Mapping[str, Any]) -> dict[str, Any]:
    """The defaults of the section's class."""
    fields = section_fields(section, values)
    return {name: field.default for name, field in fields.items() if field.default is not UNKNOWN}


def all_keys() -> list[str]:
    """Every key of every section, dotted; the sections in their order."""
    models = dict.fromkeys(name for kind in model_types() for name in sections()[kind].fields)
    names = {"models": ("model_type", *INIT_FIELDS, *models)}
    names |= {section: tuple(sections()[section].fields) for section in ("data", "training")}
    return [f"{section}.{name}" for section in SECTIONS for name in names[section]]


def suggest(key: str, model_type: object = None) -> str:
    """`', did you mean …?'` for an unknown key: another section's of that name, what other programs call the
    same thing, or the nearest spelling; or which model has it.

    Args:
        model_type: of the run, if it is known.
    """
    section, _, name = key.rpartition(".")
    owners = [kind for kind in model_types() if name in sections()[kind].own]
    if section == "models" and model_type in model_types() and owners:
        return f", which belongs to models.model_type={' or '.join(owners)}, not to {model_type}"
    keys = {known.partition(".")[2]: known for known in reversed(all_keys())}
    for candidate in (name, OTHER_NAMES.get(name.lower())):
        if candidate in keys:
            return f", did you mean {keys[candidate]!r}?"
    same_section = [known for known in keys if keys[known].startswith(f"{section}.")]
    # Names alone are compared: with the section before them any two would look alike.
    for known in (same_section, list(keys)):
        if found := get_close_matches(name, known, n=1, cutoff=CUTOFF):
            return f", did you mean {keys[found[0]]!r}?"
    return ""
