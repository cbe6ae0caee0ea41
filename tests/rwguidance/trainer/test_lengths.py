"""Lengths of networks for changes: the gain that was asked for is that of pictures made with it."""

import pytest
import torch

from path_model import SHAPE, PathModel
from rwguidance import Bank, Tilt
from rwguidance.networks import GuidanceNetwork
from rwguidance.noise_space import change_map, output_map
from rwguidance.support.randomness import generator_for, normal
from rwguidance.trainer.held_out import HeldOut
from rwguidance.trainer.lengths import find_lengths
from rwguidance.trainer.problem import Outputs

PROMPTS = ("a", "be")


def total(x, condition):
    """What a pixel has more counts more where there is more already, so that no gain is linear."""

    return (x + 0.2 * x.square()).flatten(1).sum(1)


CHANGES = [("change", output_map), ("changes", change_map)]


def found_for(output, tilt, images=8):
    backbone = PathModel()
    network = GuidanceNetwork.preset(
        "tiny", channels=SHAPE[0], schedule=backbone.schedule, output=output, seed=1
    )
    with torch.no_grad():
        network.last.bias.fill_(0.1)
    states = normal((64, *SHAPE), generator_for(0, "bank"))
    bank = Bank(states, [prompt for prompt in PROMPTS for _ in range(32)]).scored(tilt)
    held_out = HeldOut(bank, {1.0: tilt}, backbone.times(2), backbone.condition, seed=3)
    lengths = find_lengths(network, backbone, held_out, images, batch_size=5)
    return network, lengths.found[1.0]


@pytest.mark.parametrize(("output", "made"), CHANGES)
def test_pictures_gain_what_the_length_was_chosen_for(output, made):
    backbone, tilt = PathModel(), Tilt(total, beta=20.0)
    network, found = found_for(output, tilt)
    noise = torch.cat([backbone.draw_noise(1, generator_for(3, "length", i)) for i in range(16)])
    condition = backbone.condition([prompt for prompt in PROMPTS for _ in range(8)])
    outputs = Outputs(backbone, backbone.times(2))
    with torch.no_grad():
        changed = made(outputs, network.calibrated({1.0: found.scale}))
        x, base = changed(noise, condition), outputs(noise, condition)
        gain = (tilt(x, condition) - tilt(base, condition)).double().mean()
    assert float(gain) == pytest.approx(found.gain, rel=1e-4)
    assert found.gain == pytest.approx(found.target, rel=0.1)


@pytest.mark.parametrize("output", [output for output, _ in CHANGES])
def test_a_constant_of_the_reward_changes_no_length(output):
    moved = lambda offset: lambda x, condition: total(x.double(), condition) + offset
    near, far = (found_for(output, Tilt(moved(c), beta=20.0), 1)[1] for c in (0.0, 2.0**26))
    assert far.scale == pytest.approx(near.scale, rel=1e-5)
    assert far.gain == pytest.approx(near.gain, rel=1e-5)
