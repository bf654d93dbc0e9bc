"""The fields of every section: those of the classes, and the same when they were kept between two starts."""

from __future__ import annotations

import dataclasses
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Literal

import pytest

from craft.config import fields as keys
from craft.config import snapshot
from craft.training import arguments
from craft.utils.settings import UNKNOWN, Field, fields_of

HEAVY = "[name for name in ('torch', 'transformers', 'datasets') if name in sys.modules]"


def classes() -> Iterator[tuple[str, type]]:
    from craft.data.arguments import DataArguments
    from craft.models import CharLSTMConfig, TransformerConfig

    yield "data", DataArguments
    yield "training", arguments.CraftTrainingArguments
    for config in (CharLSTMConfig, TransformerConfig):
        yield config.model_type, config


def test_the_fields_are_those_of_the_classes() -> None:
    undeclared = {"attn_implementation", "output_attentions"}
    for name, cls in classes():
        real = {field.name: field for field in dataclasses.fields(cls) if not field.name.startswith("_")}
        read = snapshot.sections()[name].fields
        unused = {*snapshot.FROM_TEXT, *snapshot.NOT_USED} if name.startswith("char_") else set()
        assert read.keys() - undeclared == real.keys() - unused, name
        for key, field in read.items():
            if field.default is not UNKNOWN and key not in undeclared:
                assert field.default == real[key].default, f"{name}.{key}"


def test_the_snapshot_equals_what_was_read() -> None:
    for name, section in snapshot._read_classes().items():
        assert snapshot._load(snapshot._dump(section)) == snapshot.sections()[name]


def answer(folder: Path, *settings: str) -> str:
    """The sentence and the heavy modules that it took, of a process with that cache folder."""
    code = (
        "import sys\nfrom craft.config.compose import compose\nfrom craft.utils.errors import UserError\n"
        f"try:\n    compose({list(settings)!r})\nexcept UserError as error:\n"
        f"    print(error, {HEAVY})"
    )
    environment = {**os.environ, "CRAFT_CACHE": str(folder)}
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, env=environment)
    assert done.returncode == 0, done.stderr
    return done.stdout.strip()


def test_from_the_second_start_on_names_types_and_choices_need_no_torch(tmp_path: Path) -> None:
    first = answer(tmp_path, "training.lerning_rate=1")
    assert "did you mean 'training.learning_rate'?" in first
    assert "'torch'" in first
    (kept,) = tmp_path.glob("*.json")
    for setting, word in [
        ("training.lerning_rate=1", "did you mean 'training.learning_rate'?"),
        ("training.learning_rate=fast", "training.learning_rate=fast"),
        ("training.lr_scheduler_type=cosin", "did you mean 'cosine'?"),
        ("models.mlp=relu", "did you mean 'relu2'?"),
        ("models.model_type=lstm", "did you mean 'char_lstm'?"),
        ("data.block_size=0", "data.block_size=0"),
    ]:
        second = answer(tmp_path, setting)
        assert word in second
        assert second.endswith("[]")
    for damaged in ("{", "[]", '{"stamp": 1}', kept.read_text().replace('"sections"', '"other"')):
        kept.write_text(damaged)
        if damaged == "{":
            assert answer(tmp_path, "training.lerning_rate=1") == first
        snapshot.sections.cache_clear()
    snapshot.sections.cache_clear()


def test_a_cache_that_cannot_be_written_changes_nothing_but_time(tmp_path: Path) -> None:
    place = tmp_path / "file"
    place.write_text("no folder")
    assert "did you mean 'training.learning_rate'?" in answer(place, "training.lerning_rate=1")
    assert place.read_text() == "no folder"


