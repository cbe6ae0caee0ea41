"""Failures in words: why an item could not be made, in one line."""

from collections.abc import Mapping

from ..support.describe import error_text

__all__ = ["reason", "summarize"]


def reason(error: Exception) -> str:
    """Returns an error in one line, with its class unless its text is written for users."""

    text = error_text(error)
    if not isinstance(error, ValueError | FloatingPointError):
        text = f"{type(error).__name__}: {text}" if text else type(error).__name__
    return text


def summarize(failures: Mapping[int, str], wanted: int) -> str:
    """Returns the failures of a prompt in one line.

    Arguments:
        failures: Reasons by number of the image, at least one.
        wanted: Number of images that were to be made.
    """

    numbers: dict[str, list[int]] = {}
    for number, why in sorted(failures.items()):
        numbers.setdefault(why, []).append(number)
    if len(numbers) == 1 and len(failures) == wanted:
        return next(iter(numbers))
    label = lambda found: ("image " if len(found) == 1 else "images ") + ", ".join(map(str, found))
    return "; ".join(f"{label(found)}: {why}" for why, found in numbers.items())
