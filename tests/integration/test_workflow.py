"""Text in, a Hugging Face model out: whole runs by the command line, in real processes and empty folders."""

from __future__ import annotations

import hashlib
import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import yaml
from warm import CRAFT, LIBRARIES, Warm

from craft.utils.terminal import visible

QUICK = [
    "training.max_steps=12",
    "training.eval_steps=6",
    "training.save_steps=6",
    "training.logging_steps=3",
    "training.global_batch_size=4",
    "data.block_size=16",
    "training.report_to=none",
    "training.sample_chars=20",
    "training.eval_protocols=[blocks]",
]
SMALL = {
    "char_lstm": ["models=char_lstm", "models.hidden_size=16"],
    "char_transformer": ["models=transformer", "models.hidden_size=16", "models.num_attention_heads=2"],
}


waiting: Warm


def run(folder: Path, *command: str, **environment: str) -> subprocess.CompletedProcess[str]:
    done = subprocess.run(
        command,
        cwd=folder,
        env={**os.environ, "OMP_NUM_THREADS": "1", "CRAFT_CACHE": str(folder / "cache"), **environment},
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert done.returncode == 0, f"{command}\n{done.stdout}\n{done.stderr}"
    return done


@pytest.fixture(scope="module", autouse=True)
def warm() -> Iterator[None]:
    """`craft` runs where its imports are done already."""
    global waiting
    with Warm([*LIBRARIES, *CRAFT], {**os.environ, "OMP_NUM_THREADS": "1"}) as waiting:
        yield


def craft(folder: Path, *arguments: str, status: int = 0) -> subprocess.CompletedProcess[str]:
    own = {"CRAFT_CACHE": str(folder / "cache")}
    done = waiting.python("-m", "craft", *arguments, cwd=folder, env=own)
    assert done.returncode == status, f"{arguments}\n{done.stdout}\n{done.stderr}"
    return done


def finished(folder: Path) -> list[Path]:
    return sorted((folder / "outputs" / "models").glob("*_step_*"))


def weights(model: Path) -> str:
    return hashlib.sha256((model / "model.safetensors").read_bytes()).hexdigest()


@pytest.fixture(scope="module", params=list(SMALL))
def trained(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> tuple[Path, str, str]:
    """A folder in which a text was trained on; what the terminal showed; the model type."""
    folder = tmp_path_factory.mktemp(request.param)
    text = "Größe\r\nthe quick brown fox 👩‍🚀 jumps over the lazy dog\n" * 60
    (folder / "my text.txt").write_bytes(text.encode())
    done = craft(folder, "train", "my text.txt", *SMALL[request.param], *QUICK)
    (folder / "stdout.txt").write_text(done.stdout)
    return folder, done.stderr, request.param


def test_everything_is_there_and_named_as_promised(trained: tuple[Path, str, str]) -> None:
    folder, shown, kind = trained
    (model,) = finished(folder)
    run_dir = model.with_name(model.name.removesuffix("_step_12"))
    name, stamp = run_dir.name[: -len("_20260101_000000")], run_dir.name[-15:]
    assert name.startswith(f"{kind}_")
    assert name.endswith(("_fp32", "_bf16"))
    files = {path.name for path in model.iterdir()}
    assert {
        "model.safetensors",
        "config.json",
        "generation_config.json",
        "tokenizer.json",
        "craft_run.yaml",
    } <= files
    assert {"base.py", "decoding.py"} <= files
    assert not {path.suffix for path in model.iterdir()} & {".bin", ".pt", ".pth", ".pkl"}
    assert {path.name for path in run_dir.glob("checkpoint-*")} == {"checkpoint-6", "checkpoint-12"}
    outputs = folder / "outputs"
    assert (outputs / "logs" / f"train_{kind}_{stamp}.log").stat().st_size > 100
    assert (outputs / "visualizations" / f"loss_{kind}_{stamp}.png").read_bytes().startswith(b"\x89PNG")
    assert (outputs / "samples" / f"sample_{stamp}.txt").read_text(encoding="utf-8")
    record = json.loads((outputs / "evaluation" / f"eval_{kind}_my-text_{stamp}.json").read_text())
    natural = "stateful" if kind == "char_lstm" else "blocks"
    assert [e["protocol"] for e in record["evaluations"]] == list(dict.fromkeys([natural, "blocks"]))
    assert all(e["predictions"] == e["characters"] for e in record["evaluations"])
    assert f"craft generate {model.relative_to(folder)}" in shown
    assert "bits/char" in shown
    *lines, last = (folder / "stdout.txt").read_text().splitlines()
    assert [json.loads(line)["step"] for line in lines] == [3, 6, 9, 12]
    assert last == f"FINAL {weights(model)}"


def test_evaluate_repeats_the_figures_of_the_run(trained: tuple[Path, str, str]) -> None:
    folder, _, _ = trained
    (record,) = (folder / "outputs" / "evaluation").glob("*.json")
    (expected,) = (e for e in json.loads(record.read_text())["evaluations"] if e["protocol"] == "blocks")
    done = craft(folder, "evaluate", "latest", "--protocol", "blocks", "--json")
    (again,) = json.loads(done.stdout)
    kept = folder / done.stderr.strip().removeprefix("saved ")
    assert json.loads(kept.read_text())["evaluations"] == [again]
    assert kept.parent == record.parent
    kept.unlink()  # the next test finds what training left
    assert again["nats"] == pytest.approx(expected["nats"], rel=1e-6)
    assert again["characters"] == expected["characters"]
    assert again["bits_per_char"] > again["bits_per_byte"]  # the text has characters of several bytes


def test_evaluate_places_a_model_among_baselines(trained: tuple[Path, str, str]) -> None:
    folder, _, _ = trained
    done = craft(folder, "evaluate", "latest", "--baselines")
    assert "1-gram" in done.stdout
    assert "the model is " in done.stdout
    kept = folder / done.stderr.strip().removeprefix("saved ")
    scores = json.loads(kept.read_text())
    (split,) = {each["sha256"] for each in (*scores["evaluations"], *scores["baselines"])}
    assert len(split) == 64
    assert {each["characters"] for each in scores["baselines"]} == {scores["evaluations"][0]["characters"]}
    kept.unlink()  # the next test finds what training left


def test_generate_streams_the_prompt_and_what_follows(trained: tuple[Path, str, str]) -> None:
    folder, _, _ = trained
    arguments = ("generate", "latest", "-p", "the quick", "-n", "40", "--seed", "1")
    first, second = craft(folder, *arguments).stdout, craft(folder, *arguments).stdout
    assert first == second
    assert first.startswith("the quick")
    assert len(first) >= len("the quick") + 40


def test_a_prompt_in_characters_that_the_model_does_not_know_names_them(
    trained: tuple[Path, str, str],
) -> None:
    """What somebody tries first who trained on a text in another language."""
    done = craft(trained[0], "generate", "latest", "-p", "the Ω", status=2)
    assert done.stdout == ""
    (line,) = done.stderr.splitlines()
    assert [value for value in ("'Ω' (U+03A9)", "4") if value not in line] == [], line


def test_a_terminal_is_shown_control_characters_and_a_pipe_gets_them(tmp_path: Path) -> None:
    """A model that can write nothing but the title of a window and the end of a line."""
    (tmp_path / "escapes.txt").write_text("\x1b]0;a title\x07\n" * 200)
    prompt = "training.sample_prompt=\x1b"
    trained = craft(tmp_path, "train", "escapes.txt", *SMALL["char_lstm"], *QUICK, prompt)
    (log,) = (tmp_path / "outputs" / "logs").glob("*.log")
    for shown in (trained.stderr, log.read_text(encoding="utf-8")):
        assert r"\x1b" in shown
        assert not {"\x1b", "\x07"} & set(shown)
    words = ["generate", "latest", "-p", "\x1b]0;a title\x07", "-n", "5", "--seed", "1"]
    piped = craft(tmp_path, *words).stdout
    assert piped.startswith("\x1b]0;a title\x07")
    assert on_a_terminal(tmp_path, *words) == visible(piped).replace("\n", "\r\n")


def on_a_terminal(folder: Path, *arguments: str) -> str:
    """What a terminal is sent by a command; it turns line ends into CR LF."""
    pty = pytest.importorskip("pty")
    ours, theirs = pty.openpty()
    command = [sys.executable, "-m", "craft", *arguments]
    with subprocess.Popen(command, cwd=folder, stdin=theirs, stdout=theirs, stderr=theirs) as process:
        os.close(theirs)
        sent = b""
        while piece := _read(ours):
            sent += piece
    os.close(ours)
    assert process.returncode == 0, sent
    return sent.decode()


def _read(terminal: int) -> bytes:
    try:
        return os.read(terminal, 4096)
    except OSError:  # how Linux says that nobody writes to it any more
        return b""


def test_a_pipeline_in_a_process_without_craft(trained: tuple[Path, str, str]) -> None:
    folder, _, _ = trained
    (model,) = finished(folder)
    script = f"""
import sys
class Hidden:
    def find_spec(self, name, path=None, target=None):
        if name.split('.')[0] == 'craft': raise ModuleNotFoundError(name)
sys.meta_path.insert(0, Hidden())
from transformers import pipeline
write = pipeline('text-generation', {str(model)!r}, trust_remote_code=True)
print(write('the quick', max_new_tokens=30, do_sample=False)[0]['generated_text'], end='')
"""
    text = run(folder, sys.executable, "-I", "-c", script).stdout
    greedy = craft(folder, "generate", "latest", "-p", "the quick", "-n", "30", "--greedy").stdout
    assert text.startswith("the quick")
    greedy = greedy.replace("\r\n", "\n").replace("\r", "\n")  # as text=True shows the other one
    assert greedy.rstrip("\n") == text.rstrip("\n")


def test_the_saved_run_repeats_it_bit_for_bit(trained: tuple[Path, str, str]) -> None:
    folder, _, _ = trained
    first = finished(folder)[0]
    again = folder / "again"
    again.mkdir()
    (again / "my text.txt").write_bytes((folder / "my text.txt").read_bytes())
    craft(again, "train", "--config", str(first / "craft_run.yaml"))
    (second,) = finished(again)
    assert weights(first) == weights(second)
    assert yaml.safe_load((first / "craft_run.yaml").read_text()) == yaml.safe_load(
        (second / "craft_run.yaml").read_text()
    )


def test_accelerate_launch_is_the_same_run(trained: tuple[Path, str, str], checkout: Path) -> None:
    folder, _, _ = trained
    launched = folder / "launched"
    launched.mkdir()
    (launched / "my text.txt").write_bytes((folder / "my text.txt").read_bytes())
    run(
        launched,
        *(sys.executable, "-m", "accelerate.commands.launch"),
        *("--config_file", str(checkout / "accelerate_config.yaml"), "-m", "craft.train"),
        *("--config", str(finished(folder)[0] / "craft_run.yaml")),
        ACCELERATE_USE_CPU="true",
    )
    (second,) = finished(launched)
    assert weights(finished(folder)[0]) == weights(second)


def test_a_stream_trains_without_preparing_anything(tmp_path: Path) -> None:
    rows = [json.dumps({"body": f"row {i}: the quick brown fox jumps over the lazy dog"}) for i in range(400)]
    (tmp_path / "rows.jsonl").write_text("\n".join(rows), encoding="utf-8")
    streamed = [
        "data.text_column=body",
        "data.streaming=true",
        "data.tokenizer=byte",
        "data.validation_size=500",
    ]
    craft(tmp_path, "train", "rows.jsonl", *SMALL["char_transformer"], *QUICK, *streamed)
    (model,) = finished(tmp_path)
    assert "fox" in craft(tmp_path, "generate", str(model), "-p", "fox", "-n", "5").stdout
    assert not list((tmp_path / "cache").rglob("*.npy"))


def test_a_reader_that_goes_away_costs_no_run(tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_text("the quick brown fox jumps over the lazy dog\n" * 60)
    words = [sys.executable, "-m", "craft", "train", "a.txt", *SMALL["char_transformer"], *QUICK]
    done = run(tmp_path, "bash", "-o", "pipefail", "-c", f"{' '.join(words)} | head -n 1")
    assert json.loads(done.stdout)["step"] == 3
    assert "Broken pipe" in done.stderr
    assert len(finished(tmp_path)) == 1


def record(run_dir: Path) -> dict[str, bytes]:
    return {name: (run_dir / name).read_bytes() for name in ("run.json", "craft_run.yaml", "metrics.jsonl")}


def refusal(folder: Path, *arguments: str) -> tuple[str, str]:
    """The code and the message of `craft train`."""
    done = craft(folder, "train", *arguments, status=2)
    error = json.loads(done.stdout)["error"]
    assert done.stderr.splitlines()[-1] == f"error: {error['message']}"
    return error["code"], error["message"]


def test_a_refused_run_leaves_the_record_of_the_first(tmp_path: Path) -> None:
    text = tmp_path / "a.txt"
    text.write_text("the quick brown fox jumps over the lazy dog\n" * 60)
    run_dir = tmp_path / "here"
    settings = ["a.txt", *SMALL["char_transformer"], *QUICK, "training.output_dir=here"]
    craft(tmp_path, "train", *settings)
    before = record(run_dir)
    assert sorted(path.name for path in tmp_path.glob("*here*")) == ["here", "here_step_12"]

    for changed, code, values in [
        ([], "setting-conflict", ["here", "craft resume here"]),
        (["training.sample_prompt=Ä"], "character-unknown", ["'Ä' (U+00C4)", "training.sample_prompt"]),
    ]:
        found, message = refusal(tmp_path, *(settings[:-1] if changed else settings), *changed)
        assert found == code
        assert [value for value in values if value not in message] == [], message

    text.write_text("the quick brown fox jumps over the lazy god\n" * 60)
    found, message = refusal(tmp_path, "--resume", "here", "training.max_steps=14")
    assert (found, "checkpoint-12" in message) == ("run-changed", True)
    assert record(run_dir) == before

    text.write_text("the quick brown fox jumps over the lazy dog\n" * 60)
    craft(tmp_path, "train", "--resume", "here", "training.max_steps=14")
    assert yaml.safe_load((run_dir / "craft_run.yaml").read_text())["training"]["max_steps"] == 14
    assert record(run_dir)["run.json"] == before["run.json"]
    assert (tmp_path / "here_step_14" / "model.safetensors").is_file()


def test_several_texts_are_kept_in_a_file(trained: tuple[Path, str, str]) -> None:
    folder, _, _ = trained
    before = set((folder / "outputs" / "samples").iterdir())
    several = ("-p", "the", "-p", "lazy dog", "--num-samples", "2", "-n", "10", "--seed", "1")
    done = craft(folder, "generate", "latest", *several)
    (file,) = set((folder / "outputs" / "samples").iterdir()) - before
    assert done.stdout.count("--- ") == 4
    assert done.stdout.count("lazy dog") >= 2
    assert file.read_bytes().decode() == done.stdout
    assert str(file.relative_to(folder)) in done.stderr
