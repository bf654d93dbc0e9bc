"""A model, or a whole checkpoint to resume from, onto the Hugging Face Hub; and a checkpoint back.

An upload is one commit: it is there as a whole or not at all, and nothing on this machine is changed.
"""

from __future__ import annotations

import re
import shutil
import time
import warnings
from pathlib import Path
from typing import Any

from craft.sharing.bundle import LAST, MODEL, Files, bundle, size
from craft.sharing.privacy import public_run
from craft.sharing.record import METRICS_FILE, RECORD, read_fields
from craft.sharing.trust import PICKLES
from craft.utils.errors import UserError
from craft.utils.files import replace_text, staged_folder
from craft.utils.hub import CODE, api, check_ref, check_repo_id, fetch, retry_after, translate_hub_errors
from craft.utils.logging import get_logger
from craft.utils.manifest import MANIFEST, difference, manifest_text, read_manifest
from craft.utils.outputs import OUTPUTS, RUN_CONFIG, RUN_NAMES, RunPaths, slug

logger = get_logger(__name__)

PAUSES = (0.5, 2.0)
"""Seconds before a commit is tried again, at the least: a busy Hub may ask for more."""
LONGEST_PAUSE = 60.0
"""Seconds that are waited for a Hub that asks for more."""


def push(
    folder: Path,
    repo_id: str,
    *,
    private: bool | None = None,
    branch: str | None = None,
    tag: str | None = None,
    licence: str | None = None,
    message: str | None = None,
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
        UserError, Failed: see `translate_hub_errors`; the folder is as it was, and pushing again goes on.
    """
    check_ref(tag, "--tag")
    files = bundle(folder, check_repo_id(repo_id), licence, resumable)
    what, left = f"can't push to {repo_id}", f"the model is still in {folder}"
    open_repo(repo_id, private, left, branch)
    client = api()
    with translate_hub_errors(what, left, revision=branch):
        refs = client.list_repo_refs(repo_id)
        for kind, there in (("tag", refs.tags), ("branch", refs.branches)):
            if tag in {ref.name for ref in there}:
                raise UserError(
                    f"{what}: the tag {tag!r} is taken: {tag!r} is a {kind} there; choose another --tag"
                )
        logger.info(f"uploading  {len(files)} files, {size(files):,} bytes, to {repo_id}")
        checkpoint = re.fullmatch(r"checkpoint-(\d+)", folder.name)
        usual = f"Step {checkpoint[1]}" if checkpoint else "Upload a model by craft"
        commit = commit_files(client, repo_id, files, message or usual, branch)
    if tag is not None:
        with translate_hub_errors(f"the model is at {commit.commit_url}, but its tag {tag!r} can't be made"):
            client.create_tag(repo_id, tag=tag, revision=commit.oid)
    return str(commit.commit_url)


def open_repo(repo_id: str, private: bool | None = None, left: str = "", branch: str | None = None) -> str:
    """Makes a repository and a branch on the Hub, or finds that they are there and may be written to.

    Args:
        repo_id: `user/name`, or a name of the user's own.
        left: what is left if it fails, to end the message with.

    Returns:
        Its whole name.
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
        except HfHubHTTPError as error:  # `exist_ok` would say nothing of a 403
            if error.response.status_code != 409:
                raise
    return str(name)


def commit_files(client: Any, repo_id: str, files: Files, message: str, revision: str | None) -> Any:
    """One commit of all files, tried again where that may help: the Hub is busy, or somebody else was faster.

    Twice is as good as once: of a commit whose answer was lost nothing is left to do. What an earlier model
    or checkpoint had and this one hasn't is deleted with it, but no code, which may be the owner's own.
    """
    from huggingface_hub import CommitOperationAdd, CommitOperationDelete

    folders = tuple({f"{name.split('/')[0]}/" for name in files if "/" in name})
    for pause in (*PAUSES, None):
        try:
            there = sorted({*client.list_repo_files(repo_id, revision=revision)} - {*files})
            ours = [n for n in there if n in RECORD or (MODEL.fullmatch(n) and not n.endswith(".py"))]
            stale = [*ours, *(name for name in there if name.startswith(folders))]
            changes: list[Any] = [CommitOperationAdd(*file) for file in files.items()]
            changes += map(CommitOperationDelete, stale)
            with warnings.catch_warnings(record=True) as said:  # what the Hub thinks of the card
                commit = client.create_commit(repo_id, changes, commit_message=message, revision=revision)
            break
        except Exception as error:
            asked = retry_after(error)
            if pause is None or asked is None:
                raise
            time.sleep(min(max(asked, pause), LONGEST_PAUSE))
    for each in said:
        logger.warning(" ".join(str(each.message).split()))
    return commit


def fetch_run(repo_id: str, root: Path = OUTPUTS, revision: str | None = None) -> Path:
    """The run whose checkpoint a repository keeps, as a folder under `root/models` to resume.

    The names in it are another's, so they are made anew here: nothing is written but below `root`. What is
    fetched is compared with its manifest, and the run is there as a whole or not at all.

    Raises:
        UserError: if there is no such repository, revision or checkpoint, it is damaged there, or the run is
            here already.
        Failed: if the Hub can't be reached.
    """
    for anew in (False, True):  # the cache of the client may be what is damaged
        snapshot = (
            fetch(repo_id, revision, [f"{LAST}/*"], CODE, anew=anew) / LAST
        )  # no code: a run needs none
        if not (snapshot / RUN_NAMES).is_file():
            raise UserError(
                f"{repo_id} holds no checkpoint to resume from; its owner must train with "
                "training.push_to_hub=true training.hub_strategy=checkpoint"
            )
        try:
            paths, run, manifest = _read(snapshot, root)
            break
        except ValueError as error:
            if anew:
                raise UserError(
                    f"the checkpoint of {repo_id} is damaged: {error}; its owner must push it again"
                ) from error
    if paths.run_dir.exists():
        raise UserError(
            f"the run of {repo_id} is here already; go on with it by: craft resume {paths.run_dir}"
        )
    with staged_folder(paths.run_dir) as staging:
        checkpoint = staging / f"checkpoint-{manifest['step']}"
        shutil.copytree(snapshot, checkpoint, ignore=shutil.ignore_patterns(RUN_NAMES, METRICS_FILE, *CODE))
        replace_text(checkpoint / MANIFEST, manifest_text(manifest))
        if (snapshot / METRICS_FILE).is_file():
            shutil.copyfile(snapshot / METRICS_FILE, staging / METRICS_FILE)
        replace_text(staging / RUN_CONFIG, run)
        paths.note(staging)
    logger.info(f"fetched   step {manifest['step']:,} of {repo_id} into {paths.run_dir}")
    return paths.run_dir


def _read(snapshot: Path, root: Path) -> tuple[RunPaths, str, dict[str, Any]]:
    """What the run of a fetched checkpoint is called here; the run, but for what it uploads and logs where;
    and the manifest of its files but for code.

    Raises:
        ValueError: in a few words, if it isn't whole.
    """
    import yaml

    manifest = read_manifest(snapshot)
    manifest["files"] = {name: entry for name, entry in manifest["files"].items() if not name.endswith(".py")}
    if why := difference(snapshot, manifest["files"]):
        raise ValueError(why)
    if type(manifest.get("step")) is not int:
        raise ValueError(f"its {MANIFEST} names no step")
    if pickles := [path.name for path in snapshot.rglob("*") if path.suffix in PICKLES]:
        raise ValueError(f"it holds a pickle ({pickles[0]}), which craft doesn't open")
    try:
        found = read_fields(snapshot / RUN_NAMES)
        words = {key: slug(str(found[key])) for key in ("model_name", "size", "precision", "stamp")}
    except (ValueError, KeyError) as error:
        raise ValueError(f"its {RUN_NAMES} can't be read") from error
    run = public_run(read_fields(snapshot / RUN_CONFIG))
    run.get("training", {})["report_to"] = "none"  # not under the login of whoever goes on with it
    paths = RunPaths(**words, root=root, text=found.get("text"))  # type: ignore[arg-type]
    return paths, yaml.safe_dump(run, sort_keys=False, allow_unicode=True), manifest
