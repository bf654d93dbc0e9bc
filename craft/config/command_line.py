"""What the words of a command line mean: a text, choices of files, values of fields, a run to resume."""

from __future__ import annotations

import glob
import os
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from craft.config.fields import all_keys, suggest
from craft.config.files import GROUPS, config_folders, list_group
from craft.utils.claims import is_claimed
from craft.utils.common import UserError, did_you_mean
from craft.utils.history import finished_at, read_history
from craft.utils.outputs import OUTPUTS, RUN_CONFIG
from craft.utils.paths import typed_path

OVERRIDE = re.compile(r"\+*([A-Za-z_]\w*(?:\.\w+)*)=(.*)", re.DOTALL)


def split_text(arguments: Sequence[str]) -> list[str]:
    """The overrides of a command line: words that aren't `KEY=VALUE` are the user's texts, and train on them.

    Raises:
        UserError: for a text that doesn't exist.
    """
    texts = [word for word in arguments if not OVERRIDE.fullmatch(word)]
    settings = [word for word in arguments if OVERRIDE.fullmatch(word)]
    if any(word.startswith("=") for word in texts):
        raise UserError(
            f"can't read {' '.join(arguments)!r}: settings are written KEY=VALUE, without spaces around the ="
        )
    for path in texts:
        pattern_or_url = "://" in path or any(char in path for char in "*?[")
        if not pattern_or_url and not os.path.exists(typed_path(path)):
            if "=" in path:
                raise UserError(
                    f"can't read {path!r}: it is no file, and settings are written KEY=VALUE, for example "
                    "training.max_steps=500"
                )
            raise UserError(f"no file {path!r}{_suggest_text(path)}")
    if not texts:
        return settings
    path = f"[{', '.join(map(_quoted, texts))}]" if len(texts) > 1 else _verbatim(texts[0])
    return ["data=text_file", f"data.path={path}", *settings]


def _verbatim(path: str) -> str:
    """A path that would be read as YAML (`'a'`, `null`, `[x]`) in quotes."""
    plain = re.match(r"[^\s\"'\[{~#]", path) and path.lower() not in ("null", "true", "false")
    return path if plain else _quoted(path)


def _quoted(path: str) -> str:
    """A path in YAML, whatever bytes it holds."""
    kept = (c if c.isprintable() and c not in '"\\' else f"\\U{ord(c):08x}" for c in path)
    return f'"{"".join(kept)}"'


def _suggest_text(path: str) -> str:
    for group in reversed(GROUPS):
        if path in {name for name, _, _ in list_group(group, config_folders(None))}:
            return f", did you mean {group}={path}?"
    folder, name = os.path.split(typed_path(path))
    names = os.listdir(folder or ".") if os.path.isdir(folder or ".") else []
    return did_you_mean(name, [other for other in names if other != name])  # a broken link


@dataclass(frozen=True)
class Finished:
    """A run with nothing left to do.

    Args:
        run_dir: its folder.
        others: how many more there are like it, where no run was named.
    """

    run_dir: Path
    others: int = 0

    def __str__(self) -> str:
        step = finished_at(self.run_dir)
        which = (
            f"all {self.others + 1} runs are finished; the newest is {self.run_dir}" if self.others else ""
        )
        model = f", its model is {self.run_dir}_step_{step}" if step is not None else ""
        return (
            f"{which or f'{self.run_dir} is finished'}{model}; to train it on: "
            f"craft resume {self.run_dir} training.max_steps=N"
        )


def run_to_resume(run_dir: str, root: Path = OUTPUTS) -> Path | Finished:
    """The folder of the run to go on with.

    Args:
        run_dir: the folder, or `latest` for the newest run that is neither finished nor in training now.

    Raises:
        UserError: if there is none.
    """
    if run_dir == "latest":
        return _newest_unfinished(root / "models")
    folder = Path(typed_path(run_dir))
    if re.fullmatch(r"checkpoint-\d+", folder.name):
        raise UserError(
            f"{run_dir} is one checkpoint; name its run, {folder.parent}, which goes on from the newest good "
            "one"
        )
    if not (folder / RUN_CONFIG).is_file():
        raise UserError(
            f"{run_dir}: no run there ({RUN_CONFIG} is missing); give a folder under outputs/models"
        )
    return Finished(folder) if _is_finished(folder) else folder


def _newest_unfinished(models: Path) -> Path | Finished:
    runs = [path.parent for path in models.glob(f"[!.]*/{RUN_CONFIG}") if "_step_" not in path.parent.name]
    runs.sort(key=lambda run: run.stat().st_mtime_ns, reverse=True)
    if not runs:
        raise UserError(f"no run to resume in {models}; start one with 'craft train'")
    unfinished = [run for run in runs if not _is_finished(run)]
    if not unfinished:
        return Finished(runs[0], others=len(runs) - 1)
    idle = [run for run in unfinished if not is_claimed(run)]
    if not idle:
        raise UserError(f"{unfinished[0]} is in training now, and no other run is unfinished")
    return idle[0]


def _is_finished(run: Path) -> bool:
    """By its history; a run without one is finished once its model lies beside it as `<run>_step_<n>`."""
    if read_history(run):
        return finished_at(run) is not None
    return any(run.parent.glob(f"{glob.escape(run.name)}_step_*/config.json"))


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
            file = f"; for the file of that name write ./{text}" if os.path.exists(text) else ""
            raise UserError(f"unknown setting {key!r} in {text!r}{suggest_setting(key)}{file}")
    return choices, values


def _choice(group: str, value: str, folders: Sequence[Path]) -> str:
    names = [name for name, _, _ in list_group(group, folders)]
    name = value.removesuffix(".yaml")
    if name not in names and not (group == "experiments" and name in ("null", "none")):
        raise UserError(f"no {group}={value}{did_you_mean(name, names)} (there are: {', '.join(names)})")
    return "none" if name == "null" else name


def suggest_setting(key: str) -> str:
    """`", did you mean 'training.max_steps'?"` for what was written where a setting belongs."""
    if key in (keys := all_keys()):
        return f", did you mean {key!r}?"
    if hint := did_you_mean(key, GROUPS):
        return hint
    dotted = [name for name in keys if name.partition(".")[2] == key]
    return (
        f", did you mean {dotted[0]!r}?" if dotted else suggest(key) or f" (groups are {', '.join(GROUPS)})"
    )
