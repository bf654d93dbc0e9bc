"""Sharing with real clients against a real server: push, load elsewhere, resume, and every way to fail."""

from __future__ import annotations

import hashlib
import json
import re
import subprocess
from pathlib import Path
from typing import Any

import pytest
import yaml
from desk import HIDE_CRAFT, SECRETS, SMALL, Desk, parquet
from server import TOKENS, Hub

WITHOUT_CRAFT = """
import json, sys
import torch
from transformers import AutoConfig, AutoModel, AutoModelForCausalLM, AutoTokenizer, pipeline
found = {}
for name, revision in json.loads(sys.argv[1]):
    code = dict(trust_remote_code=True, revision=revision)
    tokenizer = AutoTokenizer.from_pretrained(name, revision=revision, trust_remote_code=False)
    model = AutoModelForCausalLM.from_pretrained(name, **code)
    inside = AutoModel.from_pretrained(name, **code)
    ids = tokenizer("the quick", return_tensors="pt").input_ids
    with torch.no_grad():
        logits = model(ids).logits
        same = torch.equal(model.model(ids).last_hidden_state, inside(ids).last_hidden_state)
    write = pipeline("text-generation", name, **code)
    found[f"{name}@{revision}"] = {
        "type": AutoConfig.from_pretrained(name, **code).model_type, "same": same,
        "logits": logits.double().sum().item(), "ids": ids[0].tolist(),
        "text": write("the quick", max_new_tokens=20, do_sample=False)[0]["generated_text"],
    }
print(json.dumps(found))
"""


def test_a_run_uploads_each_checkpoint_and_the_finished_model(hub: Hub, trained: Desk, model: Path) -> None:
    repo = hub.repos["models/ada/run"]
    assert repo.messages == ["initial commit", "Step 6", "Step 12", "Step 12, the end of training"]
    files = repo.files()
    expected = {"model.safetensors", "config.json", "generation_config.json", "tokenizer.json", "README.md"}
    expected |= {"tokenizer_config.json", "base.py", "char_lstm.py", "craft_run.yaml", "metrics.jsonl"}
    assert expected | {"evaluation.json", "data.json", "sample.txt", "loss_curve.png"} <= set(files)
    assert not [name for name in files if name.endswith((".bin", ".pt", ".pth", ".pkl"))]
    assert files["model.safetensors"] == (model / "model.safetensors").read_bytes()
    run = yaml.safe_load(files["craft_run.yaml"])
    assert run["data"]["path"] == "my <b>text.txt"
    assert run["data"]["cache_dir"] is None
    assert "push_to_hub" not in run["training"]
    facts = json.loads(files["data.json"])
    text = (trained.folder / "home" / "texts" / "my <b>text.txt").read_bytes().decode()
    cut = facts["splits"]["train"]["characters"]
    assert facts["splits"]["train"]["sha256"] == hashlib.sha256(text[:cut].encode()).hexdigest()
    assert facts["splits"]["validation"]["sha256"] == hashlib.sha256(text[cut:].encode()).hexdigest()


def test_nothing_private_was_sent(hub: Hub, trained: Desk, model: Path) -> None:
    private = [*SECRETS.values(), *TOKENS, str(trained.folder), str(trained.folder / "home")]
    sent = [*hub.received, *hub.blobs.values()]
    assert len(sent) > 30
    for secret in private:
        assert not any(secret.encode() in data for data in sent), secret
    log = next((trained.folder / "outputs" / "logs").glob("*.log")).read_text(encoding="utf-8")
    assert not [secret for secret in (*SECRETS.values(), *TOKENS) if secret in log]


