"""A run that starts from a trained model (`models.init_from`): its config.json takes the place of a preset.

What the user says about the model beside it must agree with it; a preset that nobody named gives way. Only
`model_type` and the config's own fields are taken over: sizes that follow from the text stay with the text.
"""

from __future__ import annotations

import json
from collections.abc import Collection, Mapping, Sequence
from pathlib import Path
from typing import Any

from craft.config.command_line import read_value
from craft.config.fields import INIT_FIELDS, defaults, section_fields, section_of
from craft.utils.errors import UserError
from craft.utils.hub import fetch_config
from craft.utils.outputs import resolve
from craft.utils.settings import check_type, coerce, yaml_word

TOKENIZER_SETTINGS = ("tokenizer", "unknown", "min_frequency", "max_vocab_size")
"""Settings of the data that decide on a new tokenizer, where the model's own is kept."""


def start_from(
    config: Any,
    values: Mapping[str, str],
    picked: bool,
    files: Mapping[str, Sequence[Path]],
    saved: bool,
) -> dict[str, Any] | None:
    """Puts the model that `models.init_from` names in the place of the section `models`, and returns that.

    What counts as said about the model, and must agree: the preset if one was picked on the command line, and
    what stands beside `init_from` in a file. A saved run is complete, so its model may be gone by now.

    Args:
        values: what was typed, key and text.
        picked: whether a preset of models was picked on the command line.
        files: which files each section was read from.
        saved: whether `config` is a saved run.

    Returns:
        None for a run that starts from no model.

    Raises:
        UserError: if there is no such model, or what is said contradicts it.
        Failed: if the Hub can't be reached.
    """
    from omegaconf import DictConfig, OmegaConf

    if not isinstance(config.get("models"), DictConfig):
        return None
    models: Any = OmegaConf.to_container(config.models, resolve=True)
    written = {key: models.pop(key, None) for key in INIT_FIELDS}
    names = {key: f"models.{key}" for key in INIT_FIELDS}
    typed = {key: read_value(values[name], INIT_FIELDS[key]) for key, name in names.items() if name in values}
    if "init_from" in typed:
        written["init_revision"] = None  # of another model
    init_from, revision = ({**written, **typed}[key] for key in ("init_from", "init_revision"))
    for key, value in (("init_from", init_from), ("init_revision", revision)):
        if check_type("models", INIT_FIELDS[key], value) == "":
            what = "a folder, a Hub id, or 'latest'" if key == "init_from" else "a branch, tag or commit"
            raise UserError(f"models.{key}= must be {what}", code="setting-value")
    if init_from is None:
        if "init_from" in config.models:  # null takes it back
            config.models = models
        return None
    another = "init_from" in typed or (saved and "init_revision" in typed)
    if saved and not another and "model_type" in models:
        return {"init_from": init_from, **models}
    beside = set() if another else _beside_init_from(files)
    said = {key: value for key, value in models.items() if picked or key in beside}
    where = resolve(init_from)
    pinned = {}
    if not Path(where).is_dir():
        file, commit = fetch_config(where, revision)
        pinned = {"init_revision": commit}  # what is loaded later, here or by who repeats the run, is that
    elif revision is None:
        file = Path(where) / "config.json"
    else:
        raise UserError(
            f"models.init_revision={revision} picks a version on the Hub, and models.init_from={where} is a "
            "folder; leave it out",
            code="setting-no-effect",
        )
    found = architecture(file, where)
    refuse_conflicts(where, found, said)
    start = {"init_from": where, **pinned, **found, **said}
    extend = written["extend_vocab"]
    config.models = start if extend is None else {**start, "extend_vocab": extend}
    return start


def _beside_init_from(files: Mapping[str, Sequence[Path]]) -> set[str]:
    """The fields of a model that stand in the same file as `init_from`."""
    import yaml

    found: set[str] = set()
    for file in (*files["models"], *files.get("experiments", ())):
        content = yaml.safe_load(file.read_text(encoding="utf-8")) or {}
        models = content.get("models", content)
        if isinstance(models, dict) and "init_from" in models:
            found |= set(models)
    return found


