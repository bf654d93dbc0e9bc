"""A model, or a whole checkpoint to resume from, onto the Hugging Face Hub; and a checkpoint back.

An upload is one commit: it is there as a whole or not at all, and nothing on this machine is changed.
"""

from __future__ import annotations

import hashlib
import json
import re
import shutil
import time
import warnings
from dataclasses import replace
from pathlib import Path
from typing import Any

from craft.sharing.bundle import Item, bundle, check, item_of
from craft.sharing.privacy import public_run
from craft.sharing.record import METRICS_FILE
from craft.sharing.trust import PICKLES
from craft.utils.common import Failed, UserError
from craft.utils.files import replace_text, sync
from craft.utils.hub import CODE, api, check_ref, check_repo_id, fetch, retry_after, translate_hub_errors
from craft.utils.logging import get_logger
from craft.utils.manifest import MANIFEST, damage, difference, manifest_text, read_manifest
from craft.utils.outputs import OUTPUTS, RUN_CONFIG, RUN_NAMES, RunPaths, slug

logger = get_logger(__name__)

PAUSES = (0.5, 2.0)
"""Seconds before a commit is tried again, at the least: a busy Hub may ask for more."""
LONGEST_PAUSE = 60.0
"""Seconds that are waited for a Hub that asks for more."""
LAST = "last-checkpoint"
"""Where a repository keeps the checkpoint to resume from, as transformers does."""


def push(
    folder: Path,
    repo_id: str,
    *,
    private: bool | None = None,
    branch: str | None = None,
    tag: str | None = None,
    licence: str | None = None,
    message: str = "Upload a model by craft",
    resumable: str | None = None,
) -> str:
    """Uploads the model in a folder, with its code, record and card.

    Args:
        repo_id: `user/name`; made if it isn't there.
        private: nobody else may see it; refused where the repository is public already.
        branch: made if it isn't there; by default `main`.
        tag: a name for this version.
        licence: an identifier of the Hub, for the card.
        resumable: for a checkpoint: the folder of the repository into which all of it goes besides.

    Returns:
        The address of the commit.

    Raises:
        UserError: for a bad name, a missing token or right, a tag that is taken.
        Failed: if the network or the Hub fails; the folder is as it was, and pushing again goes on.
    """
    check_ref(tag, "--tag")
    items = bundle(folder, check_repo_id(repo_id), licence)
    if resumable is not None:
        items += whole_checkpoint(folder, resumable)
    what = f"can't push to {repo_id}"
    left = f"the model is still in {folder}"
    open_repo(repo_id, private, left, branch)
    client = api()
    with translate_hub_errors(what, left):
        if tag is not None:
            refs = client.list_repo_refs(repo_id)
            if tag in {ref.name for ref in refs.tags}:
                raise UserError(f"{what}: the tag {tag!r} is taken; choose another, or delete it on its page")
            if tag in {ref.name for ref in refs.branches}:
                raise UserError(f"{what}: {tag!r} is a branch there; choose another --tag")
        logger.info(
            f"uploading  {len(items)} files, {sum(item.size for item in items):,} bytes, to {repo_id}"
        )
        commit = commit_items(client, repo_id, items, message, branch)
    if tag is not None:
        with translate_hub_errors(f"the model is at {commit.commit_url}, but its tag {tag!r} can't be made"):
            client.create_tag(repo_id, tag=tag, revision=commit.oid)
    return str(commit.commit_url)


def open_repo(repo_id: str, private: bool | None = None, left: str = "", branch: str | None = None) -> str:
    """Makes a repository on the Hub, or finds that it is there and as private as asked for.

    Args:
        repo_id: `user/name`, or a name of the user's own.
        branch: made too if it isn't there; what may not be written to is told here.
        left: what is left if it fails, to end the message with.

    Returns:
        Its whole name.

    Raises:
        UserError, Failed: see `translate_hub_errors`.
    """
    from huggingface_hub.errors import HfHubHTTPError

    check_ref(branch, "the branch")
    client = api()
    with translate_hub_errors(f"can't push to {repo_id}", left):
        name = client.create_repo(repo_id, private=private, exist_ok=True).repo_id
        if private and not client.repo_info(name).private:
            raise UserError(
                f"{name} is public already, so nothing was uploaded; make it private on its page, or choose "
                "another name"
            )
        try:
            client.create_branch(name, branch=branch or "main")
        except HfHubHTTPError as error:
            if error.response.status_code != 409:  # which says that it is there, and that one may write
                raise
        return str(name)


