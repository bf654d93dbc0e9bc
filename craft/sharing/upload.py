"""A model, or a whole checkpoint to resume from, onto the Hugging Face Hub; and a checkpoint back.

An upload is one commit: it is there as a whole or not at all, and nothing on this machine is changed.
"""

from __future__ import annotations

import re
import shutil
import time
from pathlib import Path
from typing import Any

from craft.sharing.bundle import LAST, MODEL, Files, bundle, size
from craft.sharing.privacy import sanitized_run
from craft.sharing.record import METRICS_FILE, RECORD, read_fields
from craft.utils.errors import UserError
from craft.utils.files import replace_text, staged_folder
from craft.utils.hub import SAFE, api, check_repo_id, fetch, is_transient, translate_hub_errors
from craft.utils.logging import get_logger
from craft.utils.manifest import MANIFEST, difference, manifest_text, read_manifest
from craft.utils.outputs import RUN_CONFIG, RUN_NAMES, RunPaths, slug

logger = get_logger(__name__)

PAUSES = (0.5, 2.0)
"""Seconds before a commit is tried again."""


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
    space: str | None = None,
) -> str:
    """Uploads the model in a folder, with its code, record and card.

    Args:
        repo_id: `user/name`; made if it isn't there.
        private: nobody else may see it; refused where the repository is public already.
        branch: made if it isn't there; by default `main`.
        tag: a name for this version.
        licence: an identifier of the Hub, for the card.
        resumable: for a checkpoint: the folder of the repository into which all of it goes besides.
        space: the address of the model's page, for the card.

    Returns:
        The address of the commit.

    Raises:
        UserError, Failed: see `translate_hub_errors`; the folder is as it was, and pushing again goes on.
    """
    files = bundle(folder, check_repo_id(repo_id), licence, resumable, space)
    open_repo(repo_id, private, branch)
    logger.info(f"uploading  {len(files)} files, {size(files):,} bytes, to {repo_id}")
    checkpoint = re.fullmatch(r"checkpoint-(\d+)", folder.name)
    usual = f"Step {checkpoint[1]}" if checkpoint else "Upload a model by craft"
    with translate_hub_errors(f"can't push {folder.name} to {repo_id}", revision=branch):
        commit = commit_files(repo_id, files, message or usual, branch)
    if tag is not None:
        with translate_hub_errors(f"the model is at {commit.commit_url}, but its tag {tag!r} can't be made"):
            api().create_tag(repo_id, tag=tag, revision=commit.oid)
    return str(commit.commit_url)


def open_repo(
    repo_id: str,
    private: bool | None = None,
    branch: str | None = None,
    licence: str | None = None,
    repo_type: str = "model",
) -> str:
    """Makes a repository and a branch on the Hub, or finds that they are there and may be written to.

    Args:
        repo_id: `user/name`, or a name of the user's own.
        licence: of the models that will be uploaded; the Hub is asked whether it is one.
        repo_type: "model", or "space" for a static one.

    Returns:
        Its whole name.
    """
    from huggingface_hub import ModelCard
    from huggingface_hub.errors import HfHubHTTPError

    client = api()
    with translate_hub_errors(f"can't push to {repo_id}"):
        if licence is not None:
            ModelCard(f"---\nlicense: {licence}\n---\n").validate(repo_type="model")
        name = client.create_repo(
            repo_id,
            private=private,
            repo_type=repo_type,
            space_sdk="static" if repo_type == "space" else None,
            exist_ok=True,
        ).repo_id
        if private and not client.repo_info(name, repo_type=repo_type).private:
            raise UserError(
                f"{name} is public already, so nothing was uploaded; make it private on its page, or choose "
                "another name",
                code="hub-refused",
            )
        try:
            client.create_branch(name, branch=branch or "main", repo_type=repo_type)
        except HfHubHTTPError as error:  # `exist_ok` would say nothing of a 403
            if error.response.status_code != 409:
                raise
    return str(name)


