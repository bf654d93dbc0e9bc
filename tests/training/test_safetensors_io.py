from __future__ import annotations

import math
import random
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from craft.training.checkpointing.parts import Generators
from craft.training.checkpointing.safetensors_io import load_tree, save_tree

SCALARS = st.one_of(st.none(), st.booleans(), st.integers(), st.floats(), st.text())
DTYPES = (torch.float32, torch.bfloat16, torch.float16, torch.float64, torch.int64, torch.uint8, torch.bool)
TENSORS = st.builds(
    lambda dtype, shape: torch.randint(-100, 100, shape).to(dtype),
    st.sampled_from(DTYPES),
    st.lists(st.integers(0, 3), max_size=3),
)
TREES = st.recursive(
    SCALARS | TENSORS,
    lambda inner: st.one_of(
        st.lists(inner, max_size=3),
        st.lists(inner, max_size=3).map(tuple),
        st.dictionaries(st.integers() | st.text(), inner, max_size=3),
        st.dictionaries(st.sampled_from([1, "1", "", "1.1", "'"]), inner, max_size=4),  # whose paths collide
    ),
    max_leaves=8,
)


def same(a: Any, b: Any) -> bool:
    if isinstance(a, torch.Tensor):
        return a.dtype == b.dtype and a.shape == b.shape and torch.equal(a, b)
    if type(a) is not type(b):
        return False
    if isinstance(a, dict):
        return list(a) == list(b) and all(same(a[key], b[key]) for key in a)
    if isinstance(a, list | tuple):
        return len(a) == len(b) and all(map(same, a, b))
    return a == b or (isinstance(a, float) and math.isnan(a) and math.isnan(b))


@settings(max_examples=25, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(TREES)
def test_a_loaded_state_equals_the_saved_one(tmp_path: Path, tree: Any) -> None:
    save_tree(tree, tmp_path / "tree.safetensors")
    assert same(tree, load_tree(tmp_path / "tree.safetensors"))


def test_tensors_that_share_or_stride_memory_come_back_equal(tmp_path: Path) -> None:
    base = torch.arange(12.0).view(3, 4)
    tree = {"a": base, "b": base, "c": base.t(), 0: base[1]}
    save_tree(tree, tmp_path / "tree.safetensors")
    assert same(tree, load_tree(tmp_path / "tree.safetensors"))


def test_tensors_whose_paths_read_alike_are_kept_apart(tmp_path: Path) -> None:
    one, two, three, four = torch.arange(4)
    tree = {"a.b": one, "a": {"b": two}, 1: three, "1": four}
    save_tree(tree, tmp_path / "tree.safetensors")
    assert same(tree, load_tree(tmp_path / "tree.safetensors"))


def test_an_object_is_refused_with_its_place(tmp_path: Path) -> None:
    with pytest.raises(TypeError, match=r"state\.0\.thing is a PosixPath"):
        save_tree({"state": {0: {"thing": tmp_path}}}, tmp_path / "tree.safetensors")


def test_generators_go_on_where_they_were(tmp_path: Path) -> None:
    def draw() -> list[Any]:
        return [random.gauss(0, 1), np.random.standard_normal(3).tolist(), torch.rand(3).tolist()]

    draw()  # a Gaussian is drawn in pairs, and the second one is part of the state
    generators = Generators(torch.device("cpu"))
    save_tree(generators.state_dict(), tmp_path / "states.safetensors")
    expected = draw()
    random.seed(1), np.random.seed(1), torch.manual_seed(1)
    generators.load_state_dict(load_tree(tmp_path / "states.safetensors"))
    assert draw() == expected
