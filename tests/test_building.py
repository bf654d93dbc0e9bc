"""Models that fit their text; training a model on: the same weights, new characters behind the old ones."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from refusals import refused

from craft.building import build_model, new_model, saved_tokenizers, starting_model
from craft.config.compose import compose
from craft.data.tokenization import ByteTokenizer, CharTokenizer, load_tokenizer
from craft.inference import load
from craft.train import train
from craft.utils.errors import Code, UserError

OLD = "the quick brown fox jumps over the lazy dog\n" * 40
NEW = OLD[:600] + "größe 你\n" * 40 + OLD[:600]
MODELS: dict[str, dict[str, Any]] = {
    "lstm": {"model_type": "char_lstm"},
    "lstm-tied": {"model_type": "char_lstm", "tie_word_embeddings": True},
    "transformer": {"model_type": "char_transformer", "num_attention_heads": 2},
    "gpt2": {
        "model_type": "char_transformer",
        "num_attention_heads": 2,
        "position": "learned",
        "tie_word_embeddings": True,
    },
}


def save(folder: Path, kind: str, tokenizer: CharTokenizer | None = None) -> tuple[Any, CharTokenizer, dict]:
    torch.manual_seed(3)
    fields = {"hidden_size": 16, "num_hidden_layers": 2, **MODELS[kind]}
    tokenizer = tokenizer or CharTokenizer.train([OLD])
    model = build_model(fields, tokenizer, 16, documents=False)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.normal_(std=0.3)
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return model.eval(), tokenizer, fields


@pytest.mark.parametrize(
    ("code", "fields", "values"),
    [
        ("setting-value", {"attn_implementation": "nonsense"}, ["nonsense"]),
        ("package-missing", {"attn_implementation": "flash_attention_2"}, ["FlashAttention2"]),
    ],
)
def test_an_impossible_model_is_refused(code: Code, fields: dict[str, Any], values: list[str]) -> None:
    tokenizer = CharTokenizer.train(["abc\n"])
    tiny = {"hidden_size": 16, "num_hidden_layers": 1, **MODELS["transformer"]}
    assert new_model(tiny, tokenizer, 8).config.vocab_size == 8
    with refused(code, *values):
        new_model({**tiny, **fields}, tokenizer, 8)


@pytest.mark.parametrize(("kind", "context"), [("lstm", None), ("transformer", 8)])
def test_the_window_is_the_context_of_a_model_that_carries_no_state(kind: str, context: int | None) -> None:
    tokenizer, fields = CharTokenizer.train(["abc\n"]), {"hidden_size": 16, **MODELS[kind]}
    assert new_model(fields, tokenizer, 8).config.max_position_embeddings == context
    written = {**fields, "max_position_embeddings": 12}
    assert new_model(written, tokenizer, 8).config.max_position_embeddings == 12


@pytest.mark.parametrize("kind", MODELS)
def test_new_characters_leave_what_the_model_knows_as_it_is(tmp_path: Path, kind: str) -> None:
    model, tokenizer, fields = save(tmp_path, kind)
    wider = tokenizer.extended("größe 你")
    assert wider.alphabet == [*tokenizer.alphabet, "ß", "ö", "你"]
    assert wider.encode_ids(OLD[:99]).tolist() == tokenizer.encode_ids(OLD[:99]).tolist()
    started = build_model({"init_from": str(tmp_path), "extend_vocab": True, **fields}, wider, 16, False)
    assert started.config.vocab_size == len(wider) == len(tokenizer) + 3
    ids = torch.tensor([tokenizer.encode_ids(OLD[:12]).tolist()])
    with torch.no_grad():
        before, after = model(ids).logits, started.eval()(ids).logits
    assert torch.equal(before, after[..., : len(tokenizer)])
    new = after[..., len(tokenizer) :]
    assert new.isfinite().all()
    assert new.max() < before.max()  # nobody expects them yet
    assert torch.equal(started.lm_head.weight, started.get_output_embeddings().weight)
    tied = started.lm_head.weight is started.get_input_embeddings().weight
    assert tied == fields.get("tie_word_embeddings", False)


def test_without_new_characters_it_is_the_model_itself(tmp_path: Path) -> None:
    model, tokenizer, fields = save(tmp_path, "lstm")
    started = starting_model({"init_from": str(tmp_path), **fields, "dropout": 0.25}, tokenizer)
    assert all(torch.equal(a, b) for a, b in zip(model.state_dict().values(), started.state_dict().values()))
    assert started.model.dropout.p == started.config.dropout == 0.25
    with refused("model-mismatch", "models.hidden_size=17", 16):
        starting_model({"init_from": str(tmp_path), **fields, "hidden_size": 17}, tokenizer)


@pytest.mark.parametrize("kind", MODELS)
def test_rows_without_an_entry_are_not_trained_on(tmp_path: Path, kind: str) -> None:
    model, tokenizer, fields = save(tmp_path, kind)
    weights = {name: weight.clone() for name, weight in model.state_dict().items()}
    model.resize_token_embeddings(len(tokenizer), pad_to_multiple_of=64)
    model.save_pretrained(tmp_path)
    started = starting_model({"init_from": str(tmp_path), **fields}, tokenizer)
    assert all(torch.equal(weights[name], weight) for name, weight in started.state_dict().items())
    wider = tokenizer.extended("ß")
    started = starting_model({"init_from": str(tmp_path), "extend_vocab": True, **fields}, wider)
    assert started.config.vocab_size == len(wider)


def test_a_byte_tokenizer_has_nothing_to_learn() -> None:
    tokenizer = ByteTokenizer.create()
    assert tokenizer.extended("größe 你") is tokenizer
    wider = CharTokenizer.train(["ab"], unknown="bytes").extended("é")
    assert wider.decode(wider("aéz").input_ids) == "aéz"
    assert len(wider("é").input_ids) == 1


def settings(source: Path, *more: str) -> list[str]:
    tiny = ["training.max_steps=4", "training.global_batch_size=4", "data.block_size=8", "data.path=new.txt"]
    quiet = ["training.save_steps=2", "training.eval_steps=4", "training.report_to=none"]
    return ["data=text_file", f"models.init_from={source}", *tiny, *quiet, *more]


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("CRAFT_CACHE", str(tmp_path / "cache"))
    (tmp_path / "new.txt").write_text(NEW, encoding="utf-8")
    return tmp_path


def test_a_whole_run_extends_the_vocabulary_and_goes_on_without_its_source(here: Path) -> None:
    source = Path("source_step_1")
    _, tokenizer, _ = save(source, "transformer")
    run = compose(settings(source, "models.extend_vocab=true", "training.output_dir=run"))
    result = train(run)
    assert result is not None
    known = load_tokenizer(result.model_dir)
    assert known.alphabet == [*tokenizer.alphabet, "ß", "ö", "你"]
    recorded = yaml.safe_load((result.model_dir / "craft_run.yaml").read_text(encoding="utf-8"))["models"]
    assert (recorded["init_from"], recorded["extend_vocab"]) == (str(source), True)
    assert result.evaluations[0].nats_per_char > 0

    shutil.rmtree(source)
    saved = Path("run") / "craft_run.yaml"
    further = train(compose(["training.max_steps=6"], config_file=saved), resume="run")
    assert further is not None
    assert further.model_dir.name == "run_step_6"
    assert load(further.model_dir)[0].config.vocab_size == len(known)
    with pytest.raises(UserError) as caught:
        train(compose(["training.output_dir=again"], config_file=saved))
    assert "source_step_1" in f"{caught.value}"


def test_new_characters_are_listed_with_counts(here: Path) -> None:
    save(Path("source"), "lstm")
    for text, values in [
        (NEW, ["3", "new.txt", "'ß' (U+00DF) 40", "'ö' (U+00F6) 40", "models.extend_vocab=true"]),
        (NEW + "the\xa0dog", [r"'\xa0' (U+00A0) 1", "' ' (U+0020)"]),
    ]:
        Path("new.txt").write_text(text, encoding="utf-8")
        with pytest.raises(UserError) as caught:
            train(compose(settings(Path("source"))))
        assert [value for value in values if value not in f"{caught.value}"] == []
    assert not Path("outputs/models").exists()


def test_a_run_that_was_stopped_before_its_first_checkpoint_starts_from_the_model_again(
    tmp_path: Path,
) -> None:
    (tmp_path / "run").mkdir()
    assert saved_tokenizers(None) == saved_tokenizers(tmp_path / "run") == []
    for step in (5, 10):
        (tmp_path / "run" / f"checkpoint-{step}").mkdir()
        (tmp_path / "run" / f"checkpoint-{step}" / "tokenizer.json").touch()
    newest = tmp_path / "run" / "checkpoint-10"
    assert saved_tokenizers(tmp_path / "run")[0] == newest
    assert saved_tokenizers(newest) == [newest]
