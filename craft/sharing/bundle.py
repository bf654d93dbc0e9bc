"""Which files of a folder are for others, and what others see of them."""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

from craft.sharing.card import CARD, is_edited, render
from craft.sharing.privacy import find_private, public, public_run, public_text
from craft.sharing.record import METRICS_FILE, RECORD, fields_or_empty, is_png, parameters_in, read_fields
from craft.sharing.trust import PICKLES
from craft.utils.errors import UserError
from craft.utils.labels import LICENCE_TEXTS
from craft.utils.manifest import MANIFEST, damage, manifest_text, read_manifest
from craft.utils.outputs import RUN_CONFIG, RUN_NAMES

MODEL = re.compile(
    r"model(-\d+-of-\d+)?\.safetensors|model\.safetensors\.index\.json|config\.json|generation_config\.json"
    r"|tokenizer\.json|tokenizer_config\.json|special_tokens_map\.json|chat_template\.jinja|[A-Za-z]\w*\.py"
)
"""Files of a model: nothing that is opened with pickle is one."""
BINARY = (".safetensors", ".png")
"""Files that aren't text."""
LAST = "last-checkpoint"
"""Where a repository keeps the checkpoint to resume from, as transformers does."""
Files = dict[str, bytes | Path]
"""What is uploaded, by its name there: the content, or the file to read it from."""


def bundle(folder: Path, repo_id: str, licence: str | None = None, resumable: str | None = None) -> Files:
    """What is uploaded of a model's folder: its card, the model, and its record, in their public form.

    Args:
        resumable: for a checkpoint: the folder of the repository into which all of it goes besides.

    Raises:
        UserError: if the folder has no safetensors weights, the model in it is damaged, or something private
            can't be taken out.
    """
    files: Files = {CARD: _card(folder, repo_id, licence)}
    names = sorted(path.name for path in folder.iterdir() if path.is_file())
    for name in names:
        if MODEL.fullmatch(name) or name in LICENCE_TEXTS:
            files[name] = public_file(folder / name)
    if not any(name.endswith(".safetensors") for name in files):
        raise UserError(
            f"{folder} holds no weights as safetensors (model.safetensors), so there is nothing to push"
        )
    if not fields_or_empty(folder / "config.json").get("model_type"):
        raise UserError(f"{folder} has no config.json that names a model_type, so nothing was uploaded")
    for name in RECORD:
        if name in names:
            with suppress(UserError):  # damaged, which is no reason to keep the model back
                files[name] = public_file(folder / name)
    if resumable is not None:
        files |= _checkpoint(folder, resumable)
    check(files)
    return files


def _checkpoint(checkpoint: Path, prefix: str) -> Files:
    """Everything that resuming needs, in its public form, vouched for by a manifest of just that.

    Args:
        prefix: the folder of the repository, one in which a checkpoint is looked for.
    """
    name = checkpoint.resolve().name
    if not re.fullmatch(r"checkpoint-\d+", name) or not (checkpoint / MANIFEST).is_file():
        raise UserError(f"--into is for a checkpoint-N of a run, which {checkpoint} isn't; leave it out")
    if prefix not in (LAST, name):
        raise UserError(f"can't push {checkpoint} into {prefix!r}: it must be {LAST} or {name}")
    if why := damage(checkpoint, int(name.rpartition("-")[2])):
        raise UserError(f"can't push {checkpoint}: {why}")
    manifest = read_manifest(checkpoint)
    if pickles := [name for name in manifest["files"] if name.endswith(PICKLES)]:
        raise UserError(f"{checkpoint} holds a pickle ({pickles[0]}), and craft shares none")
    files = {name: public_file(checkpoint / name) for name in manifest["files"]}
    for name, content in files.items():
        if isinstance(content, bytes):
            manifest["files"][name] = {"size": len(content), "sha256": hashlib.sha256(content).hexdigest()}
    beside = [checkpoint.parent / name for name in (RUN_NAMES, METRICS_FILE)]
    files |= {path.name: public_file(path) for path in beside if path.is_file()}
    files[MANIFEST] = manifest_text(manifest).encode()
    return {f"{prefix}/{name}": content for name, content in files.items()}


def check(files: Files) -> None:
    """Looks for secrets and paths in every byte that would be uploaded.

    Raises:
        UserError: naming the file; nothing has been sent.
    """
    for name, content in files.items():
        if what := find_private(content, text=not name.endswith(BINARY)):
            raise UserError(f"{name} holds {what}, so nothing was uploaded; take it out and push again")


def size(files: Files) -> int:
    """Bytes of an upload."""
    return sum(len(part) if isinstance(part, bytes) else part.stat().st_size for part in files.values())


def public_file(path: Path) -> bytes | Path:
    """A file in its public form: what is text is rewritten, the rest goes as it lies there.

    Raises:
        UserError: if it isn't what its name says.
    """
    try:
        text = _public(path)
    except ValueError as error:
        raise UserError(
            f"{path} is damaged, so nothing was uploaded: {error}; export the model again"
        ) from error
    return path if text is None else text.encode("utf-8", "replace")


def _public(path: Path) -> str | None:
    """The public form of a text; None for what goes as it is."""
    import yaml

    if path.suffix == ".safetensors":
        parameters_in(path)
    elif path.suffix == ".png" and not is_png(path):
        raise ValueError("it is no PNG")
    elif path.suffix in (".json", ".yaml"):
        found = read_fields(path)
        shown = public_run(found) if path.name == RUN_CONFIG else public(found)
        if path.suffix == ".yaml":
            return yaml.safe_dump(shown, sort_keys=False, allow_unicode=True)
        if shown != found and path.name != "tokenizer.json":  # whose characters are no paths
            return json.dumps(shown, indent=2, ensure_ascii=False) + "\n"
    elif path.suffix == ".jsonl":
        return "".join(_public_lines(path))
    elif path.suffix == ".txt":
        return public_text(path.read_bytes().decode())
    return None


def _public_lines(path: Path) -> Iterator[str]:
    for line in path.read_bytes().decode(errors="replace").split("\n"):
        with suppress(ValueError, RecursionError):  # half a line of a process that was killed
            if isinstance(found := json.loads(line), dict):
                yield json.dumps(public(found), ensure_ascii=False) + "\n"


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