def test_the_card_on_the_hub_tells_of_the_run(hub: Hub, trained: Desk) -> None:
    card = hub.repos["models/ada/run"].files()["README.md"].decode()
    metadata = yaml.safe_load(card.split("\n---\n")[0].removeprefix("---\n"))
    assert metadata["pipeline_tag"] == "text-generation"
    assert metadata["library_name"] == "transformers"
    results = metadata["model-index"][0]["results"][0]
    assert results["dataset"]["name"] == "my <b>text"
    assert {metric["args"]["protocol"] for metric in results["metrics"]} == {"stateful", "blocks"}
    body = card.split("\n---\n", 1)[1]
    assert "<b>" not in body
    assert 'pipeline("text-generation", "ada/run", trust_remote_code=True)' in body
    for heading in ("Training data", "Hyper-parameters", "Evaluation", "A sample", "Limits", "Licence"):
        assert f"## {heading}\n" in body


def test_the_card_of_a_checkpoint_names_the_repository_and_the_step(
    hub: Hub, trained: Desk, office: Desk
) -> None:
    repo = hub.repos["models/ada/run"]
    (checkpoint,) = (trained.folder / "outputs" / "models").glob("*/checkpoint-6")
    run = checkpoint.parent.name
    shown = office.done("push", str(checkpoint), "ada/run", "--license", "mit", "--dry-run")
    for card, licence in ((repo.after("Step 6")["README.md"].decode(), "unknown"), (shown, "mit")):
        assert f"\n# {run}\n" in card
        assert f"\nlicense: {licence}\n" in card
        assert 'pipeline("text-generation", "ada/run", trust_remote_code=True)' in card
        assert "after 6 steps of training" in card
        assert "staging" not in card


def test_a_checkpoint_of_the_hub_resumes_to_the_same_weights(
    hub: Hub, trained: Desk, desk: Desk, model: Path
) -> None:
    hub.add("models/ada/half", hub.repos["models/ada/run"].after("Step 6"))
    text = trained.folder / "home" / "texts" / "my <b>text.txt"
    (desk.folder / text.name).write_bytes(text.read_bytes())
    assert "step 6 of ada/half" in desk.craft("resume", "ada/half").stderr
    (again,) = (desk.folder / "outputs" / "models").glob("*_step_12")
    assert (again / "model.safetensors").read_bytes() == (model / "model.safetensors").read_bytes()
    hub.add("models/ada/plain", {"config.json": b"{}"})
    assert "training.hub_strategy=checkpoint" in desk.refused("resume", "ada/plain")


def test_a_checkpoint_that_was_left_off_is_pushed_as_training_would_have(
    hub: Hub, trained: Desk, model: Path
) -> None:
    def pushed(name: str, message: str) -> dict[str, bytes]:
        files = hub.repos[f"models/{name}"].after(message)
        return {at: content for at, content in files.items() if at.startswith("last-checkpoint/")}

    (checkpoint,) = (trained.folder / "outputs" / "models").glob("*/checkpoint-6")
    trained.craft("push", str(checkpoint), "ada/late-half", "--into", "last-checkpoint", "--private")
    there = pushed("ada/run", "Step 6")
    late = pushed("ada/late-half", "Step 6")
    metrics = "last-checkpoint/metrics.jsonl"  # of the whole run by now; resuming cuts them
    assert late.pop(metrics).startswith(there.pop(metrics))
    assert late == there
    for folder, into in ((model, "last-checkpoint"), (checkpoint, "checkpoint-7")):
        refused = trained.refused("push", str(folder), "ada/late-half", "--into", into)
        assert f"'{into}'" in refused
        assert str(folder) in refused


