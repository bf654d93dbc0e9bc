"""Loading finished models and letting them write: what a user types after training."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from refusals import refused

from craft.building import build_model
from craft.data.tokenization import ByteTokenizer, CharTokenizer
from craft.evaluation.finished import evaluate_model
from craft.inference import Sampling, load, sample, stream_text
from craft.utils.hardware import Hardware
from craft.utils.outputs import resolve

TEXT = "to be or not to be, that is the question:\nwhether 'tis nobler in the mind to suffer é 漢\n"
TINY = {
    "char_lstm": {"model_type": "char_lstm", "hidden_size": 16, "num_hidden_layers": 2},
    "char_transformer": {
        "model_type": "char_transformer",
        "hidden_size": 16,
        "num_hidden_layers": 2,
        "num_attention_heads": 2,
        "zero_init": False,
    },
}


@pytest.fixture(params=["char_lstm", "char_transformer"])
def folder(request: pytest.FixtureRequest, tmp_path: Path) -> Path:
    """A saved model with random weights."""
    torch.manual_seed(0)
    tokenizer = CharTokenizer.train([TEXT])
    model = build_model(TINY[request.param], tokenizer, block_size=16, documents=False)
    path = tmp_path / "model_step_1"
    model.save_pretrained(path)
    tokenizer.save_pretrained(path)
    return path


def test_a_seed_repeats_a_text_streamed_or_sampled(folder: Path) -> None:
    model, tokenizer = load(folder)
    first = "".join(stream_text(model, tokenizer, "to be", max_new_tokens=60, seed=3))
    assert len(first) == 60
    assert first == "".join(stream_text(model, tokenizer, "to be", max_new_tokens=60, seed=3))
    assert first != "".join(stream_text(model, tokenizer, "to be", max_new_tokens=60, seed=4))
    assert sample(model, tokenizer, ["to be"], max_new_tokens=60, seed=3) == [[first]]


def test_a_greedy_text_equals_generate_past_the_context(folder: Path) -> None:
    model, tokenizer = load(folder)
    ids = tokenizer("to be", return_tensors="pt").input_ids
    whole = model.generate(ids, do_sample=False, max_new_tokens=50)[0, ids.shape[1] :]
    assert "".join(
        stream_text(model, tokenizer, "to be", max_new_tokens=50, greedy=True)
    ) == tokenizer.decode(whole)


def test_prompts_of_unequal_length_are_continued_as_each_alone(folder: Path) -> None:
    model, tokenizer = load(folder)
    prompts = ["to be", "", "whether 'tis nobler", "or no"]
    together = sample(model, tokenizer, prompts, max_new_tokens=20, greedy=True)
    assert together == [sample(model, tokenizer, [p], max_new_tokens=20, greedy=True)[0] for p in prompts]


def test_samples_of_one_prompt_differ(folder: Path) -> None:
    model, tokenizer = load(folder)
    (texts,) = sample(model, tokenizer, ["to be"], num_samples=3, max_new_tokens=40, seed=0)
    assert len(set(texts)) == 3


def test_a_stop_text_ends_each_row_and_is_kept(folder: Path) -> None:
    model, tokenizer = load(folder)
    (texts,) = sample(
        model, tokenizer, ["to be"], num_samples=4, max_new_tokens=3000, seed=0, stop=("e", "to")
    )
    assert all(text.endswith(("e", "to")) for text in texts)
    assert all(text.count("e") <= 1 and text.count("to") <= 1 for text in texts)


def test_special_ids_that_training_never_showed_are_never_written(folder: Path) -> None:
    model, tokenizer = load(folder)
    (texts,) = sample(model, tokenizer, [""], num_samples=2, max_new_tokens=500, temperature=50.0, seed=0)
    assert all(len(text) == 500 and set(text) <= set(tokenizer.alphabet) for text in texts)


def test_an_unseen_character_in_the_prompt_is_named(folder: Path) -> None:
    model, tokenizer = load(folder)
    with refused("character-unknown", "'Z'", "U+005A"):
        next(stream_text(model, tokenizer, "to Z"))


def test_bytes_are_decoded_once_a_character_is_complete() -> None:
    torch.manual_seed(0)
    tokenizer = ByteTokenizer.create()
    model = build_model(TINY["char_transformer"], tokenizer, block_size=8, documents=False)
    text = "".join(stream_text(model, tokenizer, "é", max_new_tokens=200, seed=1))
    ids = [int(i[0]) for i in seeded_stream(model, tokenizer, "é", 200)]
    written = bytes(i - 4 for i in ids if i >= 4)
    assert text == written.decode("utf-8", errors="replace")[: len(text)]


def seeded_stream(
    model: torch.nn.Module, tokenizer: CharTokenizer, prompt: str, count: int
) -> list[torch.Tensor]:
    torch.manual_seed(1)
    ids = torch.tensor([tokenizer.encode_ids(prompt).tolist()])
    return list(model.stream(ids, Sampling(max_new_tokens=count).generation_config(model)))


@pytest.mark.parametrize(
    "bad",
    [
        {"max_new_tokens": 0},
        {"temperature": 0.0},
        {"temperature": float("nan")},
        {"top_k": -1},
        {"top_p": 1.5},
        {"min_p": 1.0},
        {"seed": -1},
        {"stop": ("",)},
    ],
)
def test_a_sampling_value_out_of_range_is_refused_by_name(bad: dict[str, Any]) -> None:
    ((name, value),) = bad.items()
    with refused("setting-value", f"{name}={value!r}"):
        Sampling(**bad)


def test_a_run_folder_stands_for_its_newest_model(folder: Path) -> None:
    run = folder.with_name("model")
    run.mkdir()
    assert resolve(run) == str(folder)


def test_a_name_that_leads_to_no_model_is_refused(tmp_path: Path) -> None:
    for name, value in (
        (str(tmp_path), "config.json"),
        ("no/such/folder/here", "no/such/folder/here"),
        ("latest", tmp_path / "models"),
    ):
        with refused("model-missing", value):
            resolve(name, tmp_path)


def test_a_tokenizer_larger_than_the_embedding_is_refused(folder: Path) -> None:
    entries = len(CharTokenizer.train([TEXT + "XYZ"]))
    CharTokenizer.train([TEXT + "XYZ"]).save_pretrained(folder)
    with refused("model-mismatch", folder, f"{entries} entries", f"{entries - 3} rows"):
        load(folder)


def test_embedding_rows_beyond_the_tokenizer_are_left_out(folder: Path) -> None:
    model, tokenizer = load(folder)
    ids = torch.tensor([tokenizer.encode("to be")], device=model.device)
    expected = model(ids).logits
    tokenizer.add_special_tokens({"extra_special_tokens": ["<|user|>"]})
    model.resize_token_embeddings(len(tokenizer), pad_to_multiple_of=64)
    model.lm_head.weight.data[len(tokenizer) :] = 100 * torch.randn(64 - len(tokenizer), 16)
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    again, known = load(folder)
    logits = again(ids).logits
    assert logits.shape[-1] == again.config.vocab_size == len(known) == expected.shape[-1] + 1
    assert torch.allclose(logits[..., :-1], expected, atol=1e-6)
    # The added token, which shows as nothing, is written like any other.
    again.lm_head.weight.data[-1] = 0
    (texts,) = sample(again, known, ["to"], num_samples=8, max_new_tokens=40, temperature=10.0, seed=1)
    assert min(map(len, texts)) < 40
    assert set("".join(texts)) <= set(TEXT)


@pytest.mark.parametrize("stop", ["ü", "\n漢ü"])
def test_a_stop_text_that_the_model_cannot_write_is_refused(folder: Path, stop: str) -> None:
    model, tokenizer = load(folder)
    with refused("character-unknown", "'ü'", "U+00FC"):
        stream_text(model, tokenizer, "to", stop=(stop,))
    with refused("character-unknown", "'\\xa0'", "U+00A0", "' '", "U+0020"):
        sample(model, tokenizer, ["to"], stop=("or\xa0not",))


def test_a_byte_tokenizer_may_stop_at_any_text() -> None:
    tokenizer = ByteTokenizer.create()
    model = build_model(TINY["char_lstm"], tokenizer, block_size=8, documents=False)
    stream_text(model, tokenizer, "a", stop=("ü",))


def test_an_unknown_character_is_answered_with_its_look_alike_in_the_alphabet(folder: Path) -> None:
    model, tokenizer = load(folder)
    with refused("character-unknown", "U+0301", "position 4", "'é'", "U+00E9"):
        stream_text(model, tokenizer, "to e\u0301")


def test_truncated_weights_are_refused(folder: Path) -> None:
    weights = folder / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-100])
    with refused("model-invalid", folder):
        load(folder)


def test_weights_of_another_shape_are_refused(folder: Path) -> None:
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | {"hidden_size": 8}))
    with refused("model-invalid", folder, "config.json"):
        load(folder)


def test_a_value_in_its_config_that_no_model_has_is_named(folder: Path) -> None:
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | {"dropout": 7}))
    with refused("model-invalid", folder, "dropout", 7):
        load(folder)


def test_code_beside_the_weights_is_not_run_unasked(folder: Path) -> None:
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | {"model_type": "somebody_elses"}))
    with refused("code-untrusted", folder, "--trust-remote-code"):
        load(folder)


def test_weights_with_nan_are_refused(folder: Path) -> None:
    from safetensors.torch import load_file, save_file

    weights = load_file(folder / "model.safetensors")
    weights[sorted(weights)[-1]].view(-1)[3] = float("nan")
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})
    with refused("model-invalid", folder, sorted(weights)[-1]):
        load(folder)


def test_a_model_without_a_tokenizer_is_refused(folder: Path) -> None:
    (folder / "tokenizer.json").unlink()
    with refused("tokenizer-invalid", "tokenizer.json"):
        load(folder)


@pytest.fixture
def bfloat16_folder(folder: Path) -> Path:
    """The same model, saved in bfloat16."""
    model, _ = load(folder)
    model.to(torch.bfloat16).save_pretrained(folder)
    return folder


@pytest.mark.parametrize("native", [True, False])
def test_a_bfloat16_model_computes_in_float32_where_bfloat16_is_imitated(
    native: bool, bfloat16_folder: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(Hardware, "detect", lambda: Hardware("cpu", native_bf16=native))
    model, _ = load(bfloat16_folder)
    assert {weight.dtype for weight in model.parameters()} == {torch.bfloat16 if native else torch.float32}
    assert model.config.dtype == model.dtype
    assert [str(bfloat16_folder) in message for message in caplog.messages] == [] if native else [True]
    exact, _ = load(bfloat16_folder, dtype=torch.float32)
    for a, b in zip(model.parameters(), exact.parameters()):
        assert torch.equal(a.float(), b)


@pytest.mark.precision
@pytest.mark.parametrize("dtype", [None, "bfloat16", "float16"])
def test_half_precision_writes_and_is_scored(
    dtype: str | None, bfloat16_folder: Path, tmp_path: Path
) -> None:
    """On processors of every kind, near what float32 gives."""
    text = tmp_path / "text.txt"
    text.write_text(TEXT * 20, encoding="utf-8")
    scores = []
    for asked in ({"dtype": dtype} if dtype else {}, {"dtype": "float32"}):
        model, tokenizer = load(bfloat16_folder, **asked)
        assert len("".join(stream_text(model, tokenizer, "to be", max_new_tokens=30, seed=1))) == 30
        assert model.generate(torch.ones(2, 3, dtype=torch.long), max_new_tokens=4).shape == (2, 7)
        (score,) = evaluate_model(model, tokenizer, bfloat16_folder, str(text))
        scores.append(score.nats_per_char)
    assert scores[0] == pytest.approx(scores[1], rel=2e-2)
