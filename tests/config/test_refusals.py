"""Every mistake in a configuration is one line that quotes what was typed and says what could be."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import yaml
from huggingface_hub.errors import StrictDataclassError

from craft.config.command_line import split_text
from craft.config.compose import compose
from craft.training import requirements
from craft.utils.errors import UserError

TEXT = ["data=text_file", "data.path=my.txt"]
EVALUATES = ["training.eval_strategy=steps", "training.eval_steps=100"]


def refusal(*overrides: str, **kwargs: object) -> str:
    with pytest.raises(UserError) as caught:
        compose([*TEXT, *overrides], **kwargs)  # type: ignore[arg-type]
    message = str(caught.value)
    assert "\n" not in message
    return message


@pytest.mark.parametrize(
    ("override", "phrases"),
    [
        # names
        ("experiment=quickstart", ["'experiment'", "did you mean 'experiments'?"]),
        ("model=char_lstm", ["'model'", "did you mean 'models'?"]),
        ("models=char_lstmm", ["models=char_lstmm", "did you mean 'char_lstm'?", "transformer"]),
        ("experiments=quikstart", ["did you mean 'quickstart'?"]),
        ("models=transformer,char_lstm", ["models=transformer,char_lstm"]),
        ("learning_rate=1", ["'learning_rate'", "did you mean 'training.learning_rate'?"]),
        ("lr=1", ["did you mean 'training.learning_rate'?"]),
        ("foo=1", ["unknown setting 'foo' in 'foo=1' (groups are models, data, training, experiments)"]),
        ("training.blocksize=8", ["did you mean 'data.block_size'?"]),
        ("n_layer=1", ["did you mean 'models.num_hidden_layers'?"]),
        ("training.lerning_rate=1", ["'training.lerning_rate'", "did you mean 'training.learning_rate'?"]),
        (
            "models=char_lstm models.num_attention_heads=2",
            ["'models.num_attention_heads', which belongs to another model", ": models=transformer"],
        ),
        ("training.block_size=8", ["did you mean 'data.block_size'?"]),
        ("training.batch_size=8", ["did you mean 'training.per_device_train_batch_size'?"]),
        ("model.hidden_size=8", ["'model'", "did you mean 'models'?"]),
        ("hydra.run.dir=x", ["'hydra'"]),
        ("training._target_=os.system", ["'training._target_'"]),
        ("models.model_type=char_lstmm", ["char_lstmm", "did you mean 'char_lstm'?"]),
        ("~training.seed=1", ["KEY=VALUE"]),
        ("training.seed", ["KEY=VALUE"]),
        # types
        ("training.learning_rate=abc", ["training.learning_rate=abc", "a number"]),
        ("training.learning_rate=null", ["training.learning_rate=null", "a number"]),
        ("training.learning_rate=.nan", ["training.learning_rate", "a number"]),
        ("training.learning_rate=true", ["training.learning_rate=true", "a number"]),
        ("training.learning_rate=[1e-3]", ["training.learning_rate=[0.001]"]),
        ("training.learning_rate.x=1", ["'training.learning_rate.x'", "a number"]),
        ("training.max_steps=1.5", ["training.max_steps=1.5", "a whole number"]),
        ("training.max_steps=ten", ["training.max_steps=ten", "a whole number"]),
        ("training.use_cpu=2", ["training.use_cpu=2", "true or false"]),
        ("training.lr_scheduler_type=cosin", ["did you mean 'cosine'?"]),
        ("training.optim=muonn", ["did you mean 'muon'?"]),
        ("training.precision=fp8", ["training.precision=fp8", "auto, fp32, bf16, fp16"]),
        ("training.eval_strategy=sometimes", ["no, steps, epoch"]),
        ("training.eval_protocol=block", ["eval_protocol=block ", "blocks", "sliding-N"]),
        ("training.eval_protocol=sliding-0", ["sliding-N"]),
        ("training.eval_protocol=sliding-²", ["eval_protocol=sliding-²"]),
        ("data.order=suffled", ["did you mean 'shuffled'?"]),
        ("data.source=web", ["builtin, files, hub"]),
        ("models.mlp=relu", ["did you mean 'relu2'?"]),
        ("models.norm=batchnorm", ["rmsnorm, layernorm"]),
        # ranges
        ("training.learning_rate=0", ["training.learning_rate=0", "above 0"]),
        ("training.learning_rate=-1e-3", ["training.learning_rate=-0.001", "above 0"]),
        ("training.max_steps=0", ["at least 1, or -1"]),
        ("training.per_device_train_batch_size=0", ["at least 1"]),
        ("training.adam_beta2=1.0", ["at least 0 and below 1"]),
        ("training.weight_decay=-0.1", ["0 or more"]),
        ("training.ema_decay=1.0", ["above 0 and below 1"]),
        ("training.logging_steps=0", ["above 0"]),
        ("training.logging_steps=1.5", ["a whole number, or a fraction below 1"]),
        ("models.hidden_size=-128", ["models.hidden_size=-128", "equal to 1"]),
        ("models.num_hidden_layers=0", ["models.num_hidden_layers=0", "equal to 1"]),
        ("models.dropout=1.0", ["models.dropout=1.0", "smaller than 1"]),
        ("models.dropout=-0.1", ["models.dropout=-0.1", "equal to 0"]),
        ("data.block_size=0", ["data.block_size=0", "at least 1"]),
        ("data.min_frequency=0", ["at least 1"]),
        ("data.validation_size=-0.1", ["0 or more"]),
        ("data.validation_size=1.5", ["data.validation_size=1.5", "fraction below 1"]),
        # combinations
        ("models.hidden_size=130", ["models.hidden_size=130", "multiple of models.num_attention_heads=4"]),
        ("models.num_key_value_heads=3", ["models.num_attention_heads=4", "models.num_key_value_heads=3"]),
        ("models.head_dim=7", ["7", "even"]),
        ("models.max_position_embeddings=32", ["data.block_size=64", "models.max_position_embeddings=32"]),
        ("data.path=null", ["craft train my.txt"]),
        ("data.source=hub data.path=null", ["data.source=hub", "data.path=USER/DATASET"]),
        ("data.validation_size=0.6 data.test_size=0.4", ["data.test_size=0.4", "below 1"]),
        ("data.validation_split=dev", ["data.validation_split", "data.source=hub"]),
        ("data.tokenizer=byte data.max_vocab_size=9", ["data.max_vocab_size=9", "data.tokenizer=byte"]),
        ("data.tokenizer=byte data.min_frequency=2", ["data.min_frequency=2", "data.tokenizer=byte"]),
        ("data.tokenizer=byte data.unknown=unk", ["data.unknown=unk", "data.tokenizer=byte"]),
        ("data.split=validation", ["data.split=validation", "data.source=files"]),
        ("data.revision=v1", ["data.revision=v1", "data.source=files"]),
        ("data.config_name=en", ["data.config_name=en", "data.source=files"]),
        ("data.source=hub data.errors=replace", ["data.errors=replace", "data.source=hub"]),
        ("data.source=hub data.encoding=cp1252", ["data.encoding=cp1252", "data.source=hub"]),
        (
            "data.source=builtin data.path=python_docs data.text_column=x",
            ["data.text_column=x", "data.source=builtin"],
        ),
        ("data.lanes=8", ["data.lanes=8", "data.streaming=true"]),
        ("data.encoding=shiftjis2", ["data.encoding=shiftjis2", "did you mean 'shiftjis"]),
        ("data.encoding=base64", ["data.encoding=base64"]),
        (
            "training.eval_strategy=steps data.validation_size=0",
            ["data.validation_size=0", "eval_strategy=no"],
        ),
        (
            "training.eval_strategy=no training.load_best_model_at_end=true",
            ["load_best_model_at_end=true", "training.eval_strategy=steps"],
        ),
        (
            "training.eval_strategy=no training.load_best_model_at_end=no training.early_stopping_patience=3",
            ["training.early_stopping_patience=3"],
        ),
        ("training.precision=bf16 training.fp16=true", ["training.fp16=true", "training.precision=bf16"]),
        ("training.fp16=true training.bf16=true", ["exclude each other"]),
        (
            "training.use_cpu=true training.precision=fp16",
            ["training.precision=fp16", "needs a GPU", "training.precision=auto"],
        ),
        ("training.use_cpu=true training.fp16=true", ["training.precision=fp16", "needs a GPU"]),
        ("models=char_lstm training.gradient_checkpointing=true", ["gradient_checkpointing", "char_lstm"]),
        ("models=char_lstm data.streaming=true training.max_steps=9", ["training.carry_state=false"]),
        ("data.streaming=true training.max_steps=-1", ["training.max_steps"]),
        ("training.global_batch_size=10 training.gradient_accumulation_steps=4", ["=10", "=4", "8 or 12"]),
        ("training.metric_for_best_model=acuracy", ["did you mean 'accuracy'?"]),
        (
            "training.eval_protocol=stateful",
            ["training.eval_protocol=stateful", "models.model_type=char_transformer"],
        ),
        ("training.eval_protocol=sliding-65", ["sliding-65", "data.block_size=64", "use sliding-32"]),
        (
            "models.rope_parameters.rope_typ=yarn",
            ["did you mean 'rope_type'"],
        ),
        ("models.rope_parameters.rope_type=yern", ["rope_type=yern", "did you mean 'yarn'?"]),
        # choices and ranges of transformers' own
        ("training.seed=4294967296", ["training.seed=4294967296", "0 to 4294967295"]),
        ("training.seed=99999999999999999999999", ["0 to 4294967295"]),
        ("training.log_level=wanring", ["did you mean 'warning'?"]),
        ("training.ddp_backend=glooo", ["did you mean 'gloo'?"]),
        ("training.torch_compile_mode=max-autotun", ["did you mean 'max-autotune'?"]),
        ("training.torch_compile_backend=inductr", ["did you mean 'inductor'?"]),
        ("training.lr_scheduler_kwargs=abc", ["training.lr_scheduler_kwargs=abc", "a mapping or null"]),
        ("training.lr_scheduler_kwargs=[1]", ["a mapping or null"]),
        ("models.dtype=float61", ["models.dtype=float61", "did you mean 'float16'?"]),
        ("models.attn_implementation=spda", ["did you mean 'sdpa'?"]),
        ("models.bos_token_id=-1", ["models.bos_token_id=-1", "0 or more"]),
        # what this machine hasn't got
        (
            "training.use_cpu=true models.attn_implementation=flex_attention",
            ["CPU", "sdpa"],
        ),
        ("training.fsdp=full_shard", ["training.fsdp=full_shard", "accelerate launch"]),
        ("training.output_dir=.", ["training.output_dir=.", "runs/first"]),
        ("training.output_dir=" + "x" * 300, ["training.output_dir=xxx"]),
        ("training.output_dir=/dev/null/x", ["training.output_dir=/dev/null/x"]),
        # how settings are written
        ("+a.b=1", ["unknown section 'a'", "models, data and training"]),
        ("data.path=${x", ["'${x'", "${oc.env:HOME}"]),
        # without effect
        ("models.return_dict=false", ["models.return_dict=false", "no effect"]),
        ("models.id2label={a:1}", ["models.id2label", "no effect"]),
        ("training.ignore_data_skip=true", ["training.ignore_data_skip=true", "no effect"]),
        ("training.dataloader_num_workers=4", ["training.dataloader_num_workers=4", "no effect"]),
        ("training.dataloader_drop_last=true", ["training.dataloader_drop_last=true", "no effect"]),
        ("training.data_seed=1", ["training.data_seed=1", "no effect"]),
        ("training.resume_from_checkpoint=x", ["training.resume_from_checkpoint=x", "no effect"]),
        ("training.skip_nonfinite_batches=-1", ["0 or more"]),
        ("training.stall_seconds=0", ["above 0"]),
        ("training.do_eval=true", ["training.do_eval=true", "no effect"]),
        ("training.bf16_full_eval=true", ["training.bf16_full_eval=true", "no effect"]),
        ("training.use_liger_kernel=true", ["training.use_liger_kernel=true", "no effect"]),
        ("training.hub_token=hf_x", ["HF_TOKEN"]),
        ("training.hub_license=MIT", ["training.hub_license=MIT", "did you mean 'mit'?"]),
        ("training.hub_license=apche-2.0", ["training.hub_license=apche-2.0", "did you mean 'apache-2.0'?"]),
        ("data.language=English", ["data.language=English", "did you mean 'en'?"]),
        ("data.language=de-AT", ["did you mean 'de'?"]),
        ("data.language=xx", ["data.language=xx", "ISO 639"]),
    ],
)
def test_a_mistake_on_the_command_line(override: str, phrases: list[str]) -> None:
    message = refusal(*override.split())
    for phrase in phrases:
        assert phrase in message


@pytest.mark.parametrize("override", ["foo=1", "training.foo=1", "models.verbose=true", "data.cuda=1"])
def test_what_is_near_to_nothing_gets_no_guess(override: str) -> None:
    assert "did you mean" not in refusal(override)


@pytest.mark.parametrize(
    ("override", "package"),
    [
        ("models.attn_implementation=flash_attention_2", "flash_attn"),
    ],
)
def test_a_package_that_is_missing(override: str, package: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("craft.training.requirements.installed", lambda name: False)
    message = refusal(override)
    assert package in message
    assert "isn't installed" in message
    monkeypatch.setattr("craft.training.requirements.installed", lambda name: True)
    assert compose([*TEXT, override])


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
    assert said in refusal(override, *accumulation).replace("models.", "")


def test_a_secret_is_not_repeated() -> None:
    assert "hf_verysecret" not in refusal("training.hub_token=hf_verysecret")


def test_a_file_that_is_not_text(own: Callable[..., Path]) -> None:
    folder = own()
    for name in ("models/mine.yaml", "run.yaml"):
        (folder / name).write_bytes(b"# x\n\xff\xfe\n")
    with pytest.raises(UserError, match=r"own/models/mine\.yaml is not UTF-8 text"):
        compose(["models=mine"], config_dir=folder)
    with pytest.raises(UserError, match=r"own/run\.yaml is not UTF-8 text"):
        compose([], config_file=folder / "run.yaml")


def test_a_missing_environment_variable() -> None:
    message = refusal("training.run_name=${oc.env:CRAFT_NO_SUCH_VARIABLE}")
    assert "training.run_name" in message
    assert "CRAFT_NO_SUCH_VARIABLE" in message


def test_fp16_is_refused_where_no_gpu_is(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(requirements, "on_cpu", lambda values: True)
    assert "training.precision=fp16 needs a GPU" in refusal("training.precision=fp16")
    monkeypatch.setattr(requirements, "on_cpu", lambda values: False)
    monkeypatch.setattr(
        requirements.Hardware, "detect", lambda use_cpu: requirements.Hardware("cuda", (7, 0))
    )
    assert (
        compose([*TEXT, "training.precision=fp16", "training.use_cpu=false"]).training["precision"] == "fp16"
    )


@pytest.mark.parametrize(
    ("name", "text", "phrases"),
    [
        (
            "models/mine",
            "model_type: char_lstm\nhidden_sise: 8\n",
            ["models/mine.yaml:2", "did you mean 'models.hidden_size'?"],
        ),
        ("models/mine", "hidden_size: 8\n", ["models.model_type", "char_lstm"]),
        ("models/mine", "model_type: char_lstm\ndropout: abc\n", ["dropout=abc", "models/mine.yaml:2"]),
        ("models/mine", "model_type: [char_lstm\n", ["models/mine.yaml:", "not valid YAML"]),
        ("models/mine", "model_type: char_lstm\nmodel_type: gpt2\n", ["models/mine.yaml:2", "duplicate"]),
        ("models/mine", "model_type: !!python/object:os.system\n", ["models/mine.yaml:1", "python/object"]),
        (
            "models/mine",
            "model_type: char_lstm\n_target_: os.system\n",
            ["'models._target_'", "models/mine.yaml:2"],
        ),
        ("models/mine", "- a list\n", ["models/mine"]),
        ("models/mine", "3\n", ["configuration:"]),
        ("models/mine", "", ["models.model_type", "char_lstm"]),
        ("models/mine", "model_type: char_lstm\nnull: 2\n", ["NoneType"]),
        ("models/mine", "defaults: 3\nmodel_type: char_lstm\n", ["models/mine", "defaults must be a list"]),
        ("models/mine", "defaults: [mine]\nmodel_type: char_lstm\n", ["refer to themselves"]),
        ("models/mine", "model_type: char_lstm\nа: 1\n", ["models/mine.yaml:2"]),
        (
            "models/mine",
            "model_type: char_lstm\n\thidden_size: 3\n",
            ["models/mine.yaml:2", "not valid YAML"],
        ),
        ("models/mine", "model_type: char_lstm\n---\nx: 1\n", ["models/mine.yaml:2", "document"]),
        ("training/mine", "per_device_train_batch_size: 0\n", ["training/mine.yaml:1", "at least 1"]),
        ("training/mine", "seed: ${nowhere}\n", ["training.seed", "nowhere"]),
        ("data/mine", "path: a.txt\nblock_size: 1e400\n", ["data.block_size", "data/mine.yaml:2"]),
        (
            "experiments/mine",
            "# @package _global_\ntraning: {seed: 1}\n",
            ["'traning'", "did you mean 'training'?"],
        ),
        (
            "experiments/mine",
            "# @package _global_\ntraining: {sed: 1}\n",
            ["mine.yaml:2", "training.seed"],
        ),
        (
            "experiments/mine",
            "# @package _global_\nmodels: gpt2\n",
            ["models is gpt2", "mine.yaml:2"],
        ),
        ("experiments/mine", "training: {seed: 1}\n", ["experiments/mine.yaml", "# @package _global_"]),
        ("experiments/mine", "# @package _global_\ndefaults: [override /models: nix]\n", ["models/nix"]),
    ],
)
def test_a_mistake_in_a_file(own: Callable[..., Path], name: str, text: str, phrases: list[str]) -> None:
    group = name.split("/")[0]
    choice = [f"{group}=mine"] if group != "data" else []
    folder = own(**{name: text})
    with pytest.raises(UserError) as caught:
        compose(["data=mine"] if group == "data" else [*TEXT, *choice], config_dir=folder)
    assert "\n" not in str(caught.value)
    for phrase in phrases:
        assert phrase in str(caught.value)


@pytest.mark.parametrize(
    ("text", "phrases"),
    [
        ("models: {model_type: char_lstm}\n", ["data is null"]),
        ("models: 3\n", ["models is 3"]),
        ("just text\n", ["unknown section 'just text'"]),
        ("[1, 2]\n", ["is not a saved run"]),
        ("models:\n  a: 'b\n", ["not valid YAML"]),
        ("\x00\x01", ["config.yaml"]),
        ("3\n", ["config.yaml", "can't be read"]),
        ("x: " + "[" * 2000, ["config.yaml", "too many brackets"]),
        ("models: {model_type: gpt2}\nmodels: {}\n", ["config.yaml:2", "duplicate"]),
    ],
)
def test_a_mistake_in_a_saved_run(tmp_path: Path, text: str, phrases: list[str]) -> None:
    file = tmp_path / "config.yaml"
    file.write_text(text, encoding="utf-8")
    with pytest.raises(UserError) as caught:
        compose([], config_file=file)
    assert "\n" not in str(caught.value)
    for phrase in phrases:
        assert phrase in str(caught.value)


def test_a_saved_run_may_hold_settings_without_effect_that_may_not_be_typed(tmp_path: Path) -> None:
    saved = compose(["data.path=a.txt"]).to_dict()
    saved["data"] |= {"split": "validation", "lanes": 8, "text_column": "text"}
    del saved["data"]["encoding"]  # as runs were saved before there was one
    file = tmp_path / "craft_run.yaml"
    file.write_text(yaml.safe_dump(saved), encoding="utf-8")
    run = compose(config_file=file)
    assert (run.data["split"], run.data["lanes"], run.data["encoding"]) == ("validation", 8, None)
    with pytest.raises(UserError) as caught:
        compose(["data.lanes=4"], config_file=file)
    assert "data.lanes=4" in str(caught.value)


def test_a_saved_run_that_is_not_there(tmp_path: Path) -> None:
    assert "no file" in refusal(config_file=tmp_path / "none.yaml")
    assert "is a folder" in refusal(config_file=tmp_path)
    assert "experiments" in refusal("experiments=quickstart", config_file=tmp_path)


def test_a_configuration_folder_without_configurations(tmp_path: Path) -> None:
    assert "holds none of the folders" in refusal(config_dir=tmp_path)


def test_a_text_that_is_not_there(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "story.txt").write_text("x", encoding="utf-8")
    for words, phrase in [
        (["stroy.txt"], "did you mean 'story.txt'?"),
        (["quickstart"], "did you mean experiments=quickstart?"),
        (["story.txt", "other.txt"], "no file 'other.txt'"),
        (["a" * 5000], "no file 'aaa"),
        (["~nosuchuser/x"], "no user 'nosuchuser'"),
        (["=1"], "settings are written KEY=VALUE"),
        (["training.=1"], "settings are written KEY=VALUE"),
    ]:
        with pytest.raises(UserError, match=phrase.replace("?", r"\?")):
            split_text(words)


def test_a_file_named_like_a_setting(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "a=b.txt").write_text("x", encoding="utf-8")
    assert "for the file of that name write ./a=b.txt" in refusal("a=b.txt")
    assert split_text(["./a=b.txt"]) == ["data=text_file", 'data.path="./a=b.txt"']
