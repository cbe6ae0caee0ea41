"""A replay buffer of examples, each used several times."""

from dataclasses import fields

import torch
from torch import Generator, Tensor, nn

from .students import Examples, Student

__all__ = ["ReplayBuffer"]


class ReplayBuffer(nn.Module):
    """Examples, the oldest of which make room for new ones; grows until it is full.

    It is a module so that a run saves it.

    Arguments:
        student: Makes examples.
        size: Examples kept, at least.
    """

    made: Tensor
    level: Tensor

    def __init__(self, student: Student, size: int) -> None:
        super().__init__()
        self.make = student.examples
        first = self.make(0)
        self.count = -(-size // len(first.level))
        for f in fields(Examples):
            value = getattr(first, f.name)
            room = value.new_zeros(self.count, *value.shape)
            room[0] = value
            self.register_buffer(f.name, room)
        self.register_buffer("made", torch.tensor(1))

    def renew(self) -> None:
        """Makes examples, in place of the oldest if there is no more room."""

        number = int(self.made)
        for name, value in vars(self.make(number)).items():
            getattr(self, name)[number % self.count] = value
        self.made.add_(1)

    @property
    def seen(self) -> int:
        """Number of examples made so far, those counted in that made room for others."""

        return int(self.made) * self.level.shape[1]

    def batch(self, count: int, generator: Generator) -> Examples:
        """Returns some of the examples, chosen uniformly."""

        filled = min(int(self.made), self.count) * self.level.shape[1]
        index = torch.randint(filled, (count,), generator=generator)
        return Examples(*(getattr(self, f.name).flatten(0, 1)[index] for f in fields(Examples)))
