"""The command `rwguidance backbones`."""

from typing import Annotated

import typer

from .options import plain_warnings


def list_backbones(
    name: Annotated[str | None, typer.Argument(help="Everything about this backbone.")] = None,
) -> None:
    """List the backbones that can be loaded by name, or print everything about one."""

    from rwguidance.backbones.console import print_backbone, print_backbones

    with plain_warnings():
        if name is None:
            print_backbones()
            return
        print_backbone(name)
