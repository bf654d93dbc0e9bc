"""What the words of a command line mean: a text, choices of files, values of fields.

A value is read by the type of its field, so that `data.path=my (1).txt` and `training.sample_prompt=ROMEO:`
need no quotes, and `training.seed=7` is a number.
"""

from __future__ import annotations

import math
import os
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from craft.config.fields import model_types, section_fields, suggest
from craft.config.files import GROUPS, config_folders, list_group
from craft.utils.common import did_you_mean
from craft.utils.errors import UserError
from craft.utils.paths import typed_path
from craft.utils.settings import SECTIONS, Field

OVERRIDE = re.compile(r"\+*([A-Za-z_]\w*(?:\.\w+)*)=(.*)", re.DOTALL)
KEY_VALUE = "settings are written KEY=VALUE, for example training.max_steps=500"

UNTIMED = {"training.max_minutes": None, "training.time_plan": None}
RESETS: dict[str, dict[str, Any]] = {
    "training.per_device_train_batch_size": {"training.global_batch_size": None},
    "training.num_train_epochs": {"training.max_steps": -1, **UNTIMED},
    "training.max_steps": UNTIMED,
    "training.max_minutes": {
        **{"training.max_steps": -1, "training.num_train_epochs": 3.0, "training.time_plan": None},
        **{"training.eval_steps": 0.2, "training.save_steps": 0.2, "training.logging_steps": 0.02},
    },
    "training.lr_scheduler_type": {"training.lr_scheduler_kwargs": None},
    "data.source": {"data.language": None},
    "training.eval_strategy=no": {"training.load_best_model_at_end": False},
    "training.save_strategy=no": {"training.load_best_model_at_end": False},
    "data.validation_size=0": {"training.eval_strategy": "no", "training.load_best_model_at_end": False},
}
"""What typing the first takes back where a file has set it: the same said in two ways, or made impossible."""


def split_words(arguments: Sequence[str]) -> tuple[list[str], list[str]]:
    """The words of a command line that aren't `KEY=VALUE`, and those that are."""
    settings = [word for word in arguments if OVERRIDE.fullmatch(word)]
    return [word for word in arguments if word not in settings], settings


def split_text(arguments: Sequence[str]) -> list[str]:
    """The overrides of a command line: words that aren't `KEY=VALUE` are the user's texts, and train on them.

    Raises:
        UserError: for a text that doesn't exist.
    """
    texts, settings = split_words(arguments)
    for path in texts:
        pattern_or_url = "://" in path or any(char in path for char in "*?[")
        if not pattern_or_url and not os.path.exists(typed_path(path)):
            if any("=" in text for text in texts):
                raise UserError(f"can't read {' '.join(arguments)!r}: {KEY_VALUE}", code="usage")
            raise UserError(f"no file {path!r}{_suggest_text(path)}", code="file-missing")
    if not texts:
        return settings
    import yaml

    text = texts if len(texts) > 1 else texts[0]
    # In one line of double quotes YAML holds any path.
    path = yaml.safe_dump(text, default_style='"', default_flow_style=True, width=math.inf).strip()
    return ["data=text_file", f"data.path={path}", *settings]


def _suggest_text(path: str) -> str:
    for group in reversed(GROUPS):
        if path in {name for name, _, _ in list_group(group, config_folders(None))}:
            return f", did you mean {group}={path}?"
    folder, name = os.path.split(typed_path(path))
    names = os.listdir(folder or ".") if os.path.isdir(folder or ".") else []
    return did_you_mean(name, [other for other in names if other != name])  # a broken link


def split_overrides(
    overrides: Sequence[str], folders: Sequence[Path]
) -> tuple[dict[str, str], dict[str, str]]:
    """Choices of files (`models=char_lstm`) and values of fields (`models.hidden_size=256`), in their order.

    Raises:
        UserError: for text that is neither, and for files that don't exist.
    """
    choices: dict[str, str] = {}
    values: dict[str, str] = {}
    for text in overrides:
        match = OVERRIDE.fullmatch(text)
        if not match:
            raise UserError(f"can't read {text!r}: {KEY_VALUE}", code="usage")
        key, value = match.groups()
        if "." in key:
            values[key] = value
        elif key in GROUPS:
            choices[key] = _choice(key, value, folders)
        else:
            file = f"; for the file of that name write ./{text}" if os.path.exists(text) else ""
            raise UserError(
                f"unknown setting {key!r} in {text!r}{suggest_setting(key)}{file}", code="setting-unknown"
            )
    return choices, values


