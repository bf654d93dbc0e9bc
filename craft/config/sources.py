"""The fields of a configuration class, read from its source text.

Importing TrainingArguments takes seconds, parsing its file a few hundredths of one. So a mistake in a
configuration is answered at once, and no second list of names, types and defaults can drift from the classes.
"""

from __future__ import annotations

import ast
import functools
import importlib.util
import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

UNKNOWN = object()
"""The default of a field whose value is not a literal in the source."""

CRAFT = Path(__file__).resolve().parent.parent


@dataclass(frozen=True)
class Kind:
    """One thing a field may be: int, float, bool, str, null, list, dict, any, or choice (of `choices`)."""

    name: str
    choices: tuple[Any, ...] = ()


@dataclass(frozen=True)
class Field:
    """A field of a configuration class: what it may be, and its default if that is a literal."""

    name: str
    kinds: tuple[Kind, ...]
    default: Any = UNKNOWN

    @property
    def nullable(self) -> bool:
        return self.default is None or any(kind.name in ("null", "any") for kind in self.kinds)

    @property
    def textual(self) -> bool:
        return any(
            kind.name == "str" or (kind.name == "choice" and str in map(type, kind.choices))
            for kind in self.kinds
        )

    def describe(self) -> str:
        """What may be written, for an error message: `a number or null`."""
        words = {
            "int": "a whole number",
            "float": "a number",
            "bool": "true or false",
            "str": "text",
            "list": "a list",
        }
        words |= {"dict": "a mapping", "null": "null", "any": "anything"}
        names = [kind.name for kind in self.kinds]
        parts = []
        for kind in self.kinds:
            if kind.name == "choice":
                parts.append("one of " + ", ".join(yaml_word(choice) for choice in kind.choices))
            elif not (kind.name == "int" and "float" in names):
                parts.append(words[kind.name])
        if self.nullable and "null" not in names:
            parts.append("null")
        return " or ".join(sorted(dict.fromkeys(parts), key=lambda word: word == "null"))


def yaml_word(value: Any) -> str:
    """A value as it is written in YAML, on one line: `null`, `true`, `0.1`, `text`."""
    return value if isinstance(value, str) else json.dumps(value, default=str)


def package_file(package: str, file: str) -> Path:
    """A file of an installed package, found without importing it."""
    spec = importlib.util.find_spec(package)
    if spec is None or spec.origin is None:
        raise ImportError(f"{package} is not installed")
    return Path(spec.origin).parent / file


@functools.cache
def parse(path: Path) -> ast.Module:
    return ast.parse(path.read_text(encoding="utf-8"))


def classes(path: Path) -> dict[str, ast.ClassDef]:
    return {node.name: node for node in parse(path).body if isinstance(node, ast.ClassDef)}


def base_names(cls: ast.ClassDef) -> list[str]:
    """The names of the base classes, without their modules."""
    return [base.attr if isinstance(base, ast.Attribute) else getattr(base, "id", "") for base in cls.bases]


def literal(node: ast.expr | None) -> Any:
    """The value of a literal expression, else `UNKNOWN`."""
    try:
        return UNKNOWN if node is None else ast.literal_eval(node)
    except ValueError:
        return UNKNOWN


def class_constant(cls: ast.ClassDef, name: str) -> Any:
    """The literal that the class body gives to `name` (annotated or not), else `UNKNOWN`."""
    for node in cls.body:
        targets = (
            node.targets
            if isinstance(node, ast.Assign)
            else [node.target]
            if isinstance(node, ast.AnnAssign)
            else []
        )
        if any(isinstance(target, ast.Name) and target.id == name for target in targets):
            return literal(node.value)  # type: ignore[attr-defined]
    return UNKNOWN


@functools.cache
def enums() -> dict[str, tuple[str, ...]]:
    """The words that transformers' enumerations allow, by class (`IntervalStrategy: no, steps, epoch`)."""
    found: dict[str, tuple[str, ...]] = {}
    for file in ("trainer_utils.py", "training_args.py"):
        for name, cls in classes(package_file("transformers", file)).items():
            if "ExplicitEnum" in base_names(cls):
                values = (literal(node.value) for node in cls.body if isinstance(node, ast.Assign))
                found[name] = tuple(value for value in values if isinstance(value, str))
    return found


def scheduler_arguments(scheduler: str) -> set[str] | None:
    """The keys of `lr_scheduler_kwargs` that one of transformers' schedules takes; None if it takes any."""
    names = classes(package_file("transformers", "trainer_utils.py"))["SchedulerType"]
    member = next(
        node.targets[0].id
        for node in names.body
        if isinstance(node, ast.Assign)
        and isinstance(node.targets[0], ast.Name)
        and literal(node.value) == scheduler
    )
    file = package_file("transformers", "optimization.py")
    body, table = parse(file).body, aliases(file)["TYPE_TO_SCHEDULER_FUNCTION"]
    assert isinstance(table, ast.Dict)
    function = next(
        value for key, value in zip(table.keys, table.values) if getattr(key, "attr", "") == member
    )
    (found,) = (n for n in body if isinstance(n, ast.FunctionDef) and n.name == getattr(function, "id", ""))
    if found.args.kwarg:
        return None
    taken = {argument.arg for argument in (*found.args.args, *found.args.kwonlyargs)}
    return taken - {"optimizer", "num_warmup_steps", "num_training_steps", "last_epoch"}


