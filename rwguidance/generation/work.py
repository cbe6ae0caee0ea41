"""The work that a generation is, counted before it begins, and the time that it will take."""

import math
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import NamedTuple

from ..support.batches import batches

__all__ = ["Forecast", "Streams", "Work", "work_on_draws"]


class Streams(NamedTuple):
    """Draws of a prompt that are kept, so that whoever asks for them again has them.

    Arguments:
        name: First name of their random streams.
        number: Number of streams, which are drawn together.
        n: Number of draws of each stream.
    """

    name: str
    number: int
    n: int


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

    def __mul__(self, times: int) -> "Work":
        return Work(
            self.calls * times, self.drawn * times, self.decoded * times, self.scored * times
        )

    def __str__(self) -> str:
        return (
            f"{self.calls:,} calls of the network, {self.drawn:,} pictures drawn, "
            f"{self.decoded:,} decoded, {self.scored:,} scored"
        )


def work_on_draws(
    asked: Iterable[Streams],
    steps: int,
    batch_size: int,
    drawn: bool = True,
    scored: bool = True,
) -> Work:
    """Returns the work on draws of a prompt and their rewards, which are asked for one by one.

    A batch is made anew if some of it is not there.

    Arguments:
        asked: The draws, in the order in which they are asked for.
        steps: Number of steps of the sampler.
        batch_size: Number of samples in a batch.
        drawn: Whether a longer bank begins with the draws of a shorter one; if not, it is another.
        scored: Whether it begins with the rewards of a shorter one.
    """

    work, longest = Work(), dict[str, int]()
    for name, number, n in dict.fromkeys(asked):
        there = longest.get(name, 0)
        made = _rows_of_batches(number, n, there if drawn else 0, batch_size)
        seen = sum(_rows_of_batches(number, n, there if scored else 0, batch_size))
        work += Work(len(made) * steps, sum(made), seen, seen)
        longest[name] = max(there, n)
    return work


def _rows_of_batches(number: int, n: int, there: int, batch_size: int) -> list[int]:
    """Returns the sizes of batches some of which is made, where each stream has some draws."""

    made = batches(number * n, batch_size) if n > there else []
    return [len(batch) for batch in made if any(place % n >= there for place in batch)]


class Forecast:
    """Says how much work there is, and how long it takes once a batch has been timed.

    Arguments:
        what: Description of what is to be made; empty if there is nothing.
        work: The work on them, if nothing of it is kept.
        steps: Number of steps of the sampler.
        say: Is told sentences.
        judged: Number of pictures that are judged beside being scored.
    """

    def __init__(
        self,
        what: str,
        work: Work,
        steps: int,
        say: Callable[[str], None],
        judged: int = 0,
    ) -> None:
        self.work = work
        self.steps = steps
        self.say = say
        self.judged = judged
        self._timed = not what
        if what:
            say(f"to make {what}: {work}; what the cache holds is taken from it")

    def timed(self, images: int, sampling: float, scoring: float, judging: float = 0.0) -> None:
        """Says how many minutes the work takes, when it is called for the first time.

        Arguments:
            images: Number of pictures in a batch.
            sampling: Time in which they were drawn, in seconds.
            scoring: Time in which they were decoded and scored, in seconds.
            judging: Time in which they were judged beside that, in seconds.
        """

        if self._timed:
            return
        self._timed = True
        pictures = max(self.work.decoded, self.work.scored)
        seconds = self.work.calls * sampling / self.steps
        seconds += (pictures * scoring + self.judged * judging) / images
        self.say(f"about {seconds / 60:.2g} minutes, by the first batch")