def architecture(file: Path, init_from: str) -> dict[str, Any]:
    """`model_type` and the config's own fields of a trained model, as they would stand in a YAML.

    Args:
        file: its config.json.
        init_from: what the user calls it.

    Raises:
        UserError: if craft can't train on from it.
    """
    name = f"models.init_from={init_from}"
    try:
        config: Any = json.loads(file.read_text(encoding="utf-8"))
        model_type = config["model_type"]
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise UserError(f"{name}: its config.json can't be read ({error})", code="model-invalid") from error
    try:
        section = section_of("models", config)
    except UserError as error:
        raise UserError(f"{name} is a {model_type!r} model: {error}", code="model-mismatch") from error
    if not section.own:  # a model of transformers, whose config may have other names for some fields
        from transformers import CONFIG_MAPPING

        names = CONFIG_MAPPING[model_type].attribute_map.items()
        config |= {name: config[saved] for name, saved in names if saved in config}
    own = section.own or section.fields
    # An older model doesn't know of newer fields: it has what their defaults say.
    complete = {**defaults("models", {"model_type": model_type}), **config}
    kept = {name: value for name, value in complete.items() if name in own and value is not None}
    return {"model_type": model_type, **kept}


def refuse_conflicts(init_from: str, found: Mapping[str, Any], said: Mapping[str, Any]) -> None:
    """Refuses what would make another network of it. Dropout has no weights, so it may differ.

    Args:
        found: what `architecture` says.
        said: fields of the section `models`, null for what is left open.

    Raises:
        UserError: naming all of them.
    """
    fields = section_fields("models", found)
    if said.get("model_type", found["model_type"]) != found["model_type"]:
        said = {"model_type": said["model_type"]}  # the fields are another model's
    conflicts = []
    for key, value in said.items():
        if key in INIT_FIELDS or value is None or "dropout" in key or key not in found or key not in fields:
            continue
        try:
            value = coerce(value, fields[key])
        except TypeError:
            continue  # refused below for its type, which says more
        if value != found[key]:
            conflicts.append(f"models.{key}={yaml_word(value)} (it has {yaml_word(found[key])})")
    if conflicts:
        raise UserError(
            f"models.init_from={init_from} keeps the model's architecture, which contradicts "
            f"{' and '.join(conflicts)}; leave that out",
            code="model-mismatch",
        )


def reconcile(config: Any, start: Mapping[str, Any], typed: Collection[str]) -> None:
    """Refuses typed fields that contradict the model, and settings of a new tokenizer, which there won't be.

    A window that nobody typed isn't longer than the model's.

    Args:
        config: the composed run; its fields of the model that were left open are filled in.
        start: what `start_from` returned.
        typed: the keys of the command line, dotted.

    Raises:
        UserError: naming all of them.
    """
    from omegaconf import OmegaConf

    if useless := [f"data.{key}" for key in TOKENIZER_SETTINGS if f"data.{key}" in typed]:
        raise UserError(
            f"models.init_from={start['init_from']} keeps the model's tokenizer, so {' and '.join(useless)} "
            "would have no effect; leave it out (models.extend_vocab=true gives new characters ids)",
            code="setting-no-effect",
        )
    models: Any = OmegaConf.to_container(config.models, resolve=True)
    refuse_conflicts(start["init_from"], start, {k: v for k, v in models.items() if f"models.{k}" in typed})
    for key, value in models.items():
        if value is None and start.get(key) is not None:  # left open, so it is as the model has it
            config.models[key] = start[key]
    context, data = start.get("max_position_embeddings"), config.get("data") or {}
    window = data.get("block_size", defaults("data", data)["block_size"])
    if context and "data.block_size" not in typed and isinstance(window, int) and window > context:
        config.data.block_size = context
