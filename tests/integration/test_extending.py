"""`docs/extending.md` is executed: its files go into a copy of the project, and its models are trained."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from warm import LIBRARIES, Warm

ROOT = Path(__file__).resolve().parents[2]
BLOCK = re.compile(r"<!-- file: (\S+) -->\n```\w+\n(.*?)```", re.DOTALL)


@pytest.fixture(scope="module")
def project(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A copy of the package and its configs with the files of the page in their places."""
    root = tmp_path_factory.mktemp("project")
    for name in ("craft", "configs"):
        shutil.copytree(ROOT / name, root / name, ignore=shutil.ignore_patterns("__pycache__"))
    for name, text in BLOCK.findall((ROOT / "docs" / "extending.md").read_text(encoding="utf-8")):
        (root / name).write_text(text, encoding="utf-8")
    return root


@pytest.fixture(scope="module")
def warm(project: Path) -> Iterator[Warm]:
    environment = {**os.environ, "PYTHONPATH": str(project), "WANDB_MODE": "disabled", "OMP_NUM_THREADS": "1"}
    with Warm(LIBRARIES, environment) as waiting:
        yield waiting


def craft(warm: Warm, folder: Path, *arguments: str, program: tuple[str, ...] = ("-m", "craft")) -> str:
    done = warm.python(*program, *arguments, cwd=folder)
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_the_new_model_trains_scores_and_writes(warm: Warm, tmp_path: Path) -> None:
    craft(
        warm,
        tmp_path,
        "train",
        "models=char_conv",
        "models.kernel_size=5",
        "models.hidden_size=16",
        "training.max_steps=20",
        "training.eval_steps=20",
        "training.report_to=none",
    )
    assert "blocks" in craft(warm, tmp_path, "evaluate", "latest")
    greedy = craft(warm, tmp_path, "generate", "latest", "-p", "The ", "-n", "40", "--greedy")
    assert greedy.startswith("The ")

    model = next((tmp_path / "outputs" / "models").glob("char_conv*_step_20"))
    script = (
        "from transformers import AutoModelForCausalLM as M, AutoTokenizer as T\n"
        f"m = M.from_pretrained({str(model)!r}, trust_remote_code=True)\n"
        f"t = T.from_pretrained({str(model)!r}, trust_remote_code=False)\n"
        "ids = t('The ', return_tensors='pt').input_ids\n"
        "print(t.decode(m.generate(ids, do_sample=False, max_new_tokens=40)[0]))\n"
    )
    done = subprocess.run(
        [sys.executable, "-I", "-c", BLOCKER + script],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert done.stdout.strip() == greedy.strip(), done.stderr


BLOCKER = (
    "import sys\n"
    "class Hidden:\n"
    "    def find_spec(self, name, path=None, target=None):\n"
    "        if name.split('.')[0] == 'craft': raise ModuleNotFoundError(name)\n"
    "sys.meta_path.insert(0, Hidden())\n"
)


def test_the_new_corpus_is_found(warm: Warm, tmp_path: Path) -> None:
    (tmp_path / "diary").mkdir()
    (tmp_path / "diary" / "monday.md").write_text("It rained.\n" * 200, encoding="utf-8")
    assert "My diary, the last 5% held out" in craft(warm, tmp_path, "configs")
    resolved = craft(warm, tmp_path, "train", "data=my_diary", "--print-config")
    assert "diary/*.md" in resolved


RECURRENCES = ("char_peephole", "char_layernorm_lstm", "char_gru")

USE_A_CELL = """
import sys
from pathlib import Path

import torch

from craft.cli.main import main
from craft.exporting.step import RecurrentStep
from craft.inference import load

def craft(*arguments):
    try:
        main(list(arguments))
    except SystemExit as end:
        assert not end.code, (arguments, end.code)

for kind in sys.argv[1:]:
    settings = ["text.txt", f"models.model_type={kind}", "models.hidden_size=16", "models.dropout=0.1"]
    settings += ["data.block_size=16", "training.global_batch_size=4", "training.optim=muon"]
    settings += ["training.save_steps=4", "training.lr_scheduler_type=constant", "training.report_to=none"]
    craft("train", *settings, "training.max_steps=8", f"training.output_dir={kind}-whole")
    craft("train", *settings, "training.max_steps=4", f"training.output_dir={kind}-parts")
    craft("resume", f"{kind}-parts", "training.max_steps=8")
    whole, parts = (Path(f"{kind}-{run}", "checkpoint-8/model.safetensors") for run in ("whole", "parts"))
    assert whole.read_bytes() == parts.read_bytes(), kind
    craft("evaluate", str(whole.parent), "text.txt")

    model, tokenizer = load(whole.parent)
    assert model.config.model_type == kind
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.mul_(3)  # so that texts depend on what came before
    prompts = [tokenizer.encode_ids(text) for text in ("the quick ", "j", "lazy")]
    ids, mask = torch.zeros(3, 10, dtype=torch.long), torch.zeros(3, 10, dtype=torch.long)
    for row, prompt in enumerate(prompts):
        ids[row, 10 - len(prompt):], mask[row, 10 - len(prompt):] = torch.from_numpy(prompt).long(), 1
    for beams in (1, 2):
        asked = {"max_new_tokens": 12, "do_sample": False, "num_beams": beams, "pad_token_id": 0}
        together = model.generate(ids, attention_mask=mask, **asked)[:, 10:]
        for row, prompt in enumerate(prompts):
            alone = torch.from_numpy(prompt).long()[None]
            assert torch.equal(model.generate(alone, **asked)[0, len(prompt):], together[row]), kind
    streamed = torch.stack(list(model.stream(alone, do_sample=False, max_new_tokens=12)), dim=1)
    assert torch.equal(streamed, model.generate(alone, do_sample=False, max_new_tokens=12)[:, len(prompt):])

    step = RecurrentStep(model)
    arguments, shapes = step.example()
    program = torch.export.export(step, arguments, dynamic_shapes=shapes).module()
    with torch.no_grad():
        inputs = (ids, *(torch.randn(3, 16) for _ in step.inputs[1:]))
        torch.testing.assert_close(program(*inputs), step(*inputs))
    print("used", kind)
"""


def test_a_custom_cell_trains_resumes_scores_generates_and_exports(
    warm: Warm, project: Path, tmp_path: Path
) -> None:
    """Trained, resumed bit for bit, scored, written with padding and beams, exported; in under 30 lines."""
    (tmp_path / "text.txt").write_text(
        "the quick brown fox jumps over the lazy dog\n" * 100, encoding="utf-8"
    )
    told = craft(warm, tmp_path, *RECURRENCES, program=("-c", USE_A_CELL))
    for kind in RECURRENCES:
        assert f"used {kind}" in told
        code = (project / f"craft/models/{kind}.py").read_text(encoding="utf-8")
        assert sum(bool(line.strip()) for line in code.splitlines()) < 30


def test_a_recurrent_model_trains_from_python(warm: Warm, project: Path, tmp_path: Path) -> None:
    (tmp_path / "my.txt").write_text("the quick brown fox jumps over the lazy dog\n" * 100, "utf-8")
    craft(warm, tmp_path, program=(str(project / "my_gru.py"),))
    assert (tmp_path / "gru" / "checkpoint-20" / "model.safetensors").is_file()


def test_a_plugin_registers_a_model(warm: Warm, project: Path, tmp_path: Path) -> None:
    """Of a file anywhere, where craft itself can't be changed."""
    (tmp_path / "text.txt").write_text("the quick brown fox jumps over the lazy dog\n" * 100, "utf-8")
    code = (project / "craft/models/char_peephole.py").read_text("utf-8").replace("char_peephole", "mine")
    code = code.replace("from .", "from craft.models.").replace("CharPeephole", "Mine")
    code += "\n\nfrom craft.models import register\n\nregister(__name__)\n"
    (tmp_path / "my_model.py").write_text(code, "utf-8")
    settings = ["models.model_type=mine", "models.hidden_size=16", "data.block_size=16"]
    settings += ["training.global_batch_size=4", "training.save_steps=4", "training.output_dir=run"]
    plugin = ("--plugin", "my_model")
    craft(warm, tmp_path, "train", "text.txt", *settings, *plugin, "training.max_steps=4")
    craft(warm, tmp_path, "resume", "run", *plugin, "training.max_steps=8")
    for command in (
        ("generate", "run/checkpoint-8", "-n", "5"),
        ("evaluate", "run/checkpoint-8", "text.txt"),
    ):
        craft(warm, tmp_path, *command, "--trust-remote-code")


OBJECTIVE = """
import torch, torch.nn.functional as F
from craft.data.char_dataset import CharDataset, train_loader
from craft.models import CharTwoConfig, CharTwoForCausalLM

torch.manual_seed(0)
model = CharTwoForCausalLM(CharTwoConfig(vocab_size=7, hidden_size=16))
ids = (torch.arange(400) % 7).numpy()
data = CharDataset(ids, 8, 4, seed=0, lookahead=model.lookahead)
optimizer = torch.optim.Adam(model.parameters(), 0.02)
for batch in train_loader(data, 4, 1, 0, 1, model.make_batch):
    inputs = {k: v for k, v in batch.items() if torch.is_tensor(v)}
    out = model(**inputs, num_items_in_batch=model.count_predictions(batch))
    (second,), names = out.auxiliary_losses.values(), list(out.auxiliary_losses)
    nats = F.cross_entropy(out.logits.flatten(0, 1), batch["labels"].flatten())
    torch.testing.assert_close(out.loss, nats + second)
    assert names == ["second_char"] and batch["second"].shape == batch["input_ids"].shape == (4, 8)
    assert ((batch["input_ids"] + 2) % 7).equal(batch["second"])
    out.loss.backward()
    optimizer.step()
    optimizer.zero_grad()
print(float(second))

import json
from pathlib import Path
from craft.data.tokenization import CharTokenizer
from craft.training.arguments import CraftTrainingArguments
from craft.training.base import LanguageModelTrainer

def run(folder, accumulation, resume=None):
    torch.manual_seed(0)
    tokenizer = CharTokenizer.train(["abcdefg"])
    model = CharTwoForCausalLM(CharTwoConfig(vocab_size=len(tokenizer), hidden_size=16))
    ids = tokenizer.encode_ids("abcdefg" * 60)
    args = CraftTrainingArguments(
        output_dir=folder, precision="fp32", global_batch_size=4, max_steps=6, logging_steps=4, save_steps=3,
        gradient_accumulation_steps=accumulation, eval_strategy="no", report_to="none", sample_chars=0,
    )
    data = CharDataset(ids, 8, 4, 0, "streams", lookahead=model.lookahead)
    trainer = LanguageModelTrainer(model, args, data, ids[:100], tokenizer)
    trainer.train(resume)
    return [e for e in trainer.state.log_history if "loss" in e]

whole, parts = run("whole", 1), run("parts", 2)
for one, two in zip(whole, parts):
    assert abs(one["second_char"] - two["second_char"]) < 1e-5 and one["second_char"] > 0, (one, two)
    assert abs(one["bits_per_char"] * 0.6931471805599453 - (one["loss"] - one["second_char"])) < 1e-5
import shutil
shutil.rmtree("whole/checkpoint-6")
run("whole", 1, resume="whole")  # from the middle of what is logged as one mean
again = [json.loads(l) for l in Path("whole/metrics.jsonl").read_text().splitlines()]
again = [e["second_char"] for e in again if "second_char" in e]
assert again == [e["second_char"] for e in whole], (again, whole)
"""


def test_a_custom_objective_is_learnt_and_logged_by_name(warm: Warm, tmp_path: Path) -> None:
    assert float(craft(warm, tmp_path, program=("-c", OBJECTIVE))) < 0.3 * 1.5  # at first 0.3 * ln 7


def test_an_optimizer_of_ones_own_resumes_bit_for_bit(warm: Warm, tmp_path: Path) -> None:
    """Stopped at a third, by the command line; then the same weights."""
    (tmp_path / "text.txt").write_text("the quick brown fox jumps over the lazy dog\n" * 100, "utf-8")
    settings = [
        *(
            "text.txt",
            "models=char_lstm",
            "models.hidden_size=16",
            "models.dropout=0.1",
            "data.block_size=16",
        ),
        *("training.optim=my_lion.Lion", "training.optim_args=beta2=0.95", "training.weight_decay=0.1"),
        *("training.global_batch_size=4", "training.save_steps=4", "training.lr_scheduler_type=constant"),
    ]
    plugin = ("--plugin", "my_lion")
    craft(warm, tmp_path, "train", *settings, *plugin, "training.max_steps=12", "training.output_dir=whole")
    craft(warm, tmp_path, "train", *settings, *plugin, "training.max_steps=4", "training.output_dir=parts")
    craft(warm, tmp_path, "resume", "parts", *plugin, "training.max_steps=12")
    whole, parts = (tmp_path / run / "checkpoint-12" / "model.safetensors" for run in ("whole", "parts"))
    assert whole.read_bytes() == parts.read_bytes()
    assert not [path for path in tmp_path.rglob("checkpoint-*/*") if path.suffix in (".pt", ".bin", ".pkl")]


SURVIVE = """
import os, signal, subprocess, sys
from transformers import TrainerCallback
import my_mean, torch

class Kill(TrainerCallback):
    def on_step_end(self, args, state, control, **kwargs):
        if state.global_step == 6:
            os.kill(os.getpid(), signal.SIGKILL)

if len(sys.argv) > 1:
    my_mean.train("text.txt", "killed", callbacks=[Kill()])
killed = subprocess.run([sys.executable, "-c", open("program.py").read(), "kill"])
assert killed.returncode == -signal.SIGKILL
whole, again = my_mean.train("text.txt", "whole"), my_mean.train("text.txt", "killed", resume="killed")
assert whole.steps == again.steps == 12
assert all(torch.equal(whole.mean[name], again.mean[name]) for name in whole.mean)
print("survived")
"""


def test_a_registered_state_survives_a_kill(warm: Warm, tmp_path: Path) -> None:
    (tmp_path / "text.txt").write_text("the quick brown fox jumps over the lazy dog\n" * 100, "utf-8")
    (tmp_path / "program.py").write_text(SURVIVE, "utf-8")
    assert "survived" in craft(warm, tmp_path, program=("program.py",))
