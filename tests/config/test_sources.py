"""The fields read from the sources are those of the imported classes."""

from __future__ import annotations

import ast
import dataclasses
from collections.abc import Iterator
from pathlib import Path

import pytest

from craft.config import fields as keys
from craft.config import rules
from craft.config.sources import (
    UNKNOWN,
    Field,
    Kind,
    classes,
    enums,
    fields,
    integrations,
    kinds,
    scheduler_arguments,
)


def kinds_of(annotation: str) -> tuple[Kind, ...]:
    return tuple(kinds(ast.parse(annotation, mode="eval").body))


@pytest.mark.parametrize(
    ("annotation", "expected"),
    [
        ("int", [Kind("int")]),
        ("float | None", [Kind("float"), Kind("null")]),
        ("Optional[str]", [Kind("str"), Kind("null")]),
        ("'int | None'", [Kind("int"), Kind("null")]),
        ("None | str | list[str]", [Kind("null"), Kind("str"), Kind("list")]),
        ("dict[str, Any] | str | None", [Kind("dict"), Kind("str"), Kind("null")]),
        ("Literal['a', 'b'] | None", [Kind("choice", ("a", "b")), Kind("null")]),
        ("str | None | Literal[False]", [Kind("str"), Kind("null"), Kind("choice", (False,))]),
        ("IntervalStrategy | str", [Kind("choice", ("no", "steps", "epoch"))]),
        ("str | torch.dtype | None", [Kind("str"), Kind("null")]),
    ],
)
def test_annotations(annotation: str, expected: list[Kind]) -> None:
    assert list(kinds_of(annotation)) == expected


def read_and_real() -> Iterator[tuple[str, dict[str, Field], type]]:
    from craft.data.arguments import DataArguments
    from craft.models import CharLSTMConfig, TransformerConfig
    from craft.training.arguments import CraftTrainingArguments

    yield "data", keys.data_fields(), DataArguments
    yield "training", keys.training_fields(), CraftTrainingArguments
    for config in (CharLSTMConfig, TransformerConfig):
        yield config.model_type, keys.model_source(config.model_type).fields, config


def test_the_sources_say_what_the_classes_say() -> None:
    undeclared = {"attn_implementation", "output_attentions"}
    for name, read, cls in read_and_real():
        real = {field.name: field for field in dataclasses.fields(cls) if not field.name.startswith("_")}
        assert read.keys() - undeclared == real.keys(), name
        for key, field in read.items():
            if field.default is not UNKNOWN and key not in undeclared:
                assert field.default == real[key].default, f"{name}.{key}"


def test_every_rule_is_about_a_field_that_exists() -> None:
    known = {"data": keys.data_fields(), "training": keys.training_fields()}
    known["models"] = {
        key: field for kind in keys.model_types() for key, field in keys.model_source(kind).fields.items()
    }
    for section, ranges in rules.RANGES.items():
        assert ranges.keys() <= known[section].keys()
    both = known["models"] | known["training"]
    for key, words in rules.CHOICES.items():
        assert Kind("choice", words) in both[key].kinds, key
    since_5_23 = {"activation_checkpointing_kwargs"}  # Python 3.10 has an earlier transformers
    assert set(rules.MAPPINGS) - since_5_23 <= known["training"].keys()
    assert rules.IGNORED.keys() <= both.keys()
    assert not rules.IGNORED.keys() & (known["models"].keys() & known["training"].keys())
    assert not rules.IGNORED.keys() & (rules.CHOICES.keys() | rules.RANGES["training"].keys())
    for key in rules.IGNORED:
        field = both[key]
        assert field.default is not UNKNOWN or Kind("list") in field.kinds, key
    everything = set().union(*known.values())
    assert set(rules.OTHER_NAMES.values()) <= everything
    assert not set(rules.OTHER_NAMES) & everything


def test_the_choices_of_a_model_are_those_that_it_accepts() -> None:
    from transformers import AutoConfig

    import craft.models  # noqa: F401

    found = {}
    for model_type in keys.model_types():
        for key, field in keys.model_source(model_type).own.items():
            words = [word for kind in field.kinds for word in kind.choices]
            found[key] = len(words)
            for word in words:
                assert getattr(AutoConfig.for_model(model_type, **{key: word}), key) == word
            if words:
                with pytest.raises(ValueError, match=key):
                    AutoConfig.for_model(model_type, **{key: "nonsense"})
    assert {key for key, words in found.items() if words} == {"mlp", "norm", "position", "layer_norm"}


def test_the_services_to_report_to_are_those_of_transformers() -> None:
    from transformers.integrations.integration_utils import INTEGRATION_TO_CALLBACK

    assert integrations() == tuple(INTEGRATION_TO_CALLBACK)


def test_recurrent_models_are_recognised() -> None:
    assert keys.model_source("char_lstm").carries_state
    assert not keys.model_source("char_transformer").carries_state


def test_a_new_model_is_one_new_file_and_may_inherit_from_a_sibling(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = tmp_path / "new.py"
    file.write_text(
        "from .sibling import BaseConfig, BaseForCausalLM\n"
        "class NewForCausalLM(BaseForCausalLM):\n    pass\n"
        "class NewConfig(BaseConfig):\n    model_type = 'new'\n"
        "    depth: int | None = None\n    _hidden: int = 0\n",
        encoding="utf-8",
    )
    sibling = tmp_path / "sibling.py"
    sibling.write_text(
        "class BaseConfig(PreTrainedConfig):\n    width: int = 3\n"
        "class BaseForCausalLM:\n    carries_state = True\n",
        encoding="utf-8",
    )
    monkeypatch.setattr(keys, "model_types", lambda: {"new": file})
    keys.model_source.cache_clear()
    source = keys.model_source("new")
    keys.model_source.cache_clear()
    assert list(source.own) == ["width", "depth"]
    assert source.carries_state
    assert [field.name for field in fields(classes(sibling)["BaseConfig"])] == ["width"]


def test_a_field_says_what_may_be_written() -> None:
    assert Field("x", (Kind("int"), Kind("float"), Kind("null"))).describe() == "a number or null"
    assert Field("x", (Kind("choice", ("a", False)),), None).describe() == "one of a, false or null"


def test_the_arguments_of_every_schedule_are_found() -> None:
    for scheduler in enums()["SchedulerType"]:
        taken = scheduler_arguments(scheduler)
        assert taken is None or not taken & {"optimizer", "num_training_steps"}
    assert scheduler_arguments("linear") == set()
    assert scheduler_arguments("cosine_with_min_lr") == {"num_cycles", "min_lr", "min_lr_rate"}
    assert scheduler_arguments("reduce_lr_on_plateau") is None
