"""Training a craft model on with other people's tools: PEFT, TRL, and Optuna through the Trainer."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from datasets import Dataset
from transformers import AutoTokenizer, DataCollatorForLanguageModeling, TrainingArguments
from transformers import Trainer as TransformersTrainer

from craft.evaluation.finished import evaluate_model
from craft.inference import load, sample

from .conftest import CONTEXT, Trained


def chunks(trained: Trained, tokenizer: Any) -> Dataset:
    text = trained.other.read_text()
    pieces = [text[i : i + CONTEXT] for i in range(0, len(text) - CONTEXT, CONTEXT)]
    return Dataset.from_dict({"text": pieces}).map(
        lambda row: {"input_ids": tokenizer(row["text"])["input_ids"]}
    )


def bits(model: Path, text: Path) -> float:
    return evaluate_model(*load(model), model, str(text), split="all")[0].bits_per_char


def test_lora_learns_another_text_merges_and_is_a_model_again(trained: Trained, tmp_path: Path) -> None:
    peft = pytest.importorskip("peft")
    model, tokenizer = load(trained.model)
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    layers = ["embed_tokens", "lm_head"] if trained.kind == "char_lstm" else "all-linear"
    config = peft.LoraConfig(task_type="CAUSAL_LM", r=8, target_modules=layers)
    adapted = peft.get_peft_model(model, config)
    share = adapted.get_nb_trainable_parameters()
    assert 0 < share[0] < share[1]
    arguments = TrainingArguments(
        tmp_path / "run", max_steps=60, per_device_train_batch_size=8, learning_rate=2e-2, report_to="none",
        use_cpu=True, save_strategy="no", disable_tqdm=True,
    )  # fmt: skip
    collator = DataCollatorForLanguageModeling(tokenizer, mlm=False)
    data = chunks(trained, tokenizer).remove_columns("text")
    TransformersTrainer(adapted, arguments, train_dataset=data, data_collator=collator).train()
    base = adapted.get_base_model().state_dict()
    assert all(
        torch.equal(before[name], base[name.replace(".weight", ".base_layer.weight")])
        for name in before
        if name.replace(".weight", ".base_layer.weight") in base
    )

    ids = torch.tensor([tokenizer("9 men may mow")["input_ids"]])
    with torch.inference_mode():
        expected = adapted.eval()(input_ids=ids).logits
    adapted.save_pretrained(tmp_path / "adapter")
    merged = adapted.merge_and_unload()
    merged.save_pretrained(tmp_path / "merged")
    tokenizer.save_pretrained(tmp_path / "merged")
    again, known = load(tmp_path / "merged")
    with torch.inference_mode():
        torch.testing.assert_close(again(ids).logits, expected, rtol=1e-4, atol=1e-4)
    assert bits(tmp_path / "merged", trained.other) < bits(trained.model, trained.other) - 0.2
    assert sample(again, known, ["9 men"], max_new_tokens=20)[0][0]

    fresh, _ = load(trained.model)
    readapted = peft.PeftModel.from_pretrained(fresh, tmp_path / "adapter").eval()
    with torch.inference_mode():
        torch.testing.assert_close(readapted(input_ids=ids).logits, expected, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("method", ["AdaLoraConfig", "VeraConfig", "LoHaConfig", "OFTConfig"])
def test_other_adapters_of_peft_load_again(trained: Trained, tmp_path: Path, method: str) -> None:
    peft = pytest.importorskip("peft")
    settings: dict[str, Any] = {"AdaLoraConfig": {"total_step": 10}}
    layers = ["lm_head"] if trained.kind == "char_lstm" else "all-linear"
    model, tokenizer = load(trained.model)
    config = getattr(peft, method)(task_type="CAUSAL_LM", target_modules=layers, **settings.get(method, {}))
    check_adapter(peft, peft.get_peft_model(model, config), tokenizer, trained, tmp_path)


def test_prompt_tuning_of_a_transformer_loads_again(transformer: Trained, tmp_path: Path) -> None:
    peft = pytest.importorskip("peft")
    model, tokenizer = load(transformer.model)
    config = peft.PromptTuningConfig(task_type="CAUSAL_LM", num_virtual_tokens=3)
    check_adapter(peft, peft.get_peft_model(model, config), tokenizer, transformer, tmp_path)


def check_adapter(peft: Any, adapted: Any, tokenizer: Any, trained: Trained, folder: Path) -> None:
    """It has a gradient, gives the same logits once it is saved and loaded, and generates."""
    batch = tokenizer(["9 men", "may mow"], return_tensors="pt", padding=True)
    adapted(**batch, labels=batch.input_ids).loss.backward()
    adapted.save_pretrained(folder)
    again = peft.PeftModel.from_pretrained(load(trained.model)[0], folder).eval()
    with torch.inference_mode():
        torch.testing.assert_close(again(**batch).logits, adapted.eval()(**batch).logits)
    written = again.generate(**batch, max_new_tokens=5, do_sample=False)
    assert written.shape[0] == 2


def test_trl_fine_tunes_in_a_short_run(trained: Trained, tmp_path: Path) -> None:
    trl = pytest.importorskip("trl")
    model, _ = load(trained.model)
    tokenizer = AutoTokenizer.from_pretrained(trained.model)
    config = trl.SFTConfig(
        str(tmp_path / "run"), max_steps=25, per_device_train_batch_size=8, learning_rate=5e-3,
        report_to="none", use_cpu=True, save_strategy="no", disable_tqdm=True, max_length=CONTEXT,
        bf16=False, logging_steps=5, gradient_checkpointing=False,
    )  # fmt: skip
    data = chunks(trained, tokenizer).select_columns("text")
    trainer = trl.SFTTrainer(model, args=config, train_dataset=data, processing_class=tokenizer)
    trainer.train()
    losses = [entry["loss"] for entry in trainer.state.log_history if "loss" in entry]
    assert losses[-1] < losses[0] - 0.3
    trainer.save_model(str(tmp_path / "tuned"))
    assert bits(tmp_path / "tuned", trained.other) < bits(trained.model, trained.other)


def test_optuna_searches_through_the_trainer(trained: Trained, tmp_path: Path) -> None:
    optuna = pytest.importorskip("optuna")
    from craft.building import build_model
    from craft.config.compose import compose
    from craft.data.arguments import DataArguments
    from craft.data.loaders import load_corpus, train_dataset
    from craft.training.arguments import CraftTrainingArguments
    from craft.training.base import LanguageModelTrainer

    kind = {"char_lstm": "char_lstm", "char_transformer": "transformer"}[trained.kind]
    run = compose(["data=text_file", f"data.path={trained.text}", f"models={kind}", "models.hidden_size=16"])
    data = DataArguments(**{**run.data, "block_size": 16, "cache_dir": str(tmp_path / "cache")})
    corpus = load_corpus(data)
    args = CraftTrainingArguments(
        str(tmp_path / "search"), max_steps=24, global_batch_size=8, eval_strategy="steps", eval_steps=24,
        precision="fp32", save_strategy="no", sample_chars=0, use_cpu=True,
    )  # fmt: skip

    def fresh(trial: Any = None) -> Any:
        torch.manual_seed(1)
        return build_model(run.models, corpus.tokenizer, 16, corpus.documents)

    model = fresh()
    order = "streams" if model.carries_state else "shuffled"
    dataset = train_dataset(corpus, data, 8, args.seed, order)
    trainer = LanguageModelTrainer(None, args, dataset, corpus.validation, corpus.tokenizer, model_init=fresh)
    best = trainer.hyperparameter_search(
        lambda trial: {"learning_rate": trial.suggest_categorical("learning_rate", [1e-6, 1e-2])},
        backend="optuna",
        n_trials=2,
        direction="minimize",
        compute_objective=lambda metrics: metrics["eval_loss"],
        sampler=optuna.samplers.GridSampler({"learning_rate": [1e-6, 1e-2]}),
    )
    assert best.hyperparameters["learning_rate"] == 1e-2
    assert best.objective < 3
