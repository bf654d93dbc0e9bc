"""`craft export`."""

from __future__ import annotations

from pathlib import Path

import click

from craft.cli.options import PATH, revision_option
from craft.utils.errors import UserError
from craft.utils.terminal import echo


@click.command("export")
@click.argument("model", default="latest")
@click.option("--format", "kind", type=click.Choice(("onnx", "html")), default="onnx", help="The format.")
@click.option(
    "-o",
    "--output",
    type=PATH,
    metavar="PATH",
    help="A new folder (onnx) or file (html).  [default: outputs/onnx/MODEL, outputs/html/MODEL.html]",
)
@click.option(
    "--dtype", type=click.Choice(("int8", "float32")), help="Of html: the weights.  [default: int8]"
)
@click.option("--text", metavar="DATA", help="For html: the text on which the cost of int8 is measured.")
@revision_option
def command(
    model: str, kind: str, output: Path | None, dtype: str | None, text: str | None, revision: str | None
) -> None:
    """Write a model in a format of other runtimes, or as a page.

    MODEL is 'latest', a folder, or a model on the Hugging Face Hub.

    The file of 'onnx' takes ids and the state (LSTM) or the cache (transformer), and gives logits and the
    next state or cache; it is compared with torch before the command ends. Needs the extra 'export'.

    That of 'html' is opened by a double click in any browser: it writes, shows what it expects and what
    surprises it, and what goes on inside. What 8 bits a weight cost is measured on the validation text of the
    model's own run, or on --text.

    \b
    craft export latest --format onnx
    craft export latest --format html
    """
    if kind == "html":
        from craft.exporting.html import export_html

        page = export_html(model, output, revision=revision, dtype=dtype or "int8", text=text)
        echo(f"{page.file}  {page.file.stat().st_size:,} bytes, to open in a browser")
        echo(page.weights)
        return
    for name, value in (("--dtype", dtype), ("--text", text)):
        if value is not None:
            raise UserError(f"{name} {value} is for --format html; leave it out", code="setting-no-effect")
    from craft.exporting.onnx import FILE, export_onnx

    done = export_onnx(model, output, revision=revision)
    size = sum(path.stat().st_size for path in done.folder.glob(f"{FILE}*"))
    echo(f"{done.folder / FILE}  {size:,} bytes, the tokenizer beside it")
    echo(f"in         {', '.join(done.inputs)}")
    echo(f"out        {', '.join(done.outputs)}")
    echo(f"onnxruntime's logits are torch's within {done.difference:.1e}")
