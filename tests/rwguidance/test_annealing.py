"""Annealed banks against Gaussian laws and mixtures, whose tilts and constants are known."""

import math

import pytest
import torch

from common import assert_within
from rwguidance import (
    DDIM,
    Bank,
    DenoiserModel,
    ImportanceSampling,
    RectifiedSchedule,
    Tilt,
    UnreliableEstimate,
    VPSchedule,
    annealing,
    toy,
)
from rwguidance.annealing import balance
from rwguidance.weights import ess

F64 = torch.float64
TIMES = torch.linspace(1, 0, 21, dtype=F64)
LAW = toy.GaussianMixture(
    torch.tensor([0.2, 0.8], dtype=F64).log(),
    torch.tensor([[-2.5, 0.0], [2.5, 0.0]], dtype=F64),
    (0.5 * torch.eye(2, dtype=F64)).expand(2, 2, 2),
)
TILT = Tilt(toy.Quadratic(torch.tensor([0.0, 2.5], dtype=F64), 2 * torch.eye(2, dtype=F64)), 1 / 3)
"""A tilt of 7.5 nats: of 1,000 draws five count."""
MILD = Tilt(toy.Linear([0.0, 1.0]), 1.0)


def draw(n, generator):
    return torch.randn(n, 2, generator=generator, dtype=F64)


def of_gaussians(powers, counts, seed, strength=3.0):
    """Log-weights of draws of N(tau s, 1), the tilts of N(0, 1) by exp(tau s x)."""

    generator = torch.Generator().manual_seed(seed)
    return torch.cat(
        [
            strength * (tau * strength + torch.randn(n, generator=generator, dtype=F64))
            for tau, n in zip(powers, counts, strict=True)
        ]
    )


@pytest.fixture(scope="module")
def banks():
    generator = torch.Generator().manual_seed(0)
    bank = Bank(LAW.sample(600, generator)).scored(TILT)
    model = LAW.model(RectifiedSchedule())
    return bank, bank.anneal(model, TILT, draw, TIMES, fraction=0.2, generator=generator)


class TestBalance:
    def test_constants_and_means_are_exact(self):
        powers, counts, s = [0.0, 0.3, 0.7], [300, 200, 400], 3.0

        def errors(seed):
            log_w = of_gaussians(powers, counts, seed)
            made = balance(log_w, powers, counts)
            share = (made.log_importance + log_w).softmax(0)
            own = made.log_importance.softmax(0)
            exact = torch.tensor(powers, dtype=F64).square() * s**2 / 2
            return [*(made.log_z - exact)[1:], share @ log_w / s - s, own @ log_w / s]

        found = torch.tensor([[float(v) for v in errors(seed)] for seed in range(200)], dtype=F64)
        mean, se = found.mean(0), found.std(0) / math.sqrt(200)
        assert_within(mean, torch.zeros(4, dtype=F64), (se.square() + 0.005**2).sqrt())

    def test_it_is_the_fixed_point(self):
        log_w = of_gaussians([0.0, 0.5], [50, 70], 0)
        made = balance(log_w, [0.0, 0.5], [50, 70])
        log_z = torch.stack(
            [(made.log_importance + tau * log_w).logsumexp(0) for tau in (0.0, 0.5)]
        )
        torch.testing.assert_close(log_z - log_z[0], made.log_z)
        assert made.log_z[0] == 0

    def test_rounding_is_that_of_double_precision(self):
        powers, counts, offset = [0.0, 0.3, 0.7], [30, 20, 40], 3e6
        log_w = of_gaussians(powers, counts, 0)
        near, far = balance(log_w, powers, counts), balance(log_w + offset, powers, counts)
        tau = torch.tensor(powers, dtype=F64)
        torch.testing.assert_close(far.log_z - tau * offset, near.log_z, rtol=0, atol=1e-7)
        torch.testing.assert_close(far.log_importance, near.log_importance, rtol=0, atol=1e-7)
        count = near.log_importance.exp().sum()  # which is that of p: its sum is Z of power 0
        torch.testing.assert_close(count, torch.ones((), dtype=F64), rtol=0, atol=1e-8)

    def test_it_keeps_no_graph(self):
        log_w = of_gaussians([0.0, 0.5], [5, 7], 0).requires_grad_()
        made = balance(log_w, [0.0, 0.5], [5, 7])
        assert not made.log_z.requires_grad
        assert not made.log_importance.requires_grad

    def test_of_one_stage_all_draws_weigh_the_same(self):
        made = balance(of_gaussians([0.0], [20], 0), [0.0], [20])
        torch.testing.assert_close(made.log_importance, torch.full((20,), -math.log(20), dtype=F64))

    def test_zero_weights_belong_to_the_law_alone(self):
        log_w = torch.tensor([0.0, 1.0, -math.inf, 2.0], dtype=F64)
        made = balance(log_w, [0.0, 1.0], [3, 1])
        assert made.log_importance.isfinite().all()
        torch.testing.assert_close(made.log_importance[2], torch.tensor(-math.log(3), dtype=F64))

    def test_wrong_calls_are_named(self):
        with pytest.raises(ValueError, match="counts must add up to the 3 draws"):
            balance(torch.zeros(3), [0.0, 1.0], [1, 1])
        with pytest.raises(ValueError, match="powers must hold 0, the law itself"):
            balance(torch.zeros(3), [0.5, 1.0], [1, 2])


