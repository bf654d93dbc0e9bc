"""Who may import whom: the rooms of the house, read from the source."""

from __future__ import annotations

import ast
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

CRAFT = Path(__file__).resolve().parent.parent / "craft"
FILES = sorted(CRAFT.rglob("*.py"))
ROOMS = {
    "utils": {"utils"},
    "config": {"config", "utils"},
    "data": {"data", "utils"},
    "models": {"models"},
    "sharing": {"sharing", "utils"},
    "training": {"training", "data", "sharing", "utils"},
    "inference": {"inference", "models", "data", "sharing", "utils"},
    "scoring": {"scoring", "inference", "data", "training", "sharing", "utils"},
    "serving": {"serving", "inference", "data", "models", "training", "utils"},
    "exporting": {"exporting", "inference", "data", "models", "training", "utils"},
    "pretrained": {"pretrained", "config", "inference", "models", "data", "sharing", "training", "utils"},
}
HEAVY = ("torch", "transformers", "datasets", "accelerate", "wandb", "matplotlib", "evaluate", "numpy")


def room(path: Path) -> str:
    return path.relative_to(CRAFT).parts[0].removesuffix(".py")


def imports(tree: ast.AST, path: Path) -> Iterator[tuple[str, ast.AST]]:
    """Every imported module by its full name, with its node; those for type checkers count."""
    package = ["craft", *path.relative_to(CRAFT).parts[:-1]]
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from ((alias.name, node) for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            base = package[: len(package) - node.level + 1] if node.level else []
            yield ".".join([*base, *([node.module] if node.module else [])]), node


@pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(CRAFT)))
def test_a_room_imports_only_the_rooms_it_may(path: Path) -> None:
    allowed = ROOMS.get(room(path))
    if allowed is None:
        return
    for name, node in imports(ast.parse(path.read_text(encoding="utf-8")), path):
        if name.startswith("craft.") and name.split(".")[1] not in allowed:
            pytest.fail(f"{path}:{node.lineno} imports {name}: {room(path)} may import {sorted(allowed)}")  # type: ignore[attr-defined]


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
        assert sibling or top in ("torch", "transformers") or top in sys.stdlib_module_names, (
            f"{path} imports {name}"
        )


@pytest.mark.parametrize(
    "module",
    [
        "craft",
        "craft.cli.main",
        "craft.config.compose",
        "craft.inference",
        "craft.scoring",
        "craft.pretrained",
        "craft.train",
    ],
)
def test_importing_it_imports_nothing_heavy(module: str) -> None:
    code = f"import sys, {module}; print([m for m in {HEAVY!r} if m in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


def test_every_public_name_exists() -> None:
    code = "import craft; print([n for n in craft.__all__ if getattr(craft, n, None) is None])"
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=CRAFT.parent
    )
    assert done.stdout.splitlines()[-1] == "[]", done.stderr
