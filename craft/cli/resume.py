"""`craft resume`."""

from __future__ import annotations

from pathlib import Path

import click

from craft.cli.options import of_a_revision, with_plugins
from craft.utils.errors import UserError
from craft.utils.terminal import echo


@click.command("resume")
@click.argument("arguments", nargs=-1, metavar="[RUN_DIR] [KEY=VALUE]...")
@click.option("--allow-changes", is_flag=True, help="Go on although settings changed that decide the result.")
@click.option("--print-config", is_flag=True, help="Print the run that would go on as YAML, and stop.")
@of_a_revision
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
    from craft.config.command_line import OVERRIDE

    folders = [word for word in arguments if not OVERRIDE.fullmatch(word)]
    overrides = [word for word in arguments if OVERRIDE.fullmatch(word)]
    if len(folders) > 1:
        raise UserError(f"two runs given, {folders[0]!r} and {folders[1]!r}; one is resumed at a time")
    run = _here(folders[0] if folders else "latest", revision)
    go_on(run, overrides, allow_changes, print_config)


def go_on(
    run_dir: str,
    overrides: list[str],
    allow_changes: bool = False,
    print_config: bool = False,
    config_file: Path | None = None,
    config_dir: Path | None = None,
) -> None:
    """Resumes a run under the configuration saved in it, with some settings overridden.

    Args:
        config_file: instead of the configuration saved in the run.
    """
    from craft.config.compose import compose
    from craft.utils.outputs import RUN_CONFIG
    from craft.utils.resuming import Finished, run_to_resume
    from craft.utils.stopping import NOTHING_YET, leaving

    found = run_to_resume(_here(run_dir))
    if isinstance(found, Finished):
        if not overrides and not print_config:
            echo(str(found))
            return
        found = found.run_dir
    with leaving(NOTHING_YET):
        run = compose(overrides, config_dir=config_dir, config_file=config_file or found / RUN_CONFIG)
    if print_config:
        echo(run.to_yaml(), nl=False)
        return
    from craft.train import train

    train(run, resume=found, allow_changes=allow_changes)


def _here(run: str, revision: str | None = None) -> str:
    """The folder of a run, fetched from the Hub if it is USER/NAME."""
    from craft.utils.hub import meant_as_repo_id

    if not meant_as_repo_id(run) or Path(run).parent.is_dir():
        if revision is not None:
            raise UserError(f"--revision {revision} picks a version on the Hub, and {run} isn't one")
        return run
    from craft.sharing.upload import fetch_run
    from craft.utils.logging import setup_logging

    setup_logging()
    return str(fetch_run(run, revision=revision))
