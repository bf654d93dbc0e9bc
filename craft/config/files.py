"""Where configuration files lie, what each is for, and where in them a setting was written."""

from __future__ import annotations

import os
import re
from collections.abc import Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path

from craft.utils.errors import UserError
from craft.utils.paths import typed_path
from craft.utils.settings import SECTIONS

CRAFT = Path(__file__).resolve().parent.parent
GROUPS = (*SECTIONS, "experiments")

NAMED = re.compile(
    rf"\b(?:{'|'.join(SECTIONS)})(?:\.\w+)+|^(?:{'|'.join(GROUPS)})\b|(?<=^unknown section ')\w+"
)
"""What a message is about: a setting, else the section that it begins with."""


def builtin_folder() -> Path:
    """craft's own configuration: inside the installed package, or `configs/` of a checkout."""
    packaged = CRAFT / "_configs"
    return packaged if packaged.is_dir() else CRAFT.parent / "configs"


def config_folders(config_dir: str | Path | None) -> list[Path]:
    """Where configuration files are looked for, the user's folder first.

    Raises:
        UserError: if the user's folder holds none.
    """
    if config_dir is None:
        return [builtin_folder()]
    folder = Path(typed_path(config_dir, "--config-dir ")).resolve()
    if not any((folder / group).is_dir() for group in GROUPS):
        raise UserError(
            f"--config-dir {config_dir} holds none of the folders {', '.join(GROUPS)}", code="file-missing"
        )
    return [folder, builtin_folder()]


def list_group(group: str, folders: Sequence[Path]) -> list[tuple[str, str, Path]]:
    """(name, first comment, file) of every choice of a group; an earlier folder shadows a later one."""
    found: dict[str, tuple[str, str, Path]] = {}
    for folder in folders:
        for path in sorted(path for path in (folder / group).rglob("*.yaml") if path.is_file()):
            name = path.relative_to(folder / group).with_suffix("").as_posix()
            found.setdefault(name, (name, _description(path), path))
    return [found[name] for name in sorted(found)]


def _description(path: Path) -> str:
    text = path.read_text(encoding="utf-8-sig", errors="replace")
    comment = re.match(r"(?:#\s*@.*\n|\s*\n)*#(?!\s*@)(.*)", text)
    return comment[1].strip("# ") if comment else ""


@contextmanager
def located(typed: Collection[str], files: Mapping[str, Sequence[Path]]) -> Iterator[None]:
    """Adds to a refusal where the setting that it names was written: ` (mine/training/a.yaml:4)`.

    Args:
        typed: the keys of the command line, which stand in no file.
        files: of each section, those that it was read from.
    """
    try:
        yield
    except UserError as error:
        named = NAMED.search(str(error))
        if named is None or any(f"{key}.".startswith(f"{named[0]}.") for key in typed):
            raise
        raise UserError(f"{error}{_place(named[0], files)}", code=error.code) from error.__cause__


def _place(key: str, files: Mapping[str, Sequence[Path]]) -> str:
    section, _, name = key.partition(".")
    own = files.get(section, ())
    last = re.escape(key.rpartition(".")[2])  # `min_lr` of `training.lr_scheduler_kwargs.min_lr`
    for file in own or (file for each in files.values() for file in each):
        for number, line in enumerate(file.read_text(encoding="utf-8-sig").splitlines(), start=1):
            if re.match(rf"(?:[^#]*[{{,]|)\s*{last}\s*:", line):
                return f" ({short(file)}:{number})"
    return f" ({short(own[-1])})" if own and not name else ""


def short(path: Path) -> str:
    """A path as the user would write it: relative to here where that is shorter."""
    return min(str(path), os.path.relpath(path), key=len)