def test_an_edited_class_is_read_anew(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("CRAFT_CACHE", str(tmp_path))
    read: list[int] = []
    monkeypatch.setattr(snapshot, "_read_classes", lambda: read.append(1) or {})
    for stamp, times in (("a", 1), ("a", 1), ("b", 2)):
        monkeypatch.setattr(snapshot, "_stamp", lambda stamp=stamp: stamp)
        assert (snapshot._sections_of_craft(), len(read)) == ({}, times)


def test_every_rule_is_about_a_field_that_exists() -> None:
    training = arguments.training_fields()
    models = {
        name: field for kind in keys.model_types() for name, field in snapshot.sections()[kind].fields.items()
    }
    assert arguments.LIMITS.keys() <= training.keys()
    for name, words in {**arguments.CHOICES, **snapshot.CHOICES}.items():
        assert (training | models)[name].choices == words, name
    since_5_23 = {"activation_checkpointing_kwargs"}  # Python 3.10 has an earlier transformers
    assert set(arguments.MAPPINGS) - since_5_23 <= training.keys()
    assert set(arguments.IGNORED) <= training.keys()
    assert not set(arguments.IGNORED) & (arguments.CHOICES.keys() | arguments.LIMITS.keys())
    everything = {key.partition(".")[2] for key in keys.all_keys()}
    assert set(keys.OTHER_NAMES.values()) <= everything
    assert not set(keys.OTHER_NAMES) & everything


def test_the_choices_of_a_model_are_those_that_it_accepts() -> None:
    from huggingface_hub.errors import StrictDataclassError
    from transformers import AutoConfig

    import craft.models  # noqa: F401

    found = {}
    for model_type in keys.model_types():
        section = snapshot.sections()[model_type]
        for name in section.own:
            found[name] = words = section.fields[name].choices
            for word in words:
                assert getattr(AutoConfig.for_model(model_type, **{name: word}), name) == word
            if words:
                with pytest.raises(StrictDataclassError):
                    AutoConfig.for_model(model_type, **{name: "nonsense"})
    assert {name for name, words in found.items() if words} == {"mlp", "norm", "position", "layer_norm"}


def test_recurrent_models_are_recognised() -> None:
    assert snapshot.sections()["char_lstm"].carries_state
    assert not snapshot.sections()["char_transformer"].carries_state


def test_a_config_may_inherit_from_another_one() -> None:
    from transformers import PreTrainedConfig

    class BaseConfig(PreTrainedConfig):
        width: int = 3

    class NewConfig(BaseConfig):
        model_type = "new"
        depth: int | None = None
        vocab_size: int = 9
        _hidden: int = 0

    # The annotations of a class inside a function are text here, which only its own names can resolve.
    section = snapshot.of_model(NewConfig, carries_state=False)
    assert section.own == ("width", "depth")
    assert "vocab_size" not in section.fields  # it follows from the text
    assert (section.fields["width"].nullable, section.fields["depth"].nullable) == (False, True)


@dataclasses.dataclass
class Every:
    """A field of each sort."""

    a: int = 1
    b: float | None = None
    c: str | list[str] | None = None
    d: dict[str, Any] | str | None = None
    e: Literal["a", "b"] | None = None
    f: str | Literal[False] | None = None
    g: Any = 0
    h: type = int


@pytest.mark.parametrize(
    ("name", "types", "choices", "described"),
    [
        ("a", ("int",), (), "a whole number"),
        ("b", ("float", "null"), (), "a number or null"),
        ("c", ("str", "list", "null"), (), "text or a list or null"),
        ("d", ("dict", "str", "null"), (), "a mapping or text or null"),
        ("e", ("null",), ("a", "b"), "one of a, b or null"),
        ("f", ("str", "null"), (False,), "one of false or text or null"),
        ("g", ("any",), (), "anything or null"),
        ("h", (), (), ""),
    ],
)
def test_a_field_says_what_may_be_written(
    name: str, types: tuple[str, ...], choices: tuple[Any, ...], described: str
) -> None:
    field = fields_of(Every)[name]
    assert (field.types, field.choices, field.describe()) == (types, choices, described)
    assert Field("x", ("int", "float", "null")).describe() == "a number or null"
