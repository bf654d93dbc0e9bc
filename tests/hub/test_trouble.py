"""Bad names, refused rights, servers out of order, data sets that aren't: a sentence each, nothing lost."""

from __future__ import annotations

import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pyarrow as pa
import pytest
from desk import SHORT, Desk, parquet
from server import READ_ONLY, Answer, Hub

TRAIN = [
    *("models=transformer", "models.hidden_size=16", "models.num_attention_heads=2", "data.block_size=16"),
    *SHORT,
]
STREAMED = ["data.streaming=true", "data.tokenizer=byte"]
HTML = Answer(200, b"<html><body>Log in to the guests' network</body></html>", {"Content-Type": "text/html"})


@pytest.fixture(scope="module")
def model(office: Desk, model: Path) -> Path:
    """A model of its own, so that a test sees whether it was touched."""
    return Path(shutil.copytree(model, office.folder / "model"))


@pytest.fixture
def troubled(hub: Hub) -> Iterator[Hub]:
    """The server, which does what it should again after the test."""
    yield hub
    hub.trouble = lambda method, path: None


@pytest.mark.parametrize(
    "name", ["ada", "ada/", "/x", "ada/x/y", "ada/größe", "ada/x..y", "ada/x--y", "ada/.x", "ada/" + "x" * 97]
)
def test_what_can_be_no_name_on_the_hub_is_refused(office: Desk, model: Path, name: str) -> None:
    assert f"'{name}'" in office.refused("push", str(model), name)
    if name.count("/") == 1 and name.strip("/") == name:
        assert f"'{name}'" in office.refused("generate", name)
        assert f"'{name}'" in office.refused("train", f"models.init_from={name}")


def test_all_kinds_of_allowed_names_can_be_pushed_to(hub: Hub, office: Desk, model: Path) -> None:
    for name in ("ada/My.Model_v1-0", "makers/shared", "ada/" + "x" * 92):
        office.done("push", str(model), name)
        assert f"models/{name}" in hub.repos
        office.done("generate", name, "-n", "3")
    for name in ("other/x", "Ada/x"):
        assert "403" in office.refused("push", str(model), name)


def test_a_version_is_found_by_tag_branch_and_commit(hub: Hub, office: Desk, model: Path) -> None:
    office.done("push", str(model), "ada/named", "--tag", "v1", "--branch", "a/größe")
    repo = hub.repos["models/ada/named"]
    office.done("push", str(model), "ada/named")
    commit = repo.find("main")
    office.done("push", str(model), "ada/named")  # once more, and nothing is new
    assert repo.find("main") == commit
    assert commit is not None
    for revision in ("v1", "a/größe", "main", commit):
        office.done("generate", "ada/named", "-n", "3", "--revision", revision)
    said = office.refused("generate", "ada/named", "--revision", commit[:7])
    assert f"'{commit[:7]}'" in said
    assert "40 digits" in said
    assert "'v1'" in office.refused("push", str(model), "ada/named", "--tag", "v1")
    assert len(repo.messages) == 3


def test_a_tag_that_fails_names_the_commit_of_the_model(troubled: Hub, office: Desk, model: Path) -> None:
    troubled.trouble = lambda method, path: Answer(500) if "/tag/" in path else None
    said = office.refused("push", str(model), "ada/untagged", "--tag", "v1", status=1)
    assert f"{troubled.url}/ada/untagged/commit/" in said
    assert "'v1'" in said
    assert "model.safetensors" in troubled.repos["models/ada/untagged"].files()


def test_a_read_only_token_can_load_and_not_push(hub: Hub, office: Desk, model: Path) -> None:
    office.done("push", str(model), "ada/readable", "--private")
    assert "403" in office.refused("push", str(model), "ada/readable", HF_TOKEN=READ_ONLY)
    office.done("generate", "ada/readable", "-n", "3", HF_TOKEN=READ_ONLY)
    hub.add("models/ada/unread", {"config.json": b"{}"}, private=True)
    assert "'ada/unread'" in office.refused("generate", "ada/unread", HF_TOKEN="")
    pushed = ["training.push_to_hub=true", "training.hub_model_id=ada/readable"]
    (office.folder / "t.txt").write_text("the quick brown fox\n" * 40)
    assert "403" in office.refused("train", "t.txt", *TRAIN, *pushed, HF_TOKEN=READ_ONLY)


ANSWERS = {
    "500": (Answer(500, b'{"error": "Internal"}'), 1, "500, Internal"),
    "429": (Answer(429, b'{"error": "Too many"}', {"Retry-After": "0"}), 1, "429, Too many"),
    "502": (Answer(502, b"<html>Bad gateway</html>"), 1, "502"),
    "html": (HTML, 1, "http://"),
    "nowhere": (Answer(307, b"", {"Location": "http://127.0.0.1:9/"}), 1, "Connection refused"),
    "circle": (Answer(302, b"", {"Location": "/round"}), 1, "redirects"),
    "401": (Answer(401, b'{"error": "Invalid"}'), 2, "401, Invalid"),
    "403": (Answer(403, b'{"error": "No"}'), 2, "403, No"),
}


