"""From YAML groups and command-line overrides to a validated run.

`configs/config.yaml` names one file of each group; an experiment names others and overrides fields; the
command line overrides both. Hydra composes the files; values on the command line are read by the type of
their field, so that `data.path=my (1).txt` and `training.sample_prompt=ROMEO:` need no quotes.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from craft.config.command_line import split_overrides
from craft.config.fields import GROUPS, SECTIONS, START, data_fields, elsewhere, section_fields, suggest
from craft.config.files import Locator, config_folders, list_group, short
from craft.config.pretrained import inherit, refuse_conflicts, refuse_tokenizer_settings
from craft.config.rules import OVERRULES
from craft.config.schema import SECTIONS_ARE, Run
from craft.config.sources import Field
from craft.utils.common import UserError, did_you_mean


def compose(
    overrides: Sequence[str] = (), config_dir: str | Path | None = None, config_file: str | Path | None = None
) -> Run:
    """The run that a command line describes.

    Args:
        overrides: `models=char_lstm` picks a file of a group, `models.hidden_size=256` sets a field.
        config_dir: a folder with `models/`, `data/`, `training/`, `experiments/` whose files add to craft's
            own and shadow those of the same name.
        config_file: a saved run to start from instead of the groups.

    Raises:
        UserError: for anything that isn't a possible run; nothing has been read or imported by then.
    """
    from omegaconf import OmegaConf

    folders = config_folders(config_dir)
    choices, values = split_overrides(overrides, folders)
    readable = [path for group in GROUPS for _, _, path in list_group(group, folders)]
    with _yaml_errors(readable if config_file is None else [Path(config_file), *readable]):
        if config_file is None:
            config, files = _compose_groups(choices, folders)
        else:
            config, files = _load_saved(Path(config_file), choices, folders)
        typed = {key for key, _ in values}
        locate = Locator(typed, files)
        start = _start_from(config, values, "models" in choices, files, saved=config_file is not None)
        read = ("models.init_from", *(["models.init_revision"] if start is not None else []))
        values = [(key, text) for key, text in values if key not in read]
        if start is not None:
            refuse_tokenizer_settings(start["init_from"], sorted(typed))
        for key, text in values:
            said = f"{key}={_plain(_parse(text))}"  # 0.0 is 0, and False is no
            for other, neutral in {**OVERRULES.get(key, {}), **OVERRULES.get(said, {})}.items():
                OmegaConf.update(config, other, neutral, force_add=True)
        for key, text in values:
            _set(config, key, text, locate)
        if start is not None:
            _agree(config, start, typed)
        return Run.of(_resolved(config), locate)


def _start_from(
    config: Any,
    values: Sequence[tuple[str, str]],
    picked: bool,
    files: Mapping[str, Sequence[Path]],
    saved: bool,
) -> dict[str, Any] | None:
    """Puts the model that `models.init_from` names in the place of the section `models`, and returns that.

    What counts as said about the model, and must agree: the preset if one was picked on the command line, and
    what stands beside `init_from` in a file. A saved run is complete, so its model may be gone by now.
    """
    from omegaconf import DictConfig, OmegaConf

    if not isinstance(config.get("models"), DictConfig):
        return None
    models: Any = OmegaConf.to_container(config.models, resolve=True)
    written = {key: models.pop(key, None) for key in START}
    typed = {key: _read(text, START[key]) for key in START for k, text in values if k == f"models.{key}"}
    init_from, revision = ({**written, **typed}.get(key) for key in ("init_from", "init_revision"))
    if not isinstance(init_from, str) or not init_from:
        if init_from is not None:
            raise UserError(f"models.init_from={init_from} must be a folder, a Hub id, or 'latest'")
        if "init_from" in config.models:  # null takes it back
            config.models = models
        return None
    if "init_from" in typed:
        revision = typed.get("init_revision")  # a written one is another model's
    if revision is not None and (not isinstance(revision, str) or not revision):
        raise UserError(f"models.init_revision={revision} must be a branch, tag or commit of the Hub")
    another = "init_from" in typed or "init_revision" in typed
    if saved and not another and "model_type" in models:
        return {"init_from": init_from, **models}
    if "init_from" in typed or (saved and another):
        said = models if picked else {}
    else:
        beside = models if saved else _beside_init_from(files)
        said = {key: value for key, value in models.items() if picked or key in beside}
    start = inherit(said, init_from, revision)
    extend = written["extend_vocab"]
    config.models = start if extend is None else {**start, "extend_vocab": extend}
    return start


def _beside_init_from(files: Mapping[str, Sequence[Path]]) -> set[str]:
    """The fields of a model that stand in the same file as `init_from`."""
    import yaml

    found: set[str] = set()
    for section in ("models", "experiments"):
        for file in files[section]:
            content = yaml.safe_load(file.read_text(encoding="utf-8")) or {}
            models = content if section == "models" and "models" not in content else content.get("models")
            if isinstance(models, dict) and "init_from" in models:
                found |= set(models)
    return found


def _agree(config: Any, start: Mapping[str, Any], typed: set[str]) -> None:
    """Refuses typed fields that contradict the model; a window that nobody typed isn't longer than its."""
    models, data = _resolved(config.models), config.get("data") or {}
    refuse_conflicts(start["init_from"], start, {k: v for k, v in models.items() if f"models.{k}" in typed})
    for key, value in models.items():
        if value is None and start.get(key) is not None:  # left open, so it is as the model has it
            config.models[key] = start[key]
    context = start.get("max_position_embeddings")
    window = data.get("block_size", data_fields()["block_size"].default)
    if context and "data.block_size" not in typed and isinstance(window, int) and window > context:
        config.data.block_size = context


