"""Which files of a folder are for others, and what others see of them."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from craft.sharing.card import CARD, is_edited, render
from craft.sharing.privacy import leak, public, public_run, public_text
from craft.sharing.record import (
    CURVE,
    DATA,
    EVALUATION,
    METRICS_FILE,
    SAMPLE,
    fields_or_empty,
    is_png,
    parameters_in,
    read_fields,
)
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

    def read(self) -> bytes:
        return self.content if isinstance(self.content, bytes) else self.content.read_bytes()


def bundle(folder: Path, repo_id: str, licence: str | None = None) -> list[Item]:
    """What is uploaded of a model's folder: the model, its record and its card, in their public form.

    Raises:
        UserError: if the folder has no safetensors weights, the model in it is damaged, or something private
            can't be taken out.
    """
    items = [Item(CARD, _card(folder, repo_id, licence))]
    names = sorted(path.name for path in folder.iterdir() if path.is_file())
    for name in names:
        if MODEL.fullmatch(name) or name in LICENCE_TEXTS:
            try:
                items.append(item_of(folder / name))
            except ValueError as error:
                raise UserError(
                    f"{folder / name} is damaged, so nothing was uploaded: {error}; export the model again"
                ) from error
    if not any(item.name.endswith(".safetensors") for item in items):
        raise UserError(
            f"{folder} holds no weights as safetensors (model.safetensors), so there is nothing to push"
        )
    if not fields_or_empty(folder / "config.json").get("model_type"):
        raise UserError(f"{folder} has no config.json that names a model_type, so nothing was uploaded")
    for name in RECORD[1:]:
        if name in names:
            with suppress(ValueError):  # damaged, which is no reason to keep the model back
                items.append(item_of(folder / name))
    check(items)
    return items


def item_of(path: Path) -> Item:
    """A file in its public form: what is text is rewritten, the rest goes as it lies there.

    Raises:
        ValueError: in a few words, if it isn't what its name says.
    """
    text = None
    if path.suffix == ".safetensors":
        parameters_in(path)
    elif path.suffix in (".json", ".yaml"):
        found = read_fields(path)
        shown = public_run(found) if path.name == RUN_CONFIG else public(found)
        if shown != found and path.name != "tokenizer.json":  # whose characters are no paths
            text = json.dumps(shown, indent=2, ensure_ascii=False) + "\n"
        if path.suffix == ".yaml":
            import yaml

            text = yaml.safe_dump(shown, sort_keys=False, allow_unicode=True)
    elif path.suffix == ".png" and not is_png(path):
        raise ValueError("it is no PNG")
    elif path.suffix == ".jsonl":
        text = "".join(_public_lines(path))
    elif path.suffix == ".txt":
        text = public_text(path.read_bytes().decode())
    return Item(path.name, path if text is None else text.encode("utf-8", "replace"))


def _public_lines(path: Path) -> Iterator[str]:
    for line in path.read_bytes().decode(errors="replace").split("\n"):
        with suppress(ValueError, RecursionError):  # half a line of a process that was killed
            if isinstance(found := json.loads(line), dict):
                yield json.dumps(public(found), ensure_ascii=False) + "\n"


def check(items: list[Item]) -> None:
    """Looks for secrets and paths in every byte that would be uploaded.

    Raises:
        UserError: naming the file; nothing has been sent.
    """
    for item in items:
        what = leak(item.content)
        if not what and item.name.endswith(WRITTEN) and has_secret(item.read().decode(errors="replace")):
            what = "a token or password"  # a person may have put in one that this process can't know
        if what:
            raise UserError(f"{item.name} holds {what}, so nothing was uploaded; take it out and push again")


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
