"""What the words of a command line mean: a text, choices of files, values of fields, a run to resume."""

from __future__ import annotations

import glob
import re
from collections.abc import Sequence
from pathlib import Path

from craft.config.fields import GROUPS, all_keys, suggest
from craft.config.files import config_folders, list_group
from craft.utils.common import UserError, did_you_mean
from craft.utils.outputs import OUTPUTS, RUN_CONFIG

OVERRIDE = re.compile(r"\+*([A-Za-z_]\w*(?:\.\w+)*)=(.*)", re.DOTALL)


def split_text(arguments: Sequence[str]) -> list[str]:
    """The overrides of a command line: a word that isn't `KEY=VALUE` is the user's text, and trains on it.

    Raises:
        UserError: for a text that doesn't exist, or more than one.
    """
    texts = [word for word in arguments if not OVERRIDE.fullmatch(word)]
    settings = [word for word in arguments if OVERRIDE.fullmatch(word)]
    if len(texts) > 1:
        raise UserError(
            f"two texts given, {texts[0]!r} and {texts[1]!r}; give a folder or a quoted glob, "
            "and write settings KEY=VALUE"
        )
    for path in texts:
        if (
            "://" not in path
            and not any(char in path for char in "*?[")
            and not Path(path).expanduser().exists()
        ):
            raise UserError(f"no file {path!r}{_suggest_text(path)}")
        return ["data=text_file", f"data.path={path}", *settings]
    return settings


def _suggest_text(path: str) -> str:
    for group in reversed(GROUPS):
        if path in {name for name, _, _ in list_group(group, config_folders(None))}:
            return f", did you mean {group}={path}?"
    folder = Path(path).expanduser().parent
    names = [child.name for child in folder.iterdir()] if folder.is_dir() else []
    return did_you_mean(Path(path).name, names)


def resumed(run_dir: str, root: Path = OUTPUTS) -> tuple[str, Path]:
    """The folder of a run to go on with (`latest`: the newest unfinished) and the configuration saved in it.

    Raises:
        UserError: if there is none.
    """
    if run_dir == "latest":
        run_dir = str(_newest_unfinished(root / "models"))
    folder = Path(run_dir)
    saved = folder / RUN_CONFIG
    if re.fullmatch(r"checkpoint-\d+", folder.name):
        raise UserError(
            f"--resume {run_dir} is one checkpoint; name its run, --resume {folder.parent}, which goes on "
            "from the newest"
        )
    if not saved.is_file():
        raise UserError(
            f"--resume {run_dir}: no run there ({RUN_CONFIG} is missing); give a folder under outputs/models"
        )
    return run_dir, saved


def _newest_unfinished(models: Path) -> Path:
    """A run is finished once its model lies beside it as `<run>_step_<n>`."""
    runs = [path.parent for path in models.glob(f"*/{RUN_CONFIG}") if "_step_" not in path.parent.name]
    if not runs:
        raise UserError(f"no run to resume in {models}; start one with 'craft train'")
    unfinished = [run for run in runs if not any(models.glob(f"{glob.escape(run.name)}_step_*/config.json"))]
    if not unfinished:
        newest = max(runs, key=lambda run: run.stat().st_mtime_ns)
        raise UserError(
            f"every run in {models} is finished; to train the newest on: --resume {newest} "
            "training.max_steps=N"
        )
    return max(unfinished, key=lambda run: run.stat().st_mtime_ns)


def split_overrides(
    overrides: Sequence[str], folders: Sequence[Path]
) -> tuple[dict[str, str], list[tuple[str, str]]]:
    """Choices of files (`models=char_lstm`) and values of fields (`models.hidden_size=256`), in their order.

    Raises:
        UserError: for text that is neither, and for files that don't exist.
    """
    choices: dict[str, str] = {}
    values: list[tuple[str, str]] = []
    for text in overrides:
        match = OVERRIDE.fullmatch(text)
        if not match:
            raise UserError(
                f"can't read {text!r}: settings are written KEY=VALUE, for example training.max_steps=500"
            )
        key, value = match.groups()
        if "." in key:
            values.append((key, value))
        elif key in GROUPS:
            choices[key] = _choice(key, value, folders)
        else:
            raise UserError(f"unknown setting {key!r} in {text!r}{_suggest_setting(key)}")
    return choices, values


def _choice(group: str, value: str, folders: Sequence[Path]) -> str:
    names = [name for name, _, _ in list_group(group, folders)]
    name = value.removesuffix(".yaml")
    if name not in names and not (group == "experiments" and name in ("null", "none")):
        raise UserError(f"no {group}={value}{did_you_mean(name, names)} (there are: {', '.join(names)})")
    return "none" if name == "null" else name


def _suggest_setting(key: str) -> str:
    if hint := did_you_mean(key, GROUPS):
        return hint
    dotted = [name for name in all_keys() if name.partition(".")[2] == key]
    return (
        f", did you mean {dotted[0]!r}?" if dotted else suggest(key) or f" (groups are {', '.join(GROUPS)})"
    )