def test_models_load_where_craft_is_not(hub: Hub, trained: Desk, desk: Desk, tmp_path: Path) -> None:
    """Both architectures by the Auto classes, at a tag and at the newest version."""
    build = """
import torch
from craft.data.tokenization import CharTokenizer
from craft.models import TransformerConfig, TransformerForCausalLM
tokenizer = CharTokenizer.train(["the quick brown fox\\n"])
for seed in (1, 2):
    torch.manual_seed(seed)
    config = TransformerConfig(vocab_size=len(tokenizer), hidden_size=16, num_hidden_layers=1,
        num_attention_heads=2, max_position_embeddings=16, zero_init=False)
    TransformerForCausalLM(config).save_pretrained(f"model{seed}")
    tokenizer.save_pretrained(f"model{seed}")
"""
    desk.python(build)
    first = desk.craft("push", "model1", "ada/former", "--tag", "v1", "--private", "--license", "mit")
    assert first.stdout.startswith(f"{hub.url}/ada/former/commit/")
    desk.craft("push", "model2", "ada/former")
    desk.craft("push", "model1", "ada/former", "--branch", "old")
    repo = hub.repos["models/ada/former"]
    assert repo.private
    assert repo.files("v1")["model.safetensors"] == repo.files("old")["model.safetensors"]
    assert repo.files("v1")["model.safetensors"] != repo.files()["model.safetensors"]
    assert "license: mit" in repo.files("v1")["README.md"].decode()

    asked = [["ada/former", "v1"], ["ada/former", "main"], ["ada/run", "main"]]
    found = json.loads(desk.run("-c", HIDE_CRAFT + WITHOUT_CRAFT, json.dumps(asked)).stdout.splitlines()[-1])
    assert all(each["same"] for each in found.values())
    assert found["ada/former@v1"]["logits"] != found["ada/former@main"]["logits"]
    assert [each["type"] for each in found.values()] == ["char_transformer", "char_transformer", "char_lstm"]
    with_craft = """
import json, torch, craft
model, tokenizer = craft.load("ada/former", revision="v1")
with torch.no_grad():
    ids = tokenizer("the quick", return_tensors="pt").input_ids
    print(json.dumps([model(ids).logits.double().sum().item(), ids[0].tolist()]))
"""
    logits, ids = json.loads(desk.python(with_craft))
    assert logits == pytest.approx(found["ada/former@v1"]["logits"], abs=1e-6)
    assert ids == found["ada/former@v1"]["ids"]
    written = desk.craft("generate", "ada/run", "-p", "the quick", "-n", "20", "--greedy").stdout
    assert written.splitlines() == found["ada/run@main"]["text"].splitlines()
    assert not list((desk.folder / "home" / "hf" / "hub" / "models--ada--run").glob("snapshots/*/*.bin"))


def test_a_model_of_the_hub_is_scored_on_its_text(trained: Desk, desk: Desk, model: Path) -> None:
    text = trained.folder / "home" / "texts" / "my <b>text.txt"
    (desk.folder / text.name).write_bytes(text.read_bytes())
    (again,) = json.loads(desk.craft("evaluate", "ada/run", "--json", "--revision", "main").stdout)
    kept = json.loads((model / "evaluation.json").read_text())["evaluations"]
    assert again["nats"] == pytest.approx(
        next(e["nats"] for e in kept if e["protocol"] == "stateful"), rel=1e-6
    )


def test_data_sets_of_the_hub_are_trained_on(hub: Hub, desk: Desk) -> None:
    """Text and tables, prepared and streamed, by the unmodified datasets."""
    rows = [f"row {n}: the quick brown fox jumps over the lazy dog" for n in range(150)]
    hub.add("datasets/ada/lines", {"README.md": b"# Lines\n", "train.txt": "\n".join(rows).encode()})
    hub.add("datasets/ada/table", {"data/train-00000-of-00001.parquet": parquet(text=rows)})
    code = """
import json, sys
from craft.config.compose import compose
from craft.train import train
for number, settings in enumerate(json.loads(sys.argv[1])):
    result = train(compose([*settings, f"training.output_dir=run{number}"]))
    print("TRAINED", result.model_dir, file=sys.stderr)
"""
    common = [s for s in SMALL if not s.startswith(("models", "training.max_steps"))]
    common += ["models=transformer", "models.hidden_size=16", "models.num_attention_heads=2"]
    common += ["training.max_steps=3", "data.source=hub", "training.eval_strategy=no"]
    streamed = ["data.streaming=true", "data.tokenizer=byte", "data.validation_size=500"]
    asked = [
        [*common, "data.path=ada/lines"],
        [*common, "data.path=ada/table"],
        [*common, "data.path=ada/table", *streamed],
    ]
    done = desk.run("-c", code, json.dumps(asked))
    assert done.stderr.count("TRAINED") == 3
    card = (desk.folder / "run0_step_3" / "README.md").read_text(encoding="utf-8")
    assert "ada/lines" in yaml.safe_load(card.split("\n---\n")[0].removeprefix("---\n"))["datasets"]


