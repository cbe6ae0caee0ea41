"""Runs that are interrupted."""

import torch

from rwguidance_testbed.training.loop import Run


class Interrupted(Run):
    """A run that is interrupted after two steps, with its state saved."""

    def _step(self, rate, loss):
        if self.step == 2:
            self.save()
            raise KeyboardInterrupt
        return super()._step(rate, loss)


class Clock:
    """A clock that moves by some seconds whenever it is read."""

    def __init__(self, tick):
        self.now, self.tick = 0.0, tick

    def monotonic(self):
        self.now += self.tick
        return self.now


def read_equal_states(*paths):
    """Returns the first of two states of runs, of which modules and generators are bit-equal."""

    whole, parts = (torch.load(path, weights_only=True) for path in paths)
    for module, values in whole["modules"].items():
        for name, value in values.items():
            assert torch.equal(value, parts["modules"][module][name]), (module, name)
    assert torch.equal(whole["generator"], parts["generator"])
    return whole
