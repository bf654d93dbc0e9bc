"""What craft does, as a list of facts by which two commits are compared. Not collected by pytest.

For whoever turns the inside of craft round and must not change what it does: weights to the last bit,
figures, texts, settings. Run it before and after, and look at the difference; none is the goal:

    python tests/behaviour.py --out before.txt --save before   # in the old commit
    python tests/behaviour.py --out after.txt; diff before.txt after.txt
    python tests/behaviour.py --load before                    # old models and runs by the new code

Each line is a name and a value, the same in each run on one machine (another machine or another torch has
others). `--only lstm export` takes the facts of such names. An older commit is measured by laying this file
into its tests/: it uses the command line and public names alone. `--load` compares with what was saved, and
resumes the runs that the old code left unfinished: to the end that they would have had, or they are refused
in one sentence, which is the fact then. The status is 1 where a fact must equal another one and doesn't, or
something failed; else 0. Some minutes on two cores, in a temporary folder.
"""

from __future__ import annotations

import argparse
import hashlib
import importlib.util
import json
import multiprocessing
import os
import re
import runpy
import shutil
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from functools import partial
from multiprocessing import forkserver
from pathlib import Path
from random import Random
from typing import Any, NamedTuple

CHECKOUT = Path(__file__).resolve().parent.parent
TWO = ["torch.distributed.run", "--standalone", "--nproc_per_node", "2", "-m", "craft.train"]
forks = multiprocessing.get_context("forkserver")

STEPS, THIRD = 120, 40
MODEL = f"run_step_{STEPS}"
SETTINGS = [
    *("text.txt", "data.block_size=32", "training.precision=fp32", "training.use_cpu=true"),
    *("training.global_batch_size=8", f"training.max_steps={STEPS}", f"training.save_steps={THIRD}"),
    *("training.eval_steps=30", "training.logging_steps=1", "training.sample_chars=0"),
    *("training.report_to=none", "training.output_dir=run"),
]
LSTM = ["models=char_lstm", "models.hidden_size=48", "models.num_hidden_layers=2"]
HEADS = ["models.hidden_size=48", "models.num_hidden_layers=2", "models.num_attention_heads=2"]
RUNS = {
    "lstm": [*LSTM, "training.optim=adamw_torch_fused"],
    "transformer": ["models=transformer", *HEADS],
    "accumulation": [*LSTM, "models.dropout=0.2", "training.gradient_accumulation_steps=2"],
    "ema": ["models=gpt2", *HEADS, "models.dropout=0.1", "training.optim=muon", "training.ema_decay=0.9"],
    "processes": LSTM,
    "stream": [
        *("models=transformer", *HEADS, "data.streaming=true", "data.lanes=8"),
        *("data.tokenizer=byte", "data.validation_size=2000"),
    ],
    "init-from": [f"models.init_from=../lstm/{MODEL}", "models.dropout=0.1", "training.seed=7"],
}
"""The runs whose weights are facts; all in fp32."""
KILLED = {"killed-accumulation": "accumulation", "killed-ema": "ema"}
"""The same as another run, killed behind a third of its steps and resumed."""
PROTOCOLS = {"lstm": ("blocks", "sliding-8", "stateful"), "transformer": ("blocks", "sliding-8")}
"""Of each model that is put to use after its run."""
EXPERIMENTS = sorted(path.stem for path in (CHECKOUT / "configs" / "experiments").glob("*.yaml"))
OF_A_CLOCK = ("elapsed", "wall", "runtime", "per_second")

Facts = dict[str, str]


class Failure(Exception):
    """What a fact should have been made of didn't work; the message says what was seen."""


class Ended(NamedTuple):
    """A process that came to its end; its status is minus the number of a signal that killed it."""

    status: int
    out: str
    err: str


def prepare(home: Path) -> None:
    """Makes an environment in which the user's own settings and caches are unknown, and the server from which
    all processes are forked: it has torch and transformers imported, which costs each more than its work."""
    own = ("CRAFT_", "HF_", "WANDB_", "ACCELERATE_", "TRANSFORMERS_", "XDG_")
    for name in [name for name in os.environ if name.startswith(own)]:
        del os.environ[name]
    home.mkdir()
    os.environ |= {
        **{"HOME": str(home), "CRAFT_CACHE": str(home / "craft"), "HF_HOME": str(home / "huggingface")},
        **{"HF_HUB_OFFLINE": "1", "PYTHONPATH": str(CHECKOUT)},
        **{"OMP_NUM_THREADS": "1", "MKL_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": ""},
    }
    sys.path[0] = str(CHECKOUT)  # instead of tests/; forked processes get it
    forks.set_forkserver_preload(["torch", "transformers.trainer"])
    forkserver.ensure_running()