def _set(config: Any, key: str, text: str, locate: Locator) -> None:
    """Writes one command-line value into the composed configuration."""
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
    field = section_fields(section, plain if isinstance(plain, dict) else {}, locate).get(name)
    if field is None:
        model_type = plain.get("model_type") if isinstance(plain, dict) else None
        raise UserError(f"unknown key '{section}.{name}'{suggest(f'{section}.{name}', model_type)}")
    if "." in rest:
        if not any(kind.name in ("dict", "any") for kind in field.kinds):
            raise UserError(f"'{key}' does not exist: {section}.{name} is {field.describe()}")
        if not isinstance(config[section].get(name), DictConfig):
            config[section][name] = {}
        OmegaConf.update(config, key, _parse(text), force_add=True)
    else:
        config[section][name] = _read(text, field)


def _read(text: str, field: Field) -> Any:
    """A command-line value by the type of its field: text stays as it was typed, unless it is quoted."""
    if field.textual:
        if text == "" or text.startswith("#"):
            return text
        if not re.match(r"""(?i)["'\[{\d.+-]|null$|~$|true$|false$""", text):
            return text
        value = _parse(text)
        fits = isinstance(value, str) or (value is None and field.nullable)
        others = {kind.name for kind in field.kinds}
        fits |= any(isinstance(value, kind) and kind.__name__ in others for kind in (list, dict, bool))
        return value if fits else text
    return _parse(text)


def _parse(text: str) -> Any:
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
            f"can't read {text!r}: '${{' begins an interpolation, such as ${{oc.env:HOME}}"
        ) from None
    return parsed["value"]


def _plain(value: Any) -> Any:
    """A value as `OVERRULES` spells it."""
    if value is False:
        return "no"
    return int(value) if isinstance(value, float) and value.is_integer() else value


def _compose_groups(choices: Mapping[str, str], folders: Sequence[Path]) -> tuple[Any, dict[str, list[Path]]]:
    """The groups' files composed by Hydra, and which files each section was read from."""
    import hydra
    from hydra.errors import HydraException
    from omegaconf import OmegaConf, open_dict

    own = folders[-1]
    if len(folders) > 1:
        _search_first(folders[0])
    try:
        with hydra.initialize_config_dir(str(own), version_base="1.3"):
            quoted = {group: name.replace("'", r"\'") for group, name in choices.items()}
            words = [f"~{group}" if name == "none" else f"{group}='{name}'" for group, name in quoted.items()]
            config = hydra.compose("config", overrides=words, return_hydra_config=True)
    except (HydraException, OSError, ValueError, RecursionError) as error:
        if isinstance(error, UnicodeDecodeError):
            raise
        raise UserError(f"configuration: {_one_line(error)}") from error
    finally:
        _search_first(None)
    chosen = OmegaConf.to_container(config.hydra.runtime.choices)
    assert isinstance(chosen, dict)
    OmegaConf.set_struct(config, False)
    with open_dict(config):
        del config["hydra"]
        config.experiment = chosen.get("experiments") or "none"
    files = {}
    for section in (*SECTIONS, "experiments"):
        picked = {group: chosen.get(group) for group in ("experiments", section)}
        paths = [
            folder / group / f"{name}.yaml" for group, name in picked.items() for folder in folders if name
        ]
        files[section] = [path for path in paths if path.is_file()]
    return config, files


