"""The model card: what is said, and that nobody's words can be more than words in it."""

from __future__ import annotations

import html
import json
import math
import re
from pathlib import Path
from typing import Any

import pytest
import yaml
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from record_folder import folder_of
from refusals import refused

from craft.config.compose import compose
from craft.sharing.bundle import bundle, sanitized_file
from craft.sharing.card import card_data, card_for_hub, mark_audited, render, write_card
from craft.sharing.record import Record
from craft.utils.errors import CraftError

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


def is_whole(file: Path) -> bool:
    """Whether a file can be shared."""
    try:
        sanitized_file(file)
    except CraftError:
        return False
    return True


def sent(folder: Path, licence: str | None = None, repo_id: str = "ada/x") -> dict[str, Any]:
    """What would be uploaded of a folder, by name."""
    return bundle(folder, repo_id, licence)


def test_the_card_says_what_the_record_holds(tmp_path: Path) -> None:
    found, body = parts(card_for_hub(folder_of(tmp_path / "x_step_90"), "ada/x", "cc-by-4.0"))
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
        "learning_rate: 0.01",
        "words",
    ):
        assert phrase in html.unescape(body)
    code = body.split("```python\n")[1].split("```")[0]
    assert len(code.strip().splitlines()) == 4
    compile(code, "card", "exec")


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(name=NASTY, sample=NASTY, setting=NASTY)
def test_no_word_of_others_is_read_as_markup(tmp_path: Path, name: str, sample: str, setting: str) -> None:
    sample = sample.encode("utf-8", "replace").decode()
    folder = folder_of(
        tmp_path / "m", "n", sample, training={"optim": setting.encode("utf-8", "replace").decode()}
    )
    (folder / "data.json").write_text(json.dumps({"name": name}), encoding="utf-8")
    found, body = parts(render(folder))
    assert found == card_data(Record.of(folder), found["model-index"][0]["name"]).to_dict()
    if name.strip() and not re.search(r"[\ud800-\udfff/~]", name):
        assert found["model-index"][0]["results"][0]["dataset"]["name"] == " ".join(name.split())
    tags = re.findall(r"<[^>\n]*>?", body)
    assert set(tags) <= {"<pre>", "</pre>"}, tags
    assert len(re.findall("^```", body, re.MULTILINE)) == 2
    assert not re.search(r"^(---|===)\s*$", body, re.MULTILINE)
    if (
        (shown := re.search(r"## A sample\n\n<pre>\n(.*)\n</pre>", body, re.DOTALL))
        and sample.isascii()
        and sample.isprintable()
    ):
        assert html.unescape(shown[1]) == sample


def test_the_card_in_the_folder_is_uploaded_with_the_name_of_the_repository(tmp_path: Path) -> None:
    folder = folder_of(tmp_path / "lstm_step_90").rename(tmp_path / "best")
    written = (folder / "README.md").read_text(encoding="utf-8")
    assert "ada/good" not in written
    card = sent(folder, repo_id="ada/good")["README.md"].decode()
    assert 'pipeline("text-generation", "ada/good"' in card
    assert "`craft generate ada/good`" in card
    assert card.replace("ada/good", "path/to/this/folder") == written
    assert "after 90 steps of training" in card


@pytest.mark.parametrize(
    ("card", "start"),
    [
        (
            "---\n# mine\nlicense: mit\n---\n\n# Model\n\nWords.\n",
            "---\n# mine\nlicense: mit\n---\n\n# Model\n\n",
        ),
        ("Words.\n", "Words.\n\n\n"),
    ],
    ids=["below its title", "at the end where there is none"],
)
def test_the_page_is_named_in_the_card_once(tmp_path: Path, card: str, start: str) -> None:
    place = "https://huggingface.co/spaces/ada/x"
    for _ in range(2):
        (tmp_path / "README.md").write_text(card)
        card = card_for_hub(tmp_path, "ada/x", space=place)
        assert card.count(place) == 1
        assert card[: card.index("[")] == start
        assert "Words." in card


