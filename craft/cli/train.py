"""`craft train`."""

from __future__ import annotations

from pathlib import Path

import click

from craft.cli.options import PATH, with_plugins
from craft.utils.terminal import echo


@click.command("train")
@click.argument("arguments", nargs=-1, metavar="[TEXT]... [KEY=VALUE]...")
@click.option(
    "--minutes",
    metavar="MINUTES",
    help="Be done after so many minutes, scored and saved: the number of steps follows from the speed of "
    "this machine (training.max_minutes).",
)
@click.option(
    "--size",
    type=click.Choice(["auto"]),
    help="Choose the model and its recipe for this text, this machine and this time: the default for a TEXT "
    "if no model is named.",
)
@click.option("--config", "config_file", type=PATH, metavar="FILE", help="Repeat a saved run.")
@click.option(
    "--config-dir",
    type=PATH,
    metavar="DIR",
    help="Your own YAML files; they add to craft's and go before them.",
)
@click.option(
    "--print-config", is_flag=True, help="Print the whole run as YAML, valid for --config, and stop."
)
@click.option(
    "--resume",
    is_flag=False,
    flag_value="latest",
    metavar="[RUN_DIR|auto]",
    help="Go on with a run, as 'craft resume': the newest unfinished one, or the one in RUN_DIR. 'auto': the "
    "one in training.output_dir, which is started if it isn't there yet.",
)
@click.option(
    "--allow-changes", is_flag=True, help="With --resume: go on although settings changed that decide it."
)
@with_plugins
def command(
    arguments: tuple[str, ...],
    minutes: str | None,
    size: str | None,
    config_file: Path | None,
    config_dir: Path | None,
    print_config: bool,
    resume: str | None,
    allow_changes: bool,
) -> None:
    """Train a model.

    TEXT is a file, folder, glob or URL; several are read one after the other. A setting KEY=VALUE picks a
    file of a group (models, data, training, experiments; 'craft configs' lists them) or sets one field.

    \b
    craft train
    craft train my.txt --minutes 5
    craft train my.txt models=char_lstm models.hidden_size=256
    craft train experiments=shakespeare_lstm training.max_steps=500
    craft train new.txt models.init_from=latest     (trains a model on)
    craft train --config outputs/models/RUN/craft_run.yaml training.seed=7
    """
    from craft.config.command_line import split_text

    if resume is not None and "=" in resume:  # `--resume KEY=VALUE`: the option's own value was left out
        arguments, resume = (resume, *arguments), "latest"
    if allow_changes and resume is None:
        raise click.UsageError(
            "--allow-changes is for a run that goes on: craft resume RUN_DIR --allow-changes"
        )
    if minutes is not None:
        arguments = (*arguments, f"training.max_minutes={minutes}")
    saved = config_file is not None or resume not in (None, "auto")
    if size is not None and saved:
        raise click.UsageError("--size auto is for a new run; a saved one has its model")
    start(
        split_text(arguments),
        print_config,
        resume,
        allow_changes,
        config_file,
        config_dir,
        choose=False if saved else (True if size else None),
    )


def start(
    overrides: list[str],
    print_config: bool,
    resume: str | Path | None,
    allow_changes: bool,
    config_file: Path | None = None,
    config_dir: Path | None = None,
    revision: str | None = None,
    choose: bool | None = False,
) -> None:
    """Composes a run and trains it, or goes on with one under the configuration that is saved in it.

    Args:
        resume: None, "auto", "latest", the folder of a run, or one on the Hub.
        revision: which version of it on the Hub.
        choose: whether the model is chosen, see `compose`.
    """
    from craft.config.compose import compose
    from craft.utils.outputs import RUN_CONFIG
    from craft.utils.resuming import Finished, run_to_resume
    from craft.utils.stopping import NOTHING_YET, exit_on_signal

    if resume not in (None, "auto"):
        found = run_to_resume(_fetched(str(resume), revision))
        if isinstance(found, Finished):
            if not overrides and not print_config:
                echo(str(found))
                return
            found = found.run_dir
        resume, config_file = found, config_file or found / RUN_CONFIG
    with exit_on_signal(NOTHING_YET):
        run = compose(overrides, config_dir=config_dir, config_file=config_file, choose=choose)
    if print_config:
        echo(run.to_yaml(), nl=False)
        return
    import psutil

    from craft.train import train

    train(run, resume=resume, allow_changes=allow_changes, began=psutil.Process().create_time())


def _fetched(run: str, revision: str | None) -> str:
    """The folder of a run, fetched from the Hub if it is USER/NAME."""
    from craft.utils.hub import meant_as_repo_id

    if not meant_as_repo_id(run) or Path(run).parent.is_dir():
        if revision is not None:
            raise click.UsageError(f"--revision {revision} picks a version on the Hub, and {run} isn't one")
        return run
    from craft.sharing.upload import fetch_run
    from craft.utils.logging import setup_logging

    setup_logging()
    return str(fetch_run(run, revision=revision))