def bare(folder: Path) -> Path:
    """A folder that can be pushed: weights of four bytes."""
    header = b'{"w":{"dtype":"F32","shape":[1],"data_offsets":[0,4]}}'
    folder.mkdir()
    (folder / "model.safetensors").write_bytes(len(header).to_bytes(8, "little") + header + b"\0\0\x80?")
    (folder / "config.json").write_text('{"model_type": "char_lstm"}', encoding="utf-8")
    return folder


def content(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir()}


def test_mistakes_and_failures_of_pushing_are_one_line(hub: Hub, desk: Desk) -> None:
    folder = bare(desk.folder / "model")
    before = content(folder)
    hub.add("models/bob/his", {"config.json": b"{}"})
    hub.add("models/bob/secret", {"config.json": b"{}"}, private=True)

    def push(name: str, *more: str, status: int = 2, **environment: str) -> str:
        return desk.refused("push", "model", name, *more, status=status, **environment)

    assert "HF_TOKEN" in push("ada/x", HF_TOKEN="")
    bad = "hf_zzzzZZZZzzzzZZZZzzzz9"
    said = push("ada/x", HF_TOKEN=bad)
    assert "401" in said
    assert bad not in said
    assert "403" in push("bob/his")
    assert "403" in push("bob/new")
    assert "USER/NAME" in push("just-a-name")
    assert "USER/NAME" in push("ada/b:c")
    assert "'--token'" in push("ada/x", "--token", "x")
    assert "(***)" in push("ada/x", "--tag", "hf_abcdefghijklmnop1234")
    assert "--license" in push("ada/x", "--license", "Do what you want\n---")
    done = desk.craft("push", "model", "ada/x", "--tag", "v1")
    commit = done.stdout.strip()
    taken = push("ada/x", "--tag", "v1")  # the model is there by then
    assert "'v1'" in taken
    assert commit in taken
    assert "ada/x" in push("ada/x", "--private")
    for name in ("ada/nothing", "bob/secret"):
        assert f"'{name}'" in desk.refused("generate", name)
    assert "'v9'" in desk.refused("generate", "ada/x", "--revision", "v9")
    nowhere = "http://127.0.0.1:9"
    assert nowhere in desk.refused("generate", "ada/y", status=1, HF_ENDPOINT=nowhere)
    assert nowhere in push("ada/x", status=1, HF_ENDPOINT=nowhere)
    hub.faults["preupload"], hub.answers["preupload"] = 1, 409
    assert "409" in push("ada/conflict")
    del hub.answers["preupload"]
    assert content(folder) == before


def test_a_cut_connection_loses_nothing(hub: Hub, desk: Desk) -> None:
    folder = bare(desk.folder / "model")
    before = content(folder)
    hub.blobs.clear()
    hub.faults["lfs"] = 1  # once, which the client tries again
    desk.craft("push", "model", "ada/cut")
    assert hub.repos["models/ada/cut"].files()["model.safetensors"] == before["model.safetensors"]

    (folder / "config.json").write_text('{"model_type": "char_lstm", "new": 1}', encoding="utf-8")
    before = content(folder)
    hub.faults["commit"] = 3  # which is as often as it is tried
    said = desk.refused("push", "model", "ada/cut", status=1)
    assert "can't push model to ada/cut" in said
    assert b"new" not in hub.repos["models/ada/cut"].files()["config.json"]  # all of a commit, or nothing
    assert content(folder) == before
    desk.craft("push", "model", "ada/cut")
    assert b"new" in hub.repos["models/ada/cut"].files()["config.json"]


