"""The `craft` command: nothing is imported before it is known what runs, so `--help` answers at once."""

from __future__ import annotations

import difflib
import importlib
import json
import os
import signal
import sys
import time
import traceback
from collections.abc import Sequence
from typing import Any

import click

from craft import __version__
from craft.utils.allocator import keep_freed_memory
from craft.utils.errors import Code, CraftError, Failed, PeerLost, UserError
from craft.utils.files import DISK_ERRORS, DISK_FULL
from craft.utils.launch import drop_empty
from craft.utils.logging import first_to_say, rank_prefix
from craft.utils.masking import excepthook, has_secret, mask
from craft.utils.stopping import SIGNALS
from craft.utils.terminal import echo, prepare_standard_streams

COMMANDS = {
    "train": "Train a model on your text, or on an experiment of craft's.",
    "resume": "Go on with a run that was interrupted.",
    "generate": "Let a trained model write.",
    "evaluate": "Score a model over a whole text.",
    "compare": "Compare models on one text, or train a grid of them first.",
    "baselines": "Say what a text costs without a model: n-grams, packers.",
    "novelty": "Say how much a model copies from its training text.",
    "compress": "Compress a file into the bits that a model says it takes.",
    "decompress": "Give back the file that was compressed.",
    "export": "Write a model as ONNX, or as one page of HTML.",
    "serve": "Serve a model to OpenAI's clients, on this machine.",
    "push": "Put a trained model on the Hugging Face Hub.",
    "visualize": "Draw several runs into one picture.",
    "configs": "List the models, data, training recipes and experiments.",
    "benchmark": "Measure craft's speed on this machine beside baselines.",
    "doctor": "Check that everything craft needs works on this machine.",
}


ENVIRONMENT = {
    # Threads that spin long while they wait make a small model ten times slower as soon as the cores are
    # shared; threads that don't spin at all make it a third slower when they aren't.
    "GOMP_SPINCOUNT": "3000",
    # Warnings of transformers are meant for its caller, which is craft.
    "TRANSFORMERS_VERBOSITY": "error",
    # A file that can't be read is one line of craft's, not one of theirs as well.
    "DATASETS_VERBOSITY": "critical",
    # Processes that meet warn of every address without a name.
    "TORCH_CPP_LOG_LEVEL": "ERROR",
}
"""Settings that must be there before torch and transformers are imported; the user's own win."""

PEER_SECONDS = 30
"""Seconds that a process waits for another one to say what both of them end with."""


class LazyGroup(click.Group):
    """Knows a line about each command, and imports `craft.cli.NAME.command` when it is run."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        return list(COMMANDS)

    def resolve_command(self, ctx: click.Context, args: list[str]) -> tuple[str | None, Any, list[str]]:
        name, known, rest = super().resolve_command(ctx, args)
        return name, known and importlib.import_module(f"craft.cli.{name}").command, rest


@click.command(
    cls=LazyGroup,
    commands={name: click.Command(name, help=line) for name, line in COMMANDS.items()},
    invoke_without_command=True,
    context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 110, "show_default": True},
    epilog="'craft COMMAND --help' shows the options of a command.",
)
@click.version_option(__version__, prog_name="craft")
@click.pass_context
def group(ctx: click.Context) -> None:
    """Character-level language models: train, evaluate, generate, share.

    \b
    craft train              a first model in 90 seconds, without a download
    craft train my.txt       the same on your own text
    craft generate latest    let the newest model write
    """
    if ctx.invoked_subcommand is None:
        echo(ctx.get_help())


def main(arguments: Sequence[str] | None = None) -> None:
    """Runs a command and exits: 0 done, 1 failed, 2 the user's mistake (one line on stderr), 130 stopped."""
    drop_empty()
    for variable, value in ENVIRONMENT.items():
        os.environ.setdefault(variable, value)
    keep_freed_memory()
    prepare_standard_streams()
    sys.excepthook = excepthook
    words = list(sys.argv[1:] if arguments is None else arguments)
    try:
        refuse_tokens(words)
        status = group.main(args=words, prog_name="craft", standalone_mode=False)
    except CraftError as error:
        fail(error, words, 2 if isinstance(error, UserError) else 1)
    except click.ClickException as error:
        fail(from_click(error, words), words, error.exit_code)
    except (click.Abort, KeyboardInterrupt):
        if first_to_say("interrupted"):
            echo(f"{rank_prefix()}interrupted", err=True)
        end_at_once(130)  # Python would end by the signal once more if it had come in an `exec`
    except Exception as error:
        if isinstance(error, OSError) and error.errno in DISK_ERRORS:
            if error.filename is None:
                discard_output()
            message = f"{error.filename or 'standard output'} can't be written or read: {error.strerror}"
            code: Code = "disk-full" if error.errno in DISK_FULL else "file-unwritable"
            fail(Failed(message, code=code), words, 1)
        if not rank_prefix():  # a bug; of several processes one shows its traceback
            raise
        trace = mask(traceback.format_exc())
        if first_to_say(trace):
            echo(f"{rank_prefix()}{trace}", err=True)
        sys.exit(1)
    else:
        sys.exit(status if isinstance(status, int) else 0)  # click returns what a command gave to ctx.exit()


