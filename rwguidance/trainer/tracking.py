"""Trackers of accelerate, by name: tensorboard, wandb and others."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path

from ..support.outside import require

__all__ = ["tracking"]

Track = Callable[[int, Mapping[str, float]], None]


@contextmanager
def tracking(names: Sequence[str], folder: Path) -> Iterator[Track]:
    """Opens trackers for a training, and closes them after it.

    Arguments:
        names: Names that accelerate knows; none opens nothing, and needs no accelerate.
        folder: Folder for what they keep on disk.

    Yields:
        A function that tells them the figures of a step.

    Raises:
        ImportError: If accelerate, or what a tracker is of, is not installed.
        ValueError: If there is no such tracker.
    """

    if not names:
        yield lambda step, figures: None
        return
    accelerate = require("accelerate", "trackers need", "train")
    accelerator = accelerate.Accelerator(log_with=list(names), project_dir=folder)
    accelerator.init_trackers("rwguidance")
    if len(accelerator.trackers) < len(names):
        raise ImportError(f"tracker {', '.join(names)}: what it is of is not installed")
    try:
        yield lambda step, figures: accelerator.log(dict(figures), step=step)
    finally:
        for tracker in accelerator.trackers:  # and not end_training, which ends the processes
            tracker.finish()
