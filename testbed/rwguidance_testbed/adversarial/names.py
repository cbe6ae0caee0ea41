"""Names that nobody painted: words of learned names, put together anew.

A critic that sees learned names alone lets a student forget how its words go together. So the flow
draws pictures of other pairs of words, and the student is held to these as well. Names held out are
never among them: how well those are drawn remains a fair question.
"""

from collections.abc import Sequence

import torch
from torch import Generator

from ..scenes import COLORS

__all__ = ["recombined_names"]

_FREE, _COLORED = 0.6, 0.2  # shares of the ways in which names are made; the rest share a word


def recombined_names(
    learned: Sequence[str], held_out: Sequence[str], count: int, generator: Generator
) -> list[str]:
    """Draws names of words of learned names, or of a color and such a word, each once.

    Most have any first word and any last one, some a color and a thing, and some the first or the
    last word of several learned names beside another word than these.

    Arguments:
        learned: Names that are learned, none of which is drawn.
        held_out: Names of which none is drawn either.
        count: Number of names.
        generator: Source of the random numbers.

    Raises:
        ValueError: If the words do not make so many names.
    """

    parts = _Parts(learned)
    known, found = {*learned, *held_out}, dict[str, None]()
    for _ in range(100 * count):
        if len(found) == count:
            break
        name = parts.draw(generator)
        words = name.split()
        if len(set(words)) == len(words) and name not in known:
            found[name] = None
    if len(found) < count:
        raise ValueError(f"the words of {len(learned)} names make fewer than {count} others")
    return list(found)


class _Parts:
    """Words of names by their places in these."""

    def __init__(self, learned: Sequence[str]) -> None:
        split = [name.split() for name in learned]
        pairs = [words for words in split if len(words) == 2]
        single = [words[0] for words in split if len(words) == 1 and words[0].isalpha()]
        self.first = [words[0] for words in pairs] + list(COLORS)
        self.things = single + [words[1] for words in pairs]
        before: dict[str, list[str]] = {}
        after: dict[str, list[str]] = {}
        for words in split:
            if len(words) > 1:
                before.setdefault(words[-1], []).append(" ".join(words[:-1]))
                after.setdefault(words[0], []).append(" ".join(words[1:]))
        several = lambda beside: {word: rest for word, rest in beside.items() if len(rest) > 1}
        self.before, self.after = several(before), several(after)
        self.ends = [word for rest in self.after.values() for word in rest if " " not in word]

    def draw(self, generator: Generator) -> str:
        """Returns a name, a learned one perhaps."""

        share = float(torch.rand((), generator=generator))
        pick = lambda words: words[int(torch.randint(len(words), (), generator=generator))]
        shared = [*self.before, *self.after]
        if share < _FREE or not shared:
            return f"{pick(self.first)} {pick(self.things)}"
        if share < _FREE + _COLORED:
            return f"{pick(list(COLORS))} {pick(self.things)}"
        place = int(torch.randint(len(shared), (), generator=generator))
        word = shared[place]
        if place < len(self.before):
            return f"{pick(self.things + self.before[word])} {word}"
        return f"{word} {pick(self.things + self.ends)}"
