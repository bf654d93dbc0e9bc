"""`craft decompress`."""

from __future__ import annotations

from pathlib import Path

import click

from craft.cli.compress import ENDING
from craft.cli.files import free_path, read_file
from craft.cli.options import PATH, hub_options
from craft.sharing.trust import trusted
from craft.utils.errors import UserError
from craft.utils.files import replace_bytes
from craft.utils.outputs import resolve
from craft.utils.terminal import echo


@click.command("decompress")
@click.argument("file", type=PATH)
@click.option("-o", "--output", type=PATH, metavar="FILE", help="[default: FILE without .craft]")
@click.option("--model", metavar="MODEL", help="[default: the folder it was compressed with]")
@click.option("--force", is_flag=True, help="Replace a file that is there.")
@hub_options
def command(
    file: Path,
    output: Path | None,
    model: str | None,
    force: bool,
    revision: str | None,
    trust_remote_code: bool,
) -> None:
    """Give back the file that 'craft compress' compressed, byte for byte, or nothing.

    MODEL is 'latest', a folder, or a model on the Hugging Face Hub.

    \b
    craft decompress my.txt.craft
    craft decompress my.txt.craft -o again.txt --model user/name
    """
    if output is None and file.suffix != ENDING:
        raise UserError(f"{file} doesn't end in {ENDING}; name the file to write by -o", code="usage")
    output = free_path(output or file.with_suffix(""), force)
    packed = read_file(file)
    from craft.evaluation.compress import decompress, read_header
    from craft.inference import load

    try:
        name = read_header(packed)[0].model
        if model is None and not Path(name).is_dir():  # nothing is fetched because a file says so
            raise UserError(
                f"the model it was compressed with, {name}, isn't here; name it by --model",
                code="model-missing",
            )
        folder = trusted(resolve(model or name), revision, trust_remote_code)
        data = decompress(*load(folder, trust_remote_code=trust_remote_code), packed)
    except UserError as error:
        raise UserError(f"{file}: {error}", code=error.code) from error
    replace_bytes(output, data)
    echo(f"{len(data):,} bytes, compared with the hash of the original")
    echo(f"saved {output}", err=True)