def _choice(group: str, value: str, folders: Sequence[Path]) -> str:
    names = [name for name, _, _ in list_group(group, folders)]
    name = value.removesuffix(".yaml")
    if name not in names and not (group == "experiments" and name in ("null", "none")):
        raise UserError(
            f"no {group}={value}{did_you_mean(name, names)} (there are: {', '.join(names)})",
            code="setting-unknown",
        )
    return "none" if name == "null" else name


def suggest_setting(key: str) -> str:
    """`", did you mean 'training.max_steps'?"` for what was written where a setting belongs."""
    group = "" if "." in key else did_you_mean(key, GROUPS)
    return group or suggest(key) or f" (groups are {', '.join(GROUPS)})"


def set_value(config: Any, key: str, text: str) -> None:
    """Writes one command-line value into the composed configuration.

    Another model of transformers leaves out what a file says of the model and it has no field for.

    Raises:
        UserError: if there is no such section or key, or the text can't be read.
    """
    from omegaconf import DictConfig, OmegaConf

    section, _, rest = key.partition(".")
    name = rest.partition(".")[0]
    if section not in SECTIONS:  # refused with all the others
        config[section] = text
        return
    if config.get(section) is None:
        config[section] = {}
    plain: Any = OmegaConf.to_container(config[section], resolve=False)
    if key == "models.model_type":
        plain = {"model_type": text}
    plain = plain if isinstance(plain, dict) else {}
    known = section_fields(section, plain)
    field = known.get(name)
    if field is None:
        hint = suggest(f"{section}.{name}", plain.get("model_type"))
        raise UserError(f"unknown key '{section}.{name}'{hint}", code="setting-unknown")
    if "." in rest:
        if not {"dict", "any"} & set(field.types):
            raise UserError(
                f"'{key}' does not exist: {section}.{name} is {field.describe()}", code="setting-unknown"
            )
        if not isinstance(config[section].get(name), DictConfig):
            config[section][name] = {}
        OmegaConf.update(config, key, parse_value(text), force_add=True)
    else:
        config[section][name] = read_value(text, field)
    if key == "models.model_type" and text not in model_types():
        config[section] = {name: value for name, value in config[section].items() if name in known}


def resets(key: str, text: str) -> dict[str, Any]:
    """What typing `key=text` takes back of what a file has set, as key -> neutral value."""
    value = parse_value(text)
    if value is False:
        value = "no"
    elif isinstance(value, float) and value.is_integer():
        value = int(value)
    taken_back = {} if value is None else RESETS.get(key, {})
    return {**taken_back, **RESETS.get(f"{key}={value}", {})}


def read_value(text: str, field: Field) -> Any:
    """A command-line value by the type of its field: text stays as it was typed, unless it is quoted."""
    plain = text == "" or not re.match(r"""(?i)["'\[{\d.+-]|null$|~$|true$|false$""", text)
    if not field.textual:
        return parse_value(text)
    if plain:
        return text
    value = parse_value(text)
    fits = isinstance(value, str) or (value is None and field.nullable)
    fits |= any(isinstance(value, kind) and kind.__name__ in field.types for kind in (list, dict, bool))
    return value if fits else text


def parse_value(text: str) -> Any:
    """A value in YAML, read as Hydra reads files (`1e-3` is a number); text that isn't YAML stays text."""
    import yaml
    from omegaconf import OmegaConf
    from omegaconf.errors import GrammarParseError

    try:
        parsed: Any = OmegaConf.to_container(OmegaConf.create(f"value: {text}"), resolve=False)
    except yaml.YAMLError:
        return text
    except GrammarParseError:
        raise UserError(
            f"can't read {text!r}; ${{…}} is a reference, as ${{oc.env:HOME}}", code="usage"
        ) from None
    return parsed["value"]
