"""Networks that change outputs or noise, and networks that take a strength, as methods."""

import json

import pytest
import torch
from torch import nn

from pixel_law import QUIET, Law, run, spread
from rwguidance import DDIM, RectifiedSchedule
from rwguidance.generation import ChangeNetwork, Network, NoiseNetwork, OutputNetwork
from rwguidance.networks import GuidanceNetwork

pytestmark = QUIET


class Constant(nn.Module):
    """The same change of every entry of the state, at the time where it is wanted."""

    depends_on = ("time", "size")

    def __init__(self, time, size):
        super().__init__()
        self.time, self.size = time, size

    def forward(self, x, t, condition):
        assert t.dtype == torch.float64
        assert torch.equal(t, torch.full_like(t, self.time))
        assert len(condition) == len(x)
        return torch.full_like(x, self.size)


@pytest.mark.parametrize("kind", [OutputNetwork, NoiseNetwork])
def test_pictures_are_changed_by_as_much_as_the_network_says(tmp_path, kind):
    # The sampler of this law multiplies the noise by the spread of a pixel, and adds the mean.
    size, factor = (0.03, 1.0) if kind is OutputNetwork else (0.4, spread())
    network = Constant(0.0 if kind is OutputNetwork else 1.0, size)
    made = run(tmp_path, kind(network), ["ab"], images=5, batch_size=3, seed=1)
    gains = [row.gain / 100 for row in made.rows]
    assert gains == pytest.approx([factor * size] * 5, rel=1e-6)


class Both(nn.Module):
    """A change of the noise by .4, and of what it makes by .03."""

    depends_on = ()

    def forward(self, x, t, condition):
        return torch.full_like(x, 0.4 if float(t[0]) == 1 else 0.03)


def test_noise_and_outputs_are_changed_by_one_network(tmp_path):
    made = run(tmp_path, ChangeNetwork(Both()), ["ab"], images=5, batch_size=3, seed=1)
    gains = [row.gain / 100 for row in made.rows]
    assert gains == pytest.approx([0.4 * spread() + 0.03] * 5, rel=1e-6)


class Louder(nn.Module):
    """A network whose strength is an input, and the shift that it gives."""

    depends_on = ()
    strength = True
    output = "shift"

    def at(self, strength):
        return Constant(0.0, 0.01 * strength)


def test_a_network_is_asked_at_its_strength(tmp_path):
    method = OutputNetwork(Louder())
    with pytest.raises(ValueError, match=r"output-network: give strength .* this one takes it"):
        run(tmp_path / "without", method, ["ab"])
    gains = {}
    for nats in (1.0, 3.0):
        strong = method.at(nats)
        assert strong.settings()["strength"] == nats
        made = run(tmp_path / str(nats), strong, ["ab"], images=2)
        gains[nats] = made.rows[0].gain
        settings = json.loads((tmp_path / str(nats) / "settings.json").read_text())
        assert settings["method"]["strength"] == nats
    assert gains[3.0] == pytest.approx(3 * gains[1.0], rel=1e-6)
    with pytest.raises(ValueError, match="this one does not"):
        run(tmp_path / "no", NoiseNetwork(Constant(1.0, 0.1), strength=1.0), ["ab"])
    assert NoiseNetwork(Constant(1.0, 0.1)).at(1.0) is None


def test_a_guidance_network_has_strengths():
    network = GuidanceNetwork(3, RectifiedSchedule(), strength=True, widths=(8,), depth=1)
    assert Network(network).at(2.0).strength == 2.0
    assert Network(network).gives_log_h is False
    one = GuidanceNetwork(3, RectifiedSchedule(), output="log_h", widths=(8,), depth=1)
    assert Network(one).at(2.0) is None
    assert Network(one).gives_log_h is True
    for kind in (Network, OutputNetwork, NoiseNetwork, ChangeNetwork):
        with pytest.raises(ValueError, match="strength must be positive"):
            kind(network, strength=0.0)
        with pytest.raises(TypeError, match=r"an nn\.Module"):
            kind("network")


def test_noise_networks_want_a_sampler_without_randomness(tmp_path):
    class Noisy(Law):
        depends_on = ("schedule", "std")
        sampler = DDIM(eta=1.0)

    with pytest.raises(ValueError, match=r"noise-network: .*random"):
        run(tmp_path, NoiseNetwork(Constant(1.0, 0.1)), ["ab"], backbone=Noisy())


def test_a_strength_is_given_by_its_name():
    network = nn.Identity()
    given = Network(network, True)
    assert (given.log_h, given.strength) == (True, None)
    for kind in (ChangeNetwork, NoiseNetwork, OutputNetwork):
        assert kind(network, strength=2.0).strength == 2.0
        with pytest.raises(TypeError, match="positional argument"):
            kind(network, 2.0)
