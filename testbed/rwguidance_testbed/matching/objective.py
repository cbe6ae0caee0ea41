r"""Steps of a student whose law shall be that of a teacher and of real pictures.

The student's law is compared with the teacher's at noisy states: of the posterior means of clean
latents that both find at the same state, the difference

.. math:: E_\text{student}[x_0 | x_t] - E_\text{teacher}[x_0 | x_t]
    = \frac{\sigma_t^2}{\alpha_t} (\nabla \log q_t - \nabla \log p_t)(x_t)

says how to lower the divergence of the student's law from the teacher's. What the student's law
is, another network learns all the time from what the student draws. A discriminator tells what the
student draws from painted pictures of the same captions, and regression on paths of the teacher
keeps the student near them.

References:
    | One-step Diffusion with Distribution Matching Distillation (Yin et al., 2024),
      arXiv:2311.18828
    | Improved Distribution Matching Distillation for Fast Image Synthesis (Yin et al., 2024),
      arXiv:2405.14867
    | The GAN is dead; long live the GAN! A Modern GAN Baseline (Huang et al., 2025),
      arXiv:2501.05441 (the paired loss of the discriminator)
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Generator, Tensor, nn

from ..training.balance import slope_of_size
from ..training.timed import descend
from .pool import Captions, Pool
from .scores import Discriminator, GuidedVelocity, Velocity
from .students import Student

__all__ = ["Matching", "Networks", "direction"]

_NOISIEST = 0.9  # of the states that the discriminator sees: at 1 they say nothing


@dataclass(frozen=True)
class Networks:
    """What takes part in matching.

    Arguments:
        student: The student.
        teacher: Velocity of the teacher, with guidance.
        fake: Velocity of the student's own law, which is learned.
        discriminator: Discriminator of drawn and of painted pictures.
    """

    student: Student
    teacher: GuidedVelocity
    fake: Velocity
    discriminator: Discriminator

    def trained(self) -> dict[str, nn.Module]:
        """Returns the networks that learn, by name."""

        return {
            "student": self.student.network,
            "fake": self.fake,
            "discriminator": self.discriminator,
        }


def direction(
    networks: Networks, x_0: Tensor, t: Tensor, noise: Tensor, words: Sequence[Tensor]
) -> Tensor:
    """Returns the difference of posterior means, student's minus teacher's, at noisy states.

    It is divided by the mean distance of the clean latents from the teacher's, of each picture.

    Arguments:
        networks: The networks.
        x_0: Clean latents with shape (B, C, H, W).
        t: Times with shape (B,), positive.
        noise: Noise like the latents.
        words: Embeddings of the captions, of each token and pooled.
    """

    time = t[:, None, None, None]
    x_t = _noisy(x_0, noise, t)
    wanted = x_t - time * networks.teacher(x_t, t, *words)
    found = x_t - time * networks.fake(x_t, t, *words)
    size = (x_0 - wanted).abs().mean(dim=(1, 2, 3), keepdim=True)
    return (found - wanted) / size


class Matching:
    """The steps of the student and of its critics, on random captions of a pool.

    Arguments:
        networks: The networks.
        optimizers: Optimizers by name of what is trained.
        pool: Painted pictures.
        paths: Paths of the teacher for each of them.
        captions: Embeddings of their captions, as the teacher sees them.
        batch: Pictures of a step.
        adversarial: Size of the discriminator's gradient, that of the teacher's being one.
        paired: Weight of the regression on paths.
        generator: Source of all random numbers.
    """

    def __init__(
        self,
        networks: Networks,
        optimizers: Mapping[str, torch.optim.Optimizer],
        pool: Pool,
        paths: Tensor,
        captions: Captions,
        batch: int,
        adversarial: float,
        paired: float,
        generator: Generator,
    ) -> None:
        self.networks, self.optimizers = networks, optimizers
        self.pool, self.paths, self.captions = pool, paths, captions
        self.batch, self.adversarial, self.paired = batch, adversarial, paired
        self.generator = generator
        names = ("regression", "fake", "discriminator", "direction", "fooled")
        self.losses = {name: torch.zeros((), device=generator.device) for name in names}

    def regress(self) -> None:
        """Takes a step of the student on paths alone."""

        loss = self._regression()
        descend(self.optimizers["student"], loss)
        self._note(regression=loss)

    def learn(self) -> None:
        """Takes a step of both critics, on what the student draws."""

        with torch.no_grad():
            x_0, index = self.networks.student.draw(self._some(), self.generator)
        words = self.captions(index)
        t, noise = self._normal(len(x_0), 1).flatten().sigmoid(), self._normal(*x_0.shape)
        v = self.networks.fake(_noisy(x_0, noise, t), t, *words)
        fake = (v - (noise - x_0)).square().mean()
        descend(self.optimizers["fake"], fake)
        odds = self._odds(x_0, index, words)
        discriminator = F.softplus(-odds).mean()
        descend(self.optimizers["discriminator"], discriminator)
        self._note(fake=fake, discriminator=discriminator)

    def match(self) -> None:
        """Takes a step of the student towards the teacher's law and the painted pictures."""

        x_0, index = self.networks.student.draw(self._some(), self.generator)
        words = self.captions(index)
        here = x_0.detach().requires_grad_()
        with torch.no_grad():
            t = 0.02 + 0.96 * self._uniform(len(x_0))
            way = direction(self.networks, here, t, self._normal(*x_0.shape), words)
        fooled = F.softplus(self._odds(here, index, words)).mean()
        size = way.square().mean().sqrt()
        slope = slope_of_size(fooled, here, size)
        matching = (x_0 * (way + self.adversarial * slope)).mean()
        regression = self._regression()
        descend(self.optimizers["student"], matching + self.paired * regression)
        self._note(regression=regression, direction=size, fooled=fooled)

    def _regression(self) -> Tensor:
        index = self._some()
        path = self.paths[index].float()
        return self.networks.student.regression(path, index, self.generator)

    def _odds(self, x_0: Tensor, index: Tensor, words: tuple[Tensor, Tensor]) -> Tensor:
        """Returns by how much painted pictures look more real, with the same noise on both."""

        t, noise = _NOISIEST * self._uniform(len(x_0)), self._normal(*x_0.shape)
        painted = self.pool.latents[index]
        both = torch.cat([_noisy(x, noise, t) for x in (painted, x_0)])
        twice = [torch.cat((values, values)) for values in (t, *words)]
        real, drawn = self.networks.discriminator(both, *twice).chunk(2)
        return real - drawn

    def _some(self) -> Tensor:
        size, device = (self.batch,), self.generator.device
        return torch.randint(len(self.pool), size, generator=self.generator, device=device)

    def _normal(self, *shape: int) -> Tensor:
        return torch.randn(shape, generator=self.generator, device=self.generator.device)

    def _uniform(self, count: int) -> Tensor:
        return torch.rand(count, generator=self.generator, device=self.generator.device)

    def _note(self, **losses: Tensor) -> None:
        for name, value in losses.items():
            self.losses[name].copy_(value.detach())


def _noisy(x_0: Tensor, noise: Tensor, t: Tensor) -> Tensor:
    return torch.lerp(x_0, noise, t[:, None, None, None])
