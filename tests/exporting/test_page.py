"""What the page computes and shows in a browser is what craft computes."""

from __future__ import annotations

import json
import re
from pathlib import Path

import numpy as np
import pytest
import torch

from craft.data.tokenization import CharTokenizer
from craft.exporting.html import export_html, pack
from craft.inference import load, sample

from .browser import Browser
from .conftest import CONTEXT, MODELS, TEXT, TOKENIZERS, exported, save


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
