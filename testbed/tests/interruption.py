"""Runs that are interrupted."""

from rwguidance_testbed.training.loop import Run


class Interrupted(Run):
    """A run that is interrupted after two steps, with its state saved."""

    def _step(self, rate, loss):
        if self.step == 2:
            self.save()
            raise KeyboardInterrupt
        return super()._step(rate, loss)