def test_what_a_person_wrote_into_the_card_is_uploaded(tmp_path: Path) -> None:
    path = folder_of(tmp_path / "m") / "README.md"
    for edited in (path.read_text(encoding="utf-8") + "\nMy words.\n", "My own words", ""):
        path.write_text(edited, encoding="utf-8")
        card = sent(path.parent)["README.md"].decode()
        assert card == edited.replace("path/to/this/folder", "ada/x")
    with refused("setting-conflict", path, "license:"):
        bundle(path.parent, "ada/x", "mit")
    path.unlink()
    assert b"path/to" not in sent(path.parent)["README.md"]  # made where there is none
    write_card(path.parent)
    assert path.is_file()


def test_a_folder_with_damaged_records_still_has_a_card(tmp_path: Path) -> None:
    folder = folder_of(tmp_path / "m")
    for name in ("craft_run.yaml", "evaluation.json", "data.json", "config.json"):
        (folder / name).write_bytes(b"\xff{[")
    assert "Not evaluated yet." in render(folder)


JUNK: dict[str, Any] = {
    "null": None,
    "a list": [1, [2, {"a": "b"}]],
    "a number": 1,
    "a word": "1",
    "one word": {"a": 1},
    "sections null": {"models": None, "data": None, "training": None},
    "sections lists": {"models": [], "data": [{}], "training": ["x"]},
    "values odd": {
        "models": {"init_from": ["a/b"], "model_type": {}, "rope_parameters": {"a": {"b": {"c": {"d": 1}}}}},
        "data": {"source": [], "path": {}, "name": 7, "block_size": "x", "language": ["en"], "revision": {}},
        "training": {"global_batch_size": "4", "learning_rate": None, "hub_license": 3, "push_to_hub": "x"},
    },
    "a data set's name odd": {"data": {"source": "hub", "path": "a b\n---\n"}},
    "a long path": {
        "data": {"source": "hub", "path": "a" * 5000 + "/b"},
        "models": {"init_from": "b/" * 3000},
    },
    "a broken address": {"data": {"path": "http://[x"}},
    "facts words": {"name": ["x"], "characters": "1", "vocabulary": 1.5, "splits": "all"},
    "splits null": {"splits": None},
    "splits' parts null": {"splits": {"train": None, "validation": 3}},
    "splits' parts odd": {"splits": {"train": {"characters": "1", "sha256": 5}, "x": {"characters": -1}}},
    "far too large": {"characters": 10**400, "splits": {"train": {"characters": 2**70}}},
    "evaluations null": {"evaluations": None},
    "evaluations odd": {"evaluations": [None, 1, [], "x", {}, {"protocol": None}, {"protocol": ["blocks"]}]},
    "scores words": {"evaluations": [{"protocol": "blocks", "bits_per_char": "2.5", "accuracy": "high"}]},
    "scores not finite": {
        "evaluations": [{"protocol": "blocks", "bits_per_char": math.nan, "accuracy": -math.inf}]
    },
    "scores too large": {"evaluations": [{"protocol": "blocks", "bits_per_char": 10**400}]},
    "a step that is none": {"global_step": "9"},
    "a unit of lists": {"unit": ["note"]},
    "a unit that is none": {"unit": "no\n---"},
    "a vocabulary of lists": {"model": {"vocab": [["a", -1.0], 3]}},
}
RECORDS = (
    "craft_run.yaml",
    "data.json",
    "evaluation.json",
    "trainer_state.json",
    "tokenizer.json",
    "config.json",
    "tokenizer_config.json",
)


def is_a_card(text: str) -> dict[str, Any]:
    """Checks the metadata as huggingface_hub does, and gives them."""
    from huggingface_hub import ModelCard

    card = ModelCard(text, ignore_metadata_errors=False)
    found = card.data.to_dict()
    again = ModelCard(str(card)).data.to_dict()
    assert again == found
    for result in card.data.eval_results or []:
        assert math.isfinite(result.metric_value)
        assert result.metric_args["protocol"]
    return found


