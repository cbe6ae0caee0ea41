"""Twisted particles against Gaussian chains, whose constants, laws and best twists are known.

The denoiser of a Gaussian law is affine, so the steps of a sampler are a linear Gaussian chain with
a law at its end that differs from the law of the model, and a linear log-weight has a closed Z on
it. Prompts are independent, so that many of them are the replicates of one call.
"""

import itertools
import math

import pytest
import torch

from common import assert_rounds_to, assert_within, randn
from rwguidance import (
    DDIM,
    ConditionalExpectation,
    CosineSchedule,
    DenoiserModel,
    Estimate,
    Heun,
    LearnedShift,
    LookAhead,
    PlugIn,
    RectifiedSchedule,
    Tilt,
    TwistedSMC,
    VPSchedule,
    sample,
    toy,
)
from rwguidance.support.randomness import generator_for
from rwguidance.weights import residual, systematic

F64 = torch.float64
LAW = toy.Gaussian([0.5, -0.3], [[1.0, 0.4], [0.4, 0.6]])
SLOPE = torch.tensor([0.6, -0.4], dtype=F64)
TILT = Tilt(toy.Linear(SLOPE), 1.0)
TIMES = [1.0, 0.8, 0.55, 0.3, 0.1, 0.0]
STEPS = DDIM(eta=1.0)


def generator_of(seed):
    return torch.Generator().manual_seed(seed)


class Chain:
    """The steps x_s = A x_t + c + std z between the times of a run."""

    def __init__(self, model, sampler, times):
        self.model, self.steps = model, []
        self.sigma = float(model.schedule.sigma(torch.tensor(times[0], dtype=F64)))
        for t, s in itertools.pairwise(times):
            x = torch.cat((torch.zeros(1, 2, dtype=F64), torch.eye(2, dtype=F64)))
            prediction, scales = model(x, t), model.schedule.at(s, x)
            law = sampler.transition(prediction, scales)
            moved = sampler.transition(prediction.shifted(torch.ones_like(x)), scales).mean
            gain = float((moved - law.mean)[0, 0])  # of the mean in the shift
            matrix = (law.mean[1:] - law.mean[0]).T
            self.steps.append((t, matrix, law.mean[0], float(law.std.max()), gain))

    def end(self):
        """Mean and covariance of the last state."""

        mean, cov = torch.zeros(2, dtype=F64), self.sigma**2 * torch.eye(2, dtype=F64)
        for _, matrix, offset, std, _ in self.steps:
            mean = matrix @ mean + offset
            cov = matrix @ cov @ matrix.T + std**2 * torch.eye(2, dtype=F64)
        return mean, cov

    def log_z(self, slope):
        mean, cov = self.end()
        return float(slope @ mean + slope @ cov @ slope / 2)

    def twist(self, slope):
        return ChainTwist(self, slope)


class ChainTwist(ConditionalExpectation):
    """log E[exp(slope . x_0) | x_t] of a chain, and the shift that makes the best proposal."""

    depends_on = ()

    def __init__(self, chain, slope):
        super().__init__()
        self.table, constant = {}, 0.0
        for t, matrix, offset, std, gain in reversed(chain.steps):
            constant = constant + float(slope @ offset) + std**2 * float(slope @ slope) / 2
            shift = std**2 * slope / gain
            slope = matrix.T @ slope
            self.table[t] = slope, constant, shift

    def forward(self, model, x_t, t, condition=None):
        slope, constant, shift = self.table[float(t)]
        return Estimate(model(x_t, t, condition), x_t @ slope + constant, shift.expand_as(x_t))


def model_of(schedule):
    return LAW.model(schedule)


def noise(model, n, seed, times=TIMES):
    return float(model.schedule.sigma(torch.tensor(times[0], dtype=F64))) * randn(seed, n, 2)


def run(smc, prompts=1, n=8, schedule=None, seed=0, **options):
    model = model_of(schedule or RectifiedSchedule())
    given = {"generator": generator_of(seed + 100), "particles": n, **options}
    return smc.sample(model, STEPS, noise(model, prompts * n, seed), TIMES, **given)