def test_a_model_is_pushed_with_its_page(hub: Hub, trained: Desk, model: Path) -> None:
    done = trained.craft("push", str(model), "ada/paged", "--space")
    space, repo = hub.repos["spaces/ada/paged"], hub.repos["models/ada/paged"]
    address = f"{hub.url}/spaces/ada/paged"
    assert done.stdout.split() == [address, f"{hub.url}/ada/paged/commit/{repo.branches['main']}"]
    assert space.sdk == "static"
    files = space.files()
    _, metadata, _ = files["README.md"].decode().split("---\n")
    told = yaml.safe_load(metadata)
    assert (told["sdk"], told["title"], told["models"]) == ("static", "paged", ["ada/paged"])
    assert b"<title>paged</title>" in files["index.html"]
    card = repo.files()["README.md"].decode()
    assert card.count(address) == 1
    assert "\n# " in card[: card.index(address)]
    trained.craft("push", str(model), "ada/paged", "--space")  # again
    assert set(space.files()) == {".gitattributes", "README.md", "index.html"}
    listed = trained.craft("push", str(model), "ada/unpaged", "--space", "--dry-run").stdout
    assert "spaces/index.html" in listed
    assert "spaces/ada/unpaged" not in hub.repos


def test_a_space_that_is_an_application_is_left_alone(hub: Hub, trained: Desk, model: Path) -> None:
    hub.add("spaces/ada/app", {"app.py": b"mine"}).sdk = "gradio"
    said = trained.refused("push", str(model), "ada/app", "--space")
    assert "gradio" in said
    assert set(hub.repos["spaces/ada/app"].files()) == {"app.py"}
    assert "models/ada/app" not in hub.repos


def test_a_dry_run_lists_everything_and_sends_nothing(hub: Hub, desk: Desk) -> None:
    folder = bare(desk.folder / "model")
    shown = desk.craft(
        "push", "model", "ada/dry", "--dry-run", HF_TOKEN="", HF_ENDPOINT="http://127.0.0.1:9"
    ).stdout
    sizes = {
        name: int(size.replace(",", "")) for size, name in re.findall(r"^ +([\d,]+)  (\S+)$", shown, re.M)
    }
    assert sizes["model.safetensors"] == (folder / "model.safetensors").stat().st_size
    assert set(sizes) == {"README.md", "config.json", "model.safetensors"}
    assert "pipeline_tag: text-generation" in shown
    assert "models/ada/dry" not in hub.repos


def test_training_goes_on_where_an_upload_fails(hub: Hub, desk: Desk) -> None:
    (desk.folder / "t.txt").write_text("the quick brown fox\n" * 60, encoding="utf-8")
    hub.faults["commit"] = 100
    pushed = [
        "training.push_to_hub=true",
        "training.hub_model_id=ada/late",
        "training.hub_strategy=every_save",
    ]
    done = desk.craft("train", "t.txt", *SMALL, *pushed, status=1)
    hub.faults.clear()
    assert done.stderr.count("training goes on") == 2
    last = done.stderr.strip().splitlines()[-1]
    (model,) = (desk.folder / "outputs" / "models").glob("*_step_12")
    assert f"craft push {model.relative_to(desk.folder)} ada/late" in last
    desk.craft("push", str(model), "ada/late")
    assert (
        hub.repos["models/ada/late"].files()["model.safetensors"]
        == (model / "model.safetensors").read_bytes()
    )


def test_a_token_or_licence_that_does_not_work_ends_the_run_before_training(hub: Hub, desk: Desk) -> None:
    (desk.folder / "t.txt").write_text("the quick brown fox\n" * 60, encoding="utf-8")
    pushed = ["training.push_to_hub=true", "training.hub_model_id=bob/mine"]
    done: subprocess.CompletedProcess[Any] = desk.craft("train", "t.txt", *SMALL, *pushed, status=2)
    assert "403" in done.stderr.splitlines()[-1]
    pushed[1] = "training.hub_model_id=ada/misspelt"
    done = desk.craft("train", "t.txt", *SMALL, *pushed, "training.hub_license=apche-2.0", status=2)
    assert "apche-2.0" in done.stderr.splitlines()[-1]
    assert "models/ada/misspelt" not in hub.repos
    assert not list((desk.folder / "outputs" / "models").glob("*/checkpoint-*"))
