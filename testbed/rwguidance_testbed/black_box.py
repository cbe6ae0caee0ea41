r"""A network for the noise of the test bed's model of one step, from scores alone.

.. code-block:: text

    python -m rwguidance_testbed.black_box --out FOLDER

takes a reward as a black box. Draws of the model are scored, a small network learns to tell the
score of latents and prompt, and its gradient takes the place of that of the reward: the guidance
network is regressed on it by :class:`rwguidance.training.GradientObjective`, which asks the reward
for nothing.

Draws say how the reward changes from one picture that the model makes to another, and nothing of
what it would not make. So the gradient in the noise is good and that in the latents is not: in a
trial with 2,400 pictures their cosines with those of the reward itself were .60 and .08 on prompts
to develop on. Guide with the method ``noise-network``, which leaves the outputs as they are.
"""

import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from rwguidance import Tilt
from rwguidance.networks import GuidanceNetwork
from rwguidance.noise_space import flow_map
from rwguidance.support.conditions import take
from rwguidance.support.randomness import generator_for, seeded
from rwguidance.training import GradientObjective, Recipe
from rwguidance.training import train as minimize

from . import commands
from .prompt_sets import training_prompts
from .training.cards import write_card

__all__ = ["LatentScore", "draw_scored", "learn_score", "train"]

_BLUR = 0.3  # noise on the latents that a score learns from, in their unit: it smooths gradients


class LatentScore(nn.Module):
    """The score of latents of 8 x 8 for a prompt, from the products of two embeddings.

    Arguments:
        channels: Number of channels of the latents.
        text: Size of the pooled embeddings and of token states, together.
        width: Number of channels of the convolutions.
        size: Size of the embeddings.
        seed: Seed of the initial weights.
    """

    depends_on = ("channels", "text", "width", "size")

    def __init__(
        self, channels: int, text: int, width: int = 96, size: int = 64, seed: int = 0
    ) -> None:
        super().__init__()
        self.channels, self.text, self.width, self.size = channels, text, width, size
        conv = lambda a, b, stride=1: nn.Conv2d(a, b, 3, stride, padding=1)
        with seeded(seed):
            self.fine = nn.ModuleList([conv(channels, width), conv(width, width)])
            self.coarse = nn.ModuleList([conv(width, 2 * width, 2), conv(2 * width, 2 * width)])
            self.picture = nn.Sequential(
                nn.Linear(2 * width * 16, 256), nn.SiLU(), nn.Linear(256, size)
            )
            self.prompt = nn.Sequential(nn.Linear(text, 256), nn.SiLU(), nn.Linear(256, size + 1))

    def forward(self, x_0: Tensor, condition: Any) -> Tensor:
        """Returns scores, with shape (B,).

        Arguments:
            x_0: Latents, with shape (B, channels, 8, 8).
            condition: Their prompts, as what ``backbone.condition(prompts)`` returns.
        """

        for first, second in (self.fine, self.coarse):
            x_0 = F.silu(first(x_0))
            x_0 = x_0 + F.silu(second(x_0))
        told = condition.embeddings
        text = self.prompt(torch.cat((told["pooled"], told["text"].mean(1)), 1))
        products = (self.picture(x_0.flatten(1)) * text[:, :-1]).sum(1)
        return products / math.sqrt(self.size) + text[:, -1]


@torch.no_grad()
def draw_scored(
    backbone: Any, reward: nn.Module, prompts: Sequence[str], draws: int, seed: int, size: int = 32
) -> tuple[Tensor, Tensor]:
    """Returns latents that a model makes of prompts, and their rewards.

    Arguments:
        backbone: The model.
        reward: The reward.
        prompts: The prompts, P of them.
        draws: Number of draws of each, N.
        seed: Seed of the noise.
        size: Number of pictures that are made at once.

    Returns:
        Latents, with shape (N * P, C, H, W), and rewards, with shape (N * P,): all prompts in
        order, N times.
    """

    generate = flow_map(backbone, backbone.sampler, backbone.times(1))
    latents, values = [], []
    for number in range(draws):
        for start in range(0, len(prompts), size):
            some = list(prompts[start : start + size])
            noise = backbone.draw_noise(len(some), generator_for(seed, "black box", number, start))
            latents.append(generate(noise, backbone.condition(some)))
            values.append(reward(backbone.decode(latents[-1]), some))
    return torch.cat(latents), torch.cat(values)