@pytest.mark.parametrize("junk", JUNK)
@pytest.mark.parametrize("name", RECORDS)
def test_a_damaged_part_is_left_out_of_the_card(tmp_path: Path, name: str, junk: str) -> None:
    folder = folder_of(tmp_path / "m")
    text = yaml.safe_dump(JUNK[junk]) if name.endswith(".yaml") else json.dumps(JUNK[junk])
    (folder / name).write_text(text, encoding="utf-8")
    card = render(folder)
    found = is_a_card(card)
    assert found["license"] == "unknown"
    assert not re.search(r"\b(None|nan|inf)\b", parts(card)[1])
    if name != "evaluation.json":  # the other parts are all there
        assert "2.5000" in card
    if name != "data.json":
        assert "ab" * 32 in card
    if name != "craft_run.yaml":
        assert "learning_rate: 0.01" in html.unescape(card)


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"\xff{[",
        b"\x00" * 9,
        b"[" * 100_000,
        b"{" * 100_000,
        b'{"a": ' * 50_000,
        b"a: 2024-13-45",
        b"a: !!timestamp x",
        b"a: !!int ''",
        b"a: &x [*x]",
        b"data: &x {path: *x}",
        b"? [1]\n: 2",
        b"a: !!python/object/apply:os.system [id]",
        b"models: {1: 2, null: 3, 2024-01-01: x}\ntraining: {1: /home/x}",
        b'{"splits": {"train": {"characters": ' + b"9" * 5000 + b"}}}",
        '{"evaluations": "\ud800"}'.encode("utf-8", "surrogatepass"),
        b'{"evaluations": [{"protocol": "\\ud800", "bits_per_char": 1}]}',
    ],
    ids=range(17),
)
@pytest.mark.parametrize("name", [*RECORDS, "sample.txt", "metrics.jsonl", "model.safetensors"])
def test_no_bytes_break_the_card(tmp_path: Path, name: str, content: bytes) -> None:
    folder = folder_of(tmp_path / "m")
    (folder / name).write_bytes(content[:500] if name.endswith(".yaml") else content)  # PyYAML is slow
    card = render(folder)
    is_a_card(card)
    card.encode()
    of_the_model = ("config.json", "model.safetensors", "tokenizer.json", "tokenizer_config.json")
    if name in of_the_model and not is_whole(folder / name):
        with refused("model-invalid", folder / name):
            bundle(folder, "ada/x")
    elif name == "config.json":
        with refused("model-missing", folder, "model_type"):
            bundle(folder, "ada/x")
    else:
        assert (name in sent(folder)) == (name != "trainer_state.json" and is_whole(folder / name))


@settings(max_examples=100, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    name=st.sampled_from(RECORDS),
    value=st.recursive(
        st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=9),
        lambda inner: (
            st.lists(inner, max_size=4)
            | st.dictionaries(
                st.sampled_from(
                    [
                        *(
                            "models",
                            "data",
                            "training",
                            "splits",
                            "train",
                            "evaluations",
                            "protocol",
                            "split",
                        ),
                        *(
                            "bits_per_char",
                            "characters",
                            "sha256",
                            "name",
                            "path",
                            "source",
                            "init_from",
                            "a",
                        ),
                        *(
                            "global_batch_size",
                            "block_size",
                            "hub_license",
                            "language",
                            "model_type",
                            "vocab",
                            "model",
                        ),
                    ]
                ),
                inner,
                max_size=5,
            )
        ),
        max_leaves=15,
    ),
)
def test_no_plain_data_break_the_card(tmp_path: Path, name: str, value: Any) -> None:
    folder = folder_of(tmp_path / "m")
    (folder / name).write_text(json.dumps(value), encoding="utf-8")  # which is YAML too
    is_a_card(render(folder))


def test_the_curve_and_the_sample_are_shown_where_there_are_any(tmp_path: Path) -> None:
    folder = folder_of(tmp_path / "m", sample="so it says")
    (folder / "loss_curve.png").write_bytes(b"\x89PNG\r\n\x1a\n rest")
    card = render(folder)
    assert "![Loss curve](loss_curve.png)" in card
    assert "so it says" in card
    (folder / "loss_curve.png").unlink()
    (folder / "sample.txt").write_bytes(b"\xff")
    assert "loss_curve" not in render(folder)
    assert not {"loss_curve.png", "sample.txt"} & set(sent(folder))