def commit_files(
    repo_id: str, files: Files, message: str, revision: str | None, repo_type: str = "model"
) -> Any:
    """One commit of all files, tried again where that may help: the Hub is busy, or somebody else was faster.

    Twice is as good as once: of a commit whose answer was lost nothing is left to do. What an earlier model
    or checkpoint had and this one hasn't is deleted with it, but no code and licence, which are the owner's.
    """
    from huggingface_hub import CommitOperationAdd, CommitOperationDelete

    client = api()
    folders = tuple({f"{name.split('/')[0]}/" for name in files if "/" in name})

    def is_stale(name: str) -> bool:
        ours = name in RECORD or (MODEL.fullmatch(name) and not name.startswith("LICENSE"))
        return name not in files and (bool(ours) or name.startswith(folders)) and not name.endswith(".py")

    for pause in (*PAUSES, None):
        try:
            there = client.list_repo_files(repo_id, revision=revision, repo_type=repo_type)
            changes: list[Any] = [CommitOperationAdd(*file) for file in files.items()]
            changes += map(CommitOperationDelete, filter(is_stale, there) if repo_type == "model" else ())
            return client.create_commit(
                repo_id, changes, commit_message=message, revision=revision, repo_type=repo_type
            )
        except Exception as error:
            if pause is None or not is_transient(error):
                raise
            time.sleep(pause)


def fetch_run(repo_id: str, revision: str | None = None) -> Path:
    """The run whose checkpoint a repository keeps, as a folder under `outputs/models` to resume.

    The names in it are another's, so they are made anew here: nothing is written but below `outputs`. What
    is fetched is compared with its manifest, and the run is there as a whole or not at all.

    Raises:
        UserError: if there is no such repository, revision or checkpoint, it is damaged there, or the run is
            here already.
        Failed: if the Hub can't be reached.
    """
    patterns = [f"{LAST}/{name}" for name in (*SAFE, "*.md", "*.jsonl")]  # no code: a run needs none
    snapshot = fetch(repo_id, revision, patterns, []) / LAST
    if not (snapshot / RUN_NAMES).is_file():
        raise UserError(
            f"{repo_id} holds no checkpoint to resume from; its owner must train with "
            "training.push_to_hub=true training.hub_strategy=checkpoint",
            code="run-missing",
        )
    try:
        paths, run, manifest = _read(snapshot)
    except ValueError as error:
        raise UserError(
            f"the checkpoint of {repo_id} is damaged: {error}; delete it from the cache (hf cache rm "
            f"model/{repo_id}), or its owner must push it again",
            code="checkpoint-damaged",
        ) from error
    if paths.run_dir.exists():
        raise UserError(
            f"the run of {repo_id} is here already; go on with it by: craft resume {paths.run_dir}",
            code="setting-conflict",
        )
    with staged_folder(paths.run_dir) as staging:
        checkpoint = staging / f"checkpoint-{manifest['step']}"
        shutil.copytree(snapshot, checkpoint, ignore=shutil.ignore_patterns(RUN_NAMES, METRICS_FILE))
        replace_text(checkpoint / MANIFEST, manifest_text(manifest))
        if (snapshot / METRICS_FILE).is_file():
            shutil.copyfile(snapshot / METRICS_FILE, staging / METRICS_FILE)
        replace_text(staging / RUN_CONFIG, run)
        paths.note(staging)
    logger.info(f"fetched   step {manifest['step']:,} of {repo_id} into {paths.run_dir}")
    return paths.run_dir


def _read(snapshot: Path) -> tuple[RunPaths, str, dict[str, Any]]:
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
    try:
        found = read_fields(snapshot / RUN_NAMES)
        words = {key: slug(str(found[key])) for key in ("model_name", "size", "precision", "stamp")}
    except (ValueError, KeyError) as error:
        raise ValueError(f"its {RUN_NAMES} can't be read") from error
    run = sanitized_run(read_fields(snapshot / RUN_CONFIG))
    run.get("training", {})["report_to"] = "none"  # not under the login of whoever goes on with it
    paths = RunPaths(**words, text=found.get("text"))  # type: ignore[arg-type]
    return paths, yaml.safe_dump(run, sort_keys=False, allow_unicode=True), manifest