def refuse_tokens(words: Sequence[str]) -> None:
    """Refuses a command line that holds a token: it is kept by shells, process lists, logs and W&B."""
    for word in words:
        if has_secret(word):
            raise UserError(
                f"there is a token or password on the command line ({mask(word)}), where others can read it; "
                "for the Hub run 'hf auth login' or set HF_TOKEN, from elsewhere download the file yourself",
                code="secret",
            )


def from_click(error: click.ClickException, words: Sequence[str]) -> UserError:
    """What click says of a command line; of an option that `craft train` hasn't, which setting is meant."""
    message = error.format_message().removesuffix(".")
    code: Code = "usage"
    command = words[0] if words and words[0] in COMMANDS else ""  # also where click names the group alone
    if isinstance(error, click.NoSuchOption):
        code = "setting-unknown"
        typed, options = error.option_name, [name for name in error.possibilities or () if name != "--help"]
        near = difflib.get_close_matches(
            typed, options, cutoff=0.8
        )  # to click, --max-steps is like --minutes
        if command in ("train", "resume") and typed.startswith("--") and not near:
            from craft.config.command_line import suggest_setting

            hint = suggest_setting(typed.lstrip("-").replace("-", "_"))
            message = f"No such option {typed!r}; settings are written KEY=VALUE without dashes{hint}"
    return UserError(f"{message} (see '{f'craft {command}'.strip()} --help')", code=code)


def fail(error: CraftError, words: Sequence[str], status: int) -> None:
    """One line on stderr, whatever the width of the terminal, without secrets; for programs that read along
    an object on standard output too; and the end of the process.

    Of several processes the one that had the error says it, with its rank; of those that all had it, one.
    """
    line = mask(" ".join(str(error).split()))
    if error.printed_elsewhere:
        # A launcher would answer the end of this process by ending the one that had the error, before it has
        # spoken: wait for its end, or for the launcher's signal behind that.
        for number in SIGNALS:
            signal.signal(number, lambda *_: os._exit(status))
        time.sleep(PEER_SECONDS if "TORCHELASTIC_RUN_ID" in os.environ else 0)
    elif line and first_to_say(line):
        echo(f"error: {rank_prefix()}{line}", err=True)
        trains = words[:1] in (["train"], ["resume"]) and "--print-config" not in words
        if "--json" in words or (trains and not sys.stdout.isatty()):
            try:
                echo(json.dumps({"error": {"code": error.code, "message": line}}))
            except OSError:  # nobody reads any more
                discard_output()
    distributed = sys.modules.get("torch.distributed")
    joined = distributed is not None and distributed.is_available() and distributed.is_initialized()
    if joined or isinstance(error, PeerLost):
        end_at_once(status)  # tidying up a group that is broken may wait, or end in an abort inside of torch
    sys.exit(status)


def discard_output() -> None:
    """Python would write what is left in the buffer once more at its end, fail, and end with 120."""
    os.dup2(os.open(os.devnull, os.O_WRONLY), 1)


def end_at_once(status: int) -> None:
    """Ends the process without the cleaning up of libraries."""
    try:
        sys.stdout.flush()
    finally:
        os._exit(status)
