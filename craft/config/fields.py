"""The keys of each section, which are the fields of the class that receives it, and help with wrong ones."""

from __future__ import annotations

import ast
import functools
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from difflib import get_close_matches
from pathlib import Path
from typing import Any

from craft.config import rules
from craft.config.sources import (
    CRAFT,
    Field,
    Kind,
    aliases,
    base_names,
    class_constant,
    classes,
    fields,
    package_file,
    parse,
    yaml_word,
)
from craft.utils.common import UserError, did_you_mean

SECTIONS = ("models", "data", "training")
GROUPS = (*SECTIONS, "experiments")
NEAR = 0.65
"""Likeness of two names of which one may be a slip for the other."""

START = {
    "init_from": Field("init_from", (Kind("str"), Kind("null")), None),
    "init_revision": Field("init_revision", (Kind("str"), Kind("null")), None),
    "extend_vocab": Field("extend_vocab", (Kind("bool"),), False),
}
"""Keys of the section `models` that belong to the run: the trained model it starts from, which version of it
if it is on the Hub, and whether characters that it doesn't know get ids."""

Locate = Callable[[str], str]
"""Says where a key was written, to end a sentence with: `training.lr -> ' (mine/training/a.yaml:4)'`."""


@dataclass(frozen=True)
class ModelSource:
    """What the source of a model says: the fields of its config, and whether it carries a state."""

    own: dict[str, Field]
    carries_state: bool

    @property
    def fields(self) -> dict[str, Field]:
        return pretrained_config_fields() | self.own


@functools.cache
def data_fields() -> dict[str, Field]:
    cls = classes(CRAFT / "data" / "arguments.py")["DataArguments"]
    return {field.name: field for field in fields(cls)}


@functools.cache
def own_training_fields() -> dict[str, Field]:
    """craft's own training fields, and those of transformers to which it gives another default."""
    cls = classes(CRAFT / "training" / "arguments.py")["CraftTrainingArguments"]
    return with_choices({field.name: field for field in fields(cls)})


@functools.cache
def training_fields() -> dict[str, Field]:
    cls = classes(package_file("transformers", "training_args.py"))["TrainingArguments"]
    return with_choices({field.name: field for field in fields(cls)} | own_training_fields())


def with_choices(found: dict[str, Field]) -> dict[str, Field]:
    """The fields with `rules.CHOICES` in the place of plain text."""
    for name in (rules.CHOICES.keys() | set(rules.MAPPINGS)) & found.keys():
        others = tuple(kind for kind in found[name].kinds if kind.name != "str")
        if len(others) < len(found[name].kinds):
            choice = (Kind("choice", rules.CHOICES[name]),) if name in rules.CHOICES else ()
            found[name] = replace(found[name], kinds=(*choice, *others))
    return found


@functools.cache
def pretrained_config_fields() -> dict[str, Field]:
    """What every model's config has, and two switches that its constructor takes without declaring them."""
    cls = classes(package_file("transformers", "configuration_utils.py"))["PreTrainedConfig"]
    extra = [
        Field("attn_implementation", (Kind("str"), Kind("null")), None),
        Field("output_attentions", (Kind("bool"),), False),
    ]
    return with_choices({field.name: field for field in (*fields(cls), *extra)})


@functools.cache
def model_types() -> dict[str, Path]:
    """Every `model_type` of the package and the file that defines it: a new model is one new file."""
    found = {}
    for path in sorted((CRAFT / "models").glob("*.py")):
        for cls in classes(path).values():
            name = class_constant(cls, "model_type")
            if isinstance(name, str) and name and cls.name.endswith("Config"):
                found[name] = path
    return found


