"""docs/guides/sharing.md and loading-elsewhere.md: each command and block of code of the pages runs."""

from __future__ import annotations

import json
import re
import shlex
import signal
import subprocess
import sys
from collections.abc import Iterator
from importlib.util import find_spec
from pathlib import Path

import pytest
from desk import HIDE_CRAFT, Desk, parquet
from pages import CHECKOUT, TABLE, TINY, blocks, commands, page
from server import Hub

pytestmark = pytest.mark.interop  # two commands need its extras; the others run anyway

PROOF = """
import json, torch
ids = tokenizer("The ", return_tensors="pt").input_ids
with torch.no_grad():
    logits = model(ids).logits.flatten().tolist()
texts = {tokenizer.decode(model.generate(ids, max_new_tokens=40, do_sample=False)[0])}
if "write" in globals():
    texts.add(write("The ", max_new_tokens=40, do_sample=False)[0]["generated_text"])
print("\\n" + json.dumps([ids.tolist(), logits, *texts]))
"""
"""What is put behind a program, to see what its model and tokenizer do; and its pipeline, which is to do the
same."""
EXTRAS = {"export": ("onnx", "onnxscript", "onnxruntime"), "serve": ("fastapi", "uvicorn")}


SCRIPTS = dict(re.findall(r"```python\n# (\w+\.py)\n(.*?)```", page("sharing.md"), re.DOTALL))
GUIDE = commands("sharing.md")


@pytest.fixture(scope="module")
def reader(hub: Hub, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Desk]:
    """Someone who works through the guide: two texts, a model, a data set of theirs, and no login yet."""
    desk = Desk(hub, tmp_path_factory.mktemp("reader"), user=None)
    (desk.folder / "home").mkdir()
    (desk.folder / "my.txt").write_text("The quick brown fox jumps over a lazy dog.\n" * 60)
    (desk.folder / "new.txt").write_text("The lazy dog jumps over a quick brown fox.\n" * 60)
    for name, text in SCRIPTS.items():
        (desk.folder / name).write_text(text.replace("USER/NAME", "ada/guide"))
    rows = [f"row {n}: the quick brown fox jumps over the lazy dog" for n in range(400)]
    hub.add("datasets/ada/texts", {"data/train-00000-of-00001.parquet": parquet(text=rows)})
    desk.done("train", "my.txt", *TINY)
    yield desk
    desk.leave()


@pytest.mark.parametrize("command", GUIDE)
def test_a_command_of_the_guide_works(hub: Hub, reader: Desk, command: str) -> None:
    """In their order on the page: each finds what those before it have made."""
    typed = command.replace("USER/NAME", "ada/guide").replace("USER/TEXTS", "ada/texts")
    program, *words = shlex.split(typed)
    if program == "hf":
        tool = str(Path(sys.executable).with_name("hf"))
        subprocess.run(**{**reader.command(), "args": [tool, *words]}, stdin=subprocess.DEVNULL, check=True)
        return
    if program == "python":
        (script,) = words
        there = reader.python(HIDE_CRAFT + (reader.folder / script).read_text() + PROOF)
        here = reader.python(
            'import craft\nmodel, tokenizer = craft.load("ada/guide", revision="v1")' + PROOF
        )
        compare(there, here)
        return
    assert program == "craft"
    needed = () if "html" in words else EXTRAS.get(words[0], ())
    missing = [name for name in needed if find_spec(name) is None]
    if missing:
        pytest.skip(f"needs {', '.join(missing)}, as 'make interop' installs")
    if words[0] == "serve":
        serve(reader, words)
        return
    folder = reader.folder
    if "--into" in words:  # a run and a step that the guide makes up
        words[1] = str(next((folder / "outputs" / "models").glob("*/checkpoint-4")))
    if words[0] == "resume":
        folder = elsewhere(hub, reader)
    reader.done(*words, *(TINY if words[0] == "train" else []), folder=folder)
    if words[0] == "resume":
        here, there = (newest_model(at) / "model.safetensors" for at in (folder, reader.folder))
        assert here.read_bytes() == there.read_bytes()