@pytest.mark.parametrize("schedule", [RectifiedSchedule(), CosineSchedule()], ids=repr)
@pytest.mark.parametrize("threshold", [0.0, 1.0])
def test_the_best_twist_leaves_all_weights_equal(schedule, threshold):
    chain = Chain(model_of(schedule), STEPS, TIMES)
    made = run(TwistedSMC(TILT, chain.twist(SLOPE), threshold=threshold), 3, schedule=schedule)
    expected = torch.full((3, 8), chain.log_z(SLOPE), dtype=F64)
    torch.testing.assert_close(made.log_w, expected, rtol=0, atol=1e-10)
    torch.testing.assert_close(made.log_z, expected[:, 0], rtol=0, atol=1e-10)
    torch.testing.assert_close(made.ess, torch.full((6, 3), 8.0, dtype=F64))


CASES = {
    "look-ahead": dict(twist=LookAhead(TILT)),
    "never": dict(twist=LookAhead(TILT), threshold=0.0),
    "always": dict(twist=LookAhead(TILT), threshold=1.0),
    "residual": dict(twist=LookAhead(TILT), threshold=1.0, resample=residual),
    "max": dict(twist=LookAhead(TILT), threshold=0.95, potential=torch.maximum),
    "sum": dict(twist=LookAhead(TILT), threshold=0.95, potential=torch.add),
    "late": dict(twist=LookAhead(TILT), threshold=1.0, window=(0.0, 0.6)),
    "early": dict(twist=LookAhead(TILT), threshold=1.0, window=(0.5, 1.0)),
    "guided": dict(twist=toy.Oracle(LAW, TILT)),
    "guided too far": dict(twist=toy.Oracle(LAW, TILT), scale=1.7, threshold=1.0),
    "guided wrongly": dict(twist=toy.Oracle(LAW, Tilt(toy.Linear(-SLOPE), 2.0)), threshold=0.9),
    "plug-in": dict(twist=PlugIn(TILT, jacobian=False), threshold=0.8),
}


@pytest.mark.parametrize("schedule", [RectifiedSchedule(), VPSchedule()], ids=repr)
@pytest.mark.parametrize("case", CASES)
def test_z_and_the_law_have_no_bias_whatever_the_twist(case, schedule):
    chain = Chain(model_of(schedule), STEPS, TIMES)
    made = run(TwistedSMC(TILT, **CASES[case]), 1500, 6, schedule)
    relative = (made.log_z - chain.log_z(SLOPE)).exp()
    assert_within(relative.mean(), 1.0, relative.std() / math.sqrt(1500))
    # E[mean of w x] = Z times the mean of the tilted law
    x_0 = made.x_0.reshape(1500, 6, 2)
    weighted = ((made.log_w - chain.log_z(SLOPE)).exp()[..., None] * x_0).mean(1)
    mean, cov = chain.end()
    assert_within(weighted.mean(0), mean + cov @ SLOPE, weighted.std(0) / math.sqrt(1500))


def test_weights_that_are_carried_fall_below_the_threshold_in_time():
    made = run(TwistedSMC(TILT, LookAhead(Tilt(toy.Linear(3 * SLOPE), 1.0)), threshold=0.5), 50, 16)
    resampled = made.ess[:-1] < 8
    assert 0 < resampled.double().mean() < 0.9
    assert (made.ess > 0).all()
    assert (made.ess <= 16 + 1e-9).all()


def test_a_twist_makes_z_less_noisy():
    spread = {}
    strong = Tilt(toy.Linear(3 * SLOPE), 1.0)
    twist = Chain(model_of(RectifiedSchedule()), STEPS, TIMES).twist(2.5 * SLOPE)
    for name, window in (("twisted", (0.0, 1.0)), ("at the end", (0.0, 0.0))):
        smc = TwistedSMC(strong, twist, window=window)
        spread[name] = run(smc, 400, 8).log_z.std()
    assert spread["twisted"] < 0.5 * spread["at the end"]


def test_a_potential_sees_both_twists_in_float64():
    seen = []

    def potential(before, now):
        seen.append((before.dtype, now.dtype))
        return now

    smc = TwistedSMC(TILT, LookAhead(TILT), potential=potential)
    model = model_of(RectifiedSchedule())
    x_1, generator = noise(model, 4, 0).float(), generator_of(0)
    smc.sample(model, STEPS, x_1, TIMES, particles=4, generator=generator)
    assert set(seen) == {(F64, F64)}