class TestAnneal:
    def test_the_whole_tilt_has_draws_enough(self, banks):
        bank, annealed = banks
        log_w = TILT.weigh(annealed.rewards)
        assert float(ess(TILT.weigh(bank.rewards))) < 20
        assert float(ess(annealed.log_importance + log_w)) > 0.2 * 600

    def test_an_offset_of_the_reward_changes_nothing(self):
        """So powers and importances are found in double precision."""

        def annealed(offset):
            generator = torch.Generator().manual_seed(0)
            tilt = Tilt(lambda x, condition: TILT.rewards[0](x, condition) + offset, 1 / 3)
            bank = Bank(LAW.sample(60, generator)).scored(tilt)
            return bank.anneal(
                LAW.model(RectifiedSchedule()), tilt, draw, TIMES[::4], generator=generator
            )

        near, far = annealed(0.0), annealed(3e6)
        assert len(near) == len(far) > 60
        torch.testing.assert_close(far.x_0, near.x_0, rtol=0, atol=1e-5)
        torch.testing.assert_close(far.log_importance, near.log_importance, rtol=0, atol=1e-5)

    @pytest.mark.filterwarnings("ignore:1 stages reached")
    def test_weights_of_a_stochastic_sampler_mend_shares_of_modes(self):
        """Of two modes that count alike a bank believes one to weigh nine times the other."""

        law = toy.GaussianMixture(
            torch.tensor([0.5, 0.5], dtype=F64).log(),
            torch.tensor([[-2.0, 0.0], [2.0, 0.0]], dtype=F64),
            0.3 * torch.eye(2, dtype=F64).expand(2, 2, 2),
        )
        tilt = Tilt(toy.Linear([0.0, 1.0]), 0.4)
        bank = Bank(law.sample(1000, torch.Generator().manual_seed(0))).scored(tilt)
        wrong = bank.rewards + 0.4 * math.log(9) * (bank.x_0[:, 0] < 0)
        bank = Bank(bank.x_0, rewards=wrong)

        def share(sampler):
            generator = torch.Generator().manual_seed(1)
            found = bank.anneal(
                law.model(RectifiedSchedule()),
                tilt,
                draw,
                torch.linspace(1, 0, 41, dtype=F64),
                draws=1500,
                stages=1,
                sampler=sampler,
                batch_size=1500,
                generator=generator,
            )
            return float((found.x_0[1000:, 0] < 0).double().mean())

        assert share(DDIM()) > 0.7
        # Particles whose weights differ this much are worth a few hundred.
        assert abs(share(DDIM(eta=1.0)) - 0.5) < 3 * 0.5 / math.sqrt(200)

    def test_new_draws_are_of_the_dtype_of_the_bank_and_keep_no_graph(self):
        level = torch.zeros((), requires_grad=True, dtype=F64)
        tilt = Tilt(lambda x, condition: level + 3 * TILT.rewards[0](x.double(), condition), 1.0)
        generator = torch.Generator().manual_seed(0)
        with torch.no_grad():
            bank = Bank(LAW.sample(60, generator).float()).scored(tilt)
        bank = Bank(bank.x_0, rewards=bank.rewards.float())
        found = bank.anneal(
            LAW.model(RectifiedSchedule()), tilt, draw, TIMES[::4], generator=generator
        )
        assert len(found) > 60
        assert (found.x_0.dtype, found.rewards.dtype) == (torch.float32, torch.float32)
        assert not found.rewards.requires_grad

    def test_the_constant_does_not_drift(self, banks):
        _, annealed = banks
        log_w = TILT.weigh(annealed.rewards)
        found = (annealed.log_importance + log_w).logsumexp(0) - annealed.log_importance.logsumexp(
            0
        )
        states = LAW.sample(10**6, torch.Generator().manual_seed(1))
        exact = (TILT(states)).logsumexp(0) - math.log(10**6)
        assert float(found) == pytest.approx(float(exact), abs=0.25)

    def test_it_is_still_a_bank_of_the_law(self, banks):
        bank, annealed = banks
        share = annealed.log_importance.softmax(0)[:, None]
        mean = (share * annealed.x_0).sum(0)
        se = bank.x_0.std(0) / math.sqrt(len(bank))
        assert_within(mean, torch.tensor([1.5, 0.0], dtype=F64), se)

    def test_guidance_from_it_is_nearer_the_exact_shift(self, banks):
        schedule = RectifiedSchedule()
        model, t = LAW.model(schedule), 0.5
        x_0 = LAW.tilted(TILT).sample(200, torch.Generator().manual_seed(2))
        x_t = schedule.perturb(x_0, t, draw(200, torch.Generator().manual_seed(3)))
        exact = LAW.shift(TILT, x_t, t, schedule)
        error = lambda bank: float(
            (ImportanceSampling(bank, TILT)(model, x_t, t).shift - exact).square().mean()
        )
        assert error(banks[1]) < 0.3 * error(banks[0])

    def test_a_temperature_is_found_on_it(self, banks):
        # At 7 nats the draws of the law alone have next to nothing to say.
        _, annealed = banks
        states = Bank(LAW.sample(10**6, torch.Generator().manual_seed(4)))
        expected = Tilt.for_kl(TILT.rewards[0], states, 6.0).betas[0]
        found = Tilt.for_kl(TILT.rewards[0], annealed, 6.0).betas[0]
        assert found == pytest.approx(expected, rel=0.25)

    def test_a_tilt_that_the_bank_serves_adds_nothing(self):
        bank = Bank(LAW.sample(50, torch.Generator().manual_seed(0)))
        weak = Tilt(toy.Linear([0.01, 0.0]), 1.0)
        made = bank.anneal(LAW.model(RectifiedSchedule()), weak, draw, TIMES)
        assert len(made) == 50
        assert made.log_importance is None
        assert made.rewards is not None

    def test_its_runs_begin_from_noise(self):
        """Noise knows nothing of a clean state: all draws of the bank weigh the same there."""

        schedule = VPSchedule(beta_max=2.0)  # at t = 1 a state of the path tells much
        seen = []

        class Told(DenoiserModel):
            def denoise(self, x_t, t, condition=None):
                seen.append((float(t[0]), self.start))
                return LAW.denoise(x_t, t, schedule)

        generator = torch.Generator().manual_seed(0)
        bank = Bank(LAW.sample(60, generator))
        bank.anneal(Told(schedule), MILD, draw, [1.0, 0.5, 0.0], fraction=0.9, generator=generator)
        assert set(seen) == {(1.0, 1.0), (0.5, 1.0)}

    def test_its_draws_have_the_condition_of_the_bank(self):
        seen = []

        def reward(x, condition):
            seen.append((len(x), condition))
            return TILT.rewards[0](x, condition)

        generator = torch.Generator().manual_seed(0)
        bank = Bank(LAW.sample(20, generator), ["a"] * 20)
        model, tilt = LAW.model(RectifiedSchedule()), Tilt(reward, MILD.betas[0])
        made = bank.anneal(
            model, tilt, draw, [1.0, 0.5, 0.0], fraction=0.7, batch_size=7, generator=generator
        )
        assert list(made.condition) == ["a"] * len(made)
        assert 7 in {n for n, _ in seen}
        assert all(list(condition) == ["a"] * n for n, condition in seen)

    def test_a_stage_goes_on_from_the_last_and_moves(self, monkeypatch):
        asked, inner = [], annealing._next_power

        def spy(log_importance, log_w, least, effective):
            asked.append((least, effective, inner(log_importance, log_w, least, effective)))
            return asked[-1][2]

        monkeypatch.setattr(annealing, "_next_power", spy)
        generator = torch.Generator().manual_seed(0)
        bank = Bank(LAW.sample(20, generator))
        # The bank holds fewer draws than are to be effective: of no tilt there are enough.
        made = bank.anneal(
            LAW.model(RectifiedSchedule()),
            TILT,
            draw,
            TIMES[::4],
            draws=40,
            fraction=0.6,
            generator=generator,
        )
        assert asked[0] == (0.0, 24.0, 1e-3)
        assert [least for least, _, _ in asked[1:]] == [power for _, _, power in asked[:-1]]
        assert asked[-1][2] == 1
        assert len(made) == 20 + 40 * (len(asked) - 1)

    def test_too_few_stages_are_told(self):
        generator = torch.Generator().manual_seed(0)
        bank, model = Bank(LAW.sample(100, generator)), LAW.model(RectifiedSchedule())
        with pytest.warns(UnreliableEstimate, match=r"1 stages reached a power of 0\."):
            bank.anneal(model, TILT, draw, TIMES, stages=1, generator=generator)

    def test_wrong_calls_are_named(self):
        model = LAW.model(RectifiedSchedule())
        bank = Bank(LAW.sample(10, torch.Generator().manual_seed(0)), ["a", "b"] * 5)
        with pytest.raises(ValueError, match="a bank of one condition, got 2"):
            bank.anneal(model, TILT, draw, TIMES)
        one = Bank(bank.x_0, log_importance=torch.zeros(10))
        with pytest.raises(ValueError, match="anneal needs draws of the model itself"):
            one.anneal(model, TILT, draw, TIMES)
        for wrong in ({"fraction": 1.0}, {"stages": 0}, {"draws": 1}, {"batch_size": 0}):
            with pytest.raises(ValueError, match=f"{next(iter(wrong))} must"):
                Bank(bank.x_0).anneal(model, TILT, draw, TIMES, **wrong)
