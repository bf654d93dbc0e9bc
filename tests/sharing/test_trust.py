"""What is loaded and what isn't: pickles, files that lead elsewhere, other people's code."""

from __future__ import annotations

import json
import pickle
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest
from refusals import refused

from craft.building import build_model
from craft.data.arguments import DataArguments
from craft.data.loaders import load_corpus
from craft.data.tokenization import CharTokenizer
from craft.inference import load
from craft.sharing.trust import PICKLES, check_folder, trusted

TINY = {"model_type": "char_lstm", "hidden_size": 8, "num_hidden_layers": 1}


class Bomb:
    def __reduce__(self) -> tuple[object, tuple[str]]:
        return open, ("exploded", "w")  # type: ignore[return-value]


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    tokenizer = CharTokenizer.train(["abc\n"])
    path = tmp_path / "model"
    build_model(TINY, tokenizer, block_size=8, documents=False).save_pretrained(path)
    tokenizer.save_pretrained(path)
    return path


def sharded(folder: Path, name: str) -> None:
    (folder / "model.safetensors").unlink()
    index = {"metadata": {}, "weight_map": {"lm_head.weight": name}}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index), encoding="utf-8")


def test_a_pickle_is_not_opened(folder: Path) -> None:
    (folder / "model.safetensors").unlink()
    (folder / "pytorch_model.bin").write_bytes(pickle.dumps(Bomb()))
    with refused("code-untrusted", "pytorch_model.bin", "save_pretrained"):
        load(folder)
    assert not Path("exploded").exists()


@pytest.mark.parametrize("suffix", PICKLES)
def test_no_kind_of_pickle_is_opened(tmp_path: Path, suffix: str) -> None:
    (tmp_path / f"weights{suffix}").write_bytes(b"")
    with refused("code-untrusted", f"weights{suffix}"):
        check_folder(tmp_path)


def test_an_adapter_of_another_model_is_refused(folder: Path) -> None:
    (folder / "adapter_config.json").write_text('{"base_model_name_or_path": "bob/other"}')
    with refused("code-untrusted", "adapter_config.json", "merge_and_unload"):
        load(folder)


@pytest.mark.parametrize(
    "name",
    [
        *(
            "../other.safetensors",
            "/etc/passwd",
            "/etc/x.safetensors",
            "sub/w.safetensors",
            "..",
            "a.bin",
            "C:x",
        ),
        *("sub\\w.safetensors", "C:x.safetensors"),
    ],
)
def test_an_index_that_leads_out_of_the_folder_is_refused(folder: Path, name: str) -> None:
    sharded(folder, name)
    with refused("model-invalid", repr(name)):
        load(folder)


def test_an_index_without_its_files_is_refused(folder: Path) -> None:
    sharded(folder, "gone.safetensors")
    with refused("model-invalid", "gone.safetensors"):
        load(folder)
    (folder / "model.safetensors.index.json").write_text("[]", encoding="utf-8")
    with refused("model-invalid", "model.safetensors.index.json"):
        load(folder)


def test_a_link_out_of_the_folder_is_refused(folder: Path, tmp_path: Path) -> None:
    (folder / "model.safetensors").rename(tmp_path / "elsewhere.safetensors")
    (folder / "model.safetensors").symlink_to(tmp_path / "elsewhere.safetensors")
    with refused("code-untrusted", folder / "model.safetensors"):
        load(folder)
    cache = tmp_path / "models--ada--x"
    (cache / "blobs").mkdir(parents=True)
    (cache / "snapshots").mkdir()
    (tmp_path / "elsewhere.safetensors").rename(cache / "blobs" / "aa")
    (folder / "model.safetensors").unlink()
    moved = folder.rename(cache / "snapshots" / "0123")
    (moved / "model.safetensors").symlink_to("../../blobs/aa")
    check_folder(moved)  # as the Hub's own cache has it
    with refused("code-untrusted", "model.safetensors"):
        check_folder(moved.parent.rename(cache / "copies") / "0123")


def test_code_runs_only_if_this_command_says_so(folder: Path, tmp_path: Path) -> None:
    """A model that craft doesn't know, with code beside it that leaves a trace."""
    config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    config["model_type"] = "another"
    config["auto_map"] = {key: f"own.{value.split('.')[1]}" for key, value in config["auto_map"].items()}
    (folder / "config.json").write_text(json.dumps(config), encoding="utf-8")
    code = (folder / "char_lstm.py").read_text(encoding="utf-8").replace('"char_lstm"', '"another"')
    head, future, tail = code.partition("from __future__ import annotations\n")
    (folder / "own.py").write_text(f"{head}{future}open({str(tmp_path / 'ran')!r}, 'w').close()\n{tail}")
    command = [sys.executable, "-m", "craft", "generate", str(folder), "-p", "a", "-n", "3"]

    def run(*more: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [*command, *more],
            capture_output=True,
            text=True,
            cwd=tmp_path,
            stdin=subprocess.DEVNULL,
            timeout=120,
        )

    done = run()
    assert done.returncode == 2
    assert "--trust-remote-code" in done.stderr
    assert not (tmp_path / "ran").exists()
    asked = run("--trust-remote-code")
    assert asked.returncode == 0, asked.stderr
    assert (tmp_path / "ran").exists()


def test_code_of_another_repository_is_refused(folder: Path) -> None:
    config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    config["auto_map"]["AutoModelForCausalLM"] = "eve/evil--own.Model"
    (folder / "config.json").write_text(json.dumps(config), encoding="utf-8")
    with refused("code-untrusted", folder / "config.json", "eve/evil--own.Model"):
        load(folder, trust_remote_code=True)


@pytest.mark.parametrize("name", ["config.json", "tokenizer_config.json"])
@pytest.mark.parametrize(
    "auto_map", [{"AutoTokenizer": [None, "eve/evil--own.T"]}, ["eve/evil--own.T"], "eve/evil--own.T"]
)
def test_code_of_another_repository_is_found_in_every_form(
    tmp_path: Path, name: str, auto_map: object
) -> None:
    (tmp_path / "model.safetensors").write_bytes(b"")
    (tmp_path / name).write_text(json.dumps({"auto_map": auto_map}), encoding="utf-8")
    with refused("code-untrusted", tmp_path / name, "eve/evil--own.T"):
        check_folder(tmp_path)


def test_a_revision_of_a_local_folder_is_refused(folder: Path) -> None:
    with refused("setting-conflict", "--revision v1", folder):
        trusted(str(folder), "v1")


def test_an_archive_is_read_and_never_unpacked(tmp_path: Path) -> None:
    inside = tmp_path / "in"
    inside.mkdir()
    with zipfile.ZipFile(inside / "a.zip", "w") as archive:
        archive.writestr("../../out.txt", "the quick brown fox\n" * 20)
        archive.writestr("/absolute.txt", "jumps\n" * 20)
    before = {path for path in tmp_path.rglob("*") if path.is_file()}
    data = DataArguments(path=str(inside / "a.zip"), block_size=8, cache_dir=str(tmp_path / "cache"))
    assert load_corpus(data).n_units == 20 * 20 + 6 * 20
    written = {path for path in tmp_path.rglob("*") if path.is_file()} - before
    assert all(path.is_relative_to(tmp_path / "cache") for path in written)
    assert not (tmp_path.parent / "out.txt").exists()
