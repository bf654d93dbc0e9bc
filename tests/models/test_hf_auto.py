"""Models of transformers, trained from scratch by name and used as craft's own are."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from refusals import refused
from safetensors.torch import load_file
from transformers import AutoConfig, AutoModelForCausalLM, GenerationConfig

from craft.building import build_model, check_memory
from craft.config.compose import compose
from craft.config.fields import model_types
from craft.config.upstream import upstream_types
from craft.data.tokenization import CharTokenizer
from craft.evaluation.audit import audit
from craft.evaluation.compress import compress, decompress
from craft.evaluation.finished import evaluate_model, evaluate_text, text_to_score
from craft.inference import load, sample
from craft.models.hf_auto import with_objective
from craft.sharing.card import render
from craft.train import train
from craft.utils.common import did_you_mean

TEXT = "".join(f"{n} green bottles hanging on the wall, if one fell: {n * n % 97}.\n" for n in range(20))
SMALL = [
    *("models=hf_auto", "models.hidden_size=16", "models.num_hidden_layers=2", "data.block_size=16"),
    *("training.max_steps=6", "training.save_steps=3", "training.eval_steps=3", "training.logging_steps=3"),
    *("training.global_batch_size=4", "training.sample_chars=0", "training.precision=fp32"),
    *("training.report_to=none", "training.optim=muon"),
]
LOGITS = """
import sys
class Hidden:
    def find_spec(self, name, path=None, target=None):
        if name.split(".")[0] == "craft": raise ModuleNotFoundError(name)
sys.meta_path.insert(0, Hidden())
import json, torch
from transformers import AutoModelForCausalLM, AutoTokenizer, pipeline
found = {}
for folder in sys.argv[1:]:
    model, tokenizer = (auto.from_pretrained(folder) for auto in (AutoModelForCausalLM, AutoTokenizer))
    logits = model(**tokenizer("green", return_tensors="pt")).logits
    written = pipeline("text-generation", folder)("green", max_new_tokens=5)[0]["generated_text"]
    found[folder] = type(model).__module__, logits[0, -1].tolist(), written
print(json.dumps(found))
"""


@pytest.fixture(scope="module", params=["llama", "mamba", "gpt_neox"])
def finished(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a finished model of a run of 6 steps, whose run lies beside it."""
    folder = tmp_path_factory.mktemp(request.param)
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        Path("my.txt").write_text(TEXT)
        run = compose(
            [
                *(*SMALL, f"models.model_type={request.param}", "data=text_file", "data.path=my.txt"),
                *("training.output_dir=outputs/models/run", f"data.cache_dir={folder / 'cache'}"),
            ]
        )
        result = train(run)
    assert result is not None
    return folder / result.model_dir


def test_what_is_saved_is_a_model_of_transformers_alone(finished: Path) -> None:
    kind = finished.parents[2].name.rstrip("0123456789")
    config = json.loads((finished / "config.json").read_text())
    assert config["model_type"] == kind
    named = {"llama": "LlamaForCausalLM", "mamba": "MambaForCausalLM", "gpt_neox": "GPTNeoXForCausalLM"}
    assert config["architectures"] == [named[kind]]
    assert "auto_map" not in config
    assert not list(finished.glob("*.py"))
    assert "trust_remote_code" not in render(finished)