def forked(folder: Path, variables: dict[str, str], function: Callable[..., None], *words: str) -> None:
    """In a process of its own: the function, in a folder to whose files .out-PID and .err-PID it prints."""
    os.chdir(folder)
    os.environ |= variables
    for name, number in ((f".out-{os.getpid()}", 1), (f".err-{os.getpid()}", 2)):
        os.dup2(os.open(name, os.O_WRONLY | os.O_CREAT, 0o644), number)
    function(*words)


def module(name: str, *words: str) -> None:
    """`python -m NAME WORDS`."""
    sys.argv = [name, *words]
    runpy.run_module(name, run_name="__main__", alter_sys=True)


def pad_and_beam(folder: str, *prompts: str) -> None:
    """Prints the logits of a batch padded on the left, also by the code beside the weights, and beams."""
    from transformers import AutoModelForCausalLM

    elsewhere = AutoModelForCausalLM.from_pretrained(folder, trust_remote_code=True).eval()

    import craft  # not before: the model above does without

    model, tokenizer = craft.load(folder)
    batch = tokenizer(list(prompts), return_tensors="pt", padding=True)
    seen = batch.attention_mask.bool()
    assert not seen[:, 0].all(), "nothing is padded on the left"
    logits = [network(**batch).logits[seen].detach().float() for network in (model, elsewhere)]
    sums = [hashlib.sha256(each.numpy().tobytes()).hexdigest() for each in logits]
    beams = model.generate(**batch, num_beams=3, max_new_tokens=40, do_sample=False)
    print(json.dumps([*sums, tokenizer.batch_decode(beams, skip_special_tokens=True)]))


