"""The schema of configs/data, and the files that follow it."""

from __future__ import annotations

import dataclasses
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml
from refusals import refused

from craft.data.arguments import DataArguments, check_corpus
from craft.utils.errors import Code

CONFIGS = sorted((Path(__file__).resolve().parents[2] / "configs" / "data").glob("*.yaml"))
DEFAULTS = {field.name: field.default for field in dataclasses.fields(DataArguments)}


@pytest.mark.parametrize("file", CONFIGS, ids=lambda f: f.stem)
def test_every_config_is_described_valid_and_says_only_what_differs(file: Path) -> None:
    text = file.read_text(encoding="utf-8")
    assert text.startswith("# ")
    values = yaml.safe_load(text)
    DataArguments(**values)
    same = [key for key, value in values.items() if value == DEFAULTS[key]]
    assert same == (["path"] if file.stem == "text_file" else [])


def test_the_standard_corpora_are_cut_as_the_field_cuts_them() -> None:
    configs = {file.stem: yaml.safe_load(file.read_text(encoding="utf-8")) for file in CONFIGS}
    for name in ("text8", "enwik8"):
        assert configs[name]["validation_size"] == configs[name]["test_size"] == 5_000_000
    assert configs["enwik8"]["tokenizer"] == "byte"
    assert DEFAULTS["validation_size"] == 0.1


@pytest.mark.parametrize(
    ("values", "code", "named"),
    [
        ({"source": "file"}, "setting-value", ["data.source=file", "builtin, files, hub", "'files'"]),
        ({"unknown": "byte"}, "setting-value", ["data.unknown=byte", "strict, unk, bytes", "'bytes'"]),
        ({"block_size": "many"}, "setting-type", ["data.block_size=many"]),
        ({"encoding": "cp125"}, "setting-value", ["data.encoding=cp125", "did you mean 'cp125"]),
        ({"encoding": "base64"}, "setting-value", ["data.encoding=base64"]),
        ({"validation_size": 1.5}, "setting-value", ["data.validation_size=1.5"]),
        (
            {"validation_size": 0.5, "test_size": 0.5},
            "setting-conflict",
            ["data.validation_size=0.5", "data.test_size=0.5"],
        ),
        ({"test_size": -0.1}, "setting-value", ["data.test_size=-0.1"]),
        ({"block_size": 0}, "setting-value", ["data.block_size=0", "1"]),
        ({"path": ["a", ""]}, "setting-value", ['data.path=["a", ""]']),
        (
            {"source": "hub", "path": ["a", "b"]},
            "setting-conflict",
            ['data.path=["a", "b"]', "data.source=hub"],
        ),
        (
            {"tokenizer": "byte", "min_frequency": 2},
            "setting-no-effect",
            ["data.min_frequency=2", "data.tokenizer=byte"],
        ),
    ],
)
def test_values_out_of_range_are_named(values: dict[str, Any], code: Code, named: list[str]) -> None:
    with refused(code, *named):
        DataArguments(**values)


@pytest.mark.parametrize(
    ("values", "code", "named"),
    [
        ({}, "text-missing", ["data.path", "data.source=files"]),
        ({"path": "a.txt", "lanes": 3}, "setting-no-effect", ["data.lanes=3", "data.streaming=true"]),
        ({"path": "a.txt", "validation_split": "dev"}, "setting-no-effect", ["=dev", "data.source=hub"]),
        ({"path": "a/b", "source": "hub", "exclude": "x"}, "setting-no-effect", ["data.exclude=x"]),
    ],
)
def test_a_corpus_to_train_on_has_a_path_and_no_settings_without_effect(
    values: dict[str, Any], code: Code, named: list[str]
) -> None:
    with refused(code, *named):
        check_corpus(vars(DataArguments(**values)))


@pytest.mark.parametrize(
    ("values", "label"),
    [
        ({"name": "mine", "path": "x.txt"}, "mine"),
        ({"path": "/a/b/poems.txt.gz"}, "poems"),
        ({"path": "roneneldan/TinyStories"}, "TinyStories"),
        ({"path": "https://example.org/input.txt"}, "input"),
        ({"path": "."}, "corpus"),
        ({"path": "plays/act-?/*.txt"}, "plays"),
        ({"path": "songs*"}, "corpus"),
        ({"path": "/texts/"}, "texts"),
    ],
)
def test_the_label_of_outputs_comes_from_the_name_or_path(values: dict[str, Any], label: str) -> None:
    assert DataArguments(**values).label == label


def test_the_schema_imports_neither_torch_nor_transformers() -> None:
    heavy = "('torch', 'transformers', 'numpy')"
    code = f"import sys, craft.data.arguments; print([m for m in {heavy} if m in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


def test_a_tilde_in_a_path_is_the_home_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    data = DataArguments(path="~/a.txt", cache_dir="~/cache")
    assert (data.path, data.cache_dir) == (f"{tmp_path}/a.txt", f"{tmp_path}/cache")
