"""Nested states (of optimizers, schedules, generators) in a safetensors file, where torch would pickle them.

A state is a tree of dicts, lists and tuples that hold tensors, numbers and text. The tensors become the
tensors of the file, named by their path in the tree (with a mark if that is taken); the rest is JSON in its
header. Loading returns the same tree bit for bit and can't run anything.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Collection
from pathlib import Path
from typing import Any

from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor

STRUCTURE = "structure"


def save_tree(tree: Any, path: Path) -> None:
    """Writes a tree.

    Raises:
        TypeError: for anything that is neither data nor a tensor, with its place in the tree.
        SafetensorError: if the disk refuses.
    """
    tensors: dict[str, Tensor] = {}
    structure = _flat(tree, "", tensors)
    save_file(tensors, path, metadata={STRUCTURE: json.dumps(structure)})


def load_tree(path: Path, names: Collection[str] | None = None) -> Any:
    """The tree of a file.

    Args:
        names: of the entries to read, if the tree is a dict; all by default. What isn't read costs nothing.
    """
    with safe_open(path, framework="pt", device="cpu") as file:
        structure = json.loads(file.metadata()[STRUCTURE])
        if names is not None:
            structure["dict"] = [entry for entry in structure["dict"] if entry[0] in names]
        return _nested(structure, file.get_tensor)


def _flat(node: Any, place: str, tensors: dict[str, Tensor]) -> Any:
    if node is None or isinstance(node, bool | int | float | str):
        return node
    if isinstance(node, Tensor):
        name = place or "tensor"
        while name in tensors:  # {"a.b": …} and {"a": {"b": …}}, or the keys 1 and "1"
            name += "'"
        # A copy, for safetensors doesn't write memory that two tensors share.
        tensors[name] = node.detach().to("cpu", copy=True).contiguous()
        return {"tensor": name}
    inside = f"{place}." if place else ""
    if isinstance(node, list):
        return [_flat(item, f"{inside}{i}", tensors) for i, item in enumerate(node)]
    if isinstance(node, tuple):
        return {"tuple": [_flat(item, f"{inside}{i}", tensors) for i, item in enumerate(node)]}
    if isinstance(node, dict):
        # As pairs: the keys of JSON's own objects are always text, an optimizer's are numbers or tuples.
        pairs = [(_flat(key, place, tensors), _flat(node[key], f"{inside}{key}", tensors)) for key in node]
        return {"dict": [list(pair) for pair in pairs]}
    raise TypeError(f"{place or 'the state'} is a {type(node).__name__}, which only a pickle could hold")


def _nested(node: Any, tensor: Callable[[str], Tensor]) -> Any:
    if isinstance(node, list):
        return [_nested(item, tensor) for item in node]
    if not isinstance(node, dict):
        return node
    ((kind, inside),) = node.items()
    if kind == "tensor":
        return tensor(inside)
    if kind == "tuple":
        return tuple(_nested(item, tensor) for item in inside)
    return {_nested(key, tensor): _nested(value, tensor) for key, value in inside}
