"""What may be loaded: weights that are only numbers, files that lie where they seem to, code asked for.

A pickle runs what its maker wrote into it, so none is opened. The index of sharded weights names files, and
a name may lead out of the folder; so may a link. Code beside the weights runs only if the user says so in
that very command.
"""

from __future__ import annotations

import json
import re
from pathlib import Path

from craft.sharing.record import fields, fields_or_empty
from craft.utils.errors import UserError
from craft.utils.hub import CODE, IN_FOLDERS, SAFE, fetch

WEIGHTS, INDEX = "model.safetensors", "model.safetensors.index.json"
PICKLES = (".bin", ".pt", ".pth", ".ckpt", ".pkl", ".pickle", ".h5", ".msgpack")


def trusted(model: str, revision: str | None = None, code: bool = False) -> Path:
    """The folder of a model, fetched if it is on the Hub, in which nothing leads elsewhere or runs by itself.

    Args:
        model: a folder or Hub id.
        revision: a branch, tag or commit of a model of the Hub.
        code: whether the user has said that the model's own code may run.

    Raises:
        UserError: if there is no such model, or it can't be trusted.
        Failed: if the Hub can't be reached.
    """
    folder = Path(model)
    if folder.is_dir() and revision is not None:
        raise UserError(
            f"--revision {revision} picks a version on the Hub, and {model} is a folder; leave it out",
            code="setting-conflict",
        )
    if not folder.is_dir():
        folder = fetch(model, revision, [*SAFE, *CODE] if code else SAFE, IN_FOLDERS)
    check_folder(folder)
    return folder


def check_folder(folder: Path) -> None:
    """Refuses a model's folder that can't be trusted, before anything in it is opened by another library.

    Raises:
        UserError: for weights as a pickle, for an adapter of another model, and for files or code that lead
            out of the folder.
    """
    folder = folder.resolve()
    # The cache of huggingface_hub keeps each file once, in blobs/, and links to it from snapshots/COMMIT/.
    inside = [folder, *([folder.parent.parent / "blobs"] if folder.parent.name == "snapshots" else [])]
    paths = sorted(folder.iterdir())
    for path in paths:
        if path.is_symlink() and not any(path.resolve().is_relative_to(place) for place in inside):
            raise _untrusted(f"{path} is a link out of its folder", "copy the file there")
    if folder / "adapter_config.json" in paths:
        why = f"{folder} holds an adapter (adapter_config.json), which leads to another model"
        raise _untrusted(why, "merge it with merge_and_unload() and save the whole")
    pickles = [path.name for path in paths if path.suffix in PICKLES]
    if folder / INDEX in paths:
        _check_index(folder)
    elif pickles and folder / WEIGHTS not in paths:
        why = f"{folder} holds its weights as a pickle ({pickles[0]}), which can run any code"
        raise _untrusted(why, "where you trust it, save it again with save_pretrained of transformers")
    for name in ("config.json", "tokenizer_config.json"):
        classes = json.dumps(fields_or_empty(folder / name).get("auto_map"))
        if elsewhere := re.search('[^"]*--[^"]*', classes):  # REPOSITORY--module.Class
            why = f"{folder / name} leads to code in another repository ({elsewhere[0]})"
            raise _untrusted(why, "take its auto_map out, or name the model it was made from")


def _check_index(folder: Path) -> None:
    """Weights in several files must all lie in the folder, as safetensors."""
    names = fields(fields_or_empty(folder / INDEX).get("weight_map")).values()
    for name in sorted(set(map(str, names))) or [""]:
        if not re.fullmatch(r"[^/\\:]+\.safetensors", name) or not (folder / name).is_file():
            raise UserError(
                f"{folder / INDEX} leads to {name!r}, which is no safetensors file in its folder",
                code="model-invalid",
            )


def _untrusted(why: str, instead: str) -> UserError:
    return UserError(f"{why}, so the model isn't loaded; {instead}", code="code-untrusted")
