"""Methods that move the noise of a picture, on models whose law is in closed form."""

import math

import pytest
import torch
from torch import nn

from pixel_law import QUIET, Brightness, Law, run, spread
from rwguidance import DDIM
from rwguidance.evaluation.meter import Counted, Meter
from rwguidance.generation import NoiseGradient
from rwguidance.generation.base import Method
from rwguidance.generation.work import Work
from rwguidance.support.randomness import generator_for
from square_generator import Squares

pytestmark = QUIET

# r = 100 mean(x) of three pixels: a step of size 1 moves it by its variance over beta.
BETA = 10.0
FLOW = (100 * spread()) ** 2 / 3 / BETA
SQUARES = (100 * 0.05) ** 2 / 3 / BETA


@pytest.mark.parametrize(("backbone", "gain"), [(Law, FLOW), (Squares, SQUARES)])
@pytest.mark.parametrize("size", [1.0, 0.5])
def test_the_noise_moves_by_the_gradient(tmp_path, backbone, gain, size):
    method = NoiseGradient(beta=BETA, size=size)
    made = run(tmp_path, method, ["ab", "abcd"], backbone=backbone(), images=3)
    assert [row.gain for row in made.rows] == pytest.approx([size * gain] * 6, rel=1e-6)
    assert made.rows[0].facts["size"] == size


@pytest.mark.parametrize(("backbone", "gain"), [(Law, FLOW), (Squares, SQUARES)])
@pytest.mark.parametrize("moves", [1, 2])
def test_the_size_is_that_of_the_tilted_laws_gain(tmp_path, backbone, gain, moves):
    method = NoiseGradient(beta=BETA, bank=4000, moves=moves)
    made = run(tmp_path, method, ["abcd"], backbone=backbone(), images=2, batch_size=4000)
    tilted = (100 * 0.05) ** 2 / 3 / BETA if backbone is Squares else FLOW
    assert made.rows[0].gain == pytest.approx(tilted, rel=0.12)  # the error of the bank
    assert made.rows[0].facts["size"] * moves == pytest.approx(1, rel=0.12)


def test_a_strength_in_nats_is_kept(tmp_path):
    nats, s = 0.5, 100 * 0.05 / math.sqrt(3)
    made = run(tmp_path, NoiseGradient(kl=nats, bank=2000), ["ab"], backbone=Squares(), images=1)
    assert made.rows[0].gain == pytest.approx(math.sqrt(2 * nats) * s, rel=0.15)
    assert NoiseGradient(beta=1.0, moves=2).at(0.5) == NoiseGradient(kl=0.5, moves=2)
    assert NoiseGradient.from_options() == NoiseGradient(kl=1.0)


@pytest.mark.parametrize("size", [0.5, None])
@pytest.mark.parametrize("through", [None, 1, 2])
def test_the_work_is_no_more_than_was_said(tmp_path, size, through):
    law, reward = Law(), Brightness()
    meter = Meter(law, Counted(reward), torch.device("cpu"))
    reward.register_forward_hook(lambda *_: None)
    method = NoiseGradient(beta=BETA, bank=6, size=size, pilots=4, moves=2, through=through)
    with meter.measured():
        run(tmp_path, method, ["ab"], backbone=law, reward=reward, images=4, steps=3, batch_size=4)
    said = Work.of_samples(4, 3, 4) + method.work(4, 3, 4)
    states = meter.network / 4  # batches are full, but for the last of the bank
    if size is not None:
        assert states == said.calls
        assert meter.decoder == said.decoded + 1  # the probe of the reward
    else:
        assert 0.2 * said.calls < states <= said.calls
        assert meter.decoder <= said.decoded + 1


def test_a_backward_pass_counts_as_two_calls():
    class Double(nn.Module):
        depends_on = ()

        def forward(self, images, prompts):
            return images.double().mean((1, 2, 3))

    squares, reward = Squares(), Counted(Double())
    meter = Meter(squares, reward, torch.device("cpu"))
    with meter.measured():
        z = squares.draw_noise(5, generator_for(0)).requires_grad_()
        reward(squares.decode(squares(z, ["a"] * 5)), None).sum().backward()
        with torch.no_grad():
            squares(z, ["a"] * 5)
    assert (meter.network, meter.decoder, meter.scored) == (20, 15, 15)


class Random(Law):
    depends_on = Law.depends_on

    @property
    def sampler(self):
        return DDIM(eta=1.0)


class BlackBox(nn.Module):
    depends_on = ()
    spec = type("Spec", (), {"differentiable": False})

    def forward(self, images, prompts):
        raise AssertionError("not before the check")


@pytest.mark.parametrize(
    ("change", "match"),
    [
        ({"backbone": Random()}, r"noise-gradient: .* must be deterministic"),
        ({"reward": BlackBox()}, r"noise-gradient: .* BlackBox has no gradient"),
        (
            {"reward": lambda images, prompts: images.detach().mean((1, 2, 3))},
            "noise-gradient needs a reward whose value carries a gradient",
        ),
    ],
)
def test_what_cannot_work_is_refused_before_work(tmp_path, change, match):
    law = change.get("backbone", Law())
    with pytest.raises(ValueError, match=match):
        run(tmp_path, NoiseGradient(kl=1.0), **{"backbone": law, **change})
    assert law.calls == 0
    assert not any(tmp_path.iterdir())


def test_settings_out_of_range_are_refused():
    for make, match in [
        (lambda: NoiseGradient(), "give beta or kl"),
        (lambda: NoiseGradient(kl=9.0), "kl must be less than log"),
        (lambda: NoiseGradient(kl=1.0, size=0.0), "size must be positive"),
        (lambda: NoiseGradient(kl=1.0, pilots=65), "pilots must"),
        (lambda: NoiseGradient(kl=1.0, moves=0), "moves must be at least 1"),
    ]:
        with pytest.raises(ValueError, match=match):
            make()
    assert isinstance(NoiseGradient(kl=1.0), Method)
