"""What others see of a run: names instead of paths, and no secret anywhere."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import pytest
from record_folder import folder_of
from refusals import refused

from craft.sharing.bundle import bundle, check, sanitized_file
from craft.sharing.privacy import name_of, sanitized, sanitized_run, sanitized_text

TOKEN = "planted-token-0123456789"


def read(content: bytes | Path) -> bytes:
    return content if isinstance(content, bytes) else content.read_bytes()


@pytest.fixture(autouse=True)
def machine(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    home = tmp_path / "users" / "ada"
    (home / "work").mkdir(parents=True)
    monkeypatch.setenv("HOME", str(home))
    monkeypatch.setenv("MY_SECRET_TOKEN", TOKEN)
    monkeypatch.chdir(home / "work")
    monkeypatch.setenv("PWD", str(home / "work"))
    return home


@pytest.mark.parametrize(
    ("path", "name"),
    [
        ("/home/ada/texts/my.txt", "my.txt"),
        ("texts/my.txt", "my.txt"),
        ("C:\\Users\\ada\\my.txt", "my.txt"),
        ("~/books/**/*.txt", "*.txt"),
        ("/home/ada/", "ada"),
    ],
)
def test_a_path_is_reduced_to_its_name(path: str, name: str) -> None:
    assert name_of(path) == name
    run = {
        "data": {"source": "files", "path": path, "cache_dir": path},
        "training": {"output_dir": path, "resume_from_checkpoint": path},
        "models": {"init_from": path},
    }
    assert sanitized_run(run) == {
        "data": {"source": "files", "path": name, "cache_dir": None},
        "training": {"output_dir": None, "resume_from_checkpoint": name},
        "models": {"init_from": name},
    }


PLACES = (
    *("/data/ada l/x.txt", "~/ada l/x.txt", "./ada l/x.txt", "../ada l/x.txt", "file:/ada l/x.txt"),
    *("C:/ada l/x.txt", "C:\\ada l\\x.txt", ".\\ada l\\x.txt", "\\\\ada l\\my\\x.txt"),
)


@pytest.mark.parametrize("place", PLACES)
def test_a_value_that_looks_like_a_path_is_reduced_to_its_name(place: str) -> None:
    assert sanitized({"note": place, "notes": [place]}) == {"note": "x.txt", "notes": ["x.txt"]}


@pytest.mark.parametrize("name", ["path", "dir", "file", "folder", "from", "checkpoint"])
def test_the_value_of_a_path_setting_is_reduced_to_its_name(name: str) -> None:
    fields = {
        name: "ada/x.txt",
        f"its_{name}": ["ada/x.txt"],
        f"{name}s": "ada/x.txt",
        f"un{name}": "ada/x.txt",
    }
    assert sanitized(fields) == {**fields, name: "x.txt", f"its_{name}": ["x.txt"]}


def test_an_address_keeps_neither_its_user_nor_what_follows_the_path() -> None:
    for more in ("?token=x", "#here", "?a#b"):
        assert (
            sanitized(f"https://ada:pw@example.org:8080/a/b.txt{more}") == "https://example.org:8080/a/b.txt"
        )


def test_folders_are_known_by_every_spelling(machine: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """That of a link, too, and what it leads to; neighbours whose names begin alike are others' folders."""
    link = machine.parent / "link"
    link.symlink_to(machine, target_is_directory=True)
    monkeypatch.setenv("HOME", str(link))
    monkeypatch.setenv("PWD", str(link / "work"))
    for said, shown in (
        (f"{link}/x {machine}/y", "~/x ~/y"),
        (f"{link}/work/x {machine}/work/y", "./x ./y"),
        (f"{machine}m/x {machine}-old", f"{machine}m/x {machine}-old"),
        (f"({machine}), {link}.", "(~), ~."),
    ):
        assert sanitized_text(said) == shown


def test_a_short_folder_is_a_path_only_before_another_name(monkeypatch: pytest.MonkeyPatch) -> None:
    for home, said, shown in (
        ("/ada", "the words /ada and /adam, not /ada/x", "the words /ada and /adam, not ~/x"),
        ("/", "and/or /data/x, http://a.example", "and/or /data/x, http://a.example"),
    ):
        monkeypatch.setenv("HOME", home)
        assert sanitized_text(said) == shown


def test_a_sanitized_run_keeps_what_is_not_private() -> None:
    run: dict[str, Any] = {
        "experiment": "none",
        "models": {"init_from": "ada/base", "init_revision": "0" * 40, "hidden_size": 16},
        "data": {"source": "hub", "path": "ada/lines", "cache_dir": None, "text_column": "text"},
        "training": {
            "learning_rate": 0.1,
            "sample_prompt": "/",
            "hub_model_id": "ada/x",
            "push_to_hub": True,
        },
    }
    shown = sanitized_run(run)
    assert shown["models"] == run["models"]
    assert shown["data"] == run["data"]
    assert shown["training"] == {"learning_rate": 0.1, "sample_prompt": "/"}
    assert sanitized("https://ada:pw12345678@example.org/a.txt?sig=1") == "https://example.org/a.txt"


