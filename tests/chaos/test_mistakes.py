"""A table of mistakes: each is answered with exit code 2 and one line, and costs nothing that was there.

The files that a row needs are written by its `setup`; `model` is a finished model, `run` its run.
"""

from __future__ import annotations

import gzip
import json
import shutil
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import pytest
import runs

pytestmark = [pytest.mark.chaos, pytest.mark.timeout(0)]
Setup = Callable[[Path], object]
CASE = runs.CASES[2]
MODEL = f"run_step_{runs.STEPS}"


@dataclass(frozen=True)
class Mistake:
    """Words after `craft`, what must be in the answer, and what the folder needs beforehand."""

    words: str | list[str]
    phrase: str
    setup: Setup | None = None
    trained: bool = False

    def __str__(self) -> str:
        return (self.words if isinstance(self.words, str) else " ".join(self.words))[:70]


def write(name: str, data: bytes | str) -> Setup:
    def setup(folder: Path) -> None:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(data if isinstance(data, bytes) else data.encode())

    return setup


def cut(name: str) -> Setup:
    """Half of a file."""

    def setup(folder: Path) -> None:
        data = (folder / name).read_bytes()
        write(name, data[: len(data) // 2])(folder)

    return setup


def remove(name: str) -> Setup:
    return lambda folder: (folder / name).unlink()


def yaml(group: str, text: str) -> Setup:
    """`own/GROUP/mine.yaml`."""
    return write(f"own/{group}/mine.yaml", text)


def change(name: str, **values: object) -> Setup:
    """Other values in a JSON file."""

    def setup(folder: Path) -> None:
        data = json.loads((folder / name).read_text(encoding="utf-8"))
        write(name, json.dumps({**data, **values}))(folder)

    return setup


TRAIN = " ".join(word for word in runs.TINY if "output_dir" not in word)
SAVED = "models: {model_type: char_lstm}\ndata: {path: text.txt}\ntraining: {seed: 1}\n"
GLOBAL = "# @package _global_\n"
NIX = "defaults: [override /models: nix]\n"
OWN = "train --config-dir own"
OBJECT = "a: !!python/object/apply:os.getcwd []\n"
SENTENCE = b"the quick brown fox jumps over the lazy dog\n" * 100

COMMANDS = [
    Mistake("trian", "'train'"),
    Mistake("--versoin", "--version"),
    Mistake("train --print-confg", "--print-config"),
    Mistake("configs --config-dir nowhere", "nowhere"),
    Mistake("benchmark trian", "train"),
    Mistake("benchmark train --steps nan", "nan"),
    Mistake("doctor now", "now"),
]
SETTINGS = [
    Mistake("train text.txt training.lerning_rate=1", "did you mean 'training.learning_rate'?"),
    Mistake("train text.txt lr=1", "training.learning_rate"),
    Mistake("train text.txt +a.b=1", "unknown section 'a'"),
    Mistake("train text.txt ~models", "./~"),
    Mistake("train =1", "KEY=VALUE"),
    Mistake("train text.txt models=", "there are: char_lstm"),
    Mistake("train text.txt models=char_lstm,transformer", "char_lstm,transformer"),
    Mistake("train text.txt models=../data/text8", "../data/text8"),
    Mistake("train text.txt training.learning_rate=nan", "a number"),
    Mistake("train text.txt training.learning_rate=.inf", "a number"),
    Mistake("train text.txt training.learning_rate=[1]", "a number"),
    Mistake("train text.txt training.max_steps=ten", "a whole number"),
    Mistake("train text.txt training.seed=99999999999999999999", "4294967295"),
    Mistake("train text.txt models.dropout=1.0", "smaller than 1"),
    Mistake("train text.txt models.hidden_size=130", "multiple of"),
    Mistake("train text.txt training.optim=adamw", "training.optim=adamw"),
    Mistake("train text.txt training.optim=lomo", "lomo_optim"),
    Mistake("train text.txt training.precision=fp16 training.use_cpu=true", "training.precision=auto"),
    Mistake("train text.txt training.eval_protocol=stateful models=gpt2", "sliding-"),
    Mistake("train text.txt training.output_dir=text.txt", "training.output_dir=text.txt"),
    Mistake("train text.txt training.output_dir=.", "training.output_dir=."),
    Mistake("train text.txt training.hub_token=hf_secret", "HF_TOKEN"),
    Mistake(["train", "text.txt", "data.path=${x"], "${oc.env:HOME}"),
    Mistake(["train", "a" * 5000], "no file"),
]
YAML = [
    Mistake("train --config nowhere.yaml", "no file 'nowhere.yaml'"),
    Mistake("train --config .", "--config ."),
    Mistake("train --config r.yaml", "models is null", write("r.yaml", "")),
    Mistake("train --config r.yaml", "r.yaml:4", write("r.yaml", SAVED + "nothing: 1\n")),
    Mistake("train --config r.yaml", "duplicate", write("r.yaml", SAVED + "training: {}\n")),
    Mistake("train --config r.yaml", "python/object", write("r.yaml", OBJECT)),
    Mistake("train --config r.yaml", "not UTF-8", write("r.yaml", SAVED.encode("utf-16"))),
    Mistake("train --config r.yaml", "not valid YAML", write("r.yaml", "models:\n\tx: 1\n")),
    Mistake("train --config r.yaml", "too many brackets", write("r.yaml", "x: " + "[" * 3000)),
    Mistake("train --config r.yaml experiments=quickstart", "experiments", write("r.yaml", SAVED)),
    Mistake(f"{OWN} models=mine", "hidden_size", yaml("models", "model_type: char_lstm\nhidden_sise: 8\n")),
    Mistake(f"{OWN} models=mine", "defaults", yaml("models", "defaults: 3\n")),
    Mistake(f"{OWN} experiments=mine", "# @package _global_", yaml("experiments", "training: {}\n")),
    Mistake(f"{OWN} experiments=mine", "nix", yaml("experiments", f"{GLOBAL}{NIX}")),
]


def text(name: str, data: bytes, phrase: str, more: str = "") -> Mistake:
    """A row that trains on a file of its own."""
    return Mistake(
        f"train {name} {TRAIN.removeprefix('text.txt ')} {more}".strip(), phrase, write(name, data)
    )


DATA = [
    Mistake("train nowhere.txt", "no file 'nowhere.txt'"),
    Mistake("train tekst.txt", "did you mean 'text.txt'?"),
    Mistake("train text.txt other.txt", "no file 'other.txt'"),
    Mistake("train http://127.0.0.1:9/x.txt", "http://127.0.0.1:9/x.txt"),
    Mistake("train data.source=hub data.path=no/such", "no/such can't be loaded: HF_HUB_OFFLINE is set"),
    Mistake("train data.source=builtin data.path=python_dcs", "'python_docs'"),
    Mistake("train folder", "folder", lambda folder: (folder / "folder").mkdir()),
    text("empty.txt", b"", "empty.txt is empty"),
    text("short.txt", b"hello world", "too few for data.block_size=16"),
    text("binary.txt", bytes(range(256)) * 40, "byte 128 "),
    text("latin.txt", "Größe\n".encode("latin1") * 99, "byte 2"),
    text("utf16.txt", "hello\n".encode("utf-16") * 99, "data.encoding=utf-16"),
    text("cut.txt", SENTENCE + b"\xe4\xb8", "byte 4400"),
    text("a.txt.gz", gzip.compress(SENTENCE)[:-20], "a.txt.gz"),
    text("a.zip", b"PK\3\4" + SENTENCE, "a.zip"),
    text("a.xz", b"\xfd7zXZ\0" + SENTENCE, "a.xz"),
    text("a.zst", b"\x28\xb5\x2f\xfd" + SENTENCE, "a.zst"),
    text("a.jsonl", b'{"text": "abc"}\n' * 99 + b'{"text": \n', "a.jsonl"),
    text("b.jsonl", b'{"txt": "abc"}\n' * 99, "txt"),
    text("c.jsonl", b'{"text": 3}\n' * 99, "text"),
    text("d.jsonl", b"", "d.jsonl"),
    text("a.csv", b"a,b\n1,2\n" * 99, "data.text_column"),
    text("a.parquet", SENTENCE, "a.parquet"),
    text("long.txt", SENTENCE, "at most 439", "data.block_size=99999"),
    text("batch.txt", SENTENCE, "global batch", "training.global_batch_size=100000"),
    text("split.txt", SENTENCE, "leave nothing", "data.validation_size=99999"),
    text("prompt.txt", SENTENCE, "U+00C4", "training.sample_prompt=Ä"),
    text("rare.txt", SENTENCE, "data.unknown", "data.max_vocab_size=3"),
]
GENERATE = [
    Mistake("generate", "no finished model"),
    Mistake("generate no/such/model", "no/such/model"),
    Mistake("generate text.txt", "text.txt"),
    Mistake(f"generate {MODEL} --temperature 0", "temperature"),
    Mistake(f"generate {MODEL} --temperature inf", "temperature"),
    Mistake(f"generate {MODEL} --top-p 2", "top_p"),
    Mistake(f"generate {MODEL} --seed -1", "seed"),
    Mistake(f"generate {MODEL} -n 0", "at least 1"),
    Mistake(f"generate {MODEL} --prompt a --prompt-file text.txt", "exclude each other"),
    Mistake(f"generate {MODEL} --prompt-file nowhere", "nowhere"),
    Mistake(["generate", MODEL, "--stop", ""], "stop"),
    Mistake(["generate", MODEL, "--prompt", "Ж"], "U+0416", trained=True),
    Mistake(f"generate {MODEL}", "config.json", write(f"{MODEL}/config.json", "{"), trained=True),
    Mistake(f"generate {MODEL}", "header", cut(f"{MODEL}/model.safetensors"), trained=True),
    Mistake(f"generate {MODEL}", "shapes", change(f"{MODEL}/config.json", hidden_size=32), trained=True),
    Mistake(f"generate {MODEL}", "tokenizer", cut(f"{MODEL}/tokenizer.json"), trained=True),
    Mistake(f"generate {MODEL}", "tokenizer", remove(f"{MODEL}/tokenizer.json"), trained=True),
    Mistake(f"generate {MODEL}", "no file named", remove(f"{MODEL}/model.safetensors"), trained=True),
]
EVALUATE = [
    Mistake("evaluate", "no finished model"),
    Mistake(f"evaluate {MODEL} --split validtion", "validtion"),
    Mistake(f"evaluate {MODEL} --protocol sliding-0", "stride", trained=True),
    Mistake(f"evaluate {MODEL} nowhere.txt", "nowhere.txt", trained=True),
    Mistake(f"evaluate {MODEL} --split test", "no test split", trained=True),
    Mistake(f"evaluate {MODEL} other.txt", "U+042F", write("other.txt", "Я" * 999), trained=True),
    Mistake(f"evaluate {MODEL}", "craft_run.yaml", write(f"{MODEL}/craft_run.yaml", "[]"), trained=True),
]
RESUME = [
    Mistake("resume", "no run to resume"),
    Mistake("resume nowhere", "nowhere"),
    Mistake("resume text.txt", "text.txt"),
    Mistake("resume run run", "run, run"),
    Mistake("resume run/checkpoint-24", "one checkpoint", trained=True),
    Mistake(f"resume {MODEL}", MODEL, trained=True),
    Mistake("resume run training.max_steps=30 data.block_size=8", "--allow-changes", trained=True),
    Mistake("resume run training.max_steps=30 training.seed=3", "training.seed", trained=True),
    Mistake("resume run training.max_steps=30 models.hidden_size=32", "hidden_size", trained=True),
    Mistake("resume run training.max_steps=30", "text", write("text.txt", SENTENCE * 9), trained=True),
    Mistake(f"train {' '.join(runs.TINY)}", "run holds a run already", trained=True),
]
TABLE = [*COMMANDS, *SETTINGS, *YAML, *DATA, *GENERATE, *EVALUATE, *RESUME]


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("trained") / "trained"
    runs.whole(CASE, folder)
    shutil.rmtree(folder / ".said")
    return folder


def test_the_table_is_long_enough() -> None:
    assert len(TABLE) >= 100


@pytest.mark.parametrize("mistake", TABLE, ids=str)
def test_a_mistake(mistake: Mistake, tmp_path: Path, request: pytest.FixtureRequest) -> None:
    folder = tmp_path / "here"
    if mistake.trained:
        shutil.copytree(request.getfixturevalue("trained"), folder)
    else:
        runs.fresh(folder)
    if mistake.setup is not None:
        mistake.setup(folder)
    there = snapshot(folder)
    words = mistake.words.split() if isinstance(mistake.words, str) else mistake.words
    done = runs.start(words, folder)
    assert done.wait() == [2], done.err()
    said = done.err().splitlines()
    assert [line for line in said if line.startswith("error: ")] == said[-1:], done.err()
    assert "Traceback" not in done.err()
    assert all(line.startswith('{"error": ') for line in done.out().splitlines())
    assert mistake.phrase in said[-1]
    assert "hf_secret" not in done.err()
    shutil.rmtree(done.said)
    assert snapshot(folder) == there, "files were changed, lost or left behind"


def snapshot(folder: Path) -> dict[str, str]:
    """Every file with its sum; but for logs, which grow, and for locks and taken names, which are empty."""
    return {
        str(path.relative_to(folder)): runs.sha256(path)
        for path in folder.rglob("*")
        if path.is_file() and path.suffix != ".log" and path.name != ".lock" and path.parent.name != ".stamps"
    }
