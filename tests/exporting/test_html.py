"""`craft export --format html`: what is in the file, and what it says of its weights."""

from __future__ import annotations

import base64
import hashlib
import json
import re
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import yaml
from click.testing import CliRunner
from hypothesis import given, settings
from hypothesis import strategies as st
from refusals import refused

from craft.building import build_model
from craft.cli.export import command
from craft.data.tokenization import CharTokenizer
from craft.evaluation.finished import evaluate_model
from craft.exporting.html import PAGE, SCRIPTS, export_html, pack, quantize
from craft.inference import load
from craft.models.cells import LSTMCell
from craft.models.char_lstm import CharLSTMModel

from .conftest import ALPHABET, MODELS, TEXT, exported, save


class Parsed(HTMLParser):
    """The elements of a page with their attributes, and the texts inside of scripts and styles."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.elements: list[tuple[str, dict[str, Any]]] = []
        self.inside: list[tuple[dict[str, Any], str]] = []
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: Any) -> None:
        self.elements.append((tag, dict(attrs)))

    def handle_data(self, data: str) -> None:
        if self.cdata_elem:  # the script or style that this is in
            self.inside.append((self.elements[-1][1], data))


def parsed(page: Path) -> Parsed:
    return Parsed(page.read_text(encoding="utf-8"))


def facts_of(page: Path) -> dict[str, Any]:
    (text,) = (text for attributes, text in parsed(page).inside if attributes.get("id") == "facts")
    return json.loads(text)


def test_styles_and_scripts_are_allowed_by_their_hashes_and_nothing_is_loaded(page: Path) -> None:
    found = parsed(page)
    (policy,) = (a["content"] for _, a in found.elements if a.get("http-equiv") == "Content-Security-Policy")
    rules = dict(rule.strip().split(" ", 1) for rule in policy.split(";"))
    assert (rules["default-src"], rules["connect-src"]) == ("'none'", "'none'")
    by_rule: dict[str, list[str]] = {"script-src": [], "style-src": []}
    for attributes, text in found.inside:
        if attributes.get("type") not in ("application/json", "text/plain"):
            digest = base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()
            rule = "style-src" if text.lstrip().startswith(":root") else "script-src"
            by_rule[rule].append(f"'sha256-{digest}'")
    assert {rule: rules[rule].split() for rule in by_rule} == by_rule
    assert [len(hashes) for hashes in by_rule.values()] == [len(SCRIPTS), 1]
    names = {name for _, attributes in found.elements for name in attributes}
    assert not names & {"src", "href", "srcset", "action", "style"}
    assert not any(name.startswith("on") for name in names)
    elsewhere = r"https?:|url\(|@import|fetch\("
    as_markup = r"(inner|outer|Adjacent)HTML|document\.write|eval\(|new Function"
    for file in PAGE.iterdir():
        assert not re.search(f"{elsewhere}|{as_markup}", file.read_text(encoding="utf-8"))


def test_the_facts_hold_the_alphabet_and_nothing_that_ends_the_element(page: Path) -> None:
    (text,) = (text for attributes, text in parsed(page).inside if attributes.get("id") == "facts")
    assert text.isascii()  # as it is in every encoding, and no line end or zero byte that HTML would change
    assert "<" not in text
    assert json.loads(text)["alphabet"] == "".join(sorted(set(ALPHABET)))
    assert str(page.parent) not in page.read_text(encoding="utf-8")


@settings(max_examples=30, deadline=None)
@given(
    st.integers(1, 5),
    st.integers(1, 9),
    st.floats(1e-6, 1e4),
    st.integers(0, 2**31),
)
def test_a_rounded_weight_is_at_most_half_a_scale_away(rows: int, cols: int, size: float, seed: int) -> None:
    weight = size * torch.randn(rows, cols, generator=torch.Generator().manual_seed(seed))
    values, scales = quantize(weight)
    assert values.dtype == torch.int8
    assert (scales[:, 0] == weight.abs().amax(dim=1) / 127).all()
    assert ((values * scales - weight).abs() <= scales * 0.5001).all()


def test_a_row_of_zeros_stays_zero() -> None:
    values, scales = quantize(torch.zeros(2, 3))
    assert (values * scales == 0).all()


@pytest.mark.parametrize("dtype", ["int8", "float32"])
def test_the_weights_in_the_page_are_the_models(tmp_path: Path, dtype: str) -> None:
    page = exported(tmp_path, "gpt2", dtype=dtype)
    (packed,) = (text for attributes, text in parsed(page).inside if attributes.get("id") == "weights")
    data, facts = base64.b64decode(packed), facts_of(page)
    network, _ = load(tmp_path / "model")
    parameters = dict(network.named_parameters())
    assert {tensor["name"] for tensor in facts["tensors"]} == set(parameters)
    for tensor in facts["tensors"]:
        expected = parameters[tensor["name"]].detach().numpy()
        integers = tensor["scales"] is not None
        kind = np.int8 if integers else np.dtype("<f4")
        values = np.frombuffer(data, kind, expected.size, tensor["at"]).reshape(tensor["shape"])
        bound = 0.0
        if integers:
            scales = np.frombuffer(data, "<f4", expected.shape[0], tensor["scales"])[:, None]
            values, bound = values * scales, scales * 0.5001
        assert integers == (dtype == "int8" and expected.ndim == 2)
        assert (np.abs(values - expected) <= bound).all()


@pytest.mark.parametrize("models", ["char_lstm", "transformer"])
def test_a_model_of_a_million_weights_takes_less_than_two_megabytes(tmp_path: Path, models: str) -> None:
    from craft.config.files import builtin_folder

    fields = yaml.safe_load((Path(builtin_folder()) / "models" / f"{models}.yaml").read_text())
    tokenizer = CharTokenizer.train([map(chr, range(32, 97))])
    model = build_model(fields, tokenizer, block_size=256, documents=False)
    model.save_pretrained(tmp_path / "model")
    tokenizer.save_pretrained(tmp_path / "model")
    assert 0.7e6 < model.num_parameters() < 1.3e6
    assert export_html(tmp_path / "model", tmp_path / "page.html").file.stat().st_size < 2e6


def test_what_eight_bits_cost_is_measured_on_the_runs_own_text_or_a_typed_one(tmp_path: Path) -> None:
    model = save(tmp_path / "model")
    done = export_html(model, tmp_path / "unmeasured.html")
    assert "craft_run.yaml" in done.weights
    assert str(tmp_path) not in done.file.read_text(encoding="utf-8")
    own, typed = tmp_path / "own.txt", tmp_path / "typed.txt"
    own.write_text(TEXT * 40, encoding="utf-8")
    typed.write_text(TEXT * 4, encoding="utf-8")
    fields = {"path": str(own), "block_size": 16, "cache_dir": str(tmp_path / "cache")}
    (model / "craft_run.yaml").write_text(yaml.safe_dump({"data": fields}))
    rounded, tokenizer = load(model)
    pack(rounded, "int8")
    for text, split in ((None, "validation"), (str(typed), "all")):
        done = export_html(model, tmp_path / f"{split}.html", text=text)
        for network in (load(model)[0], rounded):
            (score,) = evaluate_model(network, tokenizer, model, text, split=split)
            assert f"{score.bits_per_char:.4f}" in done.weights
        assert {split, score.protocol, f"{score.units:,}"} <= set(done.weights.split())
        assert score.sha256[:12] in done.weights
        assert done.weights in facts_of(done.file)["notes"]
    with refused("file-missing", "nowhere.txt"):
        export_html(model, tmp_path / "x.html", text=str(tmp_path / "nowhere.txt"))
    assert not (tmp_path / "x.html").exists()


class EditedCell(LSTMCell):
    """As somebody's own: no kernel computes it."""


