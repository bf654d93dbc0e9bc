"""`models.init_from`: the architecture of a trained model in a composed run, and what contradicts it."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml
from refusals import refused

from craft.config.compose import compose
from craft.config.schema import Run
from craft.utils.errors import UserError

TEXT = ["data=text_file", "data.path=my.txt"]
LSTM = {"model_type": "char_lstm", "hidden_size": 12, "num_hidden_layers": 3, "layer_norm": "head"}
TRANSFORMER = {
    "model_type": "char_transformer",
    "hidden_size": 24,
    "num_attention_heads": 3,
    "max_position_embeddings": 48,
    "rope_parameters": {"rope_type": "default", "rope_theta": 500.0},
}


@pytest.fixture
def trained(tmp_path: Path) -> Callable[..., str]:
    """`trained(**config)` is a folder with that config.json, as much of a model as composing reads."""

    def write(**config: Any) -> str:
        folder = tmp_path / f"{config['model_type']}_step_1"
        folder.mkdir(exist_ok=True)
        usual = {"vocab_size": 9, "bos_token_id": 1, "dropout": 0.0, "dtype": "float32", "head_dim": None}
        (folder / "config.json").write_text(json.dumps({**usual, **config}))
        return str(folder)

    return write


def start(source: str, *overrides: str, **kwargs: Any) -> Run:
    return compose([*TEXT, f"models.init_from={source}", *overrides], **kwargs)


@pytest.mark.parametrize("config", [LSTM, TRANSFORMER], ids=["lstm", "transformer"])
def test_a_model_takes_the_place_of_the_preset(trained: Callable[..., str], config: dict) -> None:
    source = trained(**config)
    for run in (start(source), start(source, "experiments=shakespeare_lstm")):
        assert {key: run.models[key] for key in config} == config
        assert run.models["init_from"] == source
        assert not {"vocab_size", "bos_token_id", "dtype"} & set(run.models)  # these follow the tokenizer


def test_latest_and_a_run_are_recorded_as_the_model_they_are(
    trained: Callable[..., str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    source = Path(trained(**LSTM))
    (tmp_path / "outputs" / "models").mkdir(parents=True)
    source.rename(tmp_path / "outputs" / "models" / source.name)
    run_dir = tmp_path / "outputs" / "models" / "char_lstm"
    run_dir.mkdir()
    monkeypatch.chdir(tmp_path)
    assert start("latest").models["init_from"] == f"outputs/models/{source.name}"
    assert start(str(run_dir)).models["init_from"] == str(run_dir.with_name(source.name))


def test_typed_fields_must_agree_and_all_that_do_not_are_listed(trained: Callable[..., str]) -> None:
    source = trained(**LSTM)
    run = start(source, "models.dropout=0.2", "models.hidden_size=12")
    assert run.models["dropout"] == 0.2
    wrong = ["models.hidden_size=64", "models.num_hidden_layers=4"]
    with refused("model-mismatch", *wrong, "12", "3") as caught:
        start(source, *wrong, "models.dropout=0.2")
    assert "dropout" not in f"{caught.value}"
    for code, typed, values in [
        ("model-mismatch", "models=transformer", ["char_lstm"]),
        ("model-mismatch", "models.model_type=char_transformer", ["char_lstm"]),
        ("model-mismatch", "models=char_lstm_base", ["hidden_size", "12"]),
        ("setting-unknown", "models.num_attention_heads=2", ["'models.num_attention_heads'"]),
        ("setting-type", "models.hidden_size=x", ["models.hidden_size=x"]),
    ]:
        with refused(code, *values):
            start(source, typed)


def test_the_tokenizer_is_kept(trained: Callable[..., str]) -> None:
    source = trained(**LSTM)
    with refused("setting-no-effect", "data.unknown") as caught:
        start(source, "data.unknown=unk")
    assert "data.max_vocab_size" not in f"{caught.value}"
    with refused("setting-no-effect", "data.tokenizer", "data.unknown"):
        start(source, "data.unknown=unk", "data.tokenizer=byte")
    assert start(source, "models.extend_vocab=true").models["extend_vocab"] is True
    streamed = ("data.streaming=true", "training.max_steps=9", "training.carry_state=false")
    with refused("setting-conflict", "models.extend_vocab=true", "data.streaming=true"):
        start(source, "models.extend_vocab=true", *streamed)


def test_the_window_is_no_longer_than_the_context(trained: Callable[..., str]) -> None:
    source = trained(**TRANSFORMER)
    assert start(source).data["block_size"] == 48
    assert start(source, "models.max_position_embeddings=null").models["max_position_embeddings"] == 48
    assert start(source, "data.block_size=16").data["block_size"] == 16
    with refused("setting-conflict", "data.block_size=48"):
        start(source, "data.block_size=64")
    assert start(trained(**LSTM), "data.block_size=512").data["block_size"] == 512


def test_an_experiment_may_name_the_model_and_must_agree_with_it(
    trained: Callable[..., str], own: Callable[..., Path]
) -> None:
    header, source = "# @package _global_\n", trained(**LSTM)
    folder = own(
        **{
            "experiments/good": f"{header}models: {{init_from: {source}, hidden_size: 12, dropout: 0.3}}\n",
            "experiments/bad": f"{header}models: {{init_from: {source}, hidden_size: 13}}\n",
        }
    )
    run = compose([*TEXT, "experiments=good"], config_dir=folder)
    assert (run.models["model_type"], run.models["dropout"]) == ("char_lstm", 0.3)
    with refused("model-mismatch", "models.hidden_size=13", 12):
        compose([*TEXT, "experiments=bad"], config_dir=folder)


def test_a_saved_run_is_complete_without_its_model(trained: Callable[..., str], tmp_path: Path) -> None:
    source = trained(**LSTM)
    run = start(source, "models.extend_vocab=true")
    saved = tmp_path / "craft_run.yaml"
    saved.write_text(run.to_yaml())
    assert compose(config_file=saved) == run
    (Path(source) / "config.json").unlink()
    assert compose(config_file=saved) == run  # a resumed run takes its weights from a checkpoint
    with refused("model-mismatch", "models.hidden_size=9", 12):
        compose(["models.hidden_size=9"], config_file=saved)
    fresh = compose(["models.init_from=null"], config_file=saved)
    assert not {"init_from", "extend_vocab"} & set(fresh.models)
    assert fresh.models["hidden_size"] == 12
    other = yaml.safe_load(run.to_yaml())
    del other["models"]["init_from"], other["models"]["extend_vocab"]
    saved.write_text(yaml.safe_dump(other))
    assert (
        compose([f"models.init_from={trained(**TRANSFORMER)}"], config_file=saved).models["hidden_size"] == 24
    )


def test_a_model_of_another_kind_is_refused(trained: Callable[..., str]) -> None:
    foreign = trained(model_type="resnet")
    with refused("model-mismatch", "'resnet'", "char_lstm, char_transformer"):
        start(foreign)
    (Path(foreign) / "config.json").write_text("[]")
    with refused("model-invalid", "config.json"):
        start(foreign)
    with refused("setting-value", "models.init_from="):
        start("")


@pytest.mark.parametrize("source", ["/no/such/folder", "user/name"])
def test_a_model_that_is_not_there_is_named(source: str) -> None:
    with pytest.raises(UserError) as caught:
        start(source)
    assert source in f"{caught.value}"


def test_a_model_of_transformers_is_known_by_the_names_of_settings(trained: Callable[..., str]) -> None:
    """The config.json of GPT-2 has other ones."""
    start = trained(model_type="gpt2", n_embd=16, n_positions=48, n_layer=2, n_head=2)
    run = compose([f"models.init_from={start}", *TEXT])
    assert run.data["block_size"] <= 48
    with refused("model-mismatch", "models.hidden_size=32"):
        compose([f"models.init_from={start}", "models.hidden_size=32"])
