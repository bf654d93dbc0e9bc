"""The model card: what is said, and that nobody's words can be more than words in it."""

from __future__ import annotations

import html
import json
import re
from pathlib import Path
from typing import Any

import pytest
import yaml
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from record_folder import folder_of

from craft.sharing.bundle import bundle
from craft.sharing.card import metadata, render, write_card
from craft.sharing.record import Record
from craft.utils.common import UserError

NASTY = st.text(max_size=40) | st.sampled_from(
    [
        "---\nlicense: mit\n---",
        "a: b # c",
        "<script>alert(1)</script>",
        "</pre><img src=x onerror=alert(1)>",
        "```\n# Heading\n```",
        "| a | b |\n|---|---|",
        "[x](javascript:alert(1))",
        "{{ 7*7 }}{% raw %}",
        "!!python/object/apply:os.system [id]",
        "no",
        "1e3",
        "\ud800\u202e\u2028\x85\0",
    ]
)


def parts(card: str) -> tuple[dict[str, Any], str]:
    """Metadata and body, cut as the Hub's own client cuts them."""
    from huggingface_hub.repocard import REGEX_YAML_BLOCK

    match = re.search(REGEX_YAML_BLOCK, card)
    assert match is not None
    return yaml.safe_load(match[2]), card[match.end() :]


def test_the_card_says_what_the_record_holds(tmp_path: Path) -> None:
    found, body = parts(render(folder_of(tmp_path / "x_step_90"), "ada/x", "cc-by-4.0"))
    assert found["license"] == "cc-by-4.0"
    assert found["language"] == "en"
    assert found["metrics"] == ["bits_per_character", "bits_per_byte", "accuracy"]
    (result,) = found["model-index"][0]["results"]
    assert result["metrics"][0]["value"] == 2.5
    assert result["metrics"][0]["args"]["protocol"] == "blocks"
    for phrase in (
        "2.5000",
        "2.2500",
        "50.00%",
        "ab" * 32,
        "training.learning_rate | 0.01",
        "words",
        "6.4 times",
    ):
        assert phrase in body
    code = body.split("```python\n")[1].split("```")[0]
    assert len(code.strip().splitlines()) == 4
    compile(code, "card", "exec")


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(name=NASTY, sample=NASTY, setting=NASTY, repo=st.sampled_from([None, "ada/x"]))
def test_words_stay_words(tmp_path: Path, name: str, sample: str, setting: str, repo: str | None) -> None:
    encodable = name.encode("utf-8", "replace").decode()
    sample = sample.encode("utf-8", "replace").decode()
    folder = folder_of(
        tmp_path / "m", "n", sample, training={"optim": setting.encode("utf-8", "replace").decode()}
    )
    (folder / "data.json").write_text(json.dumps({"name": name}), encoding="utf-8")
    found, body = parts(render(folder, repo))
    assert found == json.loads(
        json.dumps(metadata(Record.of(folder), found["model-index"][0]["name"], "unknown"))
    )
    if name and not re.search(r"[\ud800-\udfff/~]", name):
        assert found["model-index"][0]["results"][0]["dataset"]["name"] == encodable
    tags = re.findall(r"<[^>\n]*>?", body)
    assert set(tags) <= {"<pre>", "</pre>"}, tags
    assert len(re.findall("^```", body, re.MULTILINE)) == 2
    assert not re.search(r"^(---|===)\s*$", body, re.MULTILINE)
    if (
        (shown := re.search(r"<pre>\n(.*)\n</pre>", body, re.DOTALL))
        and sample.isascii()
        and sample.isprintable()
    ):
        assert html.unescape(shown[1]) == sample


def test_a_card_that_a_person_edited_is_kept(tmp_path: Path) -> None:
    folder = folder_of(tmp_path / "m")
    fresh = {item.name: item.content for item in bundle(folder, "ada/x")}["README.md"]
    assert b'"ada/x"' in fresh  # type: ignore[operator]
    (folder / "README.md").write_text("My own words", encoding="utf-8")
    assert {item.name: item.content for item in bundle(folder, "ada/x")}["README.md"] == b"My own words"
    with pytest.raises(UserError, match="was edited"):
        bundle(folder, "ada/x", "mit")
    write_card(folder)
    assert "ada/x" not in (folder / "README.md").read_text(encoding="utf-8")


def test_a_folder_with_damaged_records_still_has_a_card(tmp_path: Path) -> None:
    folder = folder_of(tmp_path / "m")
    for name in ("craft_run.yaml", "evaluation.json", "data.json", "config.json"):
        (folder / name).write_bytes(b"\xff{[")
    assert "Not evaluated yet." in render(folder)
