"""The page of a model as a static Space of the Hub, beside the model and of the same name."""

from __future__ import annotations

from craft.sharing.bundle import Files, check
from craft.sharing.upload import commit_files, open_repo
from craft.utils.errors import UserError
from craft.utils.hub import api, check_repo_id, translate_hub_errors


def space_files(repo_id: str, page: bytes) -> Files:
    """What is uploaded: the page, and a README.md that tells the Hub what it is and of which model.

    Raises:
        UserError: if something private is in it.
    """
    from huggingface_hub import SpaceCardData, constants

    name = check_repo_id(repo_id).split("/")[1]
    card = SpaceCardData(title=name, sdk="static", app_file="index.html", models=[repo_id], tags=["craft"])
    words = f"[{repo_id}]({constants.ENDPOINT}/{repo_id}) as one page that runs in the browser."
    files: Files = {"README.md": f"---\n{card.to_yaml()}\n---\n\n{words}\n".encode(), "index.html": page}
    check(files)
    return files


def push_space(repo_id: str, files: Files, private: bool | None = None) -> str:
    """Uploads the page of a model, `files` as `space_files` makes them.

    Returns:
        The address of the Space.

    Raises:
        UserError, Failed: as for `craft.sharing.upload.push`; also for a Space of that name that is an
            application.
    """
    name = open_repo(repo_id, private, repo_type="space")
    with translate_hub_errors(f"can't push the page of {name}"):
        sdk = api().space_info(name).sdk
        if sdk not in (None, "static"):
            raise UserError(
                f"the Space {name} is an application already ({sdk}), so nothing was uploaded; choose "
                "another name",
                code="hub-refused",
            )
        commit_files(name, files, "Upload a page by craft", None, repo_type="space")
    return space_address(name)


def space_address(repo_id: str) -> str:
    """Where the Hub shows a Space."""
    from huggingface_hub import constants

    return f"{constants.ENDPOINT}/spaces/{repo_id}"
