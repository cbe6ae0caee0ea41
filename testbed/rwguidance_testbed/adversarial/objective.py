r"""Steps of a one-step student and of its critic.

Squared errors make a student draw means where it cannot follow its teacher. Here a critic compares
each picture that it draws with one of the same name, both with the same noise on them,

.. math:: \mathbb{E}\,\mathrm{softplus}(D(x^\text{drawn}_t) - D(x^\text{wanted}_t)),

which the critic lowers, and the student with its pictures exchanged. Half of the pictures that are
wanted are painted. The others are of captions that the flow drew from known noise, from which the
student starts there: of learned names they are painted or the flow's, of recombined names always
the flow's. The critic also compares pictures with the same under the caption of another group, and
a penalty keeps it smooth: the mean square of its slopes, found from differences.

Two more terms hold the student: squared errors from what the flow draws, and the cross entropy of
the names that a frozen reader finds in its pictures.

References:
    | The relativistic discriminator (Jolicoeur-Martineau, 2018), arXiv:1807.00734
    | Fast High-Resolution Image Synthesis with Latent Adversarial Diffusion Distillation
      (Sauer et al., 2024), arXiv:2403.12015 (a critic of noisy latents on a teacher's features)
    | Diffusion Adversarial Post-Training for One-Step Video Generation (Lin et al., 2025),
      arXiv:2501.08316 (slopes from differences)
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Generator, Tensor

from ..training.timed import descend
from .critic import GROUP, Words
from .examples import Examples, noisy
from .reader import NOISIEST_READ

__all__ = ["Networks", "Weights", "Widening", "paired", "roughness"]

_NOISIEST = 0.9  # of the states that the critic sees: at 1 they say nothing
_WIDTH = 0.15  # of the differences, beside features of variance 1
_BARE = 0.5  # share of the groups of painted pictures whose captions are the name alone
_CLIPPED = {"student": 1.0, "critic": 5.0}  # largest norms of gradients


def paired(wanted: Tensor, drawn: Tensor) -> Tensor:
    """Returns the loss of a critic, from its logits of pairs, of the same shape."""

    return F.softplus(drawn - wanted).mean()


def roughness(
    critic: Callable[[Tensor], Tensor], features: Tensor, logits: Tensor, generator: Generator
) -> Tensor:
    """Returns the mean square of a critic's slopes by features, the sum over all of them.

    Arguments:
        critic: Function of features.
        features: Features, with shape (B, ...).
        logits: What the critic makes of them, with shape (B, ...).
        generator: Source of the differences.
    """

    step = _WIDTH * torch.randn(features.shape, generator=generator)
    return ((critic(features + step) - logits) / _WIDTH).square().mean()


@dataclass(frozen=True)
class Weights:
    """What steps weigh.

    Arguments:
        squares: Weight of squared errors.
        names: Weight of the names' cross entropy.
        smooth: Weight of the critic's penalty.
        other: Weight of the critic's loss on pictures under another caption.
        flow: Share of pairs of learned names whose picture is the flow's.
        recombined: Share of the groups of pairs that are of recombined names.
    """

    squares: float = 2.5
    names: float = 0.3
    smooth: float = 0.08
    other: float = 0.5
    flow: float = 0.5
    recombined: float = 0.8


@dataclass(frozen=True)
class Networks:
    """Functions of the networks.

    Arguments:
        draw: Draws latents from noise and embeddings of captions.
        features: Function of :class:`.critic.Features`.
        critic: Function of :class:`.critic.Critic`.
        read: Returns logits of names, with shape (B, names), from states and times.
    """

    draw: Callable[[Tensor, Words], Tensor]
    features: Callable[..., tuple[Tensor, Tensor]]
    critic: Callable[[Tensor, Tensor, Tensor], Tensor]
    read: Callable[[Tensor, Tensor], Tensor]


class Widening:
    """The steps of student and critic.

    Arguments:
        networks: Functions of the networks.
        optimizers: Those of "student" and "critic".
        examples: Pictures and pairs to learn from.
        groups: Groups of a step; the first half are of pairs.
        weights: What it weighs.
        generator: Source of all random numbers.
    """

    def __init__(
        self,
        networks: Networks,
        optimizers: Mapping[str, torch.optim.Optimizer],
        examples: Examples,
        groups: int,
        weights: Weights,
        generator: Generator,
    ) -> None:
        self.networks, self.optimizers, self.examples = networks, optimizers, examples
        self.groups, self.pairs = groups, groups // 2 * GROUP
        self.weights, self.generator = weights, generator
        shown = ("critic", "student", "squares", "names", "read")
        self.losses = {name: torch.zeros(()) for name in shown}
        """Losses of the last step, and the share of its pictures whose name was read."""

    def step(self, number: int, alone: bool = False) -> None:
        """Takes a step of the critic and, unless that is to learn alone, of the student.

        Arguments:
            number: Number of the steps before.
            alone: Whether the student stays as it is.
        """

        examples, weights = self.examples, self.weights
        index = self.places()
        start, ends = self._normal(), examples.ends[index[: self.pairs]].float()
        start[: self.pairs] = examples.noise[index[: self.pairs]].float()
        pick = lambda words: (words[0][index].float(), words[1][index].float())
        seen, given = pick(examples.seen), pick(examples.given)
        with torch.set_grad_enabled(not alone):
            drawn = self.networks.draw(start, given)
        here = drawn.detach().requires_grad_(not alone)
        t = _NOISIEST * torch.rand(self.groups, generator=self.generator)
        t, noise = t.repeat_interleave(GROUP), self._normal()
        look = lambda x, words: self.networks.features(noisy(x, noise, t), t, *words)
        found, about = look(here, seen)
        wanted = self._wanted(index, ends)
        best = self._teach_critic(look, wanted, found.detach(), about, seen, number)
        if alone:
            return
        fooled = paired(self.networks.critic(found, about, seen[1]), best)
        (slope,) = torch.autograd.grad(fooled, here)
        slope = slope + weights.names * self._slope_of_names(here, examples.names[index])
        squares = (drawn[: self.pairs] - ends).square().mean()
        total = (drawn * slope).sum() + weights.squares * squares
        descend(self.optimizers["student"], total, _CLIPPED["student"])
        self._show(student=fooled, squares=squares)

    def places(self) -> Tensor:
        """Returns places of examples, each group those of one name, the first half of pairs."""

        chosen, generator = [], self.generator
        uniform = torch.rand(self.groups, generator=generator).tolist()
        for i, share in enumerate(uniform):
            if i >= self.groups // 2:
                chosen.append(self._painted(len(self.examples.latents)))
            elif share >= self.weights.recombined:
                chosen.append(self._painted(len(self.examples.ends)))
            else:
                count = self.examples.recombined // GROUP
                name = int(torch.randint(count, (), generator=generator))
                chosen.append(GROUP * name + torch.arange(GROUP))
        return torch.cat(chosen)

    def _painted(self, stop: int) -> Tensor:
        """Returns places of painted pictures of one name, before `stop`, each once if it can be."""

        examples, generator = self.examples, self.generator
        one = int(torch.randint(examples.recombined, stop, (), generator=generator))
        same = examples.names[:stop] == examples.names[one]
        bare = same & examples.bare[:stop]
        if float(torch.rand((), generator=generator)) < _BARE and int(bare.sum()) > 1:
            same = bare
        places = same.nonzero()[:, 0]
        if len(places) < GROUP:
            return places[torch.randint(len(places), (GROUP,), generator=generator)]
        return places[torch.randperm(len(places), generator=generator)[:GROUP]]

    def _wanted(self, index: Tensor, ends: Tensor) -> Tensor:
        """Returns the pictures with which those of the student are compared."""

        wanted = self.examples.latents[index].float()
        uniform = torch.rand(self.pairs, 1, 1, 1, generator=self.generator)
        by_flow = uniform < self.weights.flow
        wanted[: self.pairs] = torch.where(by_flow, ends, wanted[: self.pairs])
        return wanted

    def _teach_critic(
        self,
        look: Callable[[Tensor, Words], tuple[Tensor, Tensor]],
        wanted: Tensor,
        drawn: Tensor,
        about: Tensor,
        seen: Words,
        number: int,
    ) -> Tensor:
        """Takes a step of the critic; returns what its logits of wanted pictures were before."""

        others = (seen[0].roll(GROUP, 0), seen[1].roll(GROUP, 0))
        with torch.no_grad():
            features, _ = look(wanted, seen)
            wrong, about_others = look(wanted, others)
        judge = lambda x: self.networks.critic(x, about, seen[1])
        best, worst = judge(features), judge(drawn)
        loss = paired(best, worst)
        mistaken = paired(best, self.networks.critic(wrong, about_others, others[1]))
        total = loss + self.weights.other * mistaken
        if number % 2:  # its weight is doubled, as it is left out every other time
            rough = lambda x, logits: roughness(judge, x, logits, self.generator)
            total = total + 2 * self.weights.smooth * (rough(features, best) + rough(drawn, worst))
        descend(self.optimizers["critic"], total, _CLIPPED["critic"])
        self._show(critic=loss)
        return best.detach()

    def _slope_of_names(self, drawn: Tensor, names: Tensor) -> Tensor:
        """Returns the slope of the names' cross entropy by drawn latents."""

        here = drawn.detach().requires_grad_()
        t = NOISIEST_READ * torch.rand(len(here), generator=self.generator)
        logits = self.networks.read(noisy(here, self._normal(), t), t)
        loss = F.cross_entropy(logits, names)
        (slope,) = torch.autograd.grad(loss, here)
        self._show(names=loss, read=(logits.argmax(1) == names).float().mean())
        return slope

    def _normal(self) -> Tensor:
        shape = (self.groups * GROUP, *self.examples.latents.shape[1:])
        return torch.randn(shape, generator=self.generator)

    def _show(self, **values: Tensor) -> None:
        for name, value in values.items():
            self.losses[name].copy_(value.detach())