def compare(there: str, here: str) -> None:
    """The ends of what two programs with `PROOF` printed: ids, logits and the one text."""
    assert "[y/N]" not in there  # transformers' question whether to run code
    (ids, logits, text), (own_ids, own_logits, own_text) = (
        json.loads(printed.splitlines()[-1]) for printed in (there, here)
    )
    assert (ids, text) == (own_ids, own_text)
    assert len(text) > len("The ")
    assert logits == pytest.approx(own_logits, abs=1e-6)
    assert len(set(own_logits)) > 1


def newest_model(home: Path) -> Path:
    return max((home / "outputs" / "models").glob("*_step_4"), key=lambda path: path.stat().st_mtime_ns)


def elsewhere(hub: Hub, reader: Desk) -> Path:
    """Another machine with the same text; of the run it finds what was there when it was half done."""
    repo = hub.repos["models/ada/guide"]
    half = len(repo.messages) - 1 - repo.messages[::-1].index("Step 2")
    repo.branches["main"] = list(repo.commits)[half]
    folder = reader.folder / "elsewhere"
    folder.mkdir()
    (folder / "my.txt").write_bytes((reader.folder / "my.txt").read_bytes())
    return folder


def serve(reader: Desk, words: list[str]) -> None:
    command = reader.command("-m", "craft", *words, "--port", "0")
    server = subprocess.Popen(**command, stderr=subprocess.PIPE)
    assert server.stderr is not None
    assert any("/v1" in line for line in server.stderr)
    server.send_signal(signal.SIGTERM)
    assert server.wait(timeout=60) == 0


def test_nothing_of_the_pages_is_left_out() -> None:
    """Blocks are commands, or scripts that a command calls; the table has no row that isn't understood."""
    for kind, text in blocks("sharing.md"):
        assert kind in ("bash", "python")
        assert kind == "bash" or any(text == f"# {name}\n{script}" for name, script in SCRIPTS.items())
    assert {f"python {name}" for name in SCRIPTS} <= set(GUIDE)
    rows = page("sharing.md").partition("| client |")[2].partition("\n\n")[0].splitlines()[2:]
    assert len(rows) == len(TABLE.findall(page("sharing.md"))) >= 4
    assert all(command.split()[0] in ("craft", "hf", "python") for command in GUIDE)
    assert len(GUIDE) >= 16


@pytest.mark.parametrize("row", TABLE.finditer(page("sharing.md")), ids=lambda row: row["client"])
def test_the_versions_are_those_of_the_constraints(row: re.Match[str]) -> None:
    pins = (CHECKOUT / "constraints.txt").read_text()
    name = row["client"].replace("_", "-").split("'")[0]
    assert re.search(rf"^{re.escape(name)}=={re.escape(row['version'])}(?![\d.])", pins, re.MULTILINE)


def test_the_blocks_of_loading_elsewhere_work(hub: Hub, reader: Desk) -> None:
    """The first where craft is, the others one after the other where it can't be imported."""
    found = blocks("loading-elsewhere.md")
    assert all(kind == "python" for kind, _ in found)
    model = newest_model(reader.folder).name
    here, *others = (text.replace("…_step_1000", model) for _, text in found)
    inline = re.findall(r"`(craft\.load\([^`]+\))`", page("loading-elsewhere.md"))
    assert inline
    typed = "\n".join(inline).replace("USER/NAME", "ada/guide")
    compare(reader.python(HIDE_CRAFT + "\n".join(others) + PROOF), reader.python(here + PROOF))
    reader.python(f"{here}\n{typed}" + PROOF)
    for command in commands("loading-elsewhere.md"):
        reader.done(*shlex.split(command.replace("USER/NAME", "ada/guide"))[1:])
