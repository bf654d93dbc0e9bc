"""Every link of the documents between files of the repository leads somewhere, its anchor included."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

CHECKOUT = Path(__file__).resolve().parent.parent
LINK = re.compile(r"\[[^\]]*\]\((?P<target>[^)\s]+)\)")
CODE = re.compile(r"^```.*?^```|`[^`\n]+`", re.DOTALL | re.MULTILINE)


def documents() -> list[Path]:
    folders = ("docs", "flow")
    return sorted(
        [*CHECKOUT.glob("*.md"), *(path for name in folders for path in (CHECKOUT / name).rglob("*.md"))]
    )


def anchors(text: str) -> set[str]:
    """Of the headings, as GitHub makes them: lower case, spaces to hyphens, the rest of the signs dropped."""
    headings = re.findall(
        r"^#+ +(.+?) *$", re.sub(r"^```.*?^```", "", text, flags=re.DOTALL | re.MULTILINE), re.M
    )
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


@pytest.mark.parametrize("path", documents(), ids=lambda path: path.relative_to(CHECKOUT).as_posix())
def test_every_link_of_a_document_leads_somewhere(path: Path) -> None:
    text = path.read_text(encoding="utf-8")
    for target in LINK.findall(CODE.sub("", text)):
        if re.match(r"[a-z]+:", target):  # of the web
            assert target.startswith("https://"), target
            continue
        name, _, anchor = target.partition("#")
        file = (path.parent / name).resolve() if name else path
        assert file.exists(), f"{target}: nothing there"
        assert file.is_relative_to(CHECKOUT), f"{target}: outside of the repository"
        if anchor:
            assert anchor in anchors(file.read_text(encoding="utf-8")), f"{target}: no such heading"


def test_links_and_headings_are_found() -> None:
    assert LINK.findall("see [this](a.md#b) and ![that](c.png)") == ["a.md#b", "c.png"]
    assert anchors("# It's `x` & more\n```\n# no heading\n```\n## Two words") == {"its-x--more", "two-words"}
    assert len(documents()) > 15


def test_the_architecture_draws_every_room_and_no_other() -> None:
    """docs/architecture.md draws each room of craft/ and each file beside them, and none that isn't there."""
    drawn = (CHECKOUT / "docs" / "architecture.md").read_text(encoding="utf-8").split("```")[1]
    inside = drawn.partition("\ncraft/\n")[2].partition("\ndocs/")[0]
    names = set(re.findall(r"^  ([\w.]+/?)(?=  )", inside, re.MULTILINE))
    craft = CHECKOUT / "craft"
    rooms = {f"{path.parent.name}/" for path in craft.glob("*/__init__.py")}
    files = {path.name for path in craft.glob("*.py")} - {"__main__.py"}
    assert names == rooms | files
    listed = re.findall(r"^([\w.]+/?)", drawn, re.MULTILINE)
    assert all((CHECKOUT / name).exists() for name in listed), listed


def test_the_readme_of_flow_lists_every_folder() -> None:
    names = re.findall(r"^\| `(\w+)/` \|", (CHECKOUT / "flow" / "README.md").read_text(), re.MULTILINE)
    assert sorted(names) == sorted(path.name for path in (CHECKOUT / "flow").iterdir() if path.is_dir())