def test_only_a_data_set_of_the_hub_is_named_as_one(tmp_path: Path) -> None:
    for data, named in (
        ({"source": "hub", "path": "ada/poems"}, "ada/poems"),
        ({"source": "hub", "path": "imdb"}, "imdb"),
        ({"source": "files", "path": "/data/imdb", "name": "imdb"}, None),
        ({"source": "files", "path": "imdb"}, None),
        ({"source": "builtin", "path": "imdb", "name": "imdb"}, None),
        ({"source": "hub", "path": "/data/imdb", "name": "imdb"}, None),
        ({"source": "hub", "path": "./my/imdb"}, None),
        ({"path": "imdb"}, None),
    ):
        folder = folder_of(tmp_path / "m", "imdb", data=data)
        found = is_a_card(render(folder))
        assert found.get("datasets") == ([named] if named else None)
        (result,) = found["model-index"][0]["results"]
        assert result["dataset"]["type"] == (named or "text")
        assert result["dataset"]["name"] in ("imdb", "poems")
        assert ("a data set of the Hub" in render(folder)) == (named is not None)


@pytest.mark.parametrize("folder_is_here", [True, False])
def test_a_folder_is_no_model_or_data_set_of_the_hub_wherever_its_card_is_written(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, folder_is_here: bool
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "ada" / "poems").mkdir(parents=True)
    data = compose(["data.source=hub", "data.path=ada/poems"]).data
    models = {"init_from": "ada/poems"}  # as compose records a folder
    folder = folder_of(tmp_path / "m", data=data, models=models)
    commit = {"init_revision": "0" * 40}
    other = folder_of(tmp_path / "n", data={"source": "hub", "path": "ada/poems"}, models=models | commit)
    if not folder_is_here:
        (tmp_path / "ada" / "poems").rmdir()
    found = is_a_card(render(folder))
    assert not {"datasets", "base_model"} & set(found)
    shown = bundle(folder, "ada/x")["craft_run.yaml"]
    assert b"ada/" not in shown  # type: ignore[operator]
    found = is_a_card(render(other))
    assert (found["datasets"], found["base_model"]) == (["ada/poems"], "ada/poems")


def test_the_licence_is_that_of_the_run_unless_another_is_said(tmp_path: Path) -> None:
    folder = folder_of(tmp_path / "m", training={"hub_license": "cc-by-4.0"})
    assert is_a_card(render(folder))["license"] == "cc-by-4.0"
    assert is_a_card(card_for_hub(folder, "ada/x", "mit"))["license"] == "mit"
    run = sent(folder, "mit")["craft_run.yaml"]
    assert b"hub_license" not in run  # whoever repeats it states their own
    (folder / "LICENSE").write_text("Do what you like.\n")
    assert "LICENSE" in sent(folder, "other")
    folder = folder_of(tmp_path / "m", training={"hub_license": "My Licence"})
    assert is_a_card(render(folder))["license"] == "unknown"
    for typed in ("Apache 2.0", "MIT", "mit\n---"):
        with refused("setting-value", "--license", repr(typed), "apache-2.0"):
            card_for_hub(folder, "ada/x", typed)


def test_figures_that_were_audited_say_so_unless_a_person_edited_the_card(tmp_path: Path) -> None:
    folder = folder_of(tmp_path / "x_step_90")
    record = json.loads((folder / "evaluation.json").read_text(encoding="utf-8"))
    score = {**record["evaluations"][0], "nats": 1001.3, "sha256": "ab" * 32}
    record["evaluations"] = [score]
    (folder / "evaluation.json").write_text(json.dumps(record), encoding="utf-8")
    write_card(folder)
    before = (folder / "README.md").read_text(encoding="utf-8")
    for other in ({"nats": 1002.0}, {"sha256": "cd" * 32}, {"protocol": "sliding-8"}, {"split": "test"}):
        mark_audited(folder, [{**score, **other}], True)
        assert (folder / "README.md").read_text(encoding="utf-8") == before
    assert "audited" not in before
    mark_audited(folder, [score], True)
    card = (folder / "README.md").read_text(encoding="utf-8")
    assert "| validation | blocks, windows of 16, audited |" in card
    assert is_a_card(card)["model-index"][0]["results"][0]["metrics"][0]["value"] == 2.5
    mark_audited(folder, [score], False)
    assert (folder / "README.md").read_text(encoding="utf-8") == before
    (folder / "README.md").write_text(before + "mine", encoding="utf-8")
    mark_audited(folder, [score], True)
    assert (folder / "README.md").read_text(encoding="utf-8") == before + "mine"
    assert "audited" in render(folder)
    missing = tmp_path / "nothing"
    missing.mkdir()
    mark_audited(missing, [score], True)
    assert not list(missing.iterdir())