def learn_score(
    x_0: Tensor, rewards: Tensor, condition: Any, steps: int, seed: int, batch: int = 128
) -> LatentScore:
    """Returns a network that tells rewards, less their mean and over their standard deviation.

    Arguments:
        x_0: Latents, as :func:`draw_scored` returns them.
        rewards: Their rewards.
        condition: The prompts' condition.
        steps: Number of steps.
        seed: Seed of weights, batches and noise.
        batch: Number of latents of a step.
    """

    told = condition.embeddings
    score = LatentScore(x_0.shape[1], told["pooled"].shape[-1] + told["text"].shape[-1], seed=seed)
    optimizer = torch.optim.AdamW(score.parameters(), lr=1e-3, weight_decay=0.05)
    generator = generator_for(seed, "learn score")
    values = ((rewards - rewards.mean()) / rewards.std()).float()
    for step in range(steps):
        rate = 1e-3 * min(1, (step + 1) / 20) * (1 + math.cos(math.pi * step / steps)) / 2
        optimizer.param_groups[0]["lr"] = rate
        rows = torch.randint(len(x_0), (batch,), generator=generator)
        noisy = x_0[rows] + _BLUR * torch.randn(x_0[rows].shape, generator=generator)
        told_of = take(condition, (rows % len(condition)).tolist())
        loss = (score(noisy, told_of) - values[rows]).square().mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    return score.eval().requires_grad_(False)


def train(
    backbone: str = "emoji-turbo",
    reward: str = "emoji-pick",
    out: Path = Path("out/testbed/emoji-turbo-noise"),
    prompts: int = 1600,
    draws: int = 3,
    pictures: int = 2400,
    score_steps: int = 600,
    steps: int = 500,
    beta: float = 0.383,
    scale: float = 1.0,
    seed: int = 0,
    threads: int = 1,
) -> None:
    """Trains the network and writes it to `out`, with a card.

    Arguments:
        backbone: Name of the model.
        reward: Name of the reward, of which nothing but its values is used.
        out: Folder to write to.
        prompts: Number of prompts, of those to train on.
        draws: Number of draws of each that are scored.
        pictures: Number of pictures that gradients are taken of; the reward scores none of them.
        score_steps: Number of steps in which the score is learned.
        steps: Number of steps in which the network is regressed.
        beta: Temperature of the tilt, in units of the reward; the default is one nat.
        scale: Factor of what the network gives, chosen on prompts for that.
        seed: Seed of all random numbers.
        threads: Threads of PyTorch.
    """

    import backbones
    import rewards

    torch.set_num_threads(threads)
    model: Any = backbones.load(backbone).requires_grad_(False).eval()
    model.to(memory_format=torch.channels_last)
    judge = rewards.load(reward).requires_grad_(False).eval()
    texts = training_prompts(prompts)
    x_0, values = draw_scored(model, judge, texts, draws, seed)
    print(f"{len(x_0):,} pictures scored", flush=True)
    condition = model.condition(texts)
    score = learn_score(x_0, values, condition, score_steps, seed)
    print("score learned", flush=True)
    objective = GradientObjective(
        flow_map(model, model.sampler, model.times(1), gradient=True),
        Tilt(score, beta / float(values.std())),
        model.draw_noise,
        condition,
        batch_size=48,
        variance=float(x_0.var(0).mean()),
        pictures=pictures,
        seed=seed,
    )
    told = condition.embeddings
    network = GuidanceNetwork.preset(
        "tiny",
        channels=x_0.shape[1],
        schedule=model.schedule,
        output="changes",
        text=told["pooled"].shape[-1],
        tokens=told["text"].shape[-1],
        seed=seed,
    )
    recipe = Recipe(warm_up=20, average=0.97)
    losses = minimize(network, objective, steps, 1e-3, seed, max_norm=1.0, recipe=recipe)
    figures = {
        "parameters": sum(p.numel() for p in network.parameters()),
        "pictures_scored": len(x_0),
        "beta": beta,
        "loss": round(float(losses[-50:].mean()), 4),
    }
    network.half().calibrated({1.0: scale}).save_pretrained(out, figures)
    options = f"--prompts {prompts} --draws {draws} --pictures {pictures} --scale {scale:g}"
    _write_card(out, figures, f"{options} --score-steps {score_steps} --steps {steps}")


def _write_card(folder: Path, figures: dict[str, Any], options: str) -> None:
    write_card(
        folder,
        "A network for the noise of `emoji-turbo`, towards `emoji-pick` by one nat, for which the "
        "reward was a black box. It sees the noise and the prompt, and gives what to add to the "
        "noise. See `rwguidance_testbed.black_box`.\n\n"
        "    rwguidance generate --backbone emoji-turbo --reward emoji-pick \\\n"
        '        --method noise-network --network emoji-turbo-noise --prompt "red apple"',
        "Draws of `emoji-turbo` for prompts of the names that it learned, with backgrounds and "
        "styles, worded as no prompt of the sets to develop on or to report is, and what "
        "`emoji-pick` says of them.",
        "Regression on the gradient, in the noise, of a score that was learned from these draws.",
        f"black_box {options}",
        "What it gains is in docs/training.md.",
        figures,
    )


if __name__ == "__main__":
    commands.run(train)
