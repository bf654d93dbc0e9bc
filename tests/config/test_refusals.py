"""Every mistake in a configuration is one line that quotes what was typed and names what could be."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import yaml
from huggingface_hub.errors import StrictDataclassError
from refusals import refused

from craft.config.command_line import split_text
from craft.config.compose import compose
from craft.training import requirements
from craft.utils.errors import Code, UserError

TEXT = ["data=text_file", "data.path=my.txt"]

MISTAKES: dict[Code, list[tuple[str, ...]]] = {
    "setting-unknown": [
        ("experiment=quickstart", "'experiment'", "'experiments'"),
        ("model=char_lstm", "'model'", "'models'"),
        ("models=char_lstmm", "models=char_lstmm", "'char_lstm'", "transformer"),
        ("experiments=quikstart", "'quickstart'"),
        ("models=transformer,char_lstm", "models=transformer,char_lstm"),
        ("learning_rate=1", "'learning_rate'", "'training.learning_rate'"),
        ("lr=1", "'training.learning_rate'"),
        ("foo=1", "'foo'", "models, data, training, experiments"),
        ("n_layer=1", "'models.num_hidden_layers'"),
        ("training.lerning_rate=1", "'training.lerning_rate'", "'training.learning_rate'"),
        ("training.blocksize=8", "'data.block_size'"),
        ("training.block_size=8", "'data.block_size'"),
        ("training.batch_size=8", "'training.per_device_train_batch_size'"),
        ("models=char_lstm models.num_attention_heads=2", "'models.num_attention_heads'", "char_transformer"),
        ("model.hidden_size=8", "'model'", "'models'"),
        ("hydra.run.dir=x", "'hydra'"),
        ("+a.b=1", "'a'", "models, data, training"),
        ("training._target_=os.system", "'training._target_'"),
        ("models.return_dict=false", "'models.return_dict'"),
        ("models.vocab_size=9", "'models.vocab_size'"),
        ("training.learning_rate.x=1", "'training.learning_rate.x'"),
    ],
    "usage": [
        ("~training.seed=1", "~training.seed=1"),
        ("training.seed", "training.seed"),
        ("data.path=${x", "${x", "${oc.env:HOME}"),
    ],
    "setting-type": [
        ("training.learning_rate=abc", "training.learning_rate=abc"),
        ("training.learning_rate=null", "training.learning_rate=null"),
        ("training.learning_rate=.nan", "training.learning_rate"),
        ("training.learning_rate=true", "training.learning_rate=true"),
        ("training.learning_rate=[1e-3]", "training.learning_rate=[0.001]"),
        ("training.max_steps=1.5", "training.max_steps=1.5"),
        ("training.max_steps=ten", "training.max_steps=ten"),
        ("training.use_cpu=2", "training.use_cpu=2"),
        ("training.lr_scheduler_kwargs=abc", "training.lr_scheduler_kwargs=abc"),
        ("training.lr_scheduler_kwargs=[1]", "training.lr_scheduler_kwargs=[1]"),
    ],
    "setting-value": [
        ("models.model_type=char_lstmm", "char_lstmm", "'char_lstm'"),
        ("training.lr_scheduler_type=cosin", "'cosine'"),
        ("training.optim=muonn", "'muon'"),
        ("training.optim=my_module.Mine", "training.optim=my_module.Mine", "--plugin my_module"),
        ("training.precision=fp8", "training.precision=fp8", "auto, fp32, bf16, fp16"),
        ("training.eval_strategy=sometimes", "no, steps, epoch"),
        ("training.eval_protocol=block", "training.eval_protocol=block ", "blocks", "sliding-N"),
        ("training.eval_protocol=sliding-0", "sliding-N"),
        ("training.eval_protocols=[32]", "training.eval_protocols"),
        ("training.eval_protocols=[blocks,slide-8]", "slide-8", "nanogpt-sampled", "sliding-N"),
        ("training.eval_protocol=sliding-²", "training.eval_protocol=sliding-²"),
        ("training.log_level=wanring", "'warning'"),
        ("training.ddp_backend=glooo", "'gloo'"),
        ("training.torch_compile_mode=max-autotun", "'max-autotune'"),
        ("training.torch_compile_backend=inductr", "'inductor'"),
        ("training.metric_for_best_model=acuracy", "'accuracy'"),
        ("training.hub_license=MIT", "training.hub_license=MIT", "apache-2.0"),
        ("data.order=suffled", "'shuffled'"),
        ("data.source=web", "builtin, files, hub"),
        ("data.language=English", "data.language=English", "en"),
        ("data.language=de-AT", "data.language=de-AT"),
        ("data.encoding=shiftjis2", "data.encoding=shiftjis2", "'shiftjis"),
        ("data.encoding=base64", "data.encoding=base64"),
        ("models.mlp=relu", "'relu2'"),
        ("models.norm=batchnorm", "rmsnorm, layernorm"),
        ("models.dtype=float61", "models.dtype=float61", "'float16'"),
        ("models.attn_implementation=spda", "'sdpa'"),
        ("models.rope_parameters.rope_typ=yarn", "rope_typ", "rope_type"),
        ("models.rope_parameters.rope_type=yern", "rope_type=yern", "yarn"),
        # ranges
        ("training.learning_rate=0", "training.learning_rate=0"),
        ("training.learning_rate=-1e-3", "training.learning_rate=-0.001"),
        ("training.max_minutes=0", "training.max_minutes=0"),
        ("training.max_steps=0", "training.max_steps=0", "1", "-1"),
        ("training.per_device_train_batch_size=0", "training.per_device_train_batch_size=0", "1"),
        ("training.adam_beta2=1.0", "training.adam_beta2=1.0", "below 1"),
        ("training.weight_decay=-0.1", "training.weight_decay=-0.1"),
        ("training.ema_decay=1.0", "training.ema_decay=1.0", "below 1"),
        ("training.logging_steps=0", "training.logging_steps=0"),
        ("training.logging_steps=1.5", "training.logging_steps=1.5"),
        ("training.skip_nonfinite_batches=-1", "training.skip_nonfinite_batches=-1"),
        ("training.stall_seconds=0", "training.stall_seconds=0"),
        ("training.seed=4294967296", "training.seed=4294967296", "4294967295"),
        ("training.seed=99999999999999999999999", "4294967295"),
        ("models.hidden_size=-128", "models.hidden_size=-128"),
        ("models.num_hidden_layers=0", "models.num_hidden_layers=0"),
        ("models.dropout=1.0", "models.dropout=1.0"),
        ("models.dropout=-0.1", "models.dropout=-0.1"),
        ("models.hidden_size=130", "models.hidden_size=130", "models.num_attention_heads=4"),
        ("models.num_key_value_heads=3", "models.num_attention_heads=4", "models.num_key_value_heads=3"),
        ("models.head_dim=7", "7"),
        ("data.block_size=0", "data.block_size=0"),
        ("data.min_frequency=0", "data.min_frequency=0"),
        ("data.validation_size=-0.1", "data.validation_size=-0.1"),
        ("data.validation_size=1.5", "data.validation_size=1.5"),
    ],
    "setting-conflict": [
        ("models.max_position_embeddings=32", "data.block_size=64", "models.max_position_embeddings=32"),
        ("training.eval_strategy=steps data.validation_size=0", "data.validation_size=0", "eval_strategy=no"),
        ("models=char_lstm training.gradient_checkpointing=true", "gradient_checkpointing", "char_lstm"),
        ("models=char_lstm data.streaming=true training.max_steps=9", "training.carry_state=false"),
        ("data.streaming=true training.max_steps=-1", "training.max_steps"),
        ("training.eval_protocols=[sliding-65]", "training.eval_protocols=sliding-65", "sliding-32"),
        ("training.eval_protocol=sliding-65", "sliding-65", "data.block_size=64", "sliding-32"),
        ("data.validation_size=0.6 data.test_size=0.4", "data.test_size=0.4"),
        ("training.eval_strategy=no training.load_best_model_at_end=true", "training.eval_strategy=steps"),
        (
            "training.eval_strategy=no training.load_best_model_at_end=no training.early_stopping_patience=3",
            "training.early_stopping_patience=3",
        ),
        ("training.max_minutes=5 training.max_steps=100", "max_minutes=5", "training.max_steps=100"),
        ("training.precision=bf16 training.fp16=true", "training.fp16=true", "training.precision=bf16"),
        ("training.fp16=true training.bf16=true", "training.fp16=true", "training.bf16=true"),
        ("training.global_batch_size=10 training.gradient_accumulation_steps=4", "=10", "=4", "8", "12"),
        ("training.fsdp=full_shard", "training.fsdp=full_shard", "accelerate launch"),
    ],
    "setting-no-effect": [
        ("models.extend_vocab=true", "models.extend_vocab=true", "models.init_from"),
        ("models.init_revision=v1", "models.init_revision=v1", "models.init_from"),
        ("data.tokenizer=byte data.max_vocab_size=9", "data.max_vocab_size=9", "data.tokenizer=byte"),
        ("data.tokenizer=byte data.min_frequency=2", "data.min_frequency=2", "data.tokenizer=byte"),
        ("data.tokenizer=byte data.unknown=unk", "data.unknown=unk", "data.tokenizer=byte"),
        ("data.split=validation", "data.split=validation", "data.source=files"),
        ("data.revision=v1", "data.revision=v1", "data.source=files"),
        ("data.config_name=en", "data.config_name=en", "data.source=files"),
        ("data.source=hub data.errors=replace", "data.errors=replace", "data.source=hub"),
        ("data.source=hub data.encoding=cp1252", "data.encoding=cp1252", "data.source=hub"),
        ("data.source=builtin data.path=python_docs data.text_column=x", "data.text_column=x", "builtin"),
        ("data.lanes=8", "data.lanes=8", "data.streaming=true"),
        ("data.validation_split=dev", "data.validation_split", "data.source=hub"),
        ("training.ignore_data_skip=true", "training.ignore_data_skip=true"),
        ("training.dataloader_num_workers=4", "training.dataloader_num_workers=4"),
        ("training.data_seed=1", "training.data_seed=1"),
        ("training.resume_from_checkpoint=x", "training.resume_from_checkpoint=x"),
        ("training.do_eval=true", "training.do_eval=true"),
        ("training.dataloader_drop_last=true", "training.dataloader_drop_last=true"),
        ("training.bf16_full_eval=true", "training.bf16_full_eval=true"),
        ("training.use_liger_kernel=true", "training.use_liger_kernel=true"),
    ],
    "text-missing": [
        ("data.path=null", "craft train my.txt"),
        ("data.source=hub data.path=null", "data.source=hub", "data.path=USER/DATASET"),
    ],
    "file-unwritable": [
        ("training.output_dir=.", "training.output_dir=."),
        ("training.output_dir=" + "x" * 300, "training.output_dir=xxx"),
        ("training.output_dir=/dev/null/x", "/dev/null"),
    ],
    "machine-unable": [
        ("training.use_cpu=true models.attn_implementation=flex_attention", "sdpa", "eager"),
        ("training.use_cpu=true training.precision=fp16", "training.precision=fp16"),
        ("training.use_cpu=true training.fp16=true", "fp16"),
    ],
    "secret": [("training.hub_token=hf_x", "training.hub_token", "HF_TOKEN")],
}


def refusal(*overrides: str) -> UserError:
    """The answer to a command line, in one line."""
    with pytest.raises(UserError) as caught:
        compose([*TEXT, *overrides])
    assert "\n" not in f"{caught.value}"
    return caught.value


@pytest.mark.parametrize(
    ("code", "override", "values"),
    [(code, override, values) for code, rows in MISTAKES.items() for override, *values in rows],
)
def test_a_mistake_on_the_command_line(code: Code, override: str, values: list[str]) -> None:
    with refused(code, *values) as caught:
        compose([*TEXT, *override.split()])
    assert "\n" not in f"{caught.value}"


@pytest.mark.parametrize("override", ["foo=1", "training.foo=1", "models.verbose=true", "data.cuda=1"])
def test_what_is_near_to_nothing_gets_no_guess(override: str) -> None:
    assert "did you mean" not in f"{refusal(override)}"


@pytest.mark.parametrize(
    "override",
    [
        *("data.block_size=0", "data.order=suffled", "training.ema_decay=2", "training.optim=muonn"),
        *("training.learning_rate=0", "training.global_batch_size=3", "models.hidden_size=0"),
        "models.head_dim=7",
    ],
)
def test_python_and_yaml_read_the_same_sentence(override: str, tmp_path: Path) -> None:
    from craft import CraftTrainingArguments, DataArguments, TransformerConfig

    key, _, text = override.partition("=")
    section, _, name = key.partition(".")
    cls = {"data": DataArguments, "training": CraftTrainingArguments, "models": TransformerConfig}[section]
    more = {"output_dir": str(tmp_path), "gradient_accumulation_steps": 2} if section == "training" else {}
    with pytest.raises((UserError, ValueError, StrictDataclassError)) as caught:
        cls(**{name: yaml.safe_load(text)}, **more)
    said = str(caught.value.__cause__ or caught.value).rstrip(".")
    accumulation = ["training.gradient_accumulation_steps=2"] if "batch" in name else []
    assert said in f"{refusal(override, *accumulation)}".replace("models.", "")


def test_a_secret_is_not_repeated() -> None:
    error = refusal("training.hub_token=hf_verysecret")
    assert error.code == "secret"
    assert "hf_verysecret" not in f"{error}"


def test_a_file_that_is_not_utf8_is_named(own: Callable[..., Path]) -> None:
    folder = own()
    for name in ("models/mine.yaml", "run.yaml"):
        (folder / name).write_bytes(b"# x\n\xff\xfe\n")
    with refused("file-unreadable", "own is not", 4):
        compose(["models=mine"], config_dir=folder)
    with refused("file-unreadable", "own/run.yaml", 4):
        compose([], config_file=folder / "run.yaml")


def test_a_missing_environment_variable_is_named() -> None:
    with refused("setting-value", "training.run_name", "CRAFT_NO_SUCH_VARIABLE"):
        compose([*TEXT, "training.run_name=${oc.env:CRAFT_NO_SUCH_VARIABLE}"])


def test_fp16_is_refused_where_no_gpu_is(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(requirements, "on_cpu", lambda values: True)
    assert "training.precision=fp16" in f"{refusal('training.precision=fp16')}"
    monkeypatch.setattr(requirements, "on_cpu", lambda values: False)
    monkeypatch.setattr(
        requirements.Hardware, "detect", lambda use_cpu: requirements.Hardware("cuda", (7, 0))
    )
    assert (
        compose([*TEXT, "training.precision=fp16", "training.use_cpu=false"]).training["precision"] == "fp16"
    )


LSTM = "model_type: char_lstm\n"
GLOBAL = "# @package _global_\n"


@pytest.mark.parametrize(
    ("code", "name", "text", "values"),
    [
        (
            "setting-unknown",
            "models/mine",
            f"{LSTM}hidden_sise: 8\n",
            ["models/mine.yaml:2", "'models.hidden_size'"],
        ),
        ("setting-value", "models/mine", "hidden_size: 8\n", ["models.model_type", "char_lstm"]),
        ("setting-type", "models/mine", f"{LSTM}dropout: abc\n", ["dropout=abc", "models/mine.yaml:2"]),
        ("file-unreadable", "models/mine", "model_type: [char_lstm\n", ["models/mine.yaml:"]),
        ("file-unreadable", "models/mine", f"{LSTM}model_type: gpt2\n", ["models/mine.yaml:2"]),
        (
            "file-unreadable",
            "models/mine",
            "model_type: !!python/object:os.system\n",
            ["models/mine.yaml:1", "python/object"],
        ),
        (
            "setting-unknown",
            "models/mine",
            f"{LSTM}_target_: os.system\n",
            ["'models._target_'", "models/mine.yaml:2"],
        ),
        ("setting-type", "models/mine", "- a list\n", ["models/mine"]),
        ("setting-value", "models/mine", "3\n", ["configuration:"]),
        ("setting-value", "models/mine", "", ["models.model_type", "char_lstm"]),
        ("setting-value", "models/mine", f"{LSTM}null: 2\n", ["NoneType"]),
        ("setting-value", "models/mine", f"defaults: 3\n{LSTM}", ["models/mine"]),
        ("setting-value", "models/mine", f"defaults: [mine]\n{LSTM}", ["configuration:"]),
        ("setting-unknown", "models/mine", f"{LSTM}а: 1\n", ["models/mine.yaml:2"]),
        ("file-unreadable", "models/mine", f"{LSTM}\thidden_size: 3\n", ["models/mine.yaml:2"]),
        ("file-unreadable", "models/mine", f"{LSTM}---\nx: 1\n", ["models/mine.yaml:2"]),
        ("setting-value", "training/mine", "per_device_train_batch_size: 0\n", ["training/mine.yaml:1"]),
        ("setting-value", "training/mine", "seed: ${nowhere}\n", ["training.seed", "nowhere"]),
        (
            "setting-type",
            "data/mine",
            "path: a.txt\nblock_size: 1e400\n",
            ["data.block_size", "data/mine.yaml:2"],
        ),
        (
            "setting-unknown",
            "experiments/mine",
            f"{GLOBAL}traning: {{seed: 1}}\n",
            ["'traning'", "'training'", "mine.yaml:2"],
        ),
        (
            "setting-unknown",
            "experiments/mine",
            f"{GLOBAL}training: {{sed: 1}}\n",
            ["mine.yaml:2", "training.seed"],
        ),
        ("setting-type", "experiments/mine", f"{GLOBAL}models: gpt2\n", ["models is gpt2", "mine.yaml:2"]),
        (
            "setting-unknown",
            "experiments/mine",
            "training: {seed: 1}\n",
            ["experiments/mine.yaml", "# @package _global_"],
        ),
        (
            "setting-value",
            "experiments/mine",
            f"{GLOBAL}defaults: [override /models: nix]\n",
            ["models/nix"],
        ),
    ],
)
def test_a_mistake_in_a_file(
    own: Callable[..., Path], code: Code, name: str, text: str, values: list[str]
) -> None:
    group = name.split("/")[0]
    choice = ["data=mine"] if group == "data" else [*TEXT, f"{group}=mine"]
    with refused(code, *values) as caught:
        compose(choice, config_dir=own(**{name: text}))
    assert "\n" not in f"{caught.value}"


@pytest.mark.parametrize(
    ("code", "text", "values"),
    [
        ("setting-type", "models: {model_type: char_lstm}\n", ["data is null"]),
        ("setting-type", "models: 3\n", ["models is 3"]),
        ("setting-unknown", "just text\n", ["'just text'"]),
        ("file-unreadable", "[1, 2]\n", ["run.yaml"]),
        ("file-unreadable", "models:\n  a: 'b\n", ["run.yaml:"]),
        ("file-unreadable", "\x00\x01", ["run.yaml"]),
        ("file-unreadable", "3\n", ["run.yaml"]),
        ("file-unreadable", "x: " + "[" * 2000, ["run.yaml"]),
        ("file-unreadable", "models: {model_type: gpt2}\nmodels: {}\n", ["run.yaml:2"]),
    ],
)
def test_a_mistake_in_a_saved_run(tmp_path: Path, code: Code, text: str, values: list[str]) -> None:
    file = tmp_path / "run.yaml"
    file.write_text(text, encoding="utf-8")
    with refused(code, *values) as caught:
        compose([], config_file=file)
    assert "\n" not in f"{caught.value}"


def test_a_saved_run_that_is_not_there(tmp_path: Path) -> None:
    with refused("file-missing", tmp_path / "none.yaml"):
        compose([], config_file=tmp_path / "none.yaml")
    with refused("file-unreadable", tmp_path):
        compose([], config_file=tmp_path)
    with refused("setting-conflict", "--config", "experiments"):
        compose(["experiments=quickstart"], config_file=tmp_path)


def test_a_configuration_folder_without_configurations(tmp_path: Path) -> None:
    with refused("file-missing", tmp_path, "models, data, training, experiments"):
        compose(config_dir=tmp_path)


@pytest.mark.parametrize(
    ("words", "code", "values"),
    [
        (["stroy.txt"], "file-missing", ["stroy.txt", "'story.txt'"]),
        (["quickstart"], "file-missing", ["experiments=quickstart"]),
        (["story.txt", "other.txt"], "file-missing", ["'other.txt'"]),
        (["a" * 5000], "file-missing", ["aaa"]),
        (["=1"], "usage", ["KEY=VALUE"]),
        (["training.=1"], "usage", ["KEY=VALUE"]),
        (["models.hidden_size", "=", "64"], "usage", ["KEY=VALUE"]),
    ],
)
def test_a_text_that_is_not_there(
    words: list[str], code: Code, values: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "story.txt").write_text("x", encoding="utf-8")
    with refused(code, *values):
        split_text(words)


def test_a_file_named_like_a_setting(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "a=b.txt").write_text("x", encoding="utf-8")
    with refused("setting-unknown", "./a=b.txt"):
        compose(["a=b.txt"])
    assert split_text(["./a=b.txt"]) == ["data=text_file", 'data.path="./a=b.txt"']
