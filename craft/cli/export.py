"""`craft export`."""

from __future__ import annotations

from pathlib import Path

import click

from craft.cli.options import PATH, revision_option
from craft.utils.terminal import echo


@click.command("export")
@click.argument("model", default="latest")
@click.option("--format", "kind", type=click.Choice(("onnx",)), default="onnx", help="The format.")
@click.option(
    "-o", "--output", type=PATH, metavar="DIR", help="An empty or new folder.  [default: outputs/onnx/MODEL]"
)
@revision_option
def command(model: str, kind: str, output: Path | None, revision: str | None) -> None:
    """Write a model in a format of other runtimes.

    MODEL is 'latest', a folder, or a model on the Hugging Face Hub. The file takes ids and the state
    (LSTM) or the cache (transformer), and gives logits and the next state or cache; it is compared with torch
    before the command ends. Needs the extra 'export'.

    \b
    craft export latest --format onnx
    """
    from craft.exporting.onnx import FILE, export_onnx

    done = export_onnx(model, output, revision=revision)
    size = sum(path.stat().st_size for path in done.folder.glob(f"{FILE}*"))
    echo(f"{done.folder / FILE}  {size:,} bytes, the tokenizer beside it")
    echo(f"in         {', '.join(done.inputs)}")
    echo(f"out        {', '.join(done.outputs)}")
    echo(f"onnxruntime's logits are torch's within {done.difference:.1e}")
