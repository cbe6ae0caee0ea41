"""Roles: the part of the test bed that may see a drawing.

Every drawing has one of three roles, which no two parts of the test bed share: what a generator
learned to draw, neither a proxy reward nor the judge has seen. The roles of a name's drawings are
dealt in an order that the hash of name and style decides, so that every part knows every style and
every name, but from other drawings. The two Fluent styles draw the same shapes and stay together.

Of names that no prompt has, generators draw nothing. There their drawings go to the judge and to
the proxies, half each by a hash; but the autoencoder has seen them, which is trained as if not.
"""

import hashlib
from collections.abc import Iterable

__all__ = ["ROLES", "assign_roles"]

ROLES = ("generator", "proxy", "judge")
"""The parts of the test bed that see drawings."""

_SAME_SHAPES = {"fluent-flat": "fluent"}
_DEAL = ("generator", "judge", "generator", "proxy", "generator", "judge", "proxy")


def assign_roles(name: str, styles: Iterable[str], asked: bool = True) -> dict[str, str]:
    """Returns the role of each drawing of a name.

    Arguments:
        name: Name of the thing that is drawn.
        styles: Styles that draw it.
        asked: Whether prompts have the name. If not, the generators get nothing: a style that would
            be theirs goes to the judge or to the proxies, as its hash says.

    Returns:
        A role for each style.
    """

    styles = tuple(styles)
    digest = lambda style: hashlib.sha256(f"{name}/{style}".encode()).digest()
    order = sorted({_SAME_SHAPES.get(style, style) for style in styles}, key=digest)
    roles = dict(zip(order, _DEAL, strict=False))
    if not asked:
        for style in order:
            if roles[style] == "generator":
                roles[style] = ("judge", "proxy")[digest(style)[-1] % 2]
    return {style: roles[_SAME_SHAPES.get(style, style)] for style in styles}