def test_without_craft_it_gives_the_same_logits_and_writes(finished: Path) -> None:
    done = subprocess.run([sys.executable, "-c", LOGITS, str(finished)], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    module, logits, written = json.loads(done.stdout)[str(finished)]
    assert module.startswith("transformers.models.")
    model, tokenizer = load(finished)
    ours = model(torch.tensor([tokenizer.encode_ids("green").tolist()])).logits[0, -1]
    torch.testing.assert_close(ours, torch.tensor(logits))
    assert written.startswith("green")
    assert len(written) > len("green")


def test_it_is_scored_and_writes_like_any_other(finished: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(finished.parents[2])
    model, tokenizer = load(finished)
    saved = json.loads((finished / "evaluation.json").read_text())["evaluations"]
    (again,) = evaluate_model(model, tokenizer, finished)
    assert again.nats == pytest.approx(saved[0]["nats"])
    assert again.protocol == "blocks"
    (texts,) = sample(model, tokenizer, ["green"], max_new_tokens=40, seed=1)  # past the context
    assert len(texts[0]) == 40


def test_its_figure_stands_an_audit_and_is_cashed_in(finished: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(finished.parents[2])
    model, tokenizer = load(finished)
    text = text_to_score(model, tokenizer, finished, None, "validation")
    scores = evaluate_text(model, tokenizer, text, ["blocks", "dynamic-0.001"], "validation", 8)
    assert all(0 < each.bits_per_unit < 10 for each in scores)
    checks = list(audit(model, tokenizer, text.ids, scores, text.block_size))
    assert [check.name for check in checks if check.passed is not True] == []
    data = TEXT.encode()[:300]
    assert decompress(model, tokenizer, compress(model, tokenizer, data)) == data


def test_a_resumed_run_ends_with_the_same_weights(finished: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(finished.parents[2])
    killed = Path("outputs/models/killed")
    shutil.copytree("outputs/models/run", killed)
    shutil.rmtree(killed / "checkpoint-6")
    result = train(compose(config_file=killed / "craft_run.yaml"), resume=killed)
    assert result is not None
    first, second = (load_file(folder / "model.safetensors") for folder in (finished, result.model_dir))
    assert first.keys() == second.keys()
    assert all(torch.equal(first[name], second[name]) for name in first)


def test_a_run_starts_from_it(finished: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(finished.parents[2])
    run = compose(["models.init_from=outputs/models/run_step_6", "data=text_file", "data.path=my.txt"])
    tokenizer = load(finished)[1]
    started = build_model(run.models, tokenizer, run.data["block_size"], documents=False)
    assert all(map(torch.equal, started.state_dict().values(), load(finished)[0].state_dict().values()))
    with refused("model-mismatch", "models.hidden_size=32"):
        compose(["models.init_from=outputs/models/run_step_6", "models.hidden_size=32"])


def tiny(kind: str, **sizes: Any) -> Any:
    """A model of transformers with an objective, on 40 ids and a context of 16."""
    given = {"hidden_size": 128, "num_hidden_layers": 2, "max_position_embeddings": 16, **sizes}
    torch.manual_seed(0)
    config = AutoConfig.for_model(
        kind, vocab_size=40, pad_token_id=0, bos_token_id=1, eos_token_id=2, **given
    )
    return with_objective(AutoModelForCausalLM.from_config(config)).eval()


HEADS = {"num_attention_heads": 4, "intermediate_size": 256}
GROUPS = {**HEADS, "num_key_value_heads": 2}
OTHERS: dict[str, dict[str, Any]] = {
    "gpt2": {"num_attention_heads": 4},
    "gpt_neox": HEADS,
    "opt": {"num_attention_heads": 4, "ffn_dim": 256},
    "bloom": {"num_attention_heads": 4},
    "mistral": GROUPS,
    "qwen3": GROUPS,
    "gemma2": GROUPS,
    "olmo2": GROUPS,
    "phi": HEADS,
    "mixtral": GROUPS,
    "mamba2": {"num_heads": 8, "head_dim": 32, "n_groups": 1},
    "rwkv": {},
    "xlstm": {"num_heads": 4},
}


@pytest.mark.parametrize(
    "kind", ["gpt2", *(pytest.param(kind, marks=pytest.mark.slow) for kind in OTHERS if kind != "gpt2")]
)
def test_the_models_that_the_guide_lists_can_be_trained_and_write_as_generate_does(kind: str) -> None:
    model = tiny(kind, **OTHERS[kind])
    model.check_before_training()
    batch = model.make_batch(torch.arange(34).view(2, 17) % 37 + 3)
    model(**batch, use_cache=False).loss.backward()
    assert all(weight.grad is None or weight.grad.isfinite().all() for weight in model.parameters())
    assert model.flops_per_token() > 6 * 2 * 128 * 128
    model.generation_config = GenerationConfig(pad_token_id=0)
    prompt = torch.arange(10).view(2, 5) + 3
    whole = model.generate(prompt, attention_mask=torch.ones_like(prompt), max_new_tokens=11, do_sample=False)
    assert torch.equal(torch.stack(list(model.stream(prompt, max_new_tokens=11)), 1), whole[:, 5:])
    assert sum(1 for _ in model.stream(prompt, max_new_tokens=40)) == 40


def test_muon_gets_matrices_of_layers_alone() -> None:
    model = tiny("mamba")
    chosen = {name.split(".", 3)[-1] for name, _ in model.named_parameters() if model.muon_blocks(name)}
    assert chosen == {f"mixer.{name}.weight" for name in ("in_proj", "x_proj", "dt_proj", "out_proj")}
    gpt2 = tiny("gpt2", **OTHERS["gpt2"])
    assert not any(gpt2.muon_blocks(name) for name, _ in gpt2.named_parameters())


def test_an_encoder_is_refused_before_training() -> None:
    model = tiny("bert", **HEADS)
    with pytest.raises(ValueError, match=r"bert.*is_decoder"):
        model.check_before_training()
    tiny("bert", **HEADS, is_decoder=True).check_before_training()


@pytest.mark.parametrize(
    ("settings", "code", "values"),
    [
        (["models.model_type=lama"], "setting-value", ("lama", "'llama'")),
        (["models.model_type=resnet"], "setting-value", ("resnet",)),
        (["models.model_type=mamba", "models.hiden_size=16"], "setting-unknown", ("'models.hidden_size'",)),
        (
            ["models.num_attention_heads=8", "models.model_type=mamba"],
            "setting-unknown",
            ("num_attention_heads",),
        ),
        (["models.num_attention_heads=3"], "setting-value", (128, 3)),
        (["models.hidden_size=wide"], "setting-type", ("models.hidden_size=wide",)),
    ],
)
def test_a_mistake_is_answered_in_the_words_of_the_settings(
    settings: list[str], code: Any, values: Any
) -> None:
    with refused(code, *values):
        compose(["models=hf_auto", *settings])


def test_a_preset_gives_another_model_what_it_has_a_field_for() -> None:
    assert compose(["models=hf_auto", "models.model_type=gpt2", "models.n_embd=64"]).models["n_embd"] == 64
    models = compose(["models=hf_auto", "models.model_type=mamba"]).models
    assert models == {"model_type": "mamba", "hidden_size": 128, "num_hidden_layers": 4}


def test_what_follows_from_text_and_window_is_set_where_there_is_a_field() -> None:
    tokenizer = CharTokenizer.train(["abc"])
    sizes = {"hidden_size": 16, "num_hidden_layers": 1}
    gpt2 = build_model({"model_type": "gpt2", "n_head": 2, **sizes}, tokenizer, 24, documents=False)
    assert (gpt2.config.n_positions, gpt2.config.vocab_size) == (24, len(tokenizer))
    assert gpt2.config.eos_token_id == tokenizer.eos_token_id
    assert gpt2.generation_config.max_length == 24  # generate() can't go on
    mamba = build_model({"model_type": "mamba", **sizes}, tokenizer, 24, documents=False)
    assert not hasattr(mamba.config, "max_position_embeddings")


def test_a_model_that_memory_cannot_hold_is_refused() -> None:
    with refused("machine-unable", "1000.0B"):
        check_memory("llama", 10**12)


def test_no_model_of_transformers_is_taken_for_a_slip() -> None:
    assert not [
        name for name in upstream_types() if name not in model_types() and did_you_mean(name, model_types())
    ]