class Net:
    """The facts of this checkout; each run has a folder of its own in `folder`."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.jobs: dict[str, Future[Facts]] = {}

    def start(self, where: str, function: Callable[..., None], *words: str, **variables: str) -> Any:
        process = forks.Process(target=forked, args=(self.folder / where, variables, function, *words))
        process.start()
        return process

    def end(self, where: str, process: Any) -> Ended:
        process.join(280)
        process.kill()
        process.join()
        out, err = (self.folder / where / f".{name}-{process.pid}" for name in ("out", "err"))
        said = [file.read_text(encoding="utf-8") if file.exists() else "" for file in (out, err)]
        return Ended(process.exitcode, *said)

    def craft(self, where: str, *words: str) -> Ended:
        return self.end(where, self.start(where, module, "craft", *words))

    def done(self, where: str, *words: str) -> str:
        """What a command printed that must succeed."""
        return successful(self.craft(where, *words))

    # ---- The jobs

    def train(self, name: str) -> Facts:
        """A run from its start to its end."""
        if name == "init-from":
            self.jobs["lstm"].result()
        write_text(self.folder / name)
        settings = [*SETTINGS, *RUNS[name]]
        if name == "processes":
            both = self.start(name, module, *TWO, *settings, ACCELERATE_USE_CPU="true")
            said = successful(self.end(name, both))
        else:
            said = self.done(name, "train", *settings)
        return {"final": final(said), **logged(said)}

    def kill(self, name: str) -> None:
        """A run that is killed once it has a checkpoint."""
        write_text(self.folder / name)
        running = self.start(name, module, "craft", "train", *SETTINGS, *RUNS[KILLED[name]])
        while running.is_alive() and not (self.folder / name / "run" / f"checkpoint-{THIRD}").exists():
            time.sleep(0.002)
        running.kill()
        ended = self.end(name, running)
        if ended.status >= 0:
            raise Failure(f"ended before it was killed: {last_words(ended.err)}")

    def resume(self, name: str, undisturbed: Callable[[], str], may_refuse: bool = False) -> Facts:
        """An unfinished run to its end, which must be that of the run to which nothing happened."""
        ended = self.craft(name, "resume", "run")
        errors = [line for line in ended.err.splitlines() if line.startswith("error: ")]
        if may_refuse and ended.status == 2 and len(errors) == 1 and "Traceback" not in ended.err:
            return {"resumed": f"refused: {errors[0]}"}
        facts = {"resumed": final(successful(ended)), "undisturbed": undisturbed()}
        if facts["resumed"] != facts["undisturbed"]:
            raise Failure(f"resumed to {facts['resumed']}, undisturbed it is {facts['undisturbed']}")
        return facts

    def kill_and_resume(self, name: str, kept: Path | None) -> Facts:
        self.kill(name)
        if kept:
            shutil.copytree(self.folder / name, kept / name)  # before it goes on
        return self.resume(name, lambda: self.jobs[KILLED[name]].result()["final"])

    def evaluate(self, name: str) -> Facts:
        self.wait_for(name)
        words = [word for protocol in PROTOCOLS[name] for word in ("--protocol", protocol)]
        scores = json.loads(self.done(name, "evaluate", MODEL, "--json", *words))
        figures = {f"{each['protocol']} bits_per_char": repr(each["bits_per_char"]) for each in scores}
        return {**figures, "all figures": sha256(json.dumps(scores, sort_keys=True))}

    def generate(self, name: str) -> Facts:
        self.wait_for(name)
        words = ["generate", MODEL, "-n", "200", "-p", "Grö"]
        several = ["--greedy", "-p", "the quick", "-p", ""]
        sampled = ["--seed", "7", "-t", "0.9", "--top-k", "20", "--top-p", "0.95", "--min-p", "0.01"]
        return {
            "greedy": sha256(self.done(name, *words, *several)),
            "sampled": sha256(self.done(name, *words, *sampled)),
        }

    def use(self, name: str) -> Facts:
        """By Python; see `pad_and_beam`."""
        self.wait_for(name)
        ended = self.end(name, self.start(name, pad_and_beam, MODEL, "the quick", "a", ""))
        logits, elsewhere, beams = json.loads(successful(ended))
        if logits != elsewhere:
            raise Failure("the code beside the weights gives other logits than craft")
        return {"logits": logits, "beams": sha256(json.dumps(beams))}

    def finished(self, name: str) -> Facts:
        """What happens when a run that is finished should be resumed."""
        self.wait_for(name)
        ended = self.craft(name, "resume", "run")
        said = "says" if "is finished" in ended.out + ended.err else "doesn't say"
        return {"resume": f"status {ended.status}, {said} that it is finished"}

    def export(self, name: str) -> Facts:
        """The command compares the file with torch before it ends."""
        if not all(importlib.util.find_spec(package) for package in ("onnx", "onnxruntime")):
            return {"onnx": "not installed"}
        self.wait_for(name)
        self.done(name, "export", MODEL, "--output", "onnx")
        shutil.rmtree(self.folder / name / "onnx")
        return {"onnx": "equals torch"}

    def configuration(self) -> Facts:
        """The composed settings of each experiment."""
        printed = partial(self.done, ".", "train", "--print-config")
        return {name: sha256(printed(f"experiments={name}")) for name in EXPERIMENTS}

    def wait_for(self, name: str) -> None:
        if name in self.jobs:  # else the run was there before
            self.jobs[name].result()


def write_text(folder: Path) -> None:
    """The text of all runs: made-up words, each with a few that may follow it; some letters are two bytes."""
    random = Random(7)
    syllables = ["the", "qui", "ck", "Grö", "ße", "ra", "no", "ti", "lu", "em", "är", "so", "ven", "ka"]
    words = ["".join(random.choices(syllables, k=random.randint(1, 3))) for _ in range(40)]
    following = {word: random.sample(words, 3) for word in words}
    text = ["the", "quick", words[0]]
    while len(text) < 6000:
        text.append(random.choices(following[text[-1]], weights=[8, 2, 1])[0])
    lines = (" ".join(text[start : start + 10]) + "\n" for start in range(0, len(text), 10))
    folder.mkdir()
    (folder / "text.txt").write_bytes("".join(lines).encode())


def successful(ended: Ended) -> str:
    if ended.status:
        raise Failure(f"status {ended.status}: {last_words(ended.err)}")
    return ended.out


def final(said: str) -> str:
    found = re.findall(r"^FINAL ([0-9a-f]{64})$", said, flags=re.MULTILINE)
    if len(found) != 1:
        raise Failure(f"{len(found)} lines with FINAL")
    return found[0]


def logged(said: str) -> Facts:
    """What a run prints for programs, without what a clock decides; the last score, by itself."""
    steps = [json.loads(line) for line in said.splitlines() if line.startswith("{")]
    kept = [{k: v for k, v in step.items() if not k.endswith(OF_A_CLOCK)} for step in steps]
    unit = "byte" if any("bits_per_byte" in step for step in kept) else "char"  # of the run's tokenizer
    scores = [step[key] for step in kept if (key := f"eval_bits_per_{unit}") in step]
    return {"last score": repr(scores[-1]), "logged": sha256(json.dumps(kept, sort_keys=True))}


def last_words(text: str) -> str:
    return next((line for line in reversed(text.splitlines()) if line.strip()), "(nothing said)")


def sha256(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()


def planned(net: Net, saved: Facts | None, keep: Path | None) -> dict[str, Callable[[], Facts]]:
    """All jobs in the order in which they begin: a job waits for earlier ones only.

    Args:
        saved: the facts that came with the runs, if these are there already.
        keep: where killed runs are copied.
    """
    uses = {
        f"{name} {use.__name__}": partial(use, name)
        for name in PROTOCOLS
        for use in (net.evaluate, net.generate, net.use, net.finished, net.export)
    }
    if saved is None:
        runs: dict[str, Callable[[], Facts]] = {name: partial(net.train, name) for name in RUNS}
        killed = {name: partial(net.kill_and_resume, name, keep) for name in KILLED}
        return {**runs, **killed, **uses, "configuration": net.configuration}
    resumed = {
        name: partial(net.resume, name, partial(saved.__getitem__, f"{whole} final"), may_refuse=True)
        for name, whole in KILLED.items()
    }
    return {**uses, **resumed}


def chosen(jobs: Sequence[str], only: Sequence[str] | None) -> list[str]:
    """The jobs that one of the words names, and those that they wait for."""
    if not only:
        return list(jobs)
    wanted = {job for job in jobs if job in only or set(job.split()) & set(only)}
    if unknown := [word for word in only if not any(word == job or word in job.split() for job in jobs)]:
        raise SystemExit(f"--only {' '.join(unknown)}: none of {', '.join(jobs)}")
    for job in [*wanted]:
        wanted |= {job.split()[0], KILLED.get(job, job), *(["lstm"] if job == "init-from" else [])}
    return [job for job in jobs if job in wanted]


def read_facts(path: Path) -> Facts:
    lines = path.read_text(encoding="utf-8").splitlines()
    return dict(line.split("  ", 1) for line in lines)  # type: ignore[misc]


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--only", nargs="+", metavar="NAME", help="these facts and what they need")
    parser.add_argument("--out", type=Path, metavar="FILE", help="write the lines there too")
    folders = parser.add_mutually_exclusive_group()
    folders.add_argument("--save", type=Path, metavar="FOLDER", help="a new folder for the models and runs")
    folders.add_argument("--load", type=Path, metavar="FOLDER", help="use a saved one instead of training")
    options = parser.parse_args(arguments)
    if options.save and (options.only or options.save.exists()):
        parser.error("--save makes a new folder with all runs: name one that isn't there, and no --only")
    if options.save:
        options.save.mkdir(parents=True)
    with tempfile.TemporaryDirectory(prefix="craft-behaviour-") as name:
        return look(options, Path(name))


def look(options: Any, scratch: Path) -> int:
    """Makes the facts, prints each as soon as those before it are there, and says what is wrong."""
    saved = None
    if options.load:
        saved = read_facts(options.load / "facts.txt")
        shutil.copytree(options.load, scratch / "runs")  # a saved folder stays as it is
    else:
        (scratch / "runs").mkdir()
    prepare(scratch / "home")
    net = Net(scratch / "runs")
    jobs = planned(net, saved, options.save)
    lines, wrong = [], []
    with ThreadPoolExecutor(2) as pool:
        for job in chosen([*jobs], options.only):
            net.jobs[job] = pool.submit(jobs[job])
        for job, future in net.jobs.items():
            try:
                facts = future.result()
            except (Failure, OSError, ValueError, KeyError) as error:
                facts = {"failed": " ".join(str(error).split())}
                wrong.append(f"{job}: {facts['failed']}")
            for what, value in facts.items():
                line = f"{job} {what}  {value}"
                print(line, flush=True)
                lines.append(line)
                was = value if saved is None else saved.get(f"{job} {what}")
                if was != value and what != "failed" and not value.startswith("refused: "):
                    wrong.append(f"{job} {what}: it was {was} when it was saved")
    text = "".join(f"{line}\n" for line in lines)
    if options.out:
        options.out.write_text(text, encoding="utf-8")
    if options.save:
        for run in (name for name in PROTOCOLS if name in net.jobs):
            shutil.copytree(net.folder / run, options.save / run)
        (options.save / "facts.txt").write_text(text, encoding="utf-8")
    for each in wrong:
        print(f"wrong: {each}", file=sys.stderr)
    return 1 if wrong else 0


if __name__ == "__main__":
    raise SystemExit(main())
