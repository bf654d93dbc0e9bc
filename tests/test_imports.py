"""Who may import whom, as docs/architecture.md says."""

from __future__ import annotations

import ast
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

CRAFT = Path(__file__).resolve().parent.parent / "craft"
FILES = sorted(CRAFT.rglob("*.py"))
ARCHITECTURE = (CRAFT.parent / "docs/architecture.md").read_text(encoding="utf-8")
LARGE = ("torch", "transformers", "datasets", "accelerate", "wandb", "matplotlib", "evaluate", "numpy")


def room(path: Path) -> str:
    return path.relative_to(CRAFT).parts[0].removesuffix(".py")


def names(cell: str) -> list[str]:
    """`utils`, `train.py` -> utils, train"""
    return [name.removesuffix(".py") for name in re.findall(r"`([\w.]+)`", cell)]


def rooms() -> dict[str, set[str] | None]:
    """The table of the document: room -> what it may import, itself included; None for everything."""
    table = ARCHITECTURE.split("| room | may import |")[1].split("\n\n")[0]
    found: dict[str, set[str] | None] = {}
    for line in table.splitlines()[2:]:
        _, who, what, _ = line.split("|")
        for name in names(who):
            assert name not in found, f"{name} has two rows"
            everything = what.strip().startswith("everything")
            found[name] = None if everything else {name, *names(what.partition(";")[0])}
    return found


ROOMS = rooms()


def imports(tree: ast.AST, path: Path) -> Iterator[tuple[str, ast.AST]]:
    """Every imported module by its full name, with its node; those for type checkers count."""
    package = ["craft", *path.relative_to(CRAFT).parts[:-1]]
    whole = {"craft"}  # the names of the package itself, whose attributes are rooms
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from ((alias.name, node) for alias in node.names)
            whole |= {alias.asname for alias in node.names if alias.name == "craft" and alias.asname}
        elif isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name) and node.value.id in whole:
            if not node.attr.startswith("__"):
                yield f"craft.{node.attr}", node
        elif isinstance(node, ast.ImportFrom):
            base = package[: len(package) - node.level + 1] if node.level else []
            full = [*base, *([node.module] if node.module else [])]
            if full == ["craft"]:  # a room, or a public name that comes from one
                yield from ((f"craft.{alias.name}", node) for alias in node.names)
            else:
                yield ".".join(full), node
        elif isinstance(node, ast.Call) and "import" in ast.unparse(node.func):
            yield from (
                (word.value, node)
                for word in node.args
                if isinstance(word, ast.Constant) and isinstance(word.value, str)
            )


def forbidden_imports(code: str, path: Path) -> list[str]:
    """What a file imports and may not."""
    allowed = ROOMS[room(path)]
    if allowed is None:
        return []
    found = [(name.split("."), node) for name, node in imports(ast.parse(code), path)]
    return [
        f"{path}:{node.lineno} imports {'.'.join(parts)}: {room(path)} may import {sorted(allowed)}"  # type: ignore[attr-defined]
        for parts, node in found
        if parts[0] == "craft" and len(parts) > 1 and parts[1] not in allowed
    ]


def test_the_table_has_every_room() -> None:
    there = {room(path) for path in FILES}
    assert there - {"__init__", "__main__"} == set(ROOMS)
    assert all(not allowed or allowed <= there for allowed in ROOMS.values())


@pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(CRAFT)))
def test_a_room_imports_only_the_rooms_it_may(path: Path) -> None:
    if room(path) not in ("__init__", "__main__"):
        assert not forbidden_imports(path.read_text(encoding="utf-8"), path)


@pytest.mark.parametrize(
    "code",
    [
        "import craft\nx = craft.training.base.Trainer",
        "import craft as c\nx = c.CharLSTMConfig",
        "import craft.training.base",
        "from craft import training",
        "from craft import utils, CharTokenizer",
        "from craft.training import base",
        "from .. import training",
        "from ..training.base import Trainer",
        "def f():\n    from craft import training",
        "import importlib\nimportlib.import_module('craft.training')",
        "__import__('craft.training')",
    ],
)
def test_every_way_of_importing_is_seen(code: str) -> None:
    assert forbidden_imports(code, CRAFT / "data/base.py")
    assert not forbidden_imports(code, CRAFT / "benchmarks/harness.py")
    for fine in (
        "from craft import utils",
        "from ..utils import common",
        "from . import cache",
        "import craft\nx = craft.__file__",
        "import craft.data",
    ):
        assert not forbidden_imports(fine, CRAFT / "data/base.py")


@pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(CRAFT)))
def test_nothing_imports_the_command_line_but_entry_points(path: Path) -> None:
    if room(path) in ("cli", "__main__"):
        return
    tree = ast.parse(path.read_text(encoding="utf-8"))
    entry = [node for node in tree.body if isinstance(node, ast.If) and "__main__" in ast.dump(node.test)]
    inside = {id(child) for block in entry for child in ast.walk(block)}
    for name, node in imports(tree, path):
        assert not name.startswith("craft.cli") or id(node) in inside, f"{path} imports {name}"


@pytest.mark.parametrize("path", sorted((CRAFT / "models").glob("*.py")), ids=lambda path: path.name)
def test_a_model_file_can_be_copied_to_the_hub(path: Path) -> None:
    if path.name == "__init__.py":
        return
    for name, node in imports(ast.parse(path.read_text(encoding="utf-8")), path):
        top = name.split(".")[0]
        sibling = isinstance(node, ast.ImportFrom) and node.level == 1 and name.count(".") == 2
        assert (
            sibling or top in ("torch", "transformers", "huggingface_hub") or top in sys.stdlib_module_names
        ), f"{path} imports {name}"


@pytest.mark.parametrize(
    "module",
    [
        "craft",
        "craft.cli.main",
        "craft.config.compose",
        "craft.inference",
        "craft.building",
        "craft.train",
    ],
)
def test_importing_a_module_loads_no_large_library(module: str) -> None:
    code = f"import sys, {module}; print([m for m in {LARGE!r} if m in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


def test_every_public_name_exists() -> None:
    code = "import craft; print([n for n in craft.__all__ if getattr(craft, n, None) is None])"
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=CRAFT.parent
    )
    assert done.stdout.splitlines()[-1] == "[]", done.stderr


def test_two_classes_extend_the_trainer_of_transformers_and_override_few_private_methods() -> None:
    """Everything else of a run is an object that they delegate to."""
    import transformers

    from craft.training import base

    found = {
        f"{path.relative_to(CRAFT)}:{node.name}"
        for path in FILES
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8")))
        if isinstance(node, ast.ClassDef)
        and any(ast.unparse(base).endswith("Trainer") for base in node.bases)
    }
    assert found == {"training/base.py:Trainer", "training/base.py:LanguageModelTrainer"}
    private = {name for name in vars(transformers.Trainer) if name.startswith("_") and name[1] != "_"}
    own = {name for kind in (base.Trainer, base.LanguageModelTrainer) for name in vars(kind)} & private
    assert len(own) <= 10, own
