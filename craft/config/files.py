"""Where configuration files lie, what each is for, and where in them a key was written."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path

from craft.utils.errors import UserError
from craft.utils.paths import typed_path

CRAFT = Path(__file__).resolve().parent.parent
SECTIONS = ("models", "data", "training")
GROUPS = (*SECTIONS, "experiments")

Locate = Callable[[str], str]
"""Says where a key was written, to end a sentence with: `training.lr -> ' (mine/training/a.yaml:4)'`."""


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
        raise UserError(f"--config-dir {config_dir} holds none of the folders {', '.join(GROUPS)}")
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
    for line in path.read_text(encoding="utf-8-sig", errors="replace").splitlines():
        if line.startswith("#") and not re.match(r"#\s*@", line):
            return line.lstrip("# ").strip()
        if line and not line.startswith("#"):
            break
    return ""


class Locator:
    """Where a key was written: nothing for one that was just typed, `(file:line)` for one from a file."""

    def __init__(self, typed: set[str], files: Mapping[str, Sequence[Path]]) -> None:
        self.typed = typed
        self.files = files

    def __call__(self, key: str) -> str:
        section, _, name = key.partition(".")
        if any(typed == key or typed.startswith(f"{key}.") for typed in self.typed):
            return ""
        candidates = self.files.get(section) or [file for files in self.files.values() for file in files]
        last = name.rpartition(".")[2]  # of `training.lr_scheduler_kwargs.min_lr`
        for file in candidates:
            for number, line in enumerate(file.read_text(encoding="utf-8-sig").splitlines(), start=1):
                if re.match(rf"(?:[^#]*[{{,]|)\s*{re.escape(last or section)}\s*:", line):
                    return f" ({short(file)}:{number})"
        if not name and section in self.files:
            return f" ({short(candidates[-1])})" if candidates else ""
        return ""


@contextmanager
def located(locate: Locate) -> Iterator[None]:
    """Adds to a refusal where the first setting that it names was written."""
    try:
        yield
    except UserError as error:
        named = re.search(rf"\b(?:{'|'.join(SECTIONS)})(?:\.\w+)+", str(error))
        where = locate(named[0]) if named else ""
        if not where or where in str(error):
            raise
        raise UserError(f"{error}{where}") from error.__cause__


def short(path: Path) -> str:
    """A path as the user would write it: relative to here where that is shorter."""
    try:
        return str(path.resolve().relative_to(Path.cwd()))
    except ValueError:
        return str(path)
