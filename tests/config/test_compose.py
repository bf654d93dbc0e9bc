"""What a valid command line composes to, and that a saved run repeats it."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import yaml
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from refusals import refused

from craft.config.command_line import split_text
from craft.config.compose import compose
from craft.config.files import GROUPS, builtin_folder, config_folders, list_group
from craft.config.schema import Run
from craft.training import requirements

EXPERIMENTS = [name for name, _, _ in list_group("experiments", config_folders(None))]


def names(group: str) -> list[str]:
    return [name for name, _, _ in list_group(group, config_folders(None))]


def with_a_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(requirements, "on_cpu", lambda values: False)
    monkeypatch.setattr(
        requirements.Hardware, "detect", lambda use_cpu: requirements.Hardware("cuda", (9, 0))
    )


def test_without_arguments_it_is_the_quickstart() -> None:
    run = compose()
    assert run.experiment == "quickstart"
    assert run.data["path"] == "python_docs"
    assert run.data["language"] == "en"


@pytest.mark.parametrize("group", GROUPS)
def test_every_shipped_file_composes_and_says_what_it_is_for(
    group: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    with_a_gpu(monkeypatch)
    for name, description, _ in list_group(group, config_folders(None)):
        needed = ["data.path=my.txt"] if group == "data" and name == "text_file" else []
        streaming = ["training.max_steps=100"] if group == "data" else []
        assert compose([f"{group}={name}", *needed, *streaming])
        assert 10 < len(description) <= 112, f"{group}/{name}.yaml needs a comment that says what it is for"


def test_the_command_line_beats_the_experiment_which_beats_the_groups(own: Callable[..., Path]) -> None:
    folder = own(
        **{
            "training/base": "# x\nseed: 1\nmax_steps: 10\nlearning_rate: 1e-3\n",
            "experiments/mine": "# @package _global_\ndefaults:\n  - override /training: base\n  - _self_\n"
            "training:\n  seed: 2\n  max_steps: 20\n",
        }
    )
    run = compose(["experiments=mine", "training.max_steps=30"], config_dir=folder)
    assert (run.training["learning_rate"], run.training["seed"], run.training["max_steps"]) == (0.001, 2, 30)
    assert run.experiment == "mine"
    assert (
        compose(["experiments=mine", "models=char_lstm"], config_dir=folder).models["model_type"]
        == "char_lstm"
    )


def test_a_users_files_shadow_and_add_to_those_of_craft(own: Callable[..., Path]) -> None:
    folder = own(
        **{"models/char_lstm": "model_type: char_lstm\nhidden_size: 48\n", "data/mine": "path: a.txt\n"}
    )
    assert compose(["models=char_lstm"], config_dir=folder).models["hidden_size"] == 48
    assert compose(["data=mine"], config_dir=folder).data["path"] == "a.txt"
    assert compose(["models=char_lstm"]).models["hidden_size"] != 48  # gone with the next call
    listed = {name: path for name, _, path in list_group("models", config_folders(folder))}
    assert listed["char_lstm"].is_relative_to(folder)
    assert listed["transformer"].is_relative_to(builtin_folder())


def test_values_are_read_by_the_type_of_their_field() -> None:
    run = compose(
        [
            "data=text_file",
            "data.path=my text (1), [final].txt",
            "training.sample_prompt=ROMEO:",
            "training.learning_rate=1e-3",
            "training.max_steps=2e3",
            "training.run_name=007",
            "training.lr_scheduler_type=cosine_with_min_lr",
            "training.lr_scheduler_kwargs.min_lr=1e-4",
            "training.report_to=[wandb]",
            "training.eval_steps=null",
            "training.use_cpu=yes",
        ]
    )
    assert run.data["path"] == "my text (1), [final].txt"
    assert run.training["sample_prompt"] == "ROMEO:"
    assert run.training["learning_rate"] == 0.001
    assert run.training["max_steps"] == 2000
    assert run.training["run_name"] == "007"
    assert run.training["lr_scheduler_kwargs"]["min_lr"] == 0.0001
    assert run.training["report_to"] == ["wandb"]
    assert run.training["eval_steps"] is None
    assert run.training["use_cpu"] is True


@pytest.mark.parametrize(
    ("typed", "prompt"),
    [
        ("", ""),
        ('"a\\nb"', "a\nb"),
        ("null", None),
        ("# x", "# x"),
        ("a # b", "a # b"),
        ("1", "1"),
        ("- x", "- x"),
        ("{", "{"),
    ],
)
def test_a_text_stays_as_it_was_typed(typed: str, prompt: str | None) -> None:
    assert compose([f"training.sample_prompt={typed}"]).training["sample_prompt"] == prompt


def test_names_of_files_need_no_quotes(own: Callable[..., Path]) -> None:
    names = ("with space", "ünï", "a,b", "a=b", "a.b", "1", "[x]", "x(y)", "it's")
    folder = own(**{f"training/{name}": f"seed: {seed}\n" for seed, name in enumerate(names)})
    for seed, name in enumerate(names):
        assert compose([f"training={name}"], config_dir=folder).training["seed"] == seed


def test_yaml_with_a_byte_order_mark_and_crlf_is_read(own: Callable[..., Path]) -> None:
    folder = own(**{"models/mine": "\ufeff# Mine\r\nmodel_type: char_lstm\r\n<<: &x {hidden_size: 48}\r\n"})
    assert compose(["models=mine"], config_dir=folder).models["hidden_size"] == 48
    assert [text for name, text, _ in list_group("models", [folder])] == ["Mine"]


def test_folders_and_broken_links_are_no_choices(own: Callable[..., Path]) -> None:
    folder = own()
    (folder / "models/folder.yaml").mkdir()
    (folder / "models/broken.yaml").symlink_to("nowhere")
    assert list_group("models", [folder]) == []
    assert compose([], config_dir=folder)


def test_a_saved_run_is_read_from_a_pipe(tmp_path: Path) -> None:
    code = "from craft.config.compose import compose; print(compose([], config_file='/dev/stdin').to_yaml())"
    text = compose(["training.seed=9"]).to_yaml()
    command = [sys.executable, "-c", code]
    done = subprocess.run(command, input=text, capture_output=True, text=True, check=True)
    assert done.stdout.strip() == text.strip()


def test_interpolations_resolve(monkeypatch: pytest.MonkeyPatch, own: Callable[..., Path]) -> None:
    monkeypatch.setenv("CRAFT_TEST_STEPS", "12")
    folder = own(**{"training/mine": "max_steps: ${oc.env:CRAFT_TEST_STEPS}\nseed: ${.max_steps}\n"})
    run = compose(["training=mine", "training.run_name=${oc.env:CRAFT_TEST_STEPS}"], config_dir=folder)
    assert (run.training["max_steps"], run.training["seed"], run.training["run_name"]) == (12, 12, "12")


def test_a_text_as_first_argument(tiny_text: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert split_text([str(tiny_text), "models=char_lstm"]) == [
        "data=text_file",
        f'data.path="{tiny_text}"',
        "models=char_lstm",
    ]
    assert split_text(["https://example.org/a.txt?x=1"])[1] == 'data.path="https://example.org/a.txt?x=1"'
    for name in ("'a' b", '"x"', "[x]", "null", "- x", "# x", "it's"):
        file = tiny_text.with_name(name)
        file.write_bytes(tiny_text.read_bytes())
        monkeypatch.chdir(file.parent)
        assert compose(split_text([name])).data["path"] == name
    several = [str(tiny_text), "**/[x]", 'a "b", c', "\U0001f600 é", "\x7f\\n"]
    for name in several:
        if not Path(name).exists():
            Path(name).parent.mkdir(exist_ok=True)
            Path(name).write_bytes(b"x")
    assert compose(split_text([*several, "models=char_lstm"])).data["path"] == several
    assert compose(["data=text_file", "data.path=[a.txt, b.txt]"]).data["path"] == ["a.txt", "b.txt"]
    assert compose(["data=text_file", "data.path=a", "data.exclude=[b, c]"]).data["exclude"] == ["b", "c"]
    assert compose(["data=text_file", "data.path=a", r"data.separator=\n"]).data["separator"] == r"\n"
    run = compose(split_text([str(tiny_text), "experiments=quickstart"]))
    assert run.data["path"] == str(tiny_text)
    assert run.data["source"] == "files"


OVERRIDES = st.fixed_dictionaries(
    {},
    optional={
        "models": st.sampled_from(names("models")),
        "training.learning_rate": st.floats(1e-12, 1e3).map(repr),
        "training.seed": st.integers(0, 2**31).map(str),
        "training.sample_prompt": st.text(st.characters(exclude_categories=("Cs", "Cc")), max_size=12).filter(
            lambda text: "$" not in text and not text.startswith(('"', "'"))
        ),
        "training.weight_decay": st.sampled_from(["0", "0.1", "1e-5", "3"]),
        "data.validation_size": st.sampled_from(["0.05", "1000", "0.3"]),
        "data.unknown": st.sampled_from(["strict", "unk", "bytes"]),
        "training.report_to": st.sampled_from(["none", "wandb", "[wandb]"]),
    },
)


@settings(max_examples=15, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(overrides=OVERRIDES)
def test_a_saved_run_repeats_exactly(overrides: dict[str, str], tmp_path: Path) -> None:
    run = compose([f"{key}={value}" for key, value in overrides.items()])
    file = tmp_path / "run.yaml"
    file.write_text(run.to_yaml(), encoding="utf-8")
    assert compose([], config_file=file) == run
    assert yaml.safe_load(run.to_yaml()) == run.to_dict()


@pytest.mark.parametrize("experiment", EXPERIMENTS)
def test_every_experiment_repeats_and_takes_overrides(
    experiment: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with_a_gpu(monkeypatch)
    run = compose([f"experiments={experiment}"])
    file = tmp_path / "run.yaml"
    file.write_text(run.to_yaml(), encoding="utf-8")
    again = compose(["training.seed=77"], config_file=file)
    assert again.training == {**run.training, "seed": 77}
    assert (again.models, again.data, again.experiment) == (run.models, run.data, experiment)


def test_a_group_replaces_a_section_of_a_saved_run(tmp_path: Path) -> None:
    file = tmp_path / "run.yaml"
    file.write_text(compose(["training.seed=5"]).to_yaml(), encoding="utf-8")
    run = compose(["models=char_lstm"], config_file=file)
    assert run.models["model_type"] == "char_lstm"
    assert "num_attention_heads" not in run.models
    assert run.training["seed"] == 5


def test_a_byte_tokenizer_allows_the_defaults_of_an_alphabet() -> None:
    defaults = ["data.min_frequency=1", "data.max_vocab_size=null"]
    for unknown in ("strict", "bytes"):
        compose(["data.tokenizer=byte", *defaults, f"data.unknown={unknown}"])


def test_checking_a_run_changes_nothing_of_it() -> None:
    run = compose(["models.rope_parameters.rope_type=linear", "models.rope_parameters.factor=2"])
    assert run.models["rope_parameters"] == {"rope_type": "linear", "factor": 2}


def test_a_saved_run_does_not_depend_on_later_defaults() -> None:
    run = compose(["data=text_file", "data.path=a.txt"])
    assert run.data["block_size"] == 64  # a default of the class, written out
    assert run.training["carry_state"] is True
    assert "vocab_size" not in run.models  # follows from the data


def test_a_run_can_be_made_from_plain_data() -> None:
    run = compose()
    assert Run.of(run.to_dict()) == run
    with refused("setting-unknown", "'data.nothing'"):
        Run.of({**run.to_dict(), "data": {**run.data, "nothing": 1}})


def test_a_typed_setting_takes_back_another_one_for_the_same() -> None:
    assert compose(["training=cpu"]).training["max_steps"] > 0
    run = compose(["training=cpu", "training.per_device_train_batch_size=3", "training.num_train_epochs=2"])
    assert run.training["per_device_train_batch_size"] == 3
    assert run.training["global_batch_size"] is None
    assert run.training["max_steps"] == -1
    batches = ["training.per_device_train_batch_size=3", "training.global_batch_size=12"]
    both = compose([*batches, "training.gradient_accumulation_steps=4"])
    assert both.training["global_batch_size"] == 12


def test_what_is_typed_of_time_or_steps_wins_over_a_file() -> None:
    assert compose([]).training["max_minutes"] > 0
    steps = compose(["training.max_steps=500"]).training
    assert (steps["max_steps"], steps["max_minutes"]) == (500, None)
    timed = compose(["training=cpu", "training.max_minutes=5", "training.save_steps=100"]).training
    assert (timed["max_steps"], timed["max_minutes"], timed["save_steps"]) == (-1, 5, 100)
    assert timed["eval_steps"] < 1  # a share of the steps, however many they are
    replayed = {**timed, "time_plan": [[0, 10]]}
    assert Run.of({**compose().to_dict(), "training": replayed}).training["time_plan"] == [[0, 10]]


def test_another_schedule_drops_the_arguments_of_the_first() -> None:
    experiment = "experiments=nanogpt_cpu"
    assert compose([experiment]).training["lr_scheduler_kwargs"] == {"min_lr": 0.0001}
    assert compose([experiment, "training.lr_scheduler_type=linear"]).training["lr_scheduler_kwargs"] is None
    typed = ["training.lr_scheduler_kwargs.min_lr=1", "training.lr_scheduler_type=cosine_with_min_lr"]
    assert compose([experiment, *typed]).training["lr_scheduler_kwargs"] == {"min_lr": 1}


def test_one_setting_turns_evaluations_off() -> None:
    for word in ("training.eval_strategy=no", "data.validation_size=0", "data.validation_size=0.0"):
        training = compose([word]).training
        assert (training["eval_strategy"], training["load_best_model_at_end"]) == ("no", False)


def test_a_setting_without_effect_may_be_given_its_default() -> None:
    run = compose(["training.dataloader_num_workers=0", "training.dataloader_drop_last=false"])
    assert run.training["dataloader_num_workers"] == 0
    assert compose(["training.report_to=[mlflow,wandb]"]).training["report_to"] == ["mlflow", "wandb"]
    assert compose(["training.metric_for_best_model=eval_accuracy"])


def test_another_source_drops_the_language_of_the_first() -> None:
    own = ["data.source=files", "data.path=x.txt"]
    assert compose(own).data["language"] is None
    assert compose([*own, "data.language=de"]).data["language"] == "de"


def test_a_tilde_in_a_path_is_the_home_folder(
    own: Callable[..., Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Typed or in a file; nothing is written to a folder called `~`, and the saved run is complete."""
    monkeypatch.setenv("HOME", str(tmp_path))
    own(**{"training/mine": "output_dir: ~/runs/a\n", "data/mine": "path: ~/a.txt\n"})
    run = compose(["training=mine", "data=mine", "data.cache_dir=~/cache"], config_dir="~/own")
    assert run.training["output_dir"] == f"{tmp_path}/runs/a"
    assert (run.data["path"], run.data["cache_dir"]) == (f"{tmp_path}/a.txt", f"{tmp_path}/cache")
    (tmp_path / "run.yaml").write_text(run.to_yaml())
    assert compose(config_file="~/run.yaml") == run
    assert split_text(["~/run.yaml"])[1] == 'data.path="~/run.yaml"'
    assert compose(split_text(["~/run.yaml"])).data["path"] == f"{tmp_path}/run.yaml"