def test_a_constant_in_the_reward_moves_z_alone():
    for potential in (None, torch.maximum, torch.add):
        one, other = (
            run(TwistedSMC(tilt, LookAhead(tilt), threshold=0.99, potential=potential), 4)
            for tilt in (TILT, Tilt(toy.Linear(SLOPE, c=5.0), 1.0))
        )
        torch.testing.assert_close(other.log_w, one.log_w + 5)
        torch.testing.assert_close(other.x_0, one.x_0)
        assert torch.equal(other.ancestors, one.ancestors)


def test_units_of_reward_cancel_with_those_of_beta():
    one = run(TwistedSMC(TILT, LookAhead(TILT)), 4)
    tilt = Tilt(toy.Linear(1e6 * SLOPE), 1e6)
    torch.testing.assert_close(run(TwistedSMC(tilt, LookAhead(tilt)), 4).log_w, one.log_w)


def test_particles_have_no_order():
    model, order = model_of(RectifiedSchedule()), [3, 1, 4, 0, 2]
    smc = TwistedSMC(TILT, toy.Oracle(LAW, TILT), threshold=0.0)
    x_1 = noise(model, 5, 0)
    given = lambda rows: [generator_for(0, i) for i in rows]
    one = smc.sample(model, STEPS, x_1, TIMES, generator=given(range(5)))
    other = smc.sample(model, STEPS, x_1[order], TIMES, generator=given(order))
    torch.testing.assert_close(other.x_0, one.x_0[order])
    torch.testing.assert_close(other.log_w, one.log_w[:, order])
    torch.testing.assert_close(other.log_z, one.log_z)


def test_without_a_shift_a_single_particle_is_a_sample_with_its_weight():
    model, x_1 = model_of(RectifiedSchedule()), noise(model_of(RectifiedSchedule()), 7, 0)
    smc = TwistedSMC(TILT, toy.Oracle(LAW, TILT), scale=0.0, threshold=1.0)
    made = smc.sample(model, STEPS, x_1, TIMES, generator=generator_of(1), particles=1)
    plain = sample(model, STEPS, x_1, TIMES, generator=generator_of(1))
    torch.testing.assert_close(made.x_0, plain)
    torch.testing.assert_close(made.log_z, TILT(plain))
    assert made.distinct.tolist() == [1] * 7


class Labelled(DenoiserModel):
    """Draws near the label of a state; keeps the numbers of states that it saw."""

    def __init__(self):
        super().__init__(RectifiedSchedule())
        self.seen = []

    def denoise(self, x_t, t, condition=None):
        self.seen.append(len(x_t))
        return 0.5 * x_t + torch.as_tensor(condition, dtype=x_t.dtype)[:, None]


LABEL_TILT = Tilt(lambda x, condition: x[:, 0] * torch.as_tensor(condition, dtype=F64), 1.0)


