"""Loading finished models and letting them write: what a user types after training."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from craft.building import build_model
from craft.data.tokenization import ByteTokenizer, CharTokenizer
from craft.evaluation.finished import evaluate_model
from craft.inference import Sampling, load, sample, stream_text
from craft.utils import hardware
from craft.utils.errors import UserError
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


def test_a_seed_repeats_and_streaming_writes_the_same_as_a_batch(folder: Path) -> None:
    model, tokenizer = load(folder)
    first = "".join(stream_text(model, tokenizer, "to be", max_new_tokens=60, seed=3))
    assert len(first) == 60
    assert first == "".join(stream_text(model, tokenizer, "to be", max_new_tokens=60, seed=3))
    assert first != "".join(stream_text(model, tokenizer, "to be", max_new_tokens=60, seed=4))
    assert sample(model, tokenizer, ["to be"], max_new_tokens=60, seed=3) == [[first]]


def test_greedy_equals_generate_past_the_context(folder: Path) -> None:
    model, tokenizer = load(folder)
    ids = tokenizer("to be", return_tensors="pt").input_ids
    whole = model.generate(ids, do_sample=False, max_new_tokens=50)[0, ids.shape[1] :]
    assert "".join(
        stream_text(model, tokenizer, "to be", max_new_tokens=50, greedy=True)
    ) == tokenizer.decode(whole)


def test_prompts_of_unequal_length_give_what_each_gives_alone(folder: Path) -> None:
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


def test_specials_that_training_never_showed_are_never_written(folder: Path) -> None:
    model, tokenizer = load(folder)
    (texts,) = sample(model, tokenizer, [""], num_samples=2, max_new_tokens=500, temperature=50.0, seed=0)
    assert all(len(text) == 500 and set(text) <= set(tokenizer.alphabet) for text in texts)


def test_an_unseen_character_in_the_prompt_is_named(folder: Path) -> None:
    model, tokenizer = load(folder)
    with pytest.raises(UserError, match=r"'Z'.*U\+005A"):
        next(stream_text(model, tokenizer, "to Z"))


def test_bytes_become_characters_only_when_whole() -> None:
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
    ("bad", "said"),
    [
        ({"max_new_tokens": 0}, "max_new_tokens is 0"),
        ({"temperature": 0.0}, "--greedy"),
        ({"temperature": float("nan")}, "temperature is nan"),
        ({"top_k": -1}, "top_k is -1"),
        ({"top_p": 1.5}, "top_p is 1.5"),
        ({"min_p": 1.0}, "min_p is 1.0"),
        ({"stop": ("",)}, "stop is an empty text"),
    ],
)
def test_values_out_of_range_are_refused(bad: dict, said: str) -> None:
    with pytest.raises(UserError, match=said):
        Sampling(**bad)


def test_a_run_folder_stands_for_its_newest_model(folder: Path) -> None:
    run = folder.with_name("model")
    run.mkdir()
    assert resolve(run) == str(folder)


def test_what_is_no_model_is_refused(tmp_path: Path) -> None:
    for name, said in (
        (str(tmp_path), "no config.json"),
        ("no/such/folder/here", "no model at"),
        ("latest", "no finished"),
    ):
        with pytest.raises(UserError, match=said):
            resolve(name, tmp_path)


def test_more_entries_than_rows_are_refused(folder: Path) -> None:
    entries = len(CharTokenizer.train([TEXT + "XYZ"]))
    CharTokenizer.train([TEXT + "XYZ"]).save_pretrained(folder)
    with pytest.raises(UserError, match=rf"{entries} entries.* {entries - 3} rows"):
        load(folder)


def test_rows_without_an_entry_are_neither_written_nor_expected(folder: Path) -> None:
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
    with pytest.raises(UserError, match=r"'ü' \(U\+00FC\)") as caught:
        stream_text(model, tokenizer, "to", stop=(stop,))
    assert "\n" not in str(caught.value)
    with pytest.raises(UserError, match=r"'\\xa0' \(U\+00A0\).*' ' \(U\+0020\)"):
        sample(model, tokenizer, ["to"], stop=("or\xa0not",))


def test_a_byte_tokenizer_may_stop_at_any_text() -> None:
    tokenizer = ByteTokenizer.create()
    model = build_model(TINY["char_lstm"], tokenizer, block_size=8, documents=False)
    stream_text(model, tokenizer, "a", stop=("ü",))


def test_a_prompt_is_answered_with_its_look_alike_in_the_alphabet(folder: Path) -> None:
    model, tokenizer = load(folder)
    with pytest.raises(UserError, match=r"'\u0301' \(U\+0301\) at position 4 of the prompt.*'é' \(U\+00E9\)"):
        stream_text(model, tokenizer, "to e\u0301")


def test_torn_weights_are_named(folder: Path) -> None:
    weights = folder / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-100])
    with pytest.raises(UserError, match=rf"can't load the model '{folder}'.*") as caught:
        load(folder)
    assert "\n" not in str(caught.value)


def test_weights_that_are_no_numbers_are_refused(folder: Path) -> None:
    from safetensors.torch import load_file, save_file

    weights = load_file(folder / "model.safetensors")
    weights[sorted(weights)[-1]].view(-1)[3] = float("nan")
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(UserError, match=rf"{sorted(weights)[-1]} are not all numbers.*earlier checkpoint"):
        load(folder)


def test_a_missing_tokenizer_is_told(folder: Path) -> None:
    (folder / "tokenizer.json").unlink()
    with pytest.raises(UserError, match=r"there is no tokenizer\.json"):
        load(folder)


@pytest.fixture
def halved(folder: Path) -> Path:
    """The same model, saved in bfloat16."""
    model, _ = load(folder)
    model.to(torch.bfloat16).save_pretrained(folder)
    return folder


@pytest.mark.parametrize("native", [True, False])
def test_a_bfloat16_model_computes_in_float32_where_bfloat16_is_imitated(
    native: bool, halved: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(Hardware, "detect", lambda: Hardware("cpu", native_bf16=native))
    model, _ = load(halved)
    assert {weight.dtype for weight in model.parameters()} == {torch.bfloat16 if native else torch.float32}
    assert model.config.dtype == model.dtype
    assert [str(halved) in message for message in caplog.messages] == [] if native else [True]
    exact, _ = load(halved, dtype=torch.float32)
    for a, b in zip(model.parameters(), exact.parameters()):
        assert torch.equal(a.float(), b)


@pytest.mark.precision
@pytest.mark.parametrize("dtype", [None, "bfloat16", "float16"])
def test_half_precision_writes_and_is_scored(dtype: str | None, halved: Path, tmp_path: Path) -> None:
    """On processors of every kind, near what float32 gives."""
    text = tmp_path / "text.txt"
    text.write_text(TEXT * 20, encoding="utf-8")
    scores = []
    for asked in ({"dtype": dtype} if dtype else {}, {"dtype": "float32"}):
        model, tokenizer = load(halved, **asked)
        assert len("".join(stream_text(model, tokenizer, "to be", max_new_tokens=30, seed=1))) == 30
        assert model.generate(torch.ones(2, 3, dtype=torch.long), max_new_tokens=4).shape == (2, 7)
        (score,) = evaluate_model(model, tokenizer, halved, str(text))
        scores.append(score.nats_per_char)
    assert scores[0] == pytest.approx(scores[1], rel=2e-2)


def test_a_dtype_that_was_asked_for_is_tried(
    halved: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    times = iter([1.0, 4.0])  # in float32, in bfloat16
    monkeypatch.setattr(hardware, "seconds", lambda step: (step(), next(times))[1])
    model, _ = load(halved, dtype="bfloat16")
    assert model.dtype == torch.bfloat16
    (said,) = caplog.messages
    assert all(words in said for words in ("dtype=bfloat16", " 4.0 times ", "dtype=float32"))


def test_a_dtype_that_cannot_be_computed_is_refused(halved: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from torch.nn import Embedding

    read = Embedding.forward

    def broken(self: Embedding, ids: torch.Tensor) -> torch.Tensor:
        if self.weight.dtype == torch.bfloat16:
            raise RuntimeError("no kernel for this")
        return read(self, ids)

    monkeypatch.setattr(Embedding, "forward", broken)
    with pytest.raises(UserError) as refusal:
        load(halved, dtype=torch.bfloat16)
    words = str(refusal.value)
    assert all(part in words for part in ("dtype=bfloat16", "no kernel for this", "dtype=float32"))
