r"""The objective of the guidance network of the test bed's model of one step.

The network gives the shift at the first time of a run. The model starts from noise that was drawn
without a clean state and says nothing of it, so that the shift is

.. math:: \Delta(y) = \tilde E[x_0 | y] - E[x_0 | y],

the difference of two means of the prompt's bank. The network gives it for prompts that have no
bank.

It is not the shift of the coupling :math:`x_0 = G(x_t)` of the generator with its own noise. Under
that one the state determines the clean one, and the shift is zero: what tilts it is a choice of
the noise (:mod:`rwguidance.noise_space`). So a guided single step displaces every output of a
prompt by nearly the same vector. If the reward is linear where outputs lie, its mean is nearly that
of the tilted law; their spread is always that of the model, no mode gains weight, and of a picture
only that gets better which the average of better pictures shows.

For an SDXL schedule :math:`\alpha_1` is 0.068, and states noised from clean ones say something of
them. Their shift, that of the exact kernel, is too short for a run: in a direction of variance
:math:`\lambda` it leaves out the share
:math:`\alpha_t^2 \lambda / (\sigma_t^2 + \alpha_t^2 \lambda)` of the way to the tilted mean. Such
states carry it already, and the noise does not: much for a background, whose :math:`\lambda` may be
100.

The network regresses the shift that importance sampling on the bank of the prompt gives where a run
starts, at noised draws of this bank, which has not the noise of the targets of
:mod:`rwguidance.training`. Nor does it need the model's prediction of :math:`E[x_0 | x_t]`, which a
distilled model does not have: it predicts a sample.

One beta serves all prompts, such that the divergence is as many nats as asked for on average. Then
it is one law that the network learns, also where no bank could say what beta to take.
"""

from typing import Any

import torch
from torch import Generator, Tensor, nn

from rwguidance.bank import Bank
from rwguidance.estimators import ImportanceSampling
from rwguidance.models import DenoiserModel
from rwguidance.schedules import Schedule
from rwguidance.support.conditions import condition_keys
from rwguidance.tilt import Tilt
from rwguidance.training import Encoder, Objective

__all__ = ["BankMean", "BankShift"]

_GROUP = 8  # draws of a step that share a prompt, for the bank of every prompt is gone through


class BankMean(DenoiserModel):
    r"""A model that predicts the mean of the bank, as a state at the largest noise says nothing.

    Arguments:
        schedule: Schedule of the path.
        bank: Draws of every prompt.
    """

    depends_on = ("schedule", "means")

    def __init__(self, schedule: Schedule, bank: Bank) -> None:
        super().__init__(schedule)
        self.means = {key: bank.x_0[rows].mean(0) for key, rows in bank.rows.items()}

    def denoise(self, x_t: Tensor, t: float | Tensor, condition: Any = None) -> Tensor:
        keys = condition_keys(condition, len(x_t)) or [None] * len(x_t)
        return torch.stack([self.means[key] for key in keys])


class BankShift(Objective):
    r"""The squared distance to the shift that the bank gives where a run starts.

    That of :class:`~rwguidance.ImportanceSampling` with a flat kernel, the difference of two means
    of the bank. States are noised draws of the bank, which are as good as the noise of a run.

    Arguments:
        bank: Draws of every prompt, scored.
        tilt: The tilt.
        schedule: Schedule of the path.
        t: First time of the runs in which the network will be used.
        batch_size: Draws of a step, a multiple of 8: so many at a time share a prompt.
        encode: Function that makes the network's condition of prompts.

    Raises:
        ValueError: If `batch_size` is no multiple of 8.
    """

    depends_on = ("model", "bank", "betas", "log_w", "batch_size", "t", "encode")

    def __init__(
        self,
        bank: Bank,
        tilt: Tilt,
        schedule: Schedule,
        t: float = 1.0,
        batch_size: int = 64,
        encode: Encoder | None = None,
    ) -> None:
        if batch_size % _GROUP:
            raise ValueError(f"batch_size must be a multiple of {_GROUP}, got {batch_size}")
        times = lambda n, generator: torch.full((n,), t, dtype=torch.float64)
        super().__init__(
            BankMean(schedule, bank).starting(t),
            bank,
            tilt,
            batch_size=batch_size,
            times=times,
            encode=encode,
        )
        self.importance = ImportanceSampling(self.bank, tilt)
        self.t = t

    def __call__(self, network: nn.Module, generator: Generator) -> dict[str, Tensor]:
        rows = list(self.bank.rows.values())
        picks = torch.randint(len(rows), (self.batch_size // _GROUP,), generator=generator)
        index = torch.cat(
            [
                torch.randint(rows[i].start, rows[i].stop, (_GROUP,), generator=generator)
                for i in picks.tolist()
            ]
        )
        t = self.times(self.batch_size, generator)
        batch = self._noise(self.bank, self.log_w, index, t, generator)
        with torch.no_grad():
            exact = self.importance(self.model, batch.x_t, batch.t, batch.condition).shift
        shift = network(batch.x_t, batch.t, batch.condition)
        return {"loss": (shift - exact).square().mean()}