def commit_items(client: Any, repo_id: str, items: list[Item], message: str, revision: str | None) -> Any:
    """One commit of all items, tried again where that may help: the Hub is busy, or somebody else was faster.

    Twice is as good as once: of a commit whose answer was lost nothing is left to do.
    """
    for pause in PAUSES:
        try:
            return _commit(client, repo_id, items, message, revision)
        except Exception as error:
            asked = retry_after(error)
            if asked is None:
                raise
            time.sleep(min(max(asked, pause), LONGEST_PAUSE))
    return _commit(client, repo_id, items, message, revision)


def _commit(client: Any, repo_id: str, items: list[Item], message: str, revision: str | None) -> Any:
    """Files of an earlier model that this one doesn't have are deleted with it, but no code: it may be the
    owner's own."""
    from huggingface_hub import CommitOperationAdd, CommitOperationDelete

    from craft.sharing.bundle import MODEL, RECORD

    names = {item.name for item in items}
    there = client.list_repo_files(repo_id, revision=revision)
    ours = [name for name in there if (MODEL.fullmatch(name) or name in RECORD) and name not in names]
    stale = [name for name in ours if not name.endswith(".py")]
    folders = {name.split("/")[0] for name in names if "/" in name}  # a checkpoint is replaced as a whole
    stale += [name for name in there if name.split("/")[0] in folders and "/" in name and name not in names]
    changes: list[Any] = [CommitOperationDelete(name) for name in stale]
    for item in items:
        changes.append(CommitOperationAdd(item.name, item.content))
    with warnings.catch_warnings(record=True) as said:  # what the Hub thinks of the card
        commit = client.create_commit(repo_id, changes, commit_message=message, revision=revision)
    for each in said:
        logger.warning(" ".join(str(each.message).split()))
    return commit


def push_checkpoint(
    checkpoint: Path, repo_id: str, *, resumable: str | None, branch: str | None = None
) -> None:
    """Uploads the model of a checkpoint, and with `resumable` all of it into the folder of that name.

    Raises:
        UserError, Failed: see `translate_hub_errors`.
    """
    items = bundle(checkpoint, repo_id)
    if resumable is not None:
        items += checkpoint_items(checkpoint, resumable)
    step = checkpoint.name.rpartition("-")[2]
    with translate_hub_errors(f"can't push {checkpoint.name} to {repo_id}"):
        commit_items(api(), repo_id, items, f"Step {step}", branch)


def whole_checkpoint(checkpoint: Path, prefix: str) -> list[Item]:
    """As `checkpoint_items`, for a folder and a name that a user gave.

    Raises:
        UserError: if it isn't a whole checkpoint, or goes nowhere that a checkpoint is looked for.
    """
    name = checkpoint.resolve().name
    if not re.fullmatch(r"checkpoint-\d+", name) or not (checkpoint / MANIFEST).is_file():
        raise UserError(f"--into is for a checkpoint-N of a run, which {checkpoint} isn't; leave it out")
    if prefix not in (LAST, name):
        raise UserError(f"can't push {checkpoint} into {prefix!r}: it must be {LAST} or {name}")
    if why := damage(checkpoint, int(name.rpartition("-")[2])):
        raise UserError(f"can't push {checkpoint}: {why}")
    return checkpoint_items(checkpoint, prefix)


def checkpoint_items(checkpoint: Path, prefix: str) -> list[Item]:
    """Everything that resuming needs, in its public form, vouched for by a manifest of just that."""
    files = sorted(p for p in checkpoint.rglob("*") if p.is_file() and p.name != MANIFEST)
    if pickles := [path.name for path in files if path.suffix in PICKLES]:
        raise UserError(f"{checkpoint} holds a pickle ({pickles[0]}), and craft shares none")
    items = {path.relative_to(checkpoint).as_posix(): item_of(path) for path in files}
    manifest = json.loads((checkpoint / MANIFEST).read_text(encoding="utf-8"))
    manifest.pop("sha256", None)  # its own, made anew
    for name, entry in manifest["files"].items():
        content = items[name].content
        if isinstance(content, bytes):
            entry.update(size=len(content), sha256=hashlib.sha256(content).hexdigest())
    beside = [checkpoint.parent / name for name in (RUN_NAMES, METRICS_FILE)]
    items |= {path.name: item_of(path) for path in beside if path.is_file()}
    items[MANIFEST] = Item(MANIFEST, manifest_text(manifest).encode())
    found = [Item(f"{prefix}/{name}", item.content) for name, item in items.items()]
    check(found)
    return found


