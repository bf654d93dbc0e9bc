"""Which files of a folder are for others, and what others see of them."""

from __future__ import annotations

import hashlib
import json
import re
from contextlib import suppress
from pathlib import Path

from craft.sharing.card import CARD, card_for_hub
from craft.sharing.privacy import find_private, sanitized, sanitized_run, sanitized_text
from craft.sharing.record import METRICS_FILE, RECORD, fields_or_empty, parameters_in, read_fields
from craft.sharing.trust import PICKLES
from craft.utils.errors import UserError
from craft.utils.manifest import MANIFEST, damage, manifest_text, read_manifest
from craft.utils.outputs import RUN_CONFIG, RUN_NAMES, checkpoint_step

MODEL = re.compile(
    r"model(-\d+-of-\d+)?\.safetensors|model\.safetensors\.index\.json|config\.json|generation_config\.json"
    r"|tokenizer\.json|tokenizer_config\.json|special_tokens_map\.json|chat_template\.jinja|[A-Za-z]\w*\.py"
    r"|LICENSE(\.md|\.txt)?"
)
"""Files of a model: nothing that is opened with pickle is one."""
BINARY = (".safetensors", ".png")
"""Files that aren't text."""
LAST = "last-checkpoint"
"""Where a repository keeps the checkpoint to resume from, as transformers does."""
Files = dict[str, bytes | Path]
"""What is uploaded, by its name there: the content, or the file to read it from."""


def bundle(
    folder: Path,
    repo_id: str,
    licence: str | None = None,
    resumable: str | None = None,
    space: str | None = None,
) -> Files:
    """What is uploaded of a model's folder: its card, the model, and its record, sanitized.

    Args:
        resumable: for a checkpoint: the folder of the repository into which all of it goes besides.
        space: the address of the model's page, for the card.

    Raises:
        UserError: if the folder has no safetensors weights, the model in it is damaged, or something private
            can't be taken out.
    """
    files: Files = {CARD: card_for_hub(folder, repo_id, licence, space).encode()}
    names = sorted(path.name for path in folder.iterdir() if path.is_file())
    for name in names:
        if MODEL.fullmatch(name):
            files[name] = sanitized_file(folder / name)
    has_weights = any(name.endswith(".safetensors") for name in files)
    if not has_weights or not fields_or_empty(folder / "config.json").get("model_type"):
        raise UserError(
            f"{folder} holds no model to push: that is model.safetensors and a config.json with a model_type",
            code="model-missing",
        )
    for name in RECORD:
        if name in names:
            with suppress(UserError):  # damaged, which is no reason to keep the model back
                files[name] = sanitized_file(folder / name)
    if resumable is not None:
        files |= _checkpoint(folder, resumable)
    check(files)
    return files


def _checkpoint(checkpoint: Path, prefix: str) -> Files:
    """Everything that resuming needs, sanitized, with a manifest of the sanitized files.

    Args:
        prefix: the folder of the repository, one in which a checkpoint is looked for.
    """
    name = checkpoint.resolve().name
    step = checkpoint_step(name)
    if step is None or prefix not in (LAST, name):
        raise UserError(
            f"can't push {checkpoint} into {prefix!r}: --into is for a checkpoint-N: its name or {LAST}",
            code="setting-value",
        )
    if why := damage(checkpoint, step):
        raise UserError(f"can't push {checkpoint}: {why}", code="checkpoint-damaged")
    manifest = read_manifest(checkpoint)
    if pickles := [name for name in manifest["files"] if name.endswith(PICKLES)]:
        raise UserError(
            f"{checkpoint} holds a pickle ({pickles[0]}), and craft shares none", code="code-untrusted"
        )
    files = {name: sanitized_file(checkpoint / name) for name in manifest["files"]}
    for name, content in files.items():
        if isinstance(content, bytes):
            manifest["files"][name] = {"size": len(content), "sha256": hashlib.sha256(content).hexdigest()}
    beside = [checkpoint.parent / name for name in (RUN_NAMES, METRICS_FILE)]
    files |= {path.name: sanitized_file(path) for path in beside if path.is_file()}
    files[MANIFEST] = manifest_text(manifest).encode()
    return {f"{prefix}/{name}": content for name, content in files.items()}


def check(files: Files) -> None:
    """Looks for secrets and paths in every byte that would be uploaded.

    Raises:
        UserError: naming the file; nothing has been sent.
    """
    for name, content in files.items():
        content = content if isinstance(content, bytes) else content.read_bytes()
        if what := find_private(content, text=not name.endswith(BINARY)):
            raise UserError(
                f"{name} holds {what}, so nothing was uploaded; take it out and push again", code="secret"
            )


def size(files: Files) -> int:
    """Bytes of an upload."""
    return sum(len(part) if isinstance(part, bytes) else part.stat().st_size for part in files.values())


def sanitized_file(path: Path) -> bytes | Path:
    """A file without what is private: what is text is rewritten, the rest goes as it lies there.

    Raises:
        UserError: if it isn't what its name says.
    """
    try:
        text = _sanitized(path)
    except ValueError as error:
        raise UserError(
            f"{path} is damaged, so nothing was uploaded: {error}; export the model again",
            code="model-invalid",
        ) from error
    return path if text is None else text.encode("utf-8", "replace")


def _sanitized(path: Path) -> str | None:
    """A text without what is private; None for what goes as it is."""
    import yaml

    if path.suffix == ".safetensors":
        parameters_in(path)
    elif path.suffix == ".yaml":
        found = read_fields(path)
        shown = sanitized_run(found) if path.name == RUN_CONFIG else sanitized(found)
        return yaml.safe_dump(shown, sort_keys=False, allow_unicode=True)
    elif path.suffix == ".json":
        shown = sanitized(found := read_fields(path))
        if shown != found and path.name != "tokenizer.json":  # whose characters are no paths
            return json.dumps(shown, indent=2, ensure_ascii=False) + "\n"
    elif path.suffix in (".txt", ".jsonl"):
        return sanitized_text(path.read_bytes().decode())
    return None
