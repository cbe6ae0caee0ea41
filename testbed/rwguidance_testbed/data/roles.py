"""Which part of the test bed may see a drawing.

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
"""Who may see a drawing."""

_SAME_HAND = {"fluent-flat": "fluent"}
_DEAL = ("generator", "judge", "generator", "proxy", "generator", "judge", "proxy")


def assign_roles(name: str, styles: Iterable[str], asked: bool = True) -> dict[str, str]:
    """The role of each drawing of a name.

    Arguments:
        name: Of what is drawn.
        styles: Those that draw it.
        asked: Whether prompts have the name. If not, the generators get nothing: a hand that would
            be theirs goes to the judge or to the proxies, as its hash says.

    Returns:
        A role for each style.
    """

    styles = tuple(styles)
    digest = lambda hand: hashlib.sha256(f"{name}/{hand}".encode()).digest()
    order = sorted({_SAME_HAND.get(style, style) for style in styles}, key=digest)
    roles = dict(zip(order, _DEAL, strict=False))
    if not asked:
        for hand in order:
            if roles[hand] == "generator":
                roles[hand] = ("judge", "proxy")[digest(hand)[-1] % 2]
    return {style: roles[_SAME_HAND.get(style, style)] for style in styles}
