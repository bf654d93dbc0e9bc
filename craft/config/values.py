"""Values typed on the command line, read by the type of their field.

So `data.path=my (1).txt` and `training.sample_prompt=ROMEO:` need no quotes, and `training.seed=7` is a
number.
"""

from __future__ import annotations

import re
from typing import Any

from craft.config.fields import elsewhere, section_fields, suggest
from craft.config.files import SECTIONS
from craft.config.rules import OVERRULES
from craft.config.schema import SECTIONS_ARE
from craft.utils.common import did_you_mean
from craft.utils.errors import UserError
from craft.utils.settings import Field


def set_value(config: Any, key: str, text: str) -> None:
    """Writes one command-line value into the composed configuration.

    Raises:
        UserError: if there is no such section or key, or the text can't be read.
    """
    from omegaconf import DictConfig, OmegaConf

    section, _, rest = key.partition(".")
    name = rest.partition(".")[0]
    if section not in SECTIONS:
        hint = did_you_mean(section, SECTIONS)
        raise UserError(
            f"unknown section {section!r} in '{key}={text}'{hint or elsewhere(key)} {SECTIONS_ARE}"
        )
    if config.get(section) is None:
        config[section] = {}
    plain: Any = OmegaConf.to_container(config[section], resolve=False)
    if key == "models.model_type":
        plain = {"model_type": text}
    field = section_fields(section, plain if isinstance(plain, dict) else {}).get(name)
    if field is None:
        model_type = plain.get("model_type") if isinstance(plain, dict) else None
        raise UserError(f"unknown key '{section}.{name}'{suggest(f'{section}.{name}', model_type)}")
    if "." in rest:
        if not {"dict", "any"} & set(field.types):
            raise UserError(f"'{key}' does not exist: {section}.{name} is {field.describe()}")
        if not isinstance(config[section].get(name), DictConfig):
            config[section][name] = {}
        OmegaConf.update(config, key, parse_value(text), force_add=True)
    else:
        config[section][name] = read_value(text, field)


def overruled(key: str, text: str) -> dict[str, Any]:
    """What typing `key=text` takes back of what a file has set, as key -> neutral value.

    Raises:
        UserError: as `parse_value`.
    """
    value = parse_value(text)
    if value is False:
        value = "no"
    elif isinstance(value, float) and value.is_integer():
        value = int(value)
    return {**OVERRULES.get(key, {}), **OVERRULES.get(f"{key}={value}", {})}


def read_value(text: str, field: Field) -> Any:
    """A command-line value by the type of its field: text stays as it was typed, unless it is quoted.

    Raises:
        UserError: as `parse_value`.
    """
    if field.textual:
        if text == "" or text.startswith("#"):
            return text
        if not re.match(r"""(?i)["'\[{\d.+-]|null$|~$|true$|false$""", text):
            return text
        value = parse_value(text)
        fits = isinstance(value, str) or (value is None and field.nullable)
        fits |= any(isinstance(value, kind) and kind.__name__ in field.types for kind in (list, dict, bool))
        return value if fits else text
    return parse_value(text)


def parse_value(text: str) -> Any:
    """A value in YAML, read as Hydra reads files (`1e-3` is a number); text that isn't YAML stays text.

    Raises:
        UserError: for `${` without the rest of an interpolation.
    """
    import yaml
    from omegaconf import OmegaConf
    from omegaconf.errors import GrammarParseError

    try:
        parsed: Any = OmegaConf.to_container(OmegaConf.create(f"value: {text}"), resolve=False)
    except yaml.YAMLError:
        return text
    except GrammarParseError:
        raise UserError(
            f"can't read {text!r}: '${{' begins an interpolation, such as ${{oc.env:HOME}}"
        ) from None
    return parsed["value"]


def resolved(config: Any) -> dict[str, Any]:
    """A composed configuration as plain data."""
    from omegaconf import OmegaConf

    plain = OmegaConf.to_container(config, resolve=True)
    assert isinstance(plain, dict)
    return {str(key): value for key, value in plain.items()}