@functools.cache
def rope_types() -> tuple[tuple[str, ...], tuple[str, ...]]:
    """The kinds of rotary positions that transformers knows, and the keys that describe them."""
    file = package_file("transformers", "modeling_rope_utils.py")
    table = next(
        node.value
        for node in parse(file).body
        if isinstance(node, ast.AnnAssign) and getattr(node.target, "id", "") == "ROPE_INIT_FUNCTIONS"
    )
    assert isinstance(table, ast.Dict)
    kinds = tuple(str(literal(key)) for key in table.keys)
    return ("default", *kinds), tuple(field.name for field in fields(classes(file)["RopeParameters"]))


@functools.cache
def dynamo_backends() -> tuple[str, ...]:
    """What accelerate can compile with, in lower case."""
    members = classes(package_file("accelerate", "utils/dataclasses.py"))["DynamoBackend"].body
    return tuple(str(literal(node.value)).lower() for node in members if isinstance(node, ast.Assign))


@functools.cache
def integrations() -> tuple[str, ...]:
    """The services to which transformers can report, by the keys of its table of callbacks."""
    table = aliases(package_file("transformers", "integrations/integration_utils.py"))[
        "INTEGRATION_TO_CALLBACK"
    ]
    assert isinstance(table, ast.Dict)
    return tuple(str(literal(key)) for key in table.keys)


def aliases(path: Path) -> dict[str, ast.expr]:
    """What a file names at its top, such as `Norm = Literal["rmsnorm", "layernorm"]`."""
    found = {}
    for node in parse(path).body:
        if isinstance(node, ast.Assign) and len(node.targets) == 1 and isinstance(node.targets[0], ast.Name):
            found[node.targets[0].id] = node.value
    return found


def constant(path: Path, name: str) -> Any:
    """The literal that a file gives to `name` at its top."""
    return literal(aliases(path)[name])


def fields(cls: ast.ClassDef, named: Mapping[str, ast.expr] | None = None) -> Iterator[Field]:
    """The public annotated fields of a class body, as a dataclass has them, but no `_private` ones.

    Args:
        named: the aliases of the class's file, for annotations that are no more than one of them.
    """
    for node in cls.body:
        if not isinstance(node, ast.AnnAssign) or not isinstance(node.target, ast.Name):
            continue
        name = node.target.id
        if name.startswith("_") or "ClassVar" in ast.dump(node.annotation):
            continue
        annotation = (named or {}).get(getattr(node.annotation, "id", ""), node.annotation)
        yield Field(name, tuple(dict.fromkeys(kinds(annotation))), _default(node.value))


def _default(value: ast.expr | None) -> Any:
    """Of `x: int = 3` and of `x: int = field(default=3, ...)`."""
    if isinstance(value, ast.Call) and getattr(value.func, "id", getattr(value.func, "attr", "")) == "field":
        value = next((word.value for word in value.keywords if word.arg == "default"), None)
    return literal(value)


def kinds(annotation: ast.expr) -> Iterator[Kind]:
    """What an annotation allows; a type that YAML can't hold (a torch.dtype, a class) adds nothing."""
    if isinstance(annotation, ast.BinOp):
        yield from _without_plain_str([*kinds(annotation.left), *kinds(annotation.right)])
    elif isinstance(annotation, ast.Constant):
        if annotation.value is None:
            yield Kind("null")
        elif isinstance(annotation.value, str):
            yield from kinds(ast.parse(annotation.value, mode="eval").body)
    elif isinstance(annotation, ast.Subscript):
        outer = getattr(annotation.value, "id", getattr(annotation.value, "attr", ""))
        inner = annotation.slice.elts if isinstance(annotation.slice, ast.Tuple) else [annotation.slice]
        if outer == "Literal":
            yield Kind("choice", tuple(literal(item) for item in inner))
        elif outer in ("Optional", "Union"):
            yield from _without_plain_str([kind for item in inner for kind in kinds(item)])
            if outer == "Optional":
                yield Kind("null")
        else:
            yield from _named(outer)
    else:
        yield from _named(getattr(annotation, "id", getattr(annotation, "attr", "")))


def _named(name: str) -> Iterator[Kind]:
    simple = {
        "int": "int",
        "float": "float",
        "bool": "bool",
        "str": "str",
        "dict": "dict",
        "list": "list",
        "Any": "any",
    }
    simple |= {"tuple": "list", "Sequence": "list", "Mapping": "dict", "Dict": "dict", "List": "list"}
    if name in simple:
        yield Kind(simple[name])
    elif name in enums():
        yield Kind("choice", enums()[name])


def _without_plain_str(found: list[Kind]) -> list[Kind]:
    """`SchedulerType | str` means one of the scheduler's names: the `str` is there for the type checker."""
    named = any(isinstance(choice, str) for kind in found for choice in kind.choices)
    return [kind for kind in found if kind.name != "str"] if named else found