def _search_first(folder: Path | None) -> None:
    """Makes Hydra look into the user's folder before craft's own; None takes that back."""
    from hydra.core.config_search_path import ConfigSearchPath
    from hydra.core.plugins import Plugins
    from hydra.plugins.search_path_plugin import SearchPathPlugin

    global _user_folder
    _user_folder = folder
    plugins = Plugins.instance()
    if folder is None or any(
        plugin.__name__ == "UserConfigs" for plugin in plugins.discover(SearchPathPlugin)
    ):
        return

    class UserConfigs(SearchPathPlugin):
        def manipulate_search_path(self, search_path: ConfigSearchPath) -> None:
            if _user_folder is not None:
                search_path.prepend(provider="craft", path=f"file://{_user_folder}")

    plugins.register(UserConfigs)


_user_folder: Path | None = None


def _load_saved(
    file: Path, choices: Mapping[str, str], folders: Sequence[Path]
) -> tuple[Any, dict[str, list[Path]]]:
    """A saved run; `training=quick_cpu` on top of it replaces that whole section."""
    from omegaconf import DictConfig, OmegaConf

    if "experiments" in choices:
        raise UserError(
            "--config FILE already is a whole run; leave experiments=… out, or leave --config out"
        )
    if file.is_dir():
        raise UserError(f"--config {file} is a folder; give a saved run's YAML file, or use --config-dir")
    if not file.exists():  # a pipe will do: craft train --print-config | craft train --config /dev/stdin
        raise UserError(f"no file {str(file)!r} for --config")
    try:
        config = OmegaConf.load(file)
    except (OSError, RecursionError) as error:
        raise UserError(f"--config {file} can't be read: {_one_line(error)}") from error
    if not isinstance(config, DictConfig):
        raise UserError(f"{file} is not a saved run: it must have the sections {', '.join(SECTIONS)}")
    files = {section: [file] for section in SECTIONS}
    if choices:
        fresh, fresh_files = _compose_groups({**choices, "experiments": "none"}, folders)
        for section in choices:
            config[section], files[section] = fresh[section], fresh_files[section]
    return config, files


def _resolved(config: Any) -> dict[str, Any]:
    from omegaconf import OmegaConf

    plain = OmegaConf.to_container(config, resolve=True)
    assert isinstance(plain, dict)
    return {str(key): value for key, value in plain.items()}


@contextmanager
def _yaml_errors(files: Sequence[Path]) -> Iterator[None]:
    """Turns what YAML, OmegaConf and Hydra say about a file or an interpolation into one line."""
    import yaml
    from omegaconf.errors import OmegaConfBaseException

    try:
        yield
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark or error.context_mark
        where = f"{short(Path(mark.name))}:{mark.line + 1}: " if mark else ""
        raise UserError(f"{where}not valid YAML: {error.problem or error.context}") from error
    except UnicodeDecodeError as error:
        guilty = next(
            (short(path) for path in files if path.read_bytes() == error.object), "a configuration file"
        )
        raise UserError(f"{guilty} is not UTF-8 text: {error.reason} at byte {error.start}") from error
    except yaml.YAMLError as error:
        raise UserError(f"configuration: {_one_line(error)}") from error
    except OmegaConfBaseException as error:
        key = getattr(error, "full_key", None)
        raise UserError(f"{key or 'configuration'}: {_one_line(error)}") from error


def _one_line(error: BaseException) -> str:
    """What a library says in several lines, without its lists of folders."""
    if isinstance(error, RecursionError):
        return "files or aliases that refer to themselves, or too many brackets"
    if not str(error) and error.__cause__ is not None:
        error = error.__cause__
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    text = " ".join(lines[:2]) if lines else type(error).__name__
    return re.split(r"\s*(?:Config search path|Available options in|full_key)", text)[0].rstrip(".")