def test_only_the_sections_of_a_run_are_shared() -> None:
    assert sanitized_run({"experiment": "none", "host": "ada-laptop", "data": ["x"], "models": {"a": 1}}) == {
        "experiment": "none",
        "models": {"a": 1},
    }


def test_texts_lose_folders_and_secrets(machine: Path) -> None:
    said = f"in {machine}/work/a.txt and {machine}/b.txt with {TOKEN}, hf_abcdefghijklmnop12"
    assert sanitized_text(said) == "in ./a.txt and ~/b.txt with ***, ***"


def test_folders_of_this_machine_show_as_signs_wherever_they_stand(machine: Path) -> None:
    words, shown = f"see {machine}/x here", "see ~/x here"
    run = {"training": {"run_name": words}, "models": {"notes": {words: [words]}}, "data": {"name": words}}
    assert sanitized_run(run) == {
        "training": {"run_name": shown},
        "models": {"notes": {shown: [shown]}},
        "data": {"name": shown},
    }
    assert sanitized_run({"training": {"sample_prompt": "/data/x"}})["training"]["sample_prompt"] == "/data/x"


@pytest.mark.parametrize(
    "words",
    [
        "and/or, he/she/they, 1/2/2024, s/a/b/g",
        "see https://example.org/a/b/c?d=/e and //example.org/a",
        "<s>, </s>, <br/>, /kæt/ and /dɒɡ/, either / or, /, //, /* a */",
        "ratio a:b, 12:30, c: d, note: /x",
        "ada/lstm of user/name, ./a/b and ../c/d",
        "a\\nb \\d+",
    ],
)
def test_words_with_slashes_stay(words: str) -> None:
    assert sanitized({"name": words, words: 1}) == {"name": words, words: 1}


@pytest.mark.parametrize("name", ["craft_run.yaml", "progress.json"])
def test_a_file_that_cannot_be_read_is_not_shared(tmp_path: Path, name: str) -> None:
    (tmp_path / name).write_text("{[ /data/proj/x")
    with refused("model-invalid", tmp_path / name):
        sanitized_file(tmp_path / name)


def test_no_file_of_a_bundle_holds_secrets_or_folders(tmp_path: Path, machine: Path) -> None:
    folder = folder_of(tmp_path / "m", sample=f"see {machine}/x and {TOKEN}")
    (folder / "config.json").write_text(f'{{"model_type": "a", "_name_or_path": "{machine}/old"}}')
    (folder / "metrics.jsonl").write_text(f'{{"step": 1, "sample": "{TOKEN} {machine}/y"}}\n{{"ste')
    (folder / "training_args.json").write_text(f'{{"output_dir": "{machine}"}}')
    (folder / "optimizer.pt").write_bytes(b"pickle")
    files = bundle(folder, "ada/x")
    assert not {"training_args.json", "optimizer.pt"} & set(files)
    for content in files.values():
        assert TOKEN.encode() not in read(content)
        assert str(machine).encode() not in read(content)


def test_a_file_with_a_secret_or_path_that_is_not_rewritten_is_refused(tmp_path: Path, machine: Path) -> None:
    folder = folder_of(tmp_path / "m")
    (folder / "mine.py").write_text(f'KEY = "{TOKEN}"')
    with refused("secret", "mine.py"):
        bundle(folder, "ada/x")
    (folder / "mine.py").write_text('OTHER = "hf_AbCdEfGhIjKlMnOpQrSt"')
    with refused("secret", "mine.py"):
        bundle(folder, "ada/x")
    (folder / "mine.py").write_text("")
    (folder / "README.md").write_text("Log in with hf_AbCdEfGhIjKlMnOpQrSt")
    with refused("secret", "README.md"):
        bundle(folder, "ada/x")
    (folder / "README.md").write_text("Log in")
    assert {"mine.py", "README.md"} <= set(bundle(folder, "ada/x"))
    for first in (TOKEN, str(machine)):
        with refused("secret", "weights"):
            check({"weights": first.encode()})
    (folder / "mine.py").write_text(f'HERE = "{machine}/work"')
    with refused("secret", "mine.py"):
        bundle(folder, "ada/x")
    check({"weights": b"\0" * 100, "config.json": sanitized_file(folder / "config.json")})


def test_secrets_and_folders_that_are_no_utf_8_are_found_too(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    secret, home = b"planted-\xff\xfe-secret", bytes(tmp_path) + b"/\xff\xfe/ada"
    monkeypatch.setenv("DB_PASSWORD", os.fsdecode(secret))
    monkeypatch.setenv("HOME", os.fsdecode(home))
    folder = folder_of(tmp_path / "m")
    assert bundle(folder, "ada/x")
    for private in (secret, home + b"/x"):
        (folder / "mine.py").write_bytes(b"# " + private)
        with refused("secret", "mine.py"):
            bundle(folder, "ada/x")
