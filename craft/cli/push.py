"""`craft push`."""

from __future__ import annotations

from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import click

from craft.utils.errors import UserError
from craft.utils.terminal import echo


@click.command("push")
@click.argument("model")
@click.argument("name", metavar="USER/NAME")
@click.option("--private", is_flag=True, help="Only you and your organisation may see it.")
@click.option("--dry-run", is_flag=True, help="List what would be uploaded, show the card, and stop.")
@click.option("--branch", metavar="NAME", help="A branch instead of main; made if it isn't there.")
@click.option("--tag", metavar="NAME", help="Give this version a name to load it by.")
@click.option(
    "--into",
    "resumable",
    metavar="FOLDER",
    help="For a checkpoint: also all that resuming needs, into this folder of the repository: checkpoint-N, "
    "or last-checkpoint, from which 'craft resume USER/NAME' goes on.",
)
@click.option("--space", is_flag=True, help="Also as a page that runs in the browser, as a static Space.")
@click.option("--license", "licence", metavar="ID", help="For the card, for example apache-2.0 or cc-by-4.0.")
def command(
    model: str, name: str, private: bool, dry_run: bool, space: bool, licence: str | None, **version: Any
) -> None:
    """Put a trained model on the Hugging Face Hub.

    MODEL is 'latest' or a folder; USER/NAME is where it goes. Uploaded are the weights (safetensors), config,
    tokenizer, the model's code, the resolved run, scores, loss curve, a sample, and a model card; paths are
    reduced to names. The token is read from HF_TOKEN or the login ('hf auth login'), never from here.

    \b
    craft push latest ada/char-lstm --dry-run
    craft push latest ada/char-lstm --private --tag v1 --license cc-by-4.0
    craft generate ada/char-lstm --revision v1
    craft push latest ada/char-lstm --space
    """
    from craft.sharing.bundle import bundle, size
    from craft.sharing.space import push_space, space_address, space_files
    from craft.sharing.trust import check_folder
    from craft.sharing.upload import push
    from craft.utils.hub import check_repo_id
    from craft.utils.outputs import resolve

    folder = Path(resolve(model))
    if not folder.is_dir():
        raise UserError(
            f"there is no folder {model!r}; name one made by 'craft train', or 'latest'", code="model-missing"
        )
    check_folder(folder)
    site = space_files(name, _page(folder, check_repo_id(name))) if space else {}
    link = space_address(name) if space else None
    if dry_run:
        files = bundle(folder, check_repo_id(name), licence, version["resumable"], link)
        shown = files | {f"spaces/{file}": content for file, content in site.items()}
        for file, content in shown.items():
            echo(f"{size({file: content}):>14,}  {file}")
        echo(f"{size(shown):>14,}  bytes in {len(shown)} files for {name}; not uploaded\n")
        card = files["README.md"]
        echo((card if isinstance(card, bytes) else card.read_bytes()).decode())
        return
    from craft.utils.logging import setup_logging

    setup_logging()
    if space:
        echo(push_space(name, site, private or None))
    echo(push(folder, name, private=private or None, licence=licence, space=link, **version))


def _page(folder: Path, name: str) -> bytes:
    """The model as a page, under the name that it has on the Hub."""
    from craft.exporting.html import export_html

    with TemporaryDirectory() as place:
        return export_html(folder, Path(place) / f"{name.split('/')[1]}.html").file.read_bytes()
