"""From YAML groups and command-line overrides to a validated run.

`configs/defaults/config.yaml` names a file of each group; an experiment names others and overrides fields;
the command line overrides both. Hydra composes the files; what was typed is read in `command_line.py`, a
trained model to start from in `pretrained.py`.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from craft.config.automatic import left_open
from craft.config.command_line import resets, set_value, split_overrides
from craft.config.files import builtin_folder, config_folders, located, short
from craft.config.pretrained import reconcile, start_from
from craft.config.schema import Run
from craft.utils.errors import UserError
from craft.utils.paths import typed_path
from craft.utils.settings import SECTIONS


def compose(
    overrides: Sequence[str] = (),
    config_dir: str | Path | None = None,
    config_file: str | Path | None = None,
    choose: bool | None = False,
) -> Run:
    """The run that a command line describes.

    Args:
        overrides: `models=char_lstm` picks a file of a group, `models.hidden_size=256` sets a field.
        config_dir: a folder with `models/`, `data/`, `training/`, `experiments/` whose files add to craft's
            own and shadow those of the same name.
        config_file: a saved run to start from instead of the groups.
        choose: whether the model is chosen once the text is read; None lets what was typed decide, see
            `left_open`.

    Raises:
        UserError: for anything that isn't a possible run; no text has been read by then.
    """
    from omegaconf import OmegaConf

    folders = config_folders(config_dir)
    saved = None if config_file is None else Path(typed_path(config_file, "--config "))
    choices, values = split_overrides(overrides, folders)
    with _yaml_errors(saved or folders[0]):
        if saved is None:
            config, files = _compose_groups(choices, folders)
        else:
            config, files = _load_saved(saved, choices, folders)
        with located(values, files):
            start = start_from(config, values, "models" in choices, files, saved=saved is not None)
            read = ("models.init_from", *(["models.init_revision"] if start is not None else []))
            values = {key: text for key, text in values.items() if key not in read}
            for key, text in values.items():
                for other, neutral in resets(key, text).items():
                    OmegaConf.update(config, other, neutral, force_add=True)
            # The model first: it decides what the other keys of its section mean.
            for key in sorted(values, key="models.model_type".__ne__):
                set_value(config, key, values[key])
            if start is not None:
                reconcile(config, start, values)
            plain: Any = OmegaConf.to_container(config, resolve=True)
            plain["automatic"] = left_open(choices, values, plain, choose)
            if "training.global_batch_size" in plain["automatic"]:
                plain["training"]["global_batch_size"] = None  # a file's may not suit the number of processes
            return Run.of(plain)


def _compose_groups(choices: Mapping[str, str], folders: Sequence[Path]) -> tuple[Any, dict[str, list[Path]]]:
    """The groups' files composed by Hydra, and which files each section was read from."""
    import hydra
    from hydra.errors import HydraException
    from omegaconf import OmegaConf, open_dict

    words = [f"~{group}" if name == "none" else f"{group}={_quoted(name)}" for group, name in choices.items()]
    # Hydra looks first where its main file lies. That folder holds nothing else: the user's go before ours.
    words.append(f"hydra.searchpath=[{','.join(_quoted(f'file://{folder}') for folder in folders)}]")
    try:
        with hydra.initialize_config_dir(str(builtin_folder() / "defaults"), version_base="1.3"):
            config = hydra.compose("config", overrides=words, return_hydra_config=True)
    except UnicodeDecodeError:
        raise
    except (HydraException, OSError, ValueError, RecursionError) as error:
        raise UserError(f"configuration: {_one_line(error)}", code="setting-value") from error
    chosen = config.hydra.runtime.choices
    OmegaConf.set_struct(config, False)
    with open_dict(config):
        del config["hydra"]
        config.experiment = chosen.get("experiments") or "none"
    files = {}
    for section in (*SECTIONS, "experiments"):
        paths = [
            folder / group / f"{chosen.get(group)}.yaml"
            for group in dict.fromkeys(("experiments", section))
            for folder in folders
        ]
        files[section] = [path for path in paths if path.is_file()]
    return config, files


def _quoted(word: str) -> str:
    """A word in the grammar of Hydra's overrides."""
    return "'" + word.replace("'", r"\'") + "'"


def _load_saved(
    file: Path, choices: Mapping[str, str], folders: Sequence[Path]
) -> tuple[Any, dict[str, list[Path]]]:
    """A saved run; `training=quick_cpu` on top of it replaces that whole section."""
    from omegaconf import DictConfig, OmegaConf

    if "experiments" in choices:
        raise UserError(
            "--config FILE already is a whole run; leave experiments=… out, or leave --config out",
            code="setting-conflict",
        )
    if not file.exists():  # a pipe will do: craft train --print-config | craft train --config /dev/stdin
        raise UserError(f"no file {str(file)!r} for --config", code="file-missing")
    try:
        config = OmegaConf.load(file)
    except (OSError, RecursionError) as error:
        raise UserError(
            f"--config {file} can't be read: {_one_line(error)}", code="file-unreadable"
        ) from error
    if not isinstance(config, DictConfig):
        raise UserError(
            f"{file} is not a saved run: it must have the sections {', '.join(SECTIONS)}",
            code="file-unreadable",
        )
    files = {section: [file] for section in SECTIONS}
    if choices:
        fresh, fresh_files = _compose_groups({**choices, "experiments": "none"}, folders)
        for section in choices:
            config[section], files[section] = fresh[section], fresh_files[section]
    return config, files


@contextmanager
def _yaml_errors(read: Path) -> Iterator[None]:
    """Turns what YAML, OmegaConf and Hydra say about a file or an interpolation into one line.

    Args:
        read: the file, or the folder of files, that is the user's.
    """
    import yaml
    from omegaconf.errors import OmegaConfBaseException

    try:
        yield
    except UnicodeDecodeError as error:
        raise UserError(
            f"{short(read)} is not UTF-8 text: {error.reason} at byte {error.start}", code="file-unreadable"
        ) from error
    except yaml.YAMLError as error:
        mark = getattr(error, "problem_mark", None) or getattr(error, "context_mark", None)
        where = f"{short(Path(mark.name))}:{mark.line + 1}" if mark else short(read)
        said = getattr(error, "problem", None) or getattr(error, "context", None) or _one_line(error)
        raise UserError(f"{where}: not valid YAML: {said}", code="file-unreadable") from error
    except OmegaConfBaseException as error:
        key = getattr(error, "full_key", None) or "configuration"
        raise UserError(f"{key}: {_one_line(error)}", code="setting-value") from error


def _one_line(error: BaseException) -> str:
    """What a library says in several lines, without its lists of folders."""
    if isinstance(error, RecursionError):
        return "files or aliases that refer to themselves, or too many brackets"
    if not str(error) and error.__cause__ is not None:
        error = error.__cause__
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    text = " ".join(lines[:2]) if lines else type(error).__name__
    return re.split(r"\s*(?:Config search path|Available options in|full_key)", text)[0].rstrip(".")
