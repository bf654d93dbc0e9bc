"""`craft compress`."""

from __future__ import annotations

import os
from pathlib import Path

import click

from craft.cli.files import free_path, read_file
from craft.cli.options import COUNT, PATH, hub_options
from craft.sharing.trust import trusted
from craft.utils.files import replace_bytes
from craft.utils.outputs import resolve
from craft.utils.terminal import echo

ENDING = ".craft"


@click.command("compress")
@click.argument("model")
@click.argument("text", type=PATH)
@click.option("-o", "--output", type=PATH, metavar="FILE", help="[default: TEXT.craft]")
@click.option(
    "--streams",
    type=COUNT,
    metavar="N",
    help="Read the text in N pieces side by side: faster, but each begins from nothing.  "
    "[default: one for each 4,096 characters, at most 64]",
)
@click.option("--force", is_flag=True, help="Replace a file that is there.")
@hub_options
def command(
    model: str,
    text: Path,
    output: Path | None,
    streams: int | None,
    force: bool,
    revision: str | None,
    trust_remote_code: bool,
) -> None:
    """Compress a file without loss, into the bits that a model says it takes.

    MODEL is 'latest', a folder, or a model on the Hugging Face Hub. Decompressing takes the same model, and
    the same torch on the same kind of processor. The file is decompressed and compared before it is kept.
    Needs the extra 'compress'.

    \b
    craft compress latest my.txt
    craft decompress my.txt.craft -o again.txt
    """
    output = free_path(output or text.with_name(text.name + ENDING), force)
    data = read_file(text)
    where = resolve(model)
    folder = trusted(where, revision, trust_remote_code)
    from craft.evaluation.compress import compress, sizes
    from craft.inference import load

    network, tokenizer = load(folder, trust_remote_code=trust_remote_code)
    name = Path(where).name if os.path.isabs(where) else where  # where it lies here is nobody's business
    packed = compress(network, tokenizer, data, streams=streams, name=name)
    replace_bytes(output, packed)
    echo(sizes(data, packed))
    echo(f"saved {output}", err=True)
