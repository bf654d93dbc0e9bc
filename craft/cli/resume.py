"""`craft resume`."""

from __future__ import annotations

import click

from craft.cli.options import revision_option, with_plugins
from craft.cli.train import start


@click.command("resume")
@click.argument("arguments", nargs=-1, metavar="[RUN_DIR] [KEY=VALUE]...")
@click.option("--allow-changes", is_flag=True, help="Go on although settings changed that decide the result.")
@click.option("--print-config", is_flag=True, help="Print the run that would go on as YAML, and stop.")
@revision_option
@with_plugins
def command(
    arguments: tuple[str, ...], allow_changes: bool, print_config: bool, revision: str | None
) -> None:
    """Go on with a run: the newest unfinished one, the one in RUN_DIR, or one of the Hub (USER/NAME).

    It ends with the weights that it would have without the interruption. Settings that don't decide them
    may change; the others are refused with a list, unless --allow-changes.

    \b
    craft resume
    craft resume outputs/models/RUN
    craft resume outputs/models/RUN training.max_steps=10000
    """
    from craft.config.command_line import split_words

    folders, overrides = split_words(arguments)
    if len(folders) > 1:
        raise click.UsageError(f"{len(folders)} runs given ({', '.join(folders)}); one is resumed at a time")
    run_dir = folders[0] if folders else "latest"
    start(overrides, print_config, run_dir, allow_changes, revision=revision)