def test_a_model_that_the_page_can_not_compute_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(
        MODELS,
        "long",
        {
            **MODELS["modern"],
            "rope_parameters": {"rope_type": "dynamic", "factor": 2.0, "rope_theta": 10000.0},
        },
    )
    with refused("model-mismatch", "dynamic"):
        export_html(save(tmp_path / "long", "long"), tmp_path / "x.html")
    model = save(tmp_path / "own")
    monkeypatch.setattr(CharLSTMModel, "cell_class", EditedCell)
    with refused("model-mismatch", "EditedCell", "char_lstm"):
        export_html(model, tmp_path / "x.html")
    config = json.loads((model / "config.json").read_text())
    (model / "config.json").write_text(json.dumps({**config, "model_type": "mamba"}))
    with refused("model-mismatch", "mamba"):
        export_html(model, tmp_path / "x.html")
    assert not (tmp_path / "x.html").exists()


def test_the_command_names_the_page_and_overwrites_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    save(tmp_path / "my model")
    done = CliRunner().invoke(command, ["my model", "--format", "html", "--dtype", "float32"])
    assert done.exit_code == 0, done.output
    page = Path("outputs/html/my-model.html")
    assert str(page) in done.output
    assert [path.name for path in page.parent.iterdir()] == [page.name]
    before = page.read_bytes()
    with refused("setting-conflict", page, "--output"):
        export_html("my model")
    assert page.read_bytes() == before
    for option in (["--dtype", "int8"], ["--text", "my.txt"]):
        with refused("setting-no-effect", option[0]):
            CliRunner().invoke(command, ["my model", *option], catch_exceptions=False)