@pytest.mark.parametrize("batch_size", [None, 5])
def test_prompts_do_not_know_of_each_other(batch_size):
    smc, labels = TwistedSMC(LABEL_TILT, LookAhead(LABEL_TILT), threshold=0.9), [2, -1, 3]
    x_1 = randn(0, 18, 2)

    def make(prompts):
        rows = [6 * p + i for p in prompts for i in range(6)]
        return smc.sample(
            Labelled(),
            STEPS,
            x_1[rows],
            TIMES,
            [labels[row // 6] for row in rows],
            [generator_for(0, row) for row in rows],
            particles=6,
            batch_size=batch_size,
        )

    whole = make([0, 1, 2])
    assert (whole.distinct < 6).any()
    for prompt in range(3):
        alone = make([prompt])
        assert torch.equal(alone.ancestors[0], whole.ancestors[prompt])
        assert_rounds_to(alone.log_w[0], whole.log_w[prompt], 30)
        assert_rounds_to(alone.x_0, whole.x_0[6 * prompt : 6 * prompt + 6], 30)


def test_prompts_share_calls_of_the_network():
    model = Labelled()
    smc = TwistedSMC(LABEL_TILT, LookAhead(LABEL_TILT))
    smc.sample(model, STEPS, randn(0, 12, 2), TIMES, [1] * 6 + [2] * 6, generator_of(0), 6)
    assert model.seen == [12] * 5


def test_zero_weights_are_legal_and_cost_no_calls():
    tilt = Tilt(lambda x, c: torch.where(x[:, 0] > 1.2, 0.0, -math.inf), 1.0)
    made = run(TwistedSMC(tilt, LookAhead(tilt), window=(0.0, 0.0)), 2000, 3)
    mean, cov = Chain(model_of(RectifiedSchedule()), STEPS, TIMES).end()
    share = float(torch.special.ndtr((mean[0] - 1.2) / cov[0, 0].sqrt()))
    z = made.log_z.exp()
    assert_within(z.mean(), share, z.std() / math.sqrt(2000))
    empty = made.log_z == -math.inf
    assert empty.any()
    assert (made.ess[-1][empty] == 0).all()
    assert (made.distinct[empty] == 0).all()
    assert not made.log_w.isnan().any()
    with pytest.raises(ValueError, match="log_w must be a row"):
        made.draw(2, generator_of(0))

    model, early = Labelled(), Tilt(lambda x, c: torch.where(x[:, 0] > 0, 0.0, -math.inf), 1.0)
    smc = TwistedSMC(early, LookAhead(early), threshold=0.0)
    made = smc.sample(model, STEPS, randn(0, 40, 2), TIMES, [0] * 40, generator_of(0))
    assert model.seen[0] == 40
    assert model.seen[-1] < 30, "particles of weight zero go on"
    assert not made.log_w.isnan().any()


def test_hopeless_particles_stop_and_what_they_weigh_is_lost():
    strong, seen, made = Tilt(toy.Linear(4 * SLOPE), 1.0), {}, {}
    for stop in (None, 2.0):
        smc = TwistedSMC(strong, LookAhead(strong), threshold=0.0, stop=stop)
        model = model_of(RectifiedSchedule())
        rows = []
        model.register_forward_pre_hook(lambda module, given, rows=rows: rows.append(len(given[0])))
        x_1 = noise(model, 200, 0)
        made[stop] = smc.sample(model, STEPS, x_1, TIMES, generator=generator_of(1), particles=20)
        seen[stop] = sum(rows)
    alive = made[2.0].log_w > -math.inf
    assert 0 < (~alive).sum() < 200
    torch.testing.assert_close(made[2.0].log_w[alive], made[None].log_w[alive])
    assert seen[2.0] < 0.9 * seen[None] == 0.9 * 1000
    assert (made[2.0].log_z <= made[None].log_z + 1e-12).all()
    assert (made[2.0].log_z < made[None].log_z - 1e-3).any()


def test_draws_come_by_their_weights():
    made = run(TwistedSMC(TILT, LookAhead(TILT), threshold=0.0), 2, 10)
    rows = made.draw(1000, generator_of(0))
    assert rows.shape == (2, 1000)
    for prompt, picks in enumerate(rows):
        counts = (picks - 10 * prompt).bincount(minlength=10)
        assert ((counts - 1000 * made.log_w[prompt].softmax(0)).abs() < 1).all()
    assert torch.equal(made.ancestors, torch.arange(10).expand(2, 10))


def test_ancestors_are_those_of_the_states():
    """With little noise at the steps particles stay near the path of their first states."""

    model, x_1 = Labelled(), torch.arange(8, dtype=F64)[:, None] * 1000 + torch.zeros(1, 2)
    tilt = Tilt(lambda x, c: x[:, 0], 100.0)
    smc = TwistedSMC(tilt, LookAhead(tilt), threshold=0.6)
    times, labels = [1.0, 0.9, 0.7, 0.5], [100 * i for i in range(8)]  # conditions go along
    made = smc.sample(model, DDIM(eta=0.01), x_1, times, labels, generator_of(0))
    assert made.distinct.item() < 8
    first = sample(model, DDIM(), x_1, times, labels)
    torch.testing.assert_close(made.x_0, first[made.ancestors[0]], rtol=0, atol=1.0)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_states_keep_their_dtype_and_single_precision_will_do(dtype):
    model = model_of(RectifiedSchedule())
    smc, x_1 = TwistedSMC(TILT, toy.Oracle(LAW, TILT)), noise(model, 12, 0).to(dtype)
    made = smc.sample(model, STEPS, x_1, TIMES, generator=generator_of(0))
    assert made.x_0.dtype == dtype
    assert made.log_w.dtype == F64


@pytest.mark.parametrize("sampler", [Heun(), DDIM(), DDIM(eta=0.0)], ids=repr)
def test_a_deterministic_sampler_is_refused_by_name(sampler):
    smc, model = TwistedSMC(TILT, LookAhead(TILT)), model_of(RectifiedSchedule())
    with pytest.raises((TypeError, ValueError), match=r"sampler must .*(Heun|DDIM)\(.*determin"):
        smc.sample(model, sampler, randn(0, 4, 2), TIMES)


def test_one_step_is_refused():
    smc, model = TwistedSMC(TILT, LookAhead(TILT)), model_of(RectifiedSchedule())
    with pytest.raises(ValueError, match="two steps at least"):
        smc.sample(model, STEPS, randn(0, 4, 2), [1.0, 0.0])


def test_what_is_not_a_number_is_refused_by_name():
    nan = Tilt(lambda x, c: x[:, 0] * math.nan, 1.0)
    with pytest.raises(ValueError, match="a reward must not be NaN"):
        run(TwistedSMC(nan, LookAhead(TILT)))
    blind = LearnedShift(lambda x, t, c: 0 * x)
    with pytest.raises(ValueError, match=r"LearnedShift gives NaN or .inf in 8 of 8 particles"):
        run(TwistedSMC(TILT, blind))

    class Breaks(DenoiserModel):
        def denoise(self, x_t, t, condition=None):
            broken = torch.arange(len(x_t)) == 2
            return x_t * torch.where(broken & (t < 0.5), math.nan, 0.5)[:, None]

    smc = TwistedSMC(TILT, LookAhead(TILT), window=(0.9, 1.0))
    message = r"step 4 of 5: states must be finite, got NaN or inf in item 2 after t"
    with pytest.raises(FloatingPointError, match=message):
        smc.sample(Breaks(RectifiedSchedule()), STEPS, randn(0, 4, 2), TIMES, None, generator_of(0))


@pytest.mark.parametrize(
    ("change", "error", "message"),
    [
        ({"tilt": None}, TypeError, "tilt must be a Tilt"),
        ({"twist": TILT}, TypeError, "twist must be an estimator"),
        ({"scale": math.nan}, ValueError, "scale must be finite"),
        ({"scale": lambda t: 1.0}, TypeError, "scale must be a number"),
        ({"window": (0.5, 0.1)}, ValueError, "window must be times"),
        ({"threshold": 1.1}, ValueError, r"threshold must lie in \[0.*1"),
        ({"resample": "systematic"}, TypeError, "resample must be callable"),
        ({"potential": "max"}, TypeError, "potential must be callable"),
        ({"stop": 0.0}, ValueError, "stop must be positive"),
    ],
)
def test_wrong_settings_are_named(change, error, message):
    with pytest.raises(error, match=message):
        TwistedSMC(**{"tilt": TILT, "twist": LookAhead(TILT)} | change)


@pytest.mark.parametrize(
    ("change", "error", "message"),
    [
        ({"particles": 3}, ValueError, "x_1 must hold particles, 3 of them for each prompt, got 8"),
        ({"particles": 0}, ValueError, "particles must be at least 1"),
        ({"batch_size": 0}, ValueError, "batch_size must be at least 1"),
        ({"generator": 0}, TypeError, "generator must be a torch.Generator"),
        ({"sampler": "ddim"}, TypeError, "sampler must be a Sampler"),
        ({"times": [1.0]}, ValueError, "times must hold at least two"),
        ({"x_1": torch.zeros(0, 2)}, ValueError, "x_1 must hold"),
        ({"x_1": torch.full((8, 2), math.nan)}, ValueError, "x_1 must be finite"),
        ({"model": None}, TypeError, "model must be a Model"),
    ],
)
def test_wrong_arguments_are_named(change, error, message):
    model = model_of(RectifiedSchedule())
    given = {"model": model, "sampler": STEPS, "x_1": randn(0, 8, 2), "times": TIMES}
    with pytest.raises(error, match=message):
        TwistedSMC(TILT, LookAhead(TILT)).sample(**given | change)


def test_the_look_ahead_is_the_weight_of_the_mean():
    model, x_t = model_of(RectifiedSchedule()), randn(0, 5, 2)
    estimate = LookAhead(TILT)(model, x_t, 0.6)
    torch.testing.assert_close(estimate.log_h, TILT(model(x_t, 0.6).mean))
    assert not estimate.shift.any()
    assert repr(LookAhead(TILT)).startswith("LookAhead(tilt=Tilt(")


def test_systematic_is_the_default():
    assert TwistedSMC(TILT, LookAhead(TILT)).resample is systematic
