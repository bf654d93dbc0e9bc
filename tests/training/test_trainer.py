"""Whole runs of tiny models in this process."""

from __future__ import annotations

import json
import logging
import math
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tiny_run
import torch
from refusals import refused
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM, AutoTokenizer

from craft.data.arguments import DataArguments
from craft.data.char_dataset import CharDataset, train_loader
from craft.data.loaders import load_corpus, train_dataset
from craft.data.tokenization import ByteTokenizer, CharTokenizer
from craft.evaluation.scores import evaluate_split
from craft.models import TransformerConfig, TransformerForCausalLM
from craft.sharing.bundle import bundle
from craft.training.arguments import CraftTrainingArguments
from craft.training.base import LanguageModelTrainer
from craft.training.checkpointing.safetensors_io import load_tree
from craft.training.evaluation import first_units
from craft.training.logging import read_metrics

KINDS = ("char_lstm", "char_transformer")


def bare_loop(kind: str, steps: int, carry: bool) -> list[float]:
    """The losses of a run as plain PyTorch would train it: AdamW, linear schedule, clipping at 1."""
    model = tiny_run.model(kind).train()
    train, _ = tiny_run.split_ids()
    dataset = CharDataset(train, tiny_run.BLOCK, tiny_run.BATCH, 42, "streams" if carry else "shuffled")
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2, weight_decay=0.0, fused=True)
    warm = 2
    schedule = torch.optim.lr_scheduler.LambdaLR(
        optimizer, lambda s: s / warm if s < warm else (20 - s) / (20 - warm)
    )
    losses, state, loader = [], None, train_loader(dataset, tiny_run.BATCH, 1, 0, 1, model.make_batch)
    while True:
        loader.set_epoch(len(losses) // dataset.steps_per_epoch)
        for batch in loader:
            state = state if carry and batch["step_in_epoch"] else None
            outputs = model(batch["input_ids"], past_key_values=state, use_cache=carry)
            loss = torch.nn.functional.cross_entropy(outputs.logits.flatten(0, 1), batch["labels"].flatten())
            if carry:
                state = model.state_from_tensors(model.state_tensors(outputs.past_key_values))
            loss.backward()
            torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
            optimizer.step()
            schedule.step()
            optimizer.zero_grad()
            losses.append(loss.item())
            if len(losses) == steps:
                return losses


@pytest.mark.parametrize("accumulation", [1, 4])
@pytest.mark.parametrize(
    ("kind", "carry"), [("char_lstm", True), ("char_lstm", False), ("char_transformer", False)]
)
def test_losses_are_those_of_a_bare_loop(tmp_path: Path, kind: str, carry: bool, accumulation: int) -> None:
    """The exact mean over all B x T predictions, also when the batch is cut into micro-batches."""
    trainer = tiny_run.trainer(
        kind, tmp_path, carry_state=carry, gradient_accumulation_steps=accumulation, logging_steps=1
    )
    trainer.train()
    logged = [event["loss"] for event in read_metrics(tmp_path) if "loss" in event]
    assert logged == pytest.approx(bare_loop(kind, 20, carry), abs=2e-5)


@pytest.mark.parametrize("kind", KINDS)
def test_a_checkpoint_is_a_model_that_anything_opens(tmp_path: Path, kind: str) -> None:
    trainer = tiny_run.trainer(kind, tmp_path)
    trainer.train()
    folder = tmp_path / "checkpoint-20"
    names = {path.name for path in folder.iterdir()}
    assert not any(name.endswith(".bin") for name in names)
    assert json.loads((folder / "training_args.json").read_text())["max_steps"] == 20
    assert (folder / "craft_run.yaml").read_text() == "experiment: tiny\n"
    model = AutoModelForCausalLM.from_pretrained(folder)
    assert model.config.use_cache is True
    assert model.config.eos_token_id == trainer.tokenizer.eos_token_id
    assert AutoTokenizer.from_pretrained(folder)("wall")["input_ids"] == list(
        trainer.tokenizer.encode_ids("wall")
    )
    ids = torch.arange(8)[None]
    assert torch.equal(model.eval()(ids).logits, trainer.model.eval()(ids).logits)


def test_metrics_and_samples_are_in_the_file_of_the_run(tmp_path: Path) -> None:
    tiny_run.trainer("char_lstm", tmp_path, sample_chars=30, sample_prompt="9 green").train()
    events = read_metrics(tmp_path)
    (last,) = (event for event in events if "eval_loss" in event and event["step"] == 20)
    assert last["eval_bits_per_char"] == pytest.approx(last["eval_loss"] / math.log(2))
    assert last["eval_perplexity"] == pytest.approx(math.exp(last["eval_loss"]))
    assert {"eval_accuracy", "eval_calibration_error", "eval_bits_per_byte", "characters", "elapsed"} <= set(
        last
    )
    assert last["characters"] == 20 * tiny_run.BATCH * tiny_run.BLOCK
    losses = [event for event in events if "loss" in event]
    assert [event["step"] for event in losses] == [5, 10, 15, 20]
    for event in losses:
        assert event["bits_per_char"] == pytest.approx(event["loss"] / math.log(2))
        assert event["chars_per_second"] > 0
    samples = [event["sample"] for event in events if "sample" in event]
    assert len(samples) == 2
    for sample in samples:
        assert sample.startswith("9 green")
        assert 20 < len(sample) <= 37
        assert "<" not in sample  # special tokens, which a young model still draws, aren't text


@pytest.mark.parametrize("protocol", ["blocks", "stateful"])
def test_evaluations_while_training_read_the_beginning(protocol: str, tmp_path: Path) -> None:
    spec: dict[str, Any] = {"eval_protocol": protocol, "max_steps": 4, "eval_steps": 4}
    capped = tiny_run.trainer("char_lstm", tmp_path / "capped", **spec, eval_chars=100)
    capped.train()
    (scored,) = (event for event in read_metrics(tmp_path / "capped") if "eval_loss" in event)
    _, validation = tiny_run.split_ids()
    by_hand = evaluate_split(capped.model, validation[:101], protocol=protocol, block_size=tiny_run.BLOCK)
    assert by_hand.characters == 100
    assert scored["eval_loss"] == pytest.approx(by_hand.nats_per_char)
    everything = capped.evaluate()["eval_loss"]  # no longer in training
    assert everything != scored["eval_loss"]

    for name, limit in (("all", None), ("large", len(validation) - 1)):
        whole = tiny_run.trainer("char_lstm", tmp_path / name, **spec, eval_chars=limit)
        whole.train()
        (event,) = (event for event in read_metrics(tmp_path / name) if "eval_loss" in event)
        assert event["eval_loss"] == everything


@pytest.mark.parametrize(("chars", "ids"), [(1, 3), (2, 4), (3, 7), (4, 7), (9, 7)])
def test_the_beginning_of_a_text_in_bytes_is_counted_in_characters(chars: int, ids: int) -> None:
    """The first id isn't predicted; ä is two ids, of which the first counts, and 世 three."""
    tokenizer = ByteTokenizer.create()
    text = tokenizer.encode_ids("aäb世")
    assert len(first_units(text, chars, tokenizer.id_chars)) == ids


def test_sampling_and_evaluating_leave_training_alone(tmp_path: Path) -> None:
    """Dropout draws the same numbers whether or not samples are drawn in between."""
    quiet = tiny_run.trainer("char_lstm", tmp_path / "quiet", dropout=0.3, eval_strategy="no")
    quiet.train()
    loud = tiny_run.trainer("char_lstm", tmp_path / "loud", dropout=0.3, sample_chars=20, eval_steps=3)
    loud.train()
    for a, b in zip(quiet.model.parameters(), loud.model.parameters()):
        assert torch.equal(a, b)


@pytest.mark.parametrize("optim", ["adamw_torch_fused", "muon"])
def test_the_average_is_what_is_evaluated_and_exported(tmp_path: Path, optim: str) -> None:
    trainer = tiny_run.trainer("char_transformer", tmp_path, ema_decay=0.8, optim=optim)
    trainer.train()
    folder = tmp_path / "checkpoint-20"
    exported = load_file(folder / "model.safetensors")
    raw = load_tree(folder / "training_state.safetensors")["ema"]["weights"]
    assert any(not torch.equal(exported[name], raw[name]) for name in exported)
    for name, parameter in trainer.model.named_parameters():
        assert torch.equal(parameter, exported[name])
    _, validation = tiny_run.split_ids()
    scored = evaluate_split(trainer.model, validation, protocol="blocks", block_size=tiny_run.BLOCK)
    (last,) = (e for e in read_metrics(tmp_path) if "eval_loss" in e and e["step"] == 20)
    assert last["eval_loss"] == pytest.approx(scored.nats_per_char, rel=1e-6)


def test_samples_of_an_alphabet_without_line_breaks(tmp_path: Path) -> None:
    tokenizer = CharTokenizer.train(["abc"])
    ids = tokenizer.encode_ids("abc" * 300)
    config = TransformerConfig(
        vocab_size=len(tokenizer), hidden_size=16, num_hidden_layers=1, num_attention_heads=1
    )
    args = tiny_run.arguments(tmp_path, max_steps=2, sample_chars=12)
    dataset = CharDataset(ids, tiny_run.BLOCK, tiny_run.BATCH, 0, "shuffled")
    LanguageModelTrainer(TransformerForCausalLM(config), args, dataset, ids[:100], tokenizer).train()
    (sample,) = (event["sample"] for event in read_metrics(tmp_path) if "sample" in event)
    assert set(sample) <= set("abc")


def test_data_that_does_not_suit_the_model_is_refused(tmp_path: Path) -> None:
    train, validation = tiny_run.split_ids()
    dataset = CharDataset(train, tiny_run.BLOCK, tiny_run.BATCH, 0, "shuffled")
    tokenizer, lstm = tiny_run.tokenizer(), tiny_run.model("char_lstm")
    with refused("setting-conflict", "shuffled", "training.carry_state"):
        LanguageModelTrainer(lstm, tiny_run.arguments(tmp_path), dataset, validation, tokenizer)
    with refused("text-missing", "data.validation_size"):
        LanguageModelTrainer(lstm, tiny_run.arguments(tmp_path), dataset, None, tokenizer)
    foreign = np.append(train, len(tokenizer)).astype(np.int64)
    other = CharDataset(foreign, tiny_run.BLOCK, tiny_run.BATCH, 0, "streams")
    with refused("data-invalid", "training", len(tokenizer)):
        LanguageModelTrainer(lstm, tiny_run.arguments(tmp_path), other, validation, tokenizer)
    with refused("data-invalid", "validation", len(tokenizer)):
        LanguageModelTrainer(lstm, tiny_run.arguments(tmp_path), dataset, foreign, tokenizer)


@pytest.mark.parametrize("kind", KINDS)
def test_tied_weights_resume_quietly(tmp_path: Path, kind: str, caplog: pytest.LogCaptureFixture) -> None:
    spec: dict[str, Any] = {"tied": True, "dropout": 0.1, "ema_decay": 0.9, "eval_strategy": "no"}
    whole = tiny_run.trainer(kind, tmp_path, **spec)
    whole.train()
    shutil.rmtree(tmp_path / "checkpoint-20")
    again = tiny_run.trainer(kind, tmp_path, **spec)
    logging.getLogger("transformers").propagate = True
    with caplog.at_level(logging.WARNING):
        again.train(resume_from_checkpoint=True)
    assert again.model.lm_head.weight is again.model.get_input_embeddings().weight
    for a, b in zip(whole.model.parameters(), again.model.parameters()):
        assert torch.equal(a, b)
    assert "missing keys" not in caplog.text


def test_a_stream_goes_on_where_it_stopped(tmp_path: Path) -> None:
    """Text that is read while training has no length and no epochs; the end is the same all the same."""
    (tmp_path / "text.txt").write_text(tiny_run.TEXT * 3, encoding="utf-8")
    data = DataArguments(
        path=str(tmp_path / "text.txt"), streaming=True, tokenizer="byte", block_size=8, validation_size=200
    )
    corpus = load_corpus(data)

    def trainer(output_dir: Path) -> LanguageModelTrainer:
        args = tiny_run.arguments(output_dir, gradient_accumulation_steps=2, eval_strategy="no")
        torch.manual_seed(1)
        config = TransformerConfig(
            vocab_size=len(corpus.tokenizer), hidden_size=16, num_hidden_layers=1, num_attention_heads=1
        )
        dataset = train_dataset(corpus, data, args.global_batch_size, args.seed)
        model = TransformerForCausalLM(config)
        return LanguageModelTrainer(model, args, dataset, corpus.validation, corpus.tokenizer)

    whole, stopped = trainer(tmp_path / "whole"), trainer(tmp_path / "stopped")
    whole.train()
    stopped.train()
    shutil.rmtree(tmp_path / "stopped" / "checkpoint-20")
    again = trainer(tmp_path / "stopped")
    again.train(resume_from_checkpoint=True)
    assert again.resumed == tmp_path / "stopped" / "checkpoint-16"
    for a, b in zip(whole.model.parameters(), again.model.parameters()):
        assert torch.equal(a, b)


def test_epochs_instead_of_steps(tmp_path: Path) -> None:
    args = {"max_steps": -1, "num_train_epochs": 2.0, "eval_strategy": "epoch", "save_strategy": "epoch"}
    trainer = tiny_run.trainer("char_lstm", tmp_path, logging_strategy="epoch", **args)
    trainer.train()
    steps = [event["step"] for event in read_metrics(tmp_path) if "eval_loss" in event]
    assert steps == [tiny_run.STEPS_PER_EPOCH, 2 * tiny_run.STEPS_PER_EPOCH]
    assert sorted(path.name for path in tmp_path.glob("checkpoint-*")) == ["checkpoint-12", "checkpoint-24"]


@pytest.mark.precision
def test_bf16_trains_and_is_scored_in_fp32(tmp_path: Path) -> None:
    trainer = tiny_run.trainer("char_lstm", tmp_path, precision="bf16")
    trainer.train()
    assert all(parameter.dtype == torch.float32 for parameter in trainer.model.parameters())
    _, validation = tiny_run.split_ids()
    scored = evaluate_split(trainer.model, validation, protocol="stateful", block_size=tiny_run.BLOCK)
    (last,) = (e for e in read_metrics(tmp_path) if "eval_loss" in e and e["step"] == 20)
    assert last["eval_loss"] == pytest.approx(scored.nats_per_char, rel=1e-6)


def test_what_a_checkpoint_puts_on_the_hub(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The model and how it was made, and no pickle; trouble with the network is no trouble for the run."""
    trainer = tiny_run.trainer("char_lstm", tmp_path, max_steps=4, eval_strategy="no", ema_decay=0.9)
    trainer.train()
    trainer.hub_model_id = "me/tiny"
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    monkeypatch.setenv("HF_TOKEN", "hf_nobody")
    trainer.args.push_to_hub = True
    trainer.uploads.on_save(trainer.args, trainer.state, trainer.control)
    trainer.uploads.finish()
    assert [message for message in caplog.messages if "checkpoint-4 " in message]
    names = set(bundle(tmp_path / "checkpoint-4", "me/tiny"))
    assert {"model.safetensors", "config.json", "tokenizer.json", "base.py", "README.md"} <= names
    assert not {name for name in names if name.endswith((".pt", ".pth", ".bin")) or "training" in name}


def test_arguments_are_written_without_secrets(tmp_path: Path) -> None:
    args = CraftTrainingArguments(output_dir=str(tmp_path), hub_token="hf_secret")
    assert "hf_secret" not in args.to_json_string()
    assert np.isfinite(json.loads(args.to_json_string())["learning_rate"])


@pytest.mark.parametrize("kind", ["char_lstm", "char_transformer"])
def test_label_smoothing_scores_the_next_character(tmp_path: Path, kind: str) -> None:
    run = tiny_run.trainer(kind, tmp_path, label_smoothing_factor=0.2)
    batch = next(iter(run.get_train_dataloader()))
    loss = run.compute_loss(run.model.eval(), dict(batch))
    logits = run.model(batch["input_ids"]).logits.flatten(0, 1)
    expected = torch.nn.functional.cross_entropy(logits, batch["labels"].flatten(), label_smoothing=0.2)
    torch.testing.assert_close(loss, expected)


def test_a_protocol_that_the_model_cannot_be_scored_by_is_refused_before_training(tmp_path: Path) -> None:
    for setting in ({"eval_protocol": "stateful"}, {"eval_protocols": ["stateful"]}):
        network = tiny_run.model("char_transformer", position="learned")
        with refused("setting-conflict", "'stateful'", "'sliding-4'"):
            tiny_run.trainer("char_transformer", tmp_path, network=network, **setting)
    trainer = tiny_run.trainer("char_transformer", tmp_path, eval_protocol="stateful")
    scored = evaluate_split(trainer.model, tiny_run.split_ids()[1], protocol="stateful", block_size=3)
    assert trainer.evaluate()["eval_loss"] == pytest.approx(scored.nats_per_unit, rel=1e-5)