@pytest.mark.parametrize("case", ANSWERS)
def test_whatever_the_server_answers_is_one_line(troubled: Hub, office: Desk, model: Path, case: str) -> None:
    answer, status, phrase = ANSWERS[case]
    before = {path.name: path.read_bytes() for path in model.iterdir()}
    troubled.trouble = lambda method, path: answer
    said = office.refused("push", str(model), "ada/answered", status=status)
    assert phrase in said
    assert "ada/answered" in said
    assert phrase in office.refused("generate", f"ada/unseen-{case}", status=status)
    if case in ("502", "html"):
        troubled.trouble = lambda method, path: answer if "/commit/" in path else None
        assert f"can't push {model.name} to ada/answered" in office.refused(
            "push", str(model), "ada/answered", status=1
        )
    assert {path.name: path.read_bytes() for path in model.iterdir()} == before


@pytest.mark.parametrize("status", [412, 429, 500, "lost"])
def test_a_commit_is_retried_after_transient_errors(
    troubled: Hub, office: Desk, model: Path, status: int | str
) -> None:
    """412 is what the Hub says to the slower one of two that push at once."""
    answers = [] if isinstance(status, str) else [Answer(status, b"{}")]
    troubled.trouble = lambda method, path: answers.pop() if "/commit/" in path and answers else None
    troubled.faults["answer"] = int(status == "lost")
    name = f"ada/busy-{status}"
    office.done("push", str(model), name, "--tag", "v1")
    assert not answers
    assert not troubled.faults["answer"]
    repo = troubled.repos[f"models/{name}"]
    assert repo.messages == ["initial commit", "Upload a model by craft"]
    assert repo.find("v1") == repo.find("main")


def test_two_processes_can_push_to_one_repository_at_once(hub: Hub, office: Desk, model: Path) -> None:
    """Both delete what an earlier model has left."""
    hub.add("models/ada/at-once", {"README.md": b"", "model-00001-of-00002.safetensors": b"", "mine.py": b""})
    both = [subprocess.Popen(**office.command("-m", "craft", "push", str(model), "ada/at-once"))]
    both.append(subprocess.Popen(**office.command("-m", "craft", "push", str(model), "ada/at-once")))
    assert [each.wait() for each in both] == [0, 0]
    files = hub.repos["models/ada/at-once"].files()
    assert files["model.safetensors"] == (model / "model.safetensors").read_bytes()
    assert "mine.py" in files
    assert "model-00001-of-00002.safetensors" not in files


def test_no_signature_of_an_address_is_shown(troubled: Hub, office: Desk, model: Path) -> None:
    signed = "https://storage/x?X-Amz-Signature=0123456789abcdef"
    expired = Answer(403, f"<Error><Message>Request has expired: {signed}</Message></Error>".encode())
    troubled.trouble = lambda method, path: expired if path.startswith("/lfs/") else None
    troubled.blobs.clear()
    said = office.refused("push", str(model), "ada/stored")
    assert "403" in said
    assert "0123456789abcdef" not in said
    troubled.trouble = lambda method, path: None
    office.done("push", str(model), "ada/stored")


def test_an_unreachable_or_slow_server_is_one_line(troubled: Hub, office: Desk) -> None:
    assert "nonsense" in office.refused("generate", "ada/x", status=1, HF_ENDPOINT="nonsense")
    troubled.trouble = lambda method, path: Answer(200, b"{}", seconds=2)
    said = office.refused("generate", "ada/slow", status=1, HF_HUB_DOWNLOAD_TIMEOUT="1")
    assert "'ada/slow'" in said


def test_endpoints_may_end_with_a_slash_and_caches_load_offline(hub: Hub, office: Desk, model: Path) -> None:
    office.done("push", str(model), "ada/kept")
    office.craft("generate", "ada/kept", "-n", "3", HF_ENDPOINT=f"{hub.url}/")
    office.craft("generate", "ada/kept", "-n", "3", HF_HUB_OFFLINE="1")
    assert "HF_HUB_OFFLINE" in office.refused("push", str(model), "ada/kept", HF_HUB_OFFLINE="1")


