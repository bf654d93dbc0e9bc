"""Which version of a model or run is fetched, and that it is whole."""

from __future__ import annotations

from pathlib import Path

import pytest
import yaml
from desk import SHORT, Desk
from server import Hub, Repo

from craft.utils.manifest import damage

FEW = ["data.block_size=8", "training.learning_rate=1e-9", *SHORT]
BUILD = """
import torch
from craft.data.tokenization import CharTokenizer
from craft.models import CharLSTMConfig, CharLSTMForCausalLM
tokenizer = CharTokenizer.train(["the quick brown fox\\n"])
for size in (8, 12):
    torch.manual_seed(size)
    config = CharLSTMConfig(vocab_size=len(tokenizer), hidden_size=size, num_hidden_layers=1)
    CharLSTMForCausalLM(config).save_pretrained(f"size{size}")
    tokenizer.save_pretrained(f"size{size}")
"""


@pytest.fixture(scope="module")
def grown(hub: Hub, office: Desk) -> Repo:
    """ada/grown: of size 8 at the tag v1 and the branch old, of size 12 since."""
    office.python(BUILD)
    office.done("push", "size8", "ada/grown", "--tag", "v1")
    office.done("push", "size8", "ada/grown", "--branch", "old")
    office.done("push", "size12", "ada/grown")
    return hub.repos["models/ada/grown"]


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "new.txt").write_text("the quick brown fox\n" * 40)
    return tmp_path


def size_of(saved: str) -> tuple[int, str]:
    models = yaml.safe_load(saved)["models"]
    return models["hidden_size"], models["init_revision"]


@pytest.mark.parametrize("name", ["v1", "old", "commit", "main", None])
def test_a_run_starts_from_the_version_that_was_asked_for(
    office: Desk, grown: Repo, folder: Path, name: str | None
) -> None:
    commit = grown.find("main" if name in (None, "main") else "v1" if name == "commit" else name)
    revision = [] if name is None else [f"models.init_revision={commit if name == 'commit' else name}"]
    asked = ["train", "new.txt", "models.init_from=ada/grown", *revision, "--print-config"]
    assert size_of(office.done(*asked, folder=folder)) == (12 if commit == grown.find("main") else 8, commit)


def test_config_tokenizer_and_weights_are_of_one_commit(
    hub: Hub, office: Desk, grown: Repo, folder: Path
) -> None:
    """The repository moves on between the three."""
    hub.add("models/ada/moving", grown.files("v1"))
    moving = hub.repos["models/ada/moving"]
    first = moving.find("main")
    saved = office.done(
        "train", "new.txt", "models.init_from=ada/moving", *FEW, "--print-config", folder=folder
    )
    (folder / "run.yaml").write_text(saved)
    moving.commit("main", grown.files("main"), "another model of that name")
    office.done("train", "--config", "run.yaml", folder=folder)
    (model,) = (folder / "outputs" / "models").glob("*_step_2")
    recorded = (model / "craft_run.yaml").read_text()
    assert size_of(recorded) == (8, first)
    again = office.done(
        "train", "--config", "run.yaml", "models.init_revision=main", "--print-config", folder=folder
    )
    assert size_of(again) == (12, moving.find("main"))
    assert "base_model: ada/moving" in (model / "README.md").read_text()


def test_every_command_says_the_same_of_a_version_that_is_not_there(
    office: Desk, grown: Repo, folder: Path
) -> None:
    def said(*words: str) -> str:
        return office.refused(*words, folder=folder)

    missing = [
        said("train", "new.txt", "models.init_from=ada/grown", "models.init_revision=v9"),
        said("generate", "ada/grown", "--revision", "v9"),
        said("evaluate", "ada/grown", "new.txt", "--revision", "v9"),
        said("resume", "ada/grown", "--revision", "v9"),
    ]
    assert len(set(missing)) == 1
    assert "'ada/grown'" in missing[0]
    assert "'v9'" in missing[0]
    assert "'ada/none'" in said("train", "new.txt", "models.init_from=ada/none")
    folder_and_revision = [f"models.init_from={office.folder / 'size8'}", "models.init_revision=v1"]
    assert "size8" in said("train", "new.txt", *folder_and_revision)
    assert "models.init_from" in said("train", "new.txt", "models.init_revision=v1")
    assert "models.init_revision" in said(
        "train", "new.txt", "models.init_from=ada/grown", "models.init_revision="
    )
    assert "new.txt" in said("resume", "new.txt", "--revision", "v1")


