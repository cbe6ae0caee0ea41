"""Methods that move the noise of a picture, on models whose law is in closed form."""

import math
import warnings

import pytest
import torch
from torch import nn

from common import assert_within
from pixel_law import QUIET, Brightness, Law, run, spread
from rwguidance import DDIM
from rwguidance.evaluation.meter import Counted, Meter
from rwguidance.generation import NoiseChain, NoiseGradient
from rwguidance.generation.base import Method
from rwguidance.generation.work import Work, work_on_draws
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


class Wave(Brightness):
    """The cosine of a phase that is nearly uniform: one move has a mean of 0.58 at most.

    It is the largest value of the Bessel function J_1, the mean of cos(u - c sin(u)) over phases u.
    The tilt of strength 1 / beta has I_1 / I_0 of it: 0.70 for 2, and 0.98 for 30.
    """

    depends_on = Brightness.depends_on

    def forward(self, images, prompts):
        return torch.cos(super().forward(images, prompts) / 0.4)


def test_where_one_move_does_not_reach_the_gain_there_are_two(tmp_path):
    options = {"prompts": ["ab"], "backbone": Squares(), "reward": Wave(), "batch_size": 500}
    method = {"beta": 0.5, "bank": 500, "pilots": 400}
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        made = run(tmp_path / "a", NoiseGradient(**method), images=400, **options)
    gain = sum(row.gain for row in made.rows) / 400
    assert made.rows[0].facts["moves"] == 2
    assert made.rows[0].facts["gain share"] == 1
    assert gain == pytest.approx(0.70, abs=0.15)  # five errors of 400 cosines
    weak = run(tmp_path / "b", NoiseGradient(**{**method, "beta": 2.0}), images=1, **options)
    assert weak.rows[0].facts["moves"] == 1


def test_a_gain_out_of_reach_is_neared_and_said(tmp_path):
    options = {"prompts": ["ab"], "backbone": Squares(), "reward": Wave(), "batch_size": 500}
    method = {"bank": 500, "pilots": 400}
    text = r"with --moves 2 .* of 'ab' rises by .* where .* are due.*; --moves 3 or a smaller"
    with pytest.warns(RuntimeWarning, match=text):
        made = run(tmp_path / "a", NoiseGradient(beta=1 / 30, **method), images=400, **options)
    facts = made.rows[0].facts
    assert 0.58 / 0.98 < facts["gain share"] < 1
    gain = sum(row.gain for row in made.rows) / 400
    assert gain == pytest.approx(facts["gain share"] * 0.98, abs=0.15)
    with pytest.warns(RuntimeWarning, match=r"with --moves 1 .*; --moves 2"):
        one = run(tmp_path / "b", NoiseGradient(beta=0.5, moves=1, **method), images=1, **options)
    assert one.rows[0].facts["gain share"] == pytest.approx(0.58 / 0.70, abs=0.1)


class Backwards(Brightness):
    """A reward whose gradient points down."""

    depends_on = Brightness.depends_on

    def forward(self, images, prompts):
        value = super().forward(images, prompts)
        return 2 * value.detach() - value


def test_moves_that_gain_nothing_are_refused(tmp_path):
    method = NoiseGradient(beta=BETA, bank=8)
    made = run(tmp_path, method, ["ab"], backbone=Squares(), reward=Backwards())
    assert list(made.failed) == ["ab"]
    assert "with --moves 2 log w of 'ab' rises by -" in made.failed["ab"]


def test_a_strength_in_nats_is_kept(tmp_path):
    nats, s = 0.5, 100 * 0.05 / math.sqrt(3)
    made = run(tmp_path, NoiseGradient(kl=nats, bank=2000), ["ab"], backbone=Squares(), images=1)
    assert made.rows[0].gain == pytest.approx(math.sqrt(2 * nats) * s, rel=0.15)
    assert NoiseGradient(beta=1.0, moves=2).at(0.5) == NoiseGradient(kl=0.5, moves=2)
    assert NoiseGradient.from_options() == NoiseGradient(kl=1.0)


