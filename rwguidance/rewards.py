"""The package `rewards`, under its full name: ``from rwguidance import rewards``.

Its files lie in the folder `rewards` beside this package (see :mod:`rwguidance.support.aliases`).
"""

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from rewards import *  # noqa: F403
    from rewards import __all__ as __all__
else:
    from .support.aliases import adopt

    adopt(__name__)
