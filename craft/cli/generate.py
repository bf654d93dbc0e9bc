"""`craft generate`."""

from __future__ import annotations

import os
import select
import stat
import sys
from collections.abc import Callable
from itertools import chain
from pathlib import Path
from typing import Any

import click

from craft.cli.options import hub_options
from craft.inference import Sampling
from craft.utils.errors import UserError
from craft.utils.outputs import sample_file
from craft.utils.paths import typed_path
from craft.utils.terminal import echo, visible_pieces

PIPE_SECONDS = 0.5
"""Seconds that a pipe on stdin has to bring a prompt."""


def of_sampling(name: str, meaning: str, *short: str) -> Callable[..., Any]:
    """The option that sets a field of `Sampling`, with its default."""
    default = getattr(Sampling, name)
    return click.option(
        *short, f"--{name.replace('_', '-')}", type=type(default), default=default, help=meaning
    )


@click.command("generate")
@click.argument("model", default="latest")
@click.option(
    "-p", "--prompt", "prompts", multiple=True, metavar="TEXT", help="What to go on from; repeatable."
)
@click.option("--prompt-file", metavar="FILE", help="The same from a file; '-' reads what is piped in.")
@of_sampling("max_new_tokens", "Characters to write.", "-n")
@of_sampling("temperature", "Below 1 safer, above wilder.", "-t")
@of_sampling("top_k", "Choose among the k likeliest; 0 for all.")
@of_sampling("top_p", "Choose among those that reach this probability.")
@of_sampling("min_p", "Drop what is this much less likely than the best.")
@click.option("--greedy", is_flag=True, help="Always the likeliest character.")
@click.option(
    "--num-samples", type=click.IntRange(1, 10_000), default=1, help="How many texts, side by side."
)
@click.option("--stop", multiple=True, metavar="TEXT", help="End at this text; may be given more than once.")
@click.option("--seed", type=int, help="The same seed writes the same text.")
@hub_options
def command(
    model: str,
    prompts: tuple[str, ...],
    prompt_file: str | None,
    num_samples: int,
    revision: str | None,
    trust_remote_code: bool,
    **sampling: Any,
) -> None:
    """Let a trained model write.

    MODEL is 'latest' (the newest under outputs/), a folder, or a model on the Hugging Face Hub. One text
    appears as it is written; several are written side by side and also kept in outputs/samples. Without a
    prompt the model starts a new line; text piped in is the prompt.

    \b
    craft generate latest --prompt "ROMEO:"
    craft generate latest -p "def " --temperature 0.5 --stop $'\\n\\n'
    cat start.txt | craft generate outputs/models/MODEL -n 2000
    """
    texts = list(prompts) or [_read_prompt(prompt_file)]
    if prompts and prompt_file is not None:
        raise click.UsageError("--prompt and --prompt-file exclude each other")
    Sampling(**sampling)  # a value out of range is refused before torch is imported
    from craft.inference import load, sample, stream_text

    network, tokenizer = load(model, revision=revision, trust_remote_code=trust_remote_code)
    if len(texts) * num_samples == 1:
        streamed = stream_text(network, tokenizer, texts[0], **sampling)  # refused before it is shown
        pieces = chain([texts[0]], streamed)
        for piece in visible_pieces(pieces) if sys.stdout.isatty() else pieces:
            echo(piece, nl=False)
        echo()
        return
    written = sample(network, tokenizer, texts, num_samples=num_samples, **sampling)
    rows = [text + more for text, all_of_it in zip(texts, written) for more in all_of_it]
    page = "".join(f"--- {n} of {len(rows)}\n{row}\n" for n, row in enumerate(rows, start=1))
    echo(page, nl=False)
    file = sample_file()
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_bytes(page.encode("utf-8", errors="replace"))
    echo(f"kept in {file}", err=True)


def _read_prompt(prompt_file: str | None) -> str:
    """The prompt as it stands, exactly: no line break is added or taken away."""
    if prompt_file is None and not _is_piped():
        return ""
    try:
        if prompt_file in (None, "-"):
            data = sys.stdin.buffer.read()
        else:
            data = Path(typed_path(str(prompt_file), "--prompt-file ")).read_bytes()
        return data.decode("utf-8")
    except OSError as error:
        message = f"can't read --prompt-file {prompt_file}: {error.strerror}"
        raise UserError(message, code="file-unreadable") from error
    except UnicodeDecodeError as error:
        wrong = f"byte {data[error.start]:#04x} at position {error.start}"
        raise UserError(f"the prompt is not UTF-8 text: {wrong}", code="text-encoding") from error


def _is_piped() -> bool:
    """Whether there is something to read on stdin: a file, or a pipe into which something was written.

    A pipe that nobody writes to, as some programs give their children, must not stop us; `--prompt-file -`
    waits.
    """
    try:
        mode = os.fstat(0).st_mode
    except OSError:  # closed
        return False
    return stat.S_ISREG(mode) or (stat.S_ISFIFO(mode) and bool(select.select([0], [], [], PIPE_SECONDS)[0]))
