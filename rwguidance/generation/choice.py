"""Which method a run takes that was not told one."""

from .base import Method
from .pooled import Pool, Resample

__all__ = ["AUTO", "chosen"]

AUTO = "auto"
"""Name under which the command line leaves the choice to :func:`chosen`."""

_SHARED = 4
"""Pictures of a prompt from which on guided ones are worth their calls."""


def chosen(images: int) -> tuple[type[Method], dict[str, object], str]:
    """Returns the class of a method that needs no gradient and no training, and why it is that.

    Pictures of a prompt share a bank, from which single ones are drawn by their weights, as their
    law is the tilted one then up to a bias of order one over the bank. Guided pictures in one pool
    with the bank reach the tilted law with fewer calls, where there are several.

    Arguments:
        images: Number of pictures per prompt.

    Returns:
        The class, settings that differ from its defaults, by options with underscores, and the
        reason, a sentence.
    """

    if images < _SHARED:
        why = (
            f"{images} of the draws of a prompt's bank are picked by weight; from {_SHARED} on, "
            f"{Pool.name} takes fewer calls, and with a differentiable reward noise-gradient makes "
            "new pictures"
        )
        return Resample, {"pictures": images}, _sentence(Resample, why)
    together = min(images, Pool.pictures)
    why = (
        f"{together} guided pictures and a bank are weighed together, which takes the fewest calls "
        "to the tilted law where pictures of a prompt share them"
    )
    return Pool, {"pictures": together, "leave_one_out": True}, _sentence(Pool, why)


def _sentence(kind: type[Method], why: str) -> str:
    return f"method {kind.name}: {why}; --method chooses another"
