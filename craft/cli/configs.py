"""`craft configs`."""

from __future__ import annotations

from pathlib import Path

import click

from craft.cli.options import PATH
from craft.utils.terminal import echo


@click.command("configs")
@click.option("--config-dir", type=PATH, metavar="DIR", help="List your own YAML files as well.")
def command(config_dir: Path | None) -> None:
    """List every configuration by group; pick one with GROUP=NAME.

    \b
    craft train experiments=shakespeare_lstm
    craft train my.txt models=char_lstm training.max_steps=500
    """
    from craft.config.files import GROUPS, config_folders, list_group

    folders = config_folders(config_dir)
    listed = {group: list_group(group, folders) for group in GROUPS}
    width = max(len(name) for entries in listed.values() for name, _, _ in entries)
    for group, entries in listed.items():
        echo(group)
        for name, description, path in entries:
            yours = "" if path.is_relative_to(folders[-1]) else "  (yours)"
            echo(f"  {name:<{width}}  {description}{yours}".rstrip())