@pytest.fixture
def half(hub: Hub, trained: Desk, folder: Path) -> dict[str, bytes]:
    """What was on the Hub when the run was half done; its text is in the current folder."""
    text = trained.folder / "home" / "texts" / "my <b>text.txt"
    (folder / text.name).write_bytes(text.read_bytes())
    return hub.repos["models/ada/run"].after("Step 6")


def runs(folder: Path) -> list[str]:
    return sorted(path.name for path in (folder / "outputs" / "models").glob("*"))


def test_a_fetch_that_is_cut_leaves_nothing_in_the_way(
    hub: Hub, office: Desk, half: dict[str, bytes], folder: Path, model: Path
) -> None:
    repo = hub.add("models/ada/cut-run", half)
    hub.faults["download"] = 1000
    assert "'ada/cut-run'" in office.refused("resume", "ada/cut-run", status=1, folder=folder)
    hub.faults.clear()
    assert runs(folder) == []
    code = f"""
import os, shutil
from craft.sharing.upload import fetch_run
tree, done = shutil.copytree, []
def cut(source, place):
    done.append(source)
    return shutil.copy2(source, place) if len(done) < 4 else os._exit(9)
shutil.copytree = lambda *a, **k: tree(*a, **k, copy_function=cut)
os.chdir({str(folder)!r})
fetch_run("ada/cut-run")
"""
    office.run("-c", code, status=9)
    assert [name[:9] for name in runs(folder)] == [".staging-"]
    office.refused("resume", folder=folder)  # there is none
    office.done("resume", "ada/cut-run", folder=folder)
    assert len(runs(folder)) == 2  # the run and its model
    (again,) = (folder / "outputs" / "models").glob("*_step_12")
    assert (again / "model.safetensors").read_bytes() == (model / "model.safetensors").read_bytes()
    assert "craft resume outputs/models/" in office.refused("resume", "ada/cut-run", folder=folder)
    assert len(repo.commits) == 1


def test_a_damaged_checkpoint_is_not_resumed(
    hub: Hub, office: Desk, half: dict[str, bytes], folder: Path
) -> None:
    name = "last-checkpoint/model.safetensors"
    flipped = half[name][:-1] + bytes([half[name][-1] ^ 1])
    hub.add("models/ada/flipped", {**half, name: flipped})
    said = office.refused("resume", "ada/flipped", folder=folder)
    assert "ada/flipped" in said
    assert "model.safetensors" in said
    hub.add("models/ada/lacking", {path: data for path, data in half.items() if path != name})
    assert "model.safetensors" in office.refused("resume", "ada/lacking", folder=folder)
    hub.add("models/ada/torn", {**half, "last-checkpoint/run.json": b"{"})
    assert "run.json" in office.refused("resume", "ada/torn", folder=folder)
    assert runs(folder) == []


def below(folder: Path) -> list[str]:
    return sorted(path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file())


def test_a_model_is_fetched_without_its_checkpoints(
    hub: Hub, office: Desk, half: dict[str, bytes], folder: Path
) -> None:
    hub.add("models/ada/whole", half)
    office.done("generate", "ada/whole", "-n", "3", "--trust-remote-code")
    office.done("train", "new.txt", "models.init_from=ada/whole", "--print-config", folder=folder)
    (snapshot,) = (office.folder / "home" / "hf" / "hub" / "models--ada--whole").glob("snapshots/*")
    assert {"model.safetensors", "char_lstm.py"} <= set(below(snapshot))
    assert not [name for name in below(snapshot) if "/" in name]


def test_no_code_comes_with_a_checkpoint(
    hub: Hub, office: Desk, half: dict[str, bytes], folder: Path
) -> None:
    assert "last-checkpoint/char_lstm.py" in half
    hub.add("models/ada/coded", {**half, "last-checkpoint/more.py": b"1 / 0"})
    office.done("resume", "ada/coded", "--print-config", folder=folder)
    cache = office.folder / "home" / "hf" / "hub" / "models--ada--coded"
    for place in (folder / "outputs", cache):
        assert not [name for name in below(place) if name.endswith(".py")]
    (checkpoint,) = (folder / "outputs" / "models").glob("*/checkpoint-6")
    assert not damage(checkpoint, 6)
