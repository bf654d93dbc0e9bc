"""The `craft` command: nothing is imported before it is known what runs, so `--help` answers at once."""

from __future__ import annotations

import errno
import importlib
import os
import signal
import sys
import time
import traceback
from collections.abc import Sequence

import click

from craft import __version__
from craft.utils.errors import Failed, PeerLost, UserError
from craft.utils.launch import drop_empty
from craft.utils.logging import first_to_say, rank_prefix
from craft.utils.masking import excepthook, has_secret, mask
from craft.utils.stopping import SIGNALS
from craft.utils.terminal import echo, prepare_standard_streams

COMMANDS = {
    "train": "Train a model on your text, or on an experiment of craft's.",
    "resume": "Go on with a run that was interrupted.",
    "generate": "Let a trained model write.",
    "evaluate": "Score a model over a whole text, in bits per character.",
    "export": "Write a model in another runtime's format (ONNX).",
    "serve": "Serve a model to OpenAI's clients, on this machine.",
    "push": "Put a trained model on the Hugging Face Hub.",
    "configs": "List the models, data, training recipes and experiments.",
    "benchmark": "Measure craft's speed on this machine beside baselines.",
    "doctor": "Check that everything craft needs works on this machine.",
}


ENVIRONMENT = {
    # Threads that spin long while they wait make a small model ten times slower as soon as the cores are
    # shared; threads that don't spin at all make it a third slower when they aren't.
    "GOMP_SPINCOUNT": "1000",
    # What transformers warns of is for who calls it, which is us.
    "TRANSFORMERS_VERBOSITY": "error",
    # A file that can't be read is told in our own line, not in theirs as well.
    "DATASETS_VERBOSITY": "critical",
    # Processes that meet warn of every address without a name.
    "TORCH_CPP_LOG_LEVEL": "ERROR",
}
"""Settings that must be there before torch and transformers are imported; the user's own win."""


OF_THE_MACHINE = {
    getattr(errno, name)
    for name in ("ENOSPC", "EDQUOT", "EROFS", "EACCES", "EPERM", "EIO", "ENAMETOOLONG", "ESTALE")
    if hasattr(errno, name)
}
"""What the system answers for reasons that lie in a disk or in permissions, and not in craft."""


PATIENCE = 30
"""Seconds that a process waits for another one to say what both of them end with."""


class LazyGroup(click.Group):
    """Finds `craft.cli.NAME.command` when it is run; the help needs none of them."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        return list(COMMANDS)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        if cmd_name not in COMMANDS:
            return None
        command = importlib.import_module(f"craft.cli.{cmd_name}").command
        assert isinstance(command, click.Command)
        return command

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        with formatter.section("Commands"):
            formatter.write_dl(list(COMMANDS.items()))

    def resolve_command(
        self, ctx: click.Context, args: list[str]
    ) -> tuple[str | None, click.Command | None, list[str]]:
        if args[0] not in COMMANDS and not args[0].startswith("-"):
            from craft.cli.hints import command_hint

            raise click.UsageError(f"No such command {args[0]!r}{command_hint(args[0], COMMANDS)}", ctx)
        return super().resolve_command(ctx, args)


@click.command(
    cls=LazyGroup,
    invoke_without_command=True,
    context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 110},
    epilog="'craft COMMAND --help' shows the options of a command.",
)
@click.version_option(__version__, prog_name="craft")
@click.pass_context
def group(ctx: click.Context) -> None:
    """Character-level language models: train, evaluate, generate, share.

    \b
    craft train              a first model in about a minute, without a download
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
    prepare_standard_streams()
    sys.excepthook = excepthook
    try:
        refuse_tokens(sys.argv[1:] if arguments is None else arguments)
        status = group.main(args=arguments, prog_name="craft", standalone_mode=False)
    except UserError as error:
        fail(str(error), 2, error.retold)
    except PeerLost as error:
        try:
            fail(str(error), 1, error.retold)
        finally:  # tidying up would wait for the process that is gone
            os._exit(1)
    except Failed as error:
        fail(str(error), 1, error.retold)
    except click.UsageError as error:
        words = sys.argv[1:] if arguments is None else arguments
        named = words[0] if words and words[0] in COMMANDS else ""  # also where click names the group alone
        from craft.cli.hints import misuse

        fail(f"{misuse(error).removesuffix('.')} (see '{f'craft {named}'.strip()} --help')", error.exit_code)
    except click.ClickException as error:
        fail(error.format_message(), error.exit_code)
    except (click.Abort, KeyboardInterrupt):
        try:
            fail("interrupted", 130)
        finally:  # Python would end by the signal once more if it had come in the middle of an `exec`
            sys.stdout.flush()
            os._exit(130)
    except Exception as error:
        if isinstance(error, OSError) and error.errno in OF_THE_MACHINE:
            if error.filename is None:  # Python would try what is left in the buffer again, and end with 120
                os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
            fail(f"{error.filename or 'standard output'} can't be written or read: {error.strerror}", 1)
        if not rank_prefix():  # a bug; of several processes one shows its traceback
            raise
        trace = mask(traceback.format_exc())
        if first_to_say(trace):
            echo(f"{rank_prefix()}{trace}", err=True)
        sys.exit(1)
    else:
        sys.exit(status if isinstance(status, int) else 0)  # click returns what a command gave to ctx.exit()


def refuse_tokens(arguments: Sequence[str]) -> None:
    """Refuses a command line that holds a token: it is kept by shells, process lists, logs and W&B."""
    for word in arguments:
        if has_secret(word):
            raise UserError(
                f"there is a token or password on the command line ({mask(word)}), where others can read it; "
                "for the Hub run 'hf auth login' or set HF_TOKEN, from elsewhere download the file yourself"
            )


def fail(message: str, status: int, retold: bool = False) -> None:
    """One line on stderr, whatever the width of the terminal, without secrets, and the end of the process.

    Of several processes the one that had it says it, with its rank; of those that all had it, the first.

    Args:
        retold: another process had it.
    """
    line = mask(" ".join(message.split()))
    if retold:
        let_another_say_it(status)
    elif line and first_to_say(line):
        echo(f"{'' if status == 130 else 'error: '}{rank_prefix()}{line}", err=True)
    if joined():  # tidying up a group that is broken may wait, or end in an abort inside of torch
        sys.stdout.flush()
        os._exit(status)
    sys.exit(status)


def let_another_say_it(status: int) -> None:
    """Waits for the end of the process that had the error: a launcher would answer the end of this one by
    ending that one, before it has spoken."""
    for number in SIGNALS:  # of the launcher, once the other has ended
        signal.signal(number, lambda *_: os._exit(status))
    time.sleep(PATIENCE if "TORCHELASTIC_RUN_ID" in os.environ else 0)


def joined() -> bool:
    """Whether this process has met others to train with."""
    distributed = sys.modules.get("torch.distributed")
    return distributed is not None and distributed.is_available() and distributed.is_initialized()
