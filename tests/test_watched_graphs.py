"""Who scores, draws or encodes for numbers alone calls what it is given without graphs.

Weights that learn would keep a graph for every call, and nothing that comes back would tell.
"""

import base64
import io
import json

import pytest
import torch
from PIL import Image

from common import randn
from plain_rewards import Redness
from rewards.remote import serve
from rewards.scoring import plan, score
from rwguidance import Bank, Tilt
from rwguidance.noise_space import (
    adapted_pcn,
    draw_bank,
    noise_gradient,
    pcn,
    size_for_gain,
    soft_best_of_n,
)
from rwguidance.renewal import renew
from rwguidance.testing import check_reward
from scored_folders import Moody, paint

TORN = torch.nn.Parameter(torch.ones(()))


class Watched:
    """Counts calls, and those in which a gradient would be recorded."""

    def __init__(self):
        self.calls, self.graphs = 0, 0

    def look(self):
        self.calls += 1
        self.graphs += torch.is_grad_enabled()

    def reward(self, x, condition=None):
        self.look()
        return TORN * x.flatten(1).sum(1)

    def generate(self, noise, condition=None):
        self.look()
        return TORN * noise


class WatchedRedness(Redness):
    depends_on = ()

    def __init__(self, watched):
        super().__init__()
        self.watched = watched

    def forward(self, images, prompts):
        self.watched.look()
        return super().forward(images, prompts)


class WatchedTexts(Moody):
    depends_on = ()

    def __init__(self, watched):
        super().__init__()
        self.watched = watched

    def embed_prompts(self, prompts):
        self.watched.look()
        return TORN * torch.ones(len(prompts), 3)


def served(watched, folder):
    file = io.BytesIO()
    Image.new("RGB", (2, 2)).save(file, "PNG")
    picture = base64.b64encode(file.getvalue()).decode()
    with serve(WatchedRedness(watched), port=0) as server:
        server.score(json.dumps({"version": 1, "images": [picture], "prompts": ["a"]}).encode())


def scored(watched, folder):
    paint(folder / "images" / "1.png")
    score(plan(folder / "images"), {"red": WatchedRedness(watched)}, folder / "scores.csv")


def task_of(watched):
    return watched.generate, Tilt(watched.reward, 1.0)


def chained(chains, **options):
    def call(watched, folder):
        task = *task_of(watched), noise
        start = soft_best_of_n(*task, 2, 2, generator=torch.Generator().manual_seed(0))
        chains(*task, start, generator=torch.Generator().manual_seed(1), **options)

    return call


def noise(n, generator):
    return torch.ones(n if isinstance(n, int) else len(n), 2)


CALLS = {
    "a bank that is scored": lambda watched, _: Bank(randn(0, 4, 2)).scored(
        Tilt(watched.reward, 1.0)
    ),
    "a bank that is drawn": lambda watched, _: draw_bank(watched.generate, noise, ["a"], 3),
    "candidates": lambda watched, _: soft_best_of_n(
        *task_of(watched), noise, 2, 3, generator=torch.Generator().manual_seed(0)
    ),
    "chains": chained(pcn, steps=2, rho=0.5),
    "chains that choose rho": chained(adapted_pcn, burn_in=2, steps=2),
    "renewed states": lambda watched, _: renew(
        randn(0, 4, 2),
        Tilt(watched.reward, 1.0),
        lambda x, *_: watched.generate(x),
        generator=torch.Generator().manual_seed(0),
    ),
    "prompts": lambda watched, _: WatchedTexts(watched).encode_prompts(["a"]),
    "a check": lambda watched, _: check_reward(
        watched.reward, randn(0, 3, 2), differentiable=False
    ),
    "a server": served,
    "a table": scored,
}


@pytest.mark.parametrize("name", CALLS)
def test_no_graph_is_recorded(name, tmp_path):
    watched = Watched()
    with torch.enable_grad():
        CALLS[name](watched, tmp_path)
    assert watched.calls > 0
    assert watched.graphs == 0


def test_a_climb_records_a_graph_for_its_gradients_alone():
    watched = Watched()
    noise_gradient(*task_of(watched), noise, 3, size=0.1, steps=2)
    assert watched.calls == 2 * 3  # generator and reward: two gradients and the end
    assert watched.graphs == 2 * 2
    watched = Watched()
    size_for_gain(*task_of(watched), randn(0, 4, 2), gain=0.5, keep_norm=False)
    assert watched.calls > 2 * 2
    assert watched.graphs == 2  # of the first gradient, which all sizes share


def test_of_a_check_of_gradients_one_call_records_a_graph():
    watched = Watched()
    check_reward(watched.reward, randn(0, 3, 2), differentiable=True)
    assert watched.graphs == 1