# Through one call no size is looked for: what the law predicts at first does not know the noise.
@pytest.mark.parametrize(
    ("size", "through"), [(0.5, None), (0.5, 1), (0.5, 2), (None, None), (None, 2)]
)
def test_the_work_is_what_was_said(tmp_path, size, through):
    law, reward = Law(), Brightness()
    meter = Meter(law, Counted(reward), torch.device("cpu"))
    reward.register_forward_hook(lambda *_: None)
    method = NoiseGradient(beta=BETA, bank=6, size=size, pilots=4, moves=2, through=through)
    with meter.measured():
        run(tmp_path, method, ["ab"], backbone=law, reward=reward, images=4, steps=3, batch_size=4)
    draws = work_on_draws(method.streams(4), 3, 4)
    said = Work.of_samples(4, 3, 4) + draws + method.work(4, 3, 4)
    states = meter.network / 4  # batches are full, but for the last of the bank
    if size is not None:
        assert states == said.calls
        assert meter.decoder == said.decoded + 1  # the probe of the reward
    else:
        assert abs(said.calls / states - 1) < 0.2, "one try more or less of seven"
        assert abs((said.decoded + 1) / meter.decoder - 1) < 0.2


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
        later = squares.decode(squares(z, ["a"] * 5)).sum()
    counted = (25, 20, 15)
    assert (meter.network, meter.decoder, meter.scored) == counted
    later.backward()  # outside, it is not this meter's
    assert (meter.network, meter.decoder, meter.scored) == counted


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
        (lambda: NoiseGradient(kl=1.0, pilots=0), "pilots must"),
        (lambda: NoiseChain(), "give beta or kl"),
        (lambda: NoiseChain(kl=1.0, acceptance=1.0), "acceptance must"),
        (lambda: NoiseGradient(kl=1.0, moves=0), "moves must be at least 1"),
    ]:
        with pytest.raises(ValueError, match=match):
            make()
    assert isinstance(NoiseGradient(kl=1.0), Method)


class Detached(Brightness):
    depends_on = Brightness.depends_on

    def forward(self, images, prompts):
        return super().forward(images.detach(), prompts)


@pytest.mark.parametrize("backbone", [Law, Squares])
def test_chains_sample_the_tilted_law(tmp_path, backbone):
    """From a bank of four draws, which alone cannot move by one nat."""

    n, s = 200, 100 * (0.05 if backbone is Squares else spread()) / math.sqrt(3)
    method = NoiseChain(beta=s / math.sqrt(2), bank=4, burn_in=12, moves=12)
    reward = Detached()
    made = run(
        tmp_path, method, ["abcd"], backbone=backbone(), reward=reward, images=n, batch_size=n
    )
    rewards = torch.tensor([row.rewards[1] for row in made.rows], dtype=torch.float64)
    assert_within(rewards.mean(), 54 + math.sqrt(2) * s, s / n**0.5 + 0.03 * s / 5)
    assert abs(float(rewards.std()) / s - 1) < 5 / (2 * n) ** 0.5
    assert 0 < made.rows[0].facts["rho"] < 1


def test_chains_start_at_draws_of_large_weight(tmp_path):
    """At a vanishing temperature all start at the best draw, and no move leads down from there."""

    method = NoiseChain(beta=1e-3, bank=50, burn_in=2, moves=1)
    made = run(tmp_path, method, ["abcd"], backbone=Squares(), images=8, batch_size=8)
    assert len({row.facts["chosen"] for row in made.rows}) == 1
    assert all(row.rewards[1] > 54 + 100 * 0.05 / math.sqrt(3) for row in made.rows)


def test_chains_do_the_work_that_was_said_and_refuse_randomness(tmp_path):
    law, reward, method = Law(), Brightness(), NoiseChain(beta=BETA, bank=6, burn_in=3, moves=2)
    run(
        tmp_path / "a", method, ["ab"], backbone=law, reward=reward, images=5, steps=3, batch_size=2
    )
    draws = work_on_draws(method.streams(5), 3, 2)
    work = Work.of_samples(5, 3, 2) + draws + method.work(5, 3, 2)
    assert (law.calls, reward._seen) == (work.calls, work.scored)
    assert method.at(1.5) == NoiseChain(kl=1.5, bank=6, burn_in=3, moves=2)
    with pytest.raises(ValueError, match=r"pcn: .* must be deterministic"):
        run(tmp_path / "b", method, ["ab"], backbone=Random())


def test_a_picture_of_a_chain_depends_on_its_number_only(tmp_path):
    method = NoiseChain(beta=BETA, bank=6, burn_in=3, moves=2)
    runs = [
        run(tmp_path / str(b), method, ["ab"], backbone=Squares(), images=4, batch_size=b)
        for b in (1, 4)
    ]
    one, other = ([row.rewards[1] for row in made.rows] for made in runs)
    assert one == pytest.approx(other)