@functools.cache
def model_source(model_type: str) -> ModelSource:
    """The model of that type, read from its file; it may inherit from others, there or in siblings."""
    path = model_types()[model_type]
    config = next(
        name for name, cls in classes(path).items() if class_constant(cls, "model_type") == model_type
    )
    found: dict[str, Field] = {}
    for cls, file in reversed(_lineage(config, path)):
        found |= {field.name: field for field in fields(cls, aliases(file))}
    head = config.removesuffix("Config") + "ForCausalLM"
    says = [class_constant(cls, "carries_state") for cls, _ in _lineage(head, path)]
    for name in found.keys() & rules.FROM_DATA:
        found[name] = replace(found[name], kinds=(*found[name].kinds, Kind("null")))
    return ModelSource(found, next((said for said in says if isinstance(said, bool)), False))


def _lineage(name: str, path: Path) -> list[tuple[ast.ClassDef, Path]]:
    """A class of a file and those it inherits from, there or in siblings, with their files, nearest first."""
    if name in classes(path):
        cls = classes(path)[name]
        return [(cls, path), *(known for base in base_names(cls) for known in _lineage(base, path))]
    for node in parse(path).body:
        if isinstance(node, ast.ImportFrom) and node.level == 1 and name in [a.name for a in node.names]:
            return _lineage(name, path.with_name(f"{node.module}.py"))
    return []


def own_fields(section: str, values: Mapping[str, Any]) -> dict[str, Field]:
    """Those fields of a valid section that craft's own classes define."""
    if section == "models":
        return model_source(values["model_type"]).own
    return data_fields() if section == "data" else own_training_fields()


def section_fields(
    section: str, values: Mapping[str, Any], locate: Locate = lambda key: ""
) -> dict[str, Field]:
    """The fields that `section` may have; those of `models` depend on its `model_type`."""
    if section == "data":
        return data_fields()
    if section == "training":
        return training_fields()
    model_type = values.get("model_type")
    if model_type not in model_types():
        known = ", ".join(model_types())
        hint = did_you_mean(str(model_type), model_types())
        where = locate("models.model_type")
        raise UserError(
            f"unknown models.model_type={yaml_word(model_type)}{where}{hint} (there are: {known})"
        )
    choice = Field("model_type", (Kind("choice", tuple(model_types())),))
    return {"model_type": choice, **START, **model_source(str(model_type)).fields}


def all_keys() -> list[str]:
    """Every key of every section, dotted."""
    keys = [f"data.{name}" for name in data_fields()] + [f"training.{name}" for name in training_fields()]
    models = {name: None for kind in model_types() for name in model_source(kind).fields}
    return keys + [f"models.{name}" for name in ("model_type", *START, *models)]


def suggest(key: str, model_type: object = None) -> str:
    """`', did you mean …?'` for an unknown key: another model's key, another section's of that name, what
    other programs call the same thing, or the nearest spelling.

    Args:
        model_type: of the run, if it is known.
    """
    keys = all_keys()
    if near := of_another_model(key, model_type) or elsewhere(key):
        return near
    name = key.rpartition(".")[2]
    names = {k.partition(".")[2]: k for k in reversed(keys)}
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
    owners = [kind for kind in model_types() if kind != model_type and name in model_source(kind).own]
    choices = " or ".join(_choice_of(kind) for kind in owners)
    return f", which belongs to another model than {model_type}: {choices}" if owners else ""


def _choice_of(model_type: str) -> str:
    """How a model is chosen with the defaults of its class: `models=transformer`."""
    import yaml

    from craft.config.files import config_folders, list_group

    for name, _, path in list_group("models", config_folders(None)):
        if yaml.safe_load(path.read_text(encoding="utf-8")) == {"model_type": model_type}:
            return f"models={name}"
    return f"models.model_type={model_type}"


def elsewhere(key: str) -> str:
    """`', did you mean …?'` with the key of that name in another section, or what it is called here."""
    keys = all_keys()
    name = key.rpartition(".")[2]
    for candidate in (name, rules.OTHER_NAMES.get(name.lower(), "")):
        for section in SECTIONS:
            if f"{section}.{candidate}" in keys and f"{section}.{candidate}" != key:
                return f", did you mean '{section}.{candidate}'?"
    return ""
