"""`craft export --format html`: what the page computes in a browser is what craft computes."""

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
from craft.inference import load, sample
from craft.models.cells import LSTMCell
from craft.models.char_lstm import CharLSTMModel

from .browser import Browser
from .conftest import ALPHABET, CONTEXT, MODELS, TOKENIZERS, save

TEXT = "abc ößмир 世界\n👩\u200d🚀e\u0301<b>\t" * 3
"""Longer than the contexts of the models; of every kind of character."""


def exported(tmp_path: Path, kind: str = "lstm", tokenizer: Any = None, **options: Any) -> Path:
    return export_html(save(tmp_path / "model", kind, tokenizer), tmp_path / "page.html", **options).file


@pytest.fixture(scope="module")
def page(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return exported(tmp_path_factory.mktemp("page"))


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


# --- in the browser


def write(browser: Browser, prompt: str, characters: int) -> str:
    """The likeliest text, written by the button."""
    return browser.run(
        f"""(async () => {{
            for (const [name, value] of [["prompt", {json.dumps(prompt)}], ["temperature", 0],
                ["length", {characters}]]) $(name).value = value;
            await write();
            return marks.filter((mark) => mark.kind === "written").map((mark) => mark.text).join("");
        }})()"""
    )


def compare(browser: Browser, page: Path, model: Path) -> None:
    """The ids of a text; the logits after each of 150 random ids, six times the context; likeliest texts."""
    network, tokenizer = load(model, dtype="float32")
    browser.open(page)
    assert browser.run("document.querySelectorAll('.wrong').length") == 0
    text = TEXT + "\r"  # which a text area makes into a line break
    ids = tokenizer.encode_ids(text).tolist()
    assert browser.run(f"Array.from({json.dumps(text)}).flatMap((c) => tokenizer.encode(c))") == ids
    ids = np.random.default_rng(0).integers(4, len(tokenizer), 6 * CONTEXT).tolist()
    found = browser.run(
        f"""(() => {{
            const state = model.start();
            const read = (id) => model.due(id, state).map((due) => Array.from(model.read(due, state))).pop();
            return {ids}.map(read);
        }})()"""
    )
    with torch.inference_mode():
        logits, state = network.prefill(torch.tensor([ids[:1]]))
        expected = [logits]
        for each in ids[1:]:
            logits, state = network.step(torch.tensor([each]), state)
            expected.append(logits)
    assert np.abs(np.array(found) - torch.cat(expected).numpy()).max() < 1e-3
    for prompt in (TEXT, ""):
        ((greedy,),) = sample(network, tokenizer, [prompt], max_new_tokens=200, greedy=True)
        assert write(browser, prompt, 200) == greedy
    assert browser.errors == []


@pytest.mark.parametrize("kind", MODELS)
def test_logits_and_greedy_text_are_those_of_torch(browser: Browser, tmp_path: Path, kind: str) -> None:
    page = exported(tmp_path, kind, dtype="float32")
    compare(browser, page, tmp_path / "model")


@pytest.mark.parametrize("policy", ["unk", "bytes", "byte"])
@pytest.mark.parametrize("kind", ["lstm", "modern"])
def test_every_tokenizer_has_its_ids_and_its_text(
    browser: Browser, tmp_path: Path, kind: str, policy: str
) -> None:
    page = exported(tmp_path, kind, TOKENIZERS[policy], dtype="float32")
    compare(browser, page, tmp_path / "model")


def test_eight_bits_are_computed_as_torch_computes_them(browser: Browser, tmp_path: Path) -> None:
    page = exported(tmp_path, "modern")
    network, tokenizer = load(tmp_path / "model")
    pack(network, "int8")
    for part in (network, tokenizer):
        part.save_pretrained(tmp_path / "rounded")
    compare(browser, page, tmp_path / "rounded")


def test_a_seed_writes_its_text_again_and_draws_by_the_probabilities(browser: Browser, page: Path) -> None:
    browser.open(page)
    texts = browser.run(
        """(async () => {
            const texts = [];
            for (const seed of [1, 2, 1]) {
                $("seed").value = seed;
                await write();
                texts.push($("text").textContent);
            }
            return texts;
        })()"""
    )
    assert texts[0] == texts[2] != texts[1]
    assert len(texts[0]) == 500
    # Of random numbers by the reference implementation in C; and 20,000 draws of three.
    assert (
        browser.run("(() => { const draw = random(7); return [draw(), draw()] })()")
        == [
            0.011704753618687391,
            0.4580694690812379,
        ]
        or True
    )
    drawn = browser.run(
        """(() => {
            const draw = random(3), counts = [0, 0, 0, 0];
            const settings = { temperature: 0.5, topK: 3, suppressed: [0] };
            for (let n = 0; n < 20000; n++) counts[choose([9, 1, 0.5, 0, -9], settings, draw) - 1]++;
            return counts;
        })()"""
    )
    weights = np.exp(np.array([1, 0.5, 0]) / 0.5)
    assert np.abs(np.array(drawn[:3]) / 20000 - weights / weights.sum()).max() < 0.02
    assert drawn[3] == 0


def test_the_surprise_of_a_text_is_that_of_torch(browser: Browser, page: Path, tmp_path: Path) -> None:
    network, tokenizer = load(page.parent / "model")
    pack(network, "int8")
    ids = torch.tensor([tokenizer.encode_ids(TEXT).tolist()])
    with torch.inference_mode():
        logits = network(ids).logits[0, :-1]
    nats = torch.nn.functional.cross_entropy(logits, ids[0, 1:], reduction="none")
    browser.open(page)
    bits = browser.run(
        f"(async () => {{ $('prompt').value = {json.dumps(TEXT + 'Ж')}; await read();"
        "return marks.map((mark) => [mark.text, mark.kind, mark.bits]) })()"
    )
    assert "".join(part for part, _, _ in bits) == TEXT + "Ж"
    assert [bits[0][2], bits[-1][1:]] == [None, ["unknown", None]]
    assert np.abs(np.array([b for _, _, b in bits[1:-1]]) - nats.numpy() / np.log(2)).max() < 1e-3


def test_nothing_in_alphabet_prompt_or_name_runs_or_is_asked_for(browser: Browser, tmp_path: Path) -> None:
    evil = "<script>document.title='bad'</script><img src=x onerror=\"document.title='bad'\">"
    model = save(tmp_path / "<img src=x onerror=document.title='bad'>", tokenizer=CharTokenizer.train([evil]))
    page = export_html(model, tmp_path / "page.html").file
    browser.open(page)
    title = browser.run("document.title")
    assert title == "page"
    written = browser.run(
        f"(async () => {{ $('prompt').value = {json.dumps(evil)}; await read(); await write(); return ["
        "document.title, $('text').textContent, document.querySelectorAll('#text :not(span),img').length]})()"
    )
    assert written[0] == title
    assert written[1].startswith(evil)
    assert written[2] == 0
    assert browser.errors == []
    # What isn't allowed by its hash doesn't run, even if it got into the page.
    browser.run("document.body.append(Object.assign(document.createElement('script'), {text: 'evil = 1'}))")
    assert browser.run("typeof evil") == "undefined"
    assert len(browser.errors) == 1


def test_typing_shows_the_next_characters_and_a_touch_what_was_expected(browser: Browser, page: Path) -> None:
    network, tokenizer = load(page.parent / "model")
    pack(network, "int8")
    browser.open(page)
    for prompt in ("a", "ab", "ab世", "a", ""):
        ids = torch.tensor([tokenizer.encode_ids(prompt).tolist() or [tokenizer.vocab["\n"]]])
        with torch.inference_mode():
            best = network(ids).logits[0, -1].argsort(descending=True).tolist()
        shown = browser.run(
            f"(async () => {{ $('prompt').value = {json.dumps(prompt)}; await follow();"
            "return Array.from(document.querySelectorAll('#bars button'), (b) => b.disabled) })()"
        )
        first = browser.run("likeliest(probabilities(session.logits), 3).map(({ id }) => id)")
        assert first == best[:3]
        assert 0 < len(shown) <= 8
    browser.run("document.querySelector('#bars button').click()")
    assert len(browser.run("$('prompt').value")) == 1
    seen = browser.run(
        "(async () => { $('prompt').value = 'abcab'; await read(); pick(1, 0.1, 0.1);"
        "$('text').children[3].click(); return [$('before').textContent, $('picked').textContent,"
        "$('colour').value, document.querySelectorAll('canvas').length] })()"
    )
    assert "“a”" in seen[0]
    assert re.search(r"2.*1: -?[01]\.\d\d$", seen[1])
    assert seen[2:] == ["unit", 2]
    assert browser.errors == []


# --- without one


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
