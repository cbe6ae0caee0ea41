"""The work that a generation is, counted before it begins, and the time that it will take."""

import math
from collections.abc import Callable
from dataclasses import dataclass

__all__ = ["Forecast", "Work"]


@dataclass(frozen=True)
class Work:
    """Counts of what is done.

    Arguments:
        calls: Calls of the network, each for one batch at one time.
        drawn: Samples drawn.
        decoded: Pictures decoded.
        scored: Pictures scored.
    """

    calls: int = 0
    drawn: int = 0
    decoded: int = 0
    scored: int = 0

    @classmethod
    def of_samples(cls, n: int, steps: int, batch_size: int) -> "Work":
        """Returns the work on samples that are drawn in batches, decoded and scored.

        Arguments:
            n: Number of samples.
            steps: Number of steps, of one call each.
            batch_size: Number of samples in a batch.
        """

        return cls(math.ceil(n / batch_size) * steps, n, n, n)

    def __add__(self, other: "Work") -> "Work":
        return Work(
            self.calls + other.calls,
            self.drawn + other.drawn,
            self.decoded + other.decoded,
            self.scored + other.scored,
        )

    def __sub__(self, other: "Work") -> "Work":
        return self + other * -1

    def __mul__(self, times: int) -> "Work":
        return Work(
            self.calls * times, self.drawn * times, self.decoded * times, self.scored * times
        )

    def __str__(self) -> str:
        return (
            f"{self.calls:,} calls of the network, {self.drawn:,} pictures drawn, "
            f"{self.decoded:,} decoded, {self.scored:,} scored"
        )


class Forecast:
    """Says how much work there is, and how long it takes once a batch has been timed.

    Arguments:
        what: Description of what is to be made; empty if there is nothing.
        work: The work on them, at most.
        steps: Number of steps of the sampler.
        say: Is told sentences.
    """

    def __init__(self, what: str, work: Work, steps: int, say: Callable[[str], None]) -> None:
        self.work = work
        self.steps = steps
        self.say = say
        self._timed = not what
        if what:
            say(f"to make {what}: at most {work}; what the cache holds is taken from it")

    def timed(self, images: int, sampling: float, judging: float) -> None:
        """Says how many minutes the work takes, when it is called for the first time.

        Arguments:
            images: Number of pictures in a batch.
            sampling: Time in which they were drawn, in seconds.
            judging: Time in which they were decoded and scored, in seconds.
        """

        if self._timed:
            return
        self._timed = True
        pictures = max(self.work.decoded, self.work.scored)
        seconds = self.work.calls * sampling / self.steps + pictures * judging / images
        self.say(f"about {seconds / 60:.2g} minutes, by the first batch")
