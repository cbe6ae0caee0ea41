"""The command `rwguidance rewards`."""

from typing import Annotated

import typer


def list_rewards(
    name: Annotated[str | None, typer.Argument(help="Everything about this reward.")] = None,
    commercial: Annotated[
        bool | None,
        typer.Option(
            "--commercial/--not-commercial",
            help="Those known to permit commercial use, or all others, the unknown among them.",
            show_default=False,
        ),
    ] = None,
    differentiable: Annotated[
        bool | None,
        typer.Option(
            "--differentiable/--not-differentiable",
            help="Those whose gradients reach the images, or not.",
            show_default=False,
        ),
    ] = None,
    license: Annotated[
        str | None,
        typer.Option(help="Those whose code or weights have this license.", metavar="SPDX"),
    ] = None,
) -> None:
    """List the rewards with their licenses and ranges, or print everything about one."""

    from rwguidance.rewards.console import print_reward, print_rewards

    if name is None:
        print_rewards(commercial, differentiable, license)
        return
    if any(filter is not None for filter in (commercial, differentiable, license)):
        raise ValueError("name one reward or filter the list, not both")
    print_reward(name)
