"""The package `backbones`, under its full name: ``from rwguidance import backbones``.

Its files lie in the folder `backbones` beside this package (see :mod:`rwguidance.support.aliases`).
"""

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from backbones import *  # noqa: F403
    from backbones import __all__ as __all__
else:
    from .support.aliases import adopt

    adopt(__name__)
