"""From YAML groups and command-line overrides to a validated run.

`configs/config.yaml` names one file of each group; an experiment names others and overrides fields; the
command line overrides both. Hydra composes the files; what was typed is read in `values.py`, a trained model
to start from in `pretrained.py`.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from craft.config.command_line import split_overrides
from craft.config.files import GROUPS, SECTIONS, Locator, config_folders, list_group, located, short
from craft.config.pretrained import agree, start_from
from craft.config.schema import Run
from craft.config.values import overruled, resolved, set_value
from craft.utils.errors import UserError
from craft.utils.paths import typed_path


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
        UserError: for anything that isn't a possible run; no text has been read by then.
    """
    from omegaconf import OmegaConf

    folders = config_folders(config_dir)
    saved = None if config_file is None else Path(typed_path(config_file, "--config "))
    choices, values = split_overrides(overrides, folders)
    readable = [path for group in GROUPS for _, _, path in list_group(group, folders)]
    with _yaml_errors(readable if saved is None else [saved, *readable]):
        if saved is None:
            config, files = _compose_groups(choices, folders)
        else:
            config, files = _load_saved(saved, choices, folders)
        typed = {key for key, _ in values}
        locate = Locator(typed, files)
        with located(locate):
            start = start_from(config, values, "models" in choices, files, saved=saved is not None)
            read = ("models.init_from", *(["models.init_revision"] if start is not None else []))
            values = [(key, text) for key, text in values if key not in read]
            for key, text in values:
                for other, neutral in overruled(key, text).items():
                    OmegaConf.update(config, other, neutral, force_add=True)
            for key, text in values:
                set_value(config, key, text)
            if start is not None:
                agree(config, start, typed)
            return Run.of(resolved(config), locate, None if saved is None else typed)


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
