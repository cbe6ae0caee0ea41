"""The command `rwguidance backbones`."""

import typer


def list_backbones() -> None:
    """List the backbones that can be loaded by name."""

    from rwguidance import backbones

    for name in backbones.available():
        typer.echo(name)