def fetch_run(repo_id: str, root: Path = OUTPUTS, revision: str | None = None) -> Path:
    """The run whose checkpoint a repository keeps, as a folder under `root/models` to resume.

    The names in it are another's, so they are made anew here: nothing is written but below `root`. What is
    fetched is compared with its manifest, and the run is there as a whole or not at all.

    Args:
        revision: a branch, tag or commit.

    Raises:
        UserError: if there is no such repository, revision or checkpoint, it is damaged there, or the run is
            here already.
        Failed: if the Hub can't be reached.
    """
    wanted = [f"{LAST}/*"]  # without code, which a run goes on without
    snapshot = fetch(repo_id, revision, wanted, CODE) / LAST
    if not (snapshot / RUN_NAMES).is_file():
        raise UserError(
            f"{repo_id} holds no checkpoint to resume from; its owner must train with "
            "training.push_to_hub=true training.hub_strategy=checkpoint"
        )
    try:
        paths, manifest = _read(snapshot, root)
    except ValueError:  # the cache of the client may be what is damaged
        commit = snapshot.parent.name
        snapshot = fetch(repo_id, commit, wanted, CODE, anew=True) / LAST
        try:
            paths, manifest = _read(snapshot, root)
        except ValueError as error:
            raise UserError(
                f"the checkpoint of {repo_id} is damaged: {error}; its owner must push it again"
            ) from error
    if paths.run_dir.exists():
        raise UserError(
            f"the run of {repo_id} is here already; go on with it by: craft resume {paths.run_dir}"
        )
    if pickles := [path.name for path in snapshot.rglob("*") if path.suffix in PICKLES]:
        raise UserError(
            f"the checkpoint of {repo_id} holds a pickle ({pickles[0]}), which craft doesn't open"
        )
    staging = replace(paths, folder=paths.run_dir.with_name(f".fetching-{paths.run_dir.name}"))
    shutil.rmtree(staging.run_dir, ignore_errors=True)  # of a process that was killed
    try:
        checkpoint = staging.run_dir / f"checkpoint-{manifest['step']}"
        shutil.copytree(snapshot, checkpoint, ignore=shutil.ignore_patterns(RUN_NAMES, METRICS_FILE, *CODE))
        replace_text(checkpoint / MANIFEST, manifest_text(manifest))
        if why := damage(checkpoint, manifest["step"]):
            raise Failed(f"the checkpoint of {repo_id} can't be copied to {paths.run_dir}: {why}")
        if (snapshot / METRICS_FILE).is_file():
            shutil.copyfile(snapshot / METRICS_FILE, staging.run_dir / METRICS_FILE)
        replace_text(staging.run_dir / RUN_CONFIG, _public_run_of(snapshot))
        paths.note(staging.run_dir)
        for path in (*staging.run_dir.rglob("*"), staging.run_dir):
            sync(path)
        staging.run_dir.rename(paths.run_dir)
    except BaseException:
        shutil.rmtree(staging.run_dir, ignore_errors=True)
        raise
    logger.info(f"fetched   step {manifest['step']:,} of {repo_id} into {paths.run_dir}")
    return paths.run_dir


def _read(snapshot: Path, root: Path) -> tuple[RunPaths, dict[str, Any]]:
    """What the run of a fetched checkpoint is called here, and the manifest of its files but for code.

    Raises:
        ValueError: in a few words, if it isn't whole.
    """
    manifest = read_manifest(snapshot)
    manifest["files"] = {name: entry for name, entry in manifest["files"].items() if not name.endswith(".py")}
    if why := difference(snapshot, manifest["files"]):
        raise ValueError(why)
    if type(manifest.get("step")) is not int:
        raise ValueError(f"its {MANIFEST} names no step")
    try:
        found = json.loads((snapshot / RUN_NAMES).read_text(encoding="utf-8"))
        words = {key: slug(str(found[key])) for key in ("model_name", "size", "precision", "stamp")}
        return RunPaths(**words, root=root, text=found.get("text")), manifest  # type: ignore[arg-type]
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise ValueError(f"its {RUN_NAMES} can't be read") from error


def _public_run_of(snapshot: Path) -> str:
    """The run as it was, but without what it would upload, and where."""
    import yaml

    run = yaml.safe_load((snapshot / RUN_CONFIG).read_text(encoding="utf-8"))
    if not isinstance(run, dict):
        raise UserError(f"{snapshot / RUN_CONFIG} isn't a run that craft saved")
    shown = public_run(run)
    if isinstance(shown.get("training"), dict):
        shown["training"]["report_to"] = "none"  # not under the login of whoever goes on with it
    return yaml.safe_dump(shown, sort_keys=False, allow_unicode=True)
