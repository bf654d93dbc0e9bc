"""Which files of a folder are for others, and what others see of them."""

from __future__ import annotations

import json
import mmap
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from craft.sharing.card import CARD, is_edited, render
from craft.sharing.privacy import leak, public, public_run, public_text, public_words
from craft.sharing.record import CURVE, DATA, EVALUATION, METRICS_FILE, SAMPLE, is_png, parameters_in
from craft.utils.common import UserError
from craft.utils.labels import LICENCE_TEXTS
from craft.utils.masking import has_secret
from craft.utils.outputs import RUN_CONFIG

MODEL = re.compile(
    r"model(-\d+-of-\d+)?\.safetensors|model\.safetensors\.index\.json|config\.json|generation_config\.json"
    r"|tokenizer\.json|tokenizer_config\.json|special_tokens_map\.json|chat_template\.jinja|[A-Za-z]\w*\.py"
)
"""Files of a model: nothing that is opened with pickle is one."""
RECORD = (CARD, RUN_CONFIG, DATA, EVALUATION, METRICS_FILE, SAMPLE, CURVE)
WRITTEN = (".md", ".py", ".yaml", *LICENCE_TEXTS)
"""Files that people write in, as against what a model or a run made."""


@dataclass(frozen=True)
class Item:
    """One file of an upload.

    Args:
        name: where it goes.
        content: its bytes, or the file to read them from.
    """

    name: str
    content: bytes | Path

    @property
    def size(self) -> int:
        return len(self.content) if isinstance(self.content, bytes) else self.content.stat().st_size


def bundle(folder: Path, repo_id: str, licence: str | None = None) -> list[Item]:
    """What is uploaded of a model's folder: the model, its record and its card, in their public form.

    Raises:
        UserError: if the folder has no safetensors weights, the model in it is damaged, or something private
            can't be taken out.
    """
    items = [Item(CARD, _card(folder, repo_id, licence))]
    names = sorted(path.name for path in folder.iterdir() if path.is_file())
    items += [item_of(folder / name) for name in names if MODEL.fullmatch(name) or name in LICENCE_TEXTS]
    items += [item_of(folder / name) for name in RECORD[1:] if name in names and not flaw(folder / name)]
    if not any(item.name.endswith(".safetensors") for item in items):
        raise UserError(
            f"{folder} holds no weights as safetensors (model.safetensors), so there is nothing to push"
        )
    _check_model(folder)
    check(items)
    return items


def item_of(path: Path, name: str | None = None) -> Item:
    """A file in its public form: what is text is rewritten, the rest goes as it lies there.

    Args:
        name: where it goes; by default its own name.
    """
    name = name or path.name
    if path.name == "tokenizer.json" or path.suffix not in (".json", ".yaml", ".jsonl", ".txt"):
        return Item(name, path)
    text = path.read_bytes().decode("utf-8", errors="replace")
    return Item(name, _public(path.name, text).encode("utf-8", "replace"))


def check(items: list[Item]) -> None:
    """Looks for secrets and paths in every byte that would be uploaded.

    Raises:
        UserError: naming the file; nothing has been sent.
    """
    for item in items:
        what = _leak(item.content)
        if not what and item.name.endswith(WRITTEN) and has_secret(_text(item.content)):
            what = "a token or password"  # a person may have put in one that this process can't know
        if what:
            raise UserError(f"{item.name} holds {what}, so nothing was uploaded; take it out and push again")


def _check_model(folder: Path) -> None:
    """Refuses a model that nobody could load."""
    for path in sorted(folder.iterdir()):
        if MODEL.fullmatch(path.name) and (wrong := flaw(path)):
            raise UserError(f"{path} is damaged, so nothing was uploaded: {wrong}; export the model again")
    try:
        kind = json.loads((folder / "config.json").read_text(encoding="utf-8")).get("model_type")
    except FileNotFoundError:
        kind = None
    if not kind:
        raise UserError(f"{folder} has no config.json that names a model_type, so nothing was uploaded")


def flaw(path: Path) -> str:
    """Why a file isn't what its name says, in a few words; empty if it seems to be."""
    import yaml

    try:
        if path.suffix == ".safetensors":
            parameters_in(path)
        elif path.suffix in (".json", ".yaml"):
            text = path.read_bytes().decode("utf-8")
            found = json.loads(text) if path.suffix == ".json" else yaml.safe_load(text)
            return "" if isinstance(found, dict) else "it holds no fields"
        elif path.suffix == ".txt":
            path.read_bytes().decode("utf-8")
        elif path.suffix == ".png":
            return "" if is_png(path) else "it is no PNG"
    except Exception as error:  # PyYAML's constructors raise whatever comes
        return " ".join(str(error).split()) or type(error).__name__
    return ""


def _card(folder: Path, repo_id: str, licence: str | None) -> bytes:
    """The card for this place, or the one in the folder where a person has changed it."""
    path = folder / CARD
    written = path.read_text(encoding="utf-8", errors="replace") if path.is_file() else None
    if written is None or not is_edited(written):
        return render(folder, repo_id, licence).encode()
    if licence is not None:
        raise UserError(
            f"{path} was edited, or isn't craft's, so it is uploaded as it is; state the licence in it, not "
            "by --license, or delete it for a new one"
        )
    return written.encode()


def _public(name: str, text: str) -> str:
    if name == RUN_CONFIG:
        return _public_yaml(text)
    if name.endswith(".json"):
        try:
            value = json.loads(text)
            shown = public(value)
        except (ValueError, RecursionError):
            return public_words(text)
        return text if shown == value else json.dumps(shown, indent=2, ensure_ascii=False) + "\n"
    if name.endswith(".jsonl"):
        return "".join(_public_lines(text))
    return public_text(text)


def _public_lines(text: str) -> Iterator[str]:
    known: dict[str, str] = {}
    for line in text.split("\n"):
        try:
            found = json.loads(line)
            if isinstance(found, dict):
                yield json.dumps(public(found, known=known), ensure_ascii=False) + "\n"
        except (ValueError, RecursionError):
            continue  # half a line of a process that was killed


def _public_yaml(text: str) -> str:
    import yaml

    try:
        run = yaml.safe_load(text)
        shown = public_run(run) if isinstance(run, dict) else {}
        return yaml.safe_dump(shown, sort_keys=False, allow_unicode=True) if shown else ""
    except Exception:  # torn, or not a run at all: PyYAML's constructors raise whatever comes
        return public_words(text)


def _text(content: bytes | Path) -> str:
    data = content if isinstance(content, bytes) else content.read_bytes()
    return data.decode("utf-8", errors="replace")


def _leak(content: bytes | Path) -> str:
    if isinstance(content, bytes):
        return leak(content)
    if not content.stat().st_size:
        return ""
    with content.open("rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as mapped:
        return leak(mapped)