FILE = "data/train-00000-of-00001.parquet"
ROWS = [f"row {n}: the quick brown fox jumps over the lazy dog" for n in range(200)]
CONFIGS = b"""---
configs:
- {config_name: en, data_files: en/*.parquet}
- {config_name: de, data_files: de/*.parquet}
---
"""
DATA: dict[str, tuple[dict[str, bytes], str]] = {
    "nothing": ({".gitattributes": b""}, "doesn't contain any data files"),
    "no-rows": ({FILE: parquet(text=pa.array([], pa.string()))}, "BatchSize"),
    "two": (
        {"README.md": CONFIGS, "en/a.parquet": parquet(text=ROWS), "de/a.parquet": parquet(text=ROWS)},
        "['en', 'de']",
    ),
    "script": ({"data-script.py": b"raise SystemExit('run')\n"}, "data-script.py"),
    "column": ({FILE: parquet(content=ROWS)}, "data.text_column='text' isn't in"),
    "numbers": ({FILE: parquet(text=list(range(200)))}, "holds 0, not text"),
    "damaged": ({FILE: parquet(text=ROWS)[:999]}, "not a parquet file"),
    "split": ({FILE.replace("train", "test"): parquet(text=ROWS)}, "['test']"),
    "metadata": ({"README.md": b"---\n: : [\n---\n", FILE: parquet(text=ROWS)}, "data.source=files"),
    "latin": ({"train.txt": "größe\n".encode("latin-1") * 99}, "'utf-8' codec can't decode"),
}


@pytest.mark.parametrize("case", DATA)
@pytest.mark.parametrize("more", [[], STREAMED], ids=["prepared", "streamed"])
def test_a_data_set_that_cannot_be_trained_on_is_one_line(
    hub: Hub, office: Desk, case: str, more: list[str]
) -> None:
    files, phrase = DATA[case]
    hub.add(f"datasets/ada/data-{case}", files)
    said = office.refused("train", "data.source=hub", f"data.path=ada/data-{case}", *TRAIN, *more)
    assert phrase in said


def test_a_data_set_that_is_not_there_for_this_user_or_in_this_version(hub: Hub, office: Desk) -> None:
    def said(path: str, *more: str, **environment: str) -> str:
        return office.refused("train", "data.source=hub", f"data.path={path}", *TRAIN, *more, **environment)

    hub.add("datasets/ada/mine", {FILE: parquet(text=ROWS)}, private=True)
    hub.add("datasets/bob/mine", {FILE: parquet(text=ROWS)}, private=True)
    for path in ("ada/none", "bob/mine"):
        assert "check its name, and if it is private or gated log in" in said(path)
    assert "'v9'" in said("ada/mine", "data.revision=v9")
    assert "'large' not found. Available: ['default']" in said("ada/mine", "data.config_name=large")
    assert "Repo id must use" in said("ada/größe")
    assert "data.streaming=false" in said("ada/mine", *STREAMED, "data.split=train[:50%]")


def test_data_sets_of_several_configurations_are_trained_on(hub: Hub, office: Desk, tmp_path: Path) -> None:
    hub.add("datasets/ada/variants", DATA["two"][0])
    hub.add("datasets/ada/named-otherwise", {FILE: parquet(content=ROWS)})
    commit = hub.repos["datasets/ada/variants"].find("main")
    for more in (
        ["data.path=ada/variants", "data.config_name=de", f"data.revision={commit}", *STREAMED],
        ["data.path=ada/named-otherwise", "data.text_column=content"],
    ):
        office.done("train", "data.source=hub", *more, *TRAIN, folder=tmp_path)


@pytest.mark.parametrize("case", ["500", "html", "403", "gated"])
def test_a_server_that_fails_under_a_data_set_is_one_line(troubled: Hub, office: Desk, case: str) -> None:
    gated = Answer(403, b"{}", {"X-Error-Code": "GatedRepo", "X-Error-Message": "restricted"})
    answer, status, phrase = {
        **ANSWERS,
        "html": (HTML, 1, "does not seem to be served by a Hugging Face Hub"),
        "403": (ANSWERS["403"][0], 2, "403"),
        "gated": (gated, 2, "is a gated dataset on the Hub"),
        "500": (Answer(501), 1, "501"),  # which no client tries again
    }[case]
    troubled.trouble = lambda method, path: answer
    assert phrase in office.refused(
        "train", "data.source=hub", f"data.path=ada/d-{case}", *TRAIN, status=status
    )


def test_the_branch_of_a_run_is_made_before_it_trains(hub: Hub, office: Desk, tmp_path: Path) -> None:
    (tmp_path / "t.txt").write_text("the quick brown fox\n" * 40)
    pushed = ["training.push_to_hub=true", "training.hub_model_id=ada/branched"]
    office.done("train", "t.txt", *TRAIN, *pushed, "training.hub_revision=trial", folder=tmp_path)
    repo = hub.repos["models/ada/branched"]
    assert "model.safetensors" in repo.files("trial")
    assert "model.safetensors" not in repo.files("main")
    assert repo.messages == ["initial commit", "Step 2", "Step 2, the end of training"]
    said = office.refused("train", "t.txt", *TRAIN, *pushed, "training.hub_revision=a b", folder=tmp_path)
    assert "ada/branched" in said
