"""Where no gradient is asked for, model, decoder and reward are called without graphs.

Nothing that is made would tell: graphs cost memory alone, of weights that learn even where nothing
else has a gradient.
"""

import pytest
import torch

from pixel_law import QUIET, Brightness, Law, run
from rwguidance.generation import (
    SMC,
    BestOfN,
    ChangeNetwork,
    Importance,
    NoiseChain,
    NoiseGradient,
    NoiseNetwork,
    OutputNetwork,
    PlugInMean,
    Pool,
    Posterior,
    Resample,
)
from square_generator import Squares

pytestmark = QUIET


class Watched(Law):
    """The law, which counts calls of network and decoder that keep a graph."""

    depends_on = ("schedule", "std")

    def __init__(self):
        super().__init__()
        self.graphs = {"network": 0, "decoder": 0, "condition": 0}

    def condition(self, prompts):
        self.graphs["condition"] += torch.is_grad_enabled()
        return super().condition(prompts)

    def forward(self, x_t, t, condition=None):
        self.graphs["network"] += torch.is_grad_enabled()
        return super().forward(x_t, t, condition)

    def decode(self, latents):
        self.graphs["decoder"] += torch.is_grad_enabled()
        return super().decode(latents)


class WatchedBrightness(Brightness):
    depends_on = ("factor",)

    def __init__(self):
        super().__init__()
        self.graphs = 0

    def forward(self, images, prompts):
        self.graphs += torch.is_grad_enabled()
        return super().forward(images, prompts)


def graphs(folder, method):
    """Calls that keep a graph, by what is called."""

    backbone, reward = Watched(), WatchedBrightness()
    with torch.enable_grad():
        run(folder, method, ["ab"], backbone=backbone, reward=reward, images=2, steps=3)
    return {**backbone.graphs, "reward": reward.graphs}


BLACK_BOX = {
    "best of n": BestOfN(2),
    "soft best of n": BestOfN(2, kl=1.0, draws=8),
    "importance": Importance(bank=8, kl=1.0),
    "leave one out": Importance(bank=8, kl=1.0, leave_one_out=True),
    "resample": Resample(bank=8, kl=1.0),
    "pool": Pool(bank=8, kl=1.0),
    "renewed": Resample(bank=8, kl=1.0, renew=1),
    "smc": SMC(particles=8, bank=8, kl=1.0),
    "posterior": Posterior(bank=8, kl=1.0, draws=2),
    "pcn": NoiseChain(bank=8, kl=1.0, burn_in=2, moves=1),
}


@pytest.mark.parametrize("method", [pytest.param(one, id=name) for name, one in BLACK_BOX.items()])
def test_black_box_methods_keep_no_graph(tmp_path, method):
    assert not any(graphs(tmp_path, method).values())


@pytest.mark.parametrize("method", [NoiseGradient(bank=8, kl=1.0, moves=1), PlugInMean(beta=10.0)])
def test_methods_with_gradients_keep_those_of_their_estimates_alone(tmp_path, method):
    found = graphs(tmp_path, method)
    assert 0 < found["reward"] <= found["network"] + found["decoder"]
    assert found["condition"] == 0


class WatchedSquares(Squares):
    """Squares, which count calls that keep a graph."""

    depends_on = ()

    def __init__(self):
        super().__init__()
        self.graphs = 0

    def generate(self, noise, condition):
        self.graphs += torch.is_grad_enabled()
        return super().generate(noise, condition)


def test_generators_keep_no_graph(tmp_path):
    backbone = WatchedSquares()
    with torch.enable_grad():
        run(tmp_path, BestOfN(2), ["ab"], backbone=backbone, images=2)
    assert backbone.calls > 0
    assert backbone.graphs == 0


class WatchedNetwork(torch.nn.Module):
    """A network that changes nothing."""

    depends_on = ()

    def __init__(self):
        super().__init__()
        self.seen = []

    def forward(self, x, t, condition):
        self.seen.append(torch.is_grad_enabled())
        return 0 * x


@pytest.mark.parametrize("kind", [OutputNetwork, NoiseNetwork, ChangeNetwork])
def test_trained_networks_keep_no_graph(tmp_path, kind):
    network = WatchedNetwork()
    assert not any(graphs(tmp_path, kind(network)).values())
    assert set(network.seen) == {False}
