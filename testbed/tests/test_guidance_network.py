"""The guidance network of the model of one step, against laws whose shift is known."""

import json
import math

import pytest
import torch
from torch import nn

import backbones
import rewards
from common import SCHEDULES, assert_within, randn
from rwguidance import DiscreteSchedule, ImportanceSampling, Tilt, networks, toy
from rwguidance.bank import Bank
from rwguidance.generation.run import Run
from rwguidance.networks import LatentShift
from rwguidance.prediction import Prediction
from rwguidance.store import Store
from rwguidance.support.randomness import normal
from rwguidance.training import ShiftObjective
from rwguidance_testbed import flow, network, turbo, vae
from rwguidance_testbed.data import load_names
from rwguidance_testbed.network import BankMean, BankShift, Settings
from rwguidance_testbed.tokenizer import train_tokenizer

SCHEDULE = SCHEDULES["discrete"]
EVENT = (3, 2, 2)


class Light(nn.Module):
    """Twice the mean of a picture, plus one: linear in it."""

    depends_on = ()

    def forward(self, images, prompts):
        return 1 + 2 * images.flatten(1).mean(1)


class Generator(backbones.Backbone):
    """One step from noise to N(0, s^2), where s says whether the prompt names a background."""

    depends_on = ("schedule",)

    def __init__(self):
        super().__init__(SCHEDULE)

    def std(self, prompts):
        return torch.tensor([2.0 if "background" in p else 1.0 for p in prompts])[
            :, None, None, None
        ]

    def condition(self, prompts):
        pooled = self.std(prompts).flatten(1) - 1.5
        return backbones.TextCondition(tuple(prompts), {"pooled": pooled})

    def forward(self, x_t, t, condition=None):
        scales = self.schedule.at(t, like=x_t)
        return Prediction.from_mean(self.std(condition) * x_t / scales.sigma, x_t, scales)

    def draw_noise(self, n, generator=None):
        sigma = float(self.schedule.at(1.0, like=torch.zeros(1)).sigma)
        return sigma * normal((n, *EVENT), generator)

    def decode(self, latents):
        return latents

    def times(self, steps):
        return torch.linspace(1, 0, steps + 1, dtype=torch.float64)


def gaussian_bank(draws, seed=0):
    """Draws of two prompts, and their laws."""

    laws = {"a": toy.Gaussian(torch.zeros(12), torch.eye(12)), "b": None}
    laws["b"] = toy.Gaussian(torch.ones(12), 4 * torch.eye(12))
    generator = torch.Generator().manual_seed(seed)
    x = torch.cat([law.sample(draws, generator) for law in laws.values()]).float()
    keys = ["a"] * draws + ["b"] * draws
    return Bank(x.reshape(-1, *EVENT), keys), laws


class Constant(nn.Module):
    """A shift that is the same everywhere."""

    def __init__(self):
        super().__init__()
        self.shift = nn.Parameter(torch.zeros(EVENT))

    def forward(self, x_t, t, condition=None):
        return self.shift.expand(x_t.shape)


class TestPrompts:
    names = ("red apple", "cat", "bus")

    def test_all_variants_of_all_names_come_once(self):
        prompts = network.prompts_of(self.names, 39)
        assert len(set(prompts)) == 39
        assert all(name in prompts for name in self.names)
        assert "cat on an orange background" in prompts

    def test_a_longer_list_begins_with_a_shorter_one_and_mixes_all_names(self):
        prompts = network.prompts_of(self.names, 12)
        assert network.prompts_of(self.names, 5) == prompts[:5]
        assert network.prompts_of(self.names, 12, seed=1) != prompts
        for turn in range(4):
            turn = prompts[3 * turn : 3 * turn + 3]
            assert {text.split(" on a")[0] for text in turn} == set(self.names)
        assert sum("background" in text for text in prompts[:3]) == 1
        assert sum("background" in text for text in prompts[:6]) == 3

    @pytest.mark.parametrize("count", [0, 40])
    def test_what_there_is_not_is_refused(self, count):
        with pytest.raises(ValueError, match=f"at most 39 prompts, got {count}"):
            network.prompts_of(self.names, count)


class TestObjective:
    def test_the_mean_of_a_bank_is_that_of_each_prompt(self):
        bank, _ = gaussian_bank(5)
        x_t = randn(0, 3, *EVENT).float()
        mean = BankMean(SCHEDULE, bank)(x_t, 1.0, ["b", "a", "b"]).mean
        expected = torch.stack([bank.x_0[bank.rows[key]].mean(0) for key in "bab"])
        torch.testing.assert_close(mean, expected)

    def test_the_target_is_the_difference_of_the_means_of_a_gaussian(self, generator):
        bank, laws = gaussian_bank(4000)
        direction = randn(1, 12)
        reward = toy.Linear(direction)
        tilt = Tilt(lambda x, y: reward(x.flatten(1), y), 4.0)
        asked = []

        class Spy(nn.Module):
            def forward(self, x_t, t, condition):
                asked.append((x_t, t, condition))
                return torch.zeros_like(x_t).requires_grad_()

        objective = BankShift(bank, tilt, SCHEDULE, batch_size=64)
        objective(Spy(), generator)
        x_t, t, condition = asked[0]
        assert t.unique().tolist() == [1.0]
        found = objective.importance(objective.model, x_t, 1.0, condition).shift.flatten(1)
        flat = Tilt(reward, 4.0)
        for key, law in laws.items():
            rows = [i for i, k in enumerate(condition) if k == key]
            exact = (law.tilted(flat).means - law.means)[0]
            # The effective draws, in the direction where the tilted law is no narrower.
            variance = float(law.covariances[0, 0, 0])
            error = (
                variance / 4000 * math.exp(variance * float(direction @ direction) / 16)
            ) ** 0.5
            assert_within(found[rows].mean(0), exact, torch.full((12,), 2 * error))
            assert float(exact.norm()) > 10 * error
            # a run starts from noise, which tells no draws apart, whatever it is
            torch.testing.assert_close(found[rows], found[rows[:1]].expand(len(rows), 12))

    def test_it_has_the_minimizer_of_the_centered_residual(self):
        bank, _ = gaussian_bank(40)
        tilt = Tilt(lambda x, y: x.flatten(1).mean(1), 0.5)
        objective = BankShift(bank, tilt, SCHEDULE, batch_size=64)
        log_z = {
            key: float(tilt.weigh(objective.bank.rewards)[rows].logsumexp(0)) - math.log(40)
            for key, rows in bank.rows.items()
        }

        class Exact(nn.Module):
            def forward(self, x_t, t, condition):
                log_h = objective.importance(objective.model, x_t, t, condition).log_h
                return log_h - torch.tensor([log_z[key] for key in condition])

        # A mean that is wrong changes nothing, as long as it depends on the state alone.
        model = BankMean(SCHEDULE, Bank(bank.x_0 + 0.3, bank.condition))
        centered = ShiftObjective(model, objective.bank, tilt, Exact(), batch_size=64)
        centered.times = objective.times
        gradients = []
        for loss in (objective, centered):
            generator, rows = torch.Generator().manual_seed(3), []
            for _ in range(150):
                constant = Constant()
                loss(constant, generator)["loss"].backward()
                rows.append(constant.shift.grad.flatten())
            gradients.append(torch.stack(rows))
        first, second = gradients
        error = ((first.var(0) + second.var(0)) / 150).sqrt()
        assert_within(first.mean(0), second.mean(0), error)
        assert float(first.mean(0).norm()) > 10 * float(error.norm())
        assert first.var(0).mean() < second.var(0).mean() / 3, "without the noise of targets"

    def test_batches_are_of_whole_groups(self):
        bank, _ = gaussian_bank(4)
        tilt = Tilt(lambda x, y: x.flatten(1).mean(1), 1.0)
        with pytest.raises(ValueError, match="multiple of 8, got 12"):
            BankShift(bank, tilt, SCHEDULE, batch_size=12)


@pytest.fixture(scope="module")
def bank():
    run = Run(Generator(), Light(), torch.tensor([1.0, 0.0]), batch_size=3000)
    return network.draw_bank(run, ["cat", "cat on a red background"], 3000)


class TestAgreement:
    """A generator of N(0, s^2) and a linear reward: the shift is constant and known."""

    beta = 2.0

    class Exact(nn.Module):
        def __init__(self, factor=1.0, wave=0.0):
            super().__init__()
            self.factor, self.wave = factor, wave

        def forward(self, x_t, t, condition):
            std = Generator().std(condition)
            shift = std**2 * 2 / 12 / TestAgreement.beta
            return self.factor * shift.expand(x_t.shape) + self.wave * x_t

    def found(self, net, bank, draws=3000):
        rows = [i for r in bank.rows.values() for i in range(r.start, r.start + draws)]
        bank = Bank(bank.x_0[rows], [bank.condition[i] for i in rows], bank.rewards[rows])
        tilt = Tilt(Light(), self.beta)
        options = {"states": 16}
        return network.agreement(net, bank, tilt, Generator(), **options), bank, tilt

    @pytest.mark.parametrize("factor", [1.0, -1.0, 2.0])
    def test_it_knows_the_exact_shift(self, bank, factor):
        found, _, _ = self.found(self.Exact(factor), bank)
        assert found["cosine"] == pytest.approx(math.copysign(1, factor), abs=0.04)
        assert found["relative_error"] == pytest.approx(abs(factor - 1), abs=0.2)
        assert found["length_ratio"] == pytest.approx(abs(factor), rel=0.1)
        assert found["cosine_of_halves"] > 0.9
        assert found["share_that_is_constant"] == pytest.approx(1)

    def test_a_small_bank_hides_nothing(self, bank):
        """Its own noise is not held against the network."""

        found, _, _ = self.found(self.Exact(), bank, draws=20)
        assert found["cosine_of_halves"] < 0.8
        assert found["cosine"] == pytest.approx(1, abs=0.3)

    def test_what_varies_with_the_state_is_told_apart(self, bank):
        found, _, _ = self.found(self.Exact(0.0, 1.0), bank, draws=50)
        assert found["share_that_is_constant"] < 0.2

    def test_no_network_has_no_direction(self, bank):
        found, _, _ = self.found(self.Exact(0.0), bank)
        assert math.isnan(found["cosine"])
        assert found["relative_error"] == pytest.approx(1)

    def test_the_gain_of_a_linear_reward_is_that_of_the_tilted_law(self, bank):
        _, bank, tilt = self.found(self.Exact(), bank)
        found = network.gain(self.Exact(), bank, tilt, Generator())
        # The shift is the same for every noise, so the gain has no noise: b C b / beta.
        exact = (1 + 4) / 2 / 3 / self.beta
        assert found["gain"] == pytest.approx(exact, rel=1e-4)
        assert found["gain_of_the_tilted_law"] == pytest.approx(exact, rel=0.15)


SMALL = Settings(4, 100, 0.5, 120, 64, 1e-2, (8,), 2)


@pytest.fixture(scope="module")
def made():
    return network.make(Generator(), Light(), SMALL)


def same(first, second):
    return all(map(torch.equal, first.state_dict().values(), second.state_dict().values()))


@pytest.mark.slow
class TestMake:
    def test_it_learns_the_shift_of_each_prompt(self, made):
        net, figures = made
        prompts = ["fox"] * 8 + ["fox on a red background"] * 8
        x_t = Generator().draw_noise(16, torch.Generator().manual_seed(5))
        t = torch.ones(16, dtype=torch.float64)
        shift = net(x_t, t, Generator().condition(prompts)).flatten(1)
        for rows, variance in ((slice(8), 1.0), (slice(8, 16), 4.0)):
            exact = variance / 6 / figures["beta"]
            # Of the mean of 200 draws under weights, in each coordinate.
            error = (variance / 200 * math.exp(2 * SMALL.nats * 1.6)) ** 0.5
            assert_within(shift[rows].mean(0), torch.full((12,), exact), torch.full((12,), error))
            assert_within(shift[rows].mean(), exact, error / 12**0.5 + 0.05 * exact)

    def test_beta_moves_as_many_nats_as_asked_for(self, made):
        # KL of N(0, s^2) and a linear reward: b^2 s^2 / 2 beta^2, mean over both kinds of prompts.
        _, figures = made
        exact = ((1 + 4) / 2 * 4 / 12 / 2 / SMALL.nats) ** 0.5
        assert figures["beta"] == pytest.approx(exact, rel=0.2)  # 400 draws in all

    def test_one_step_gains_what_the_tilted_law_does(self, made):
        _, figures = made
        for part in ("of_learned_names", "of_names_held_out"):
            gain, target = figures[f"gain_{part}"], figures[f"gain_of_the_tilted_law_{part}"]
            assert gain == pytest.approx(target, rel=0.35)
            assert figures[f"cosine_{part}"] > 0.8
        assert figures["parameters"] == sum(p.numel() for p in made[0].parameters())

    def test_a_run_with_a_store_is_the_same_and_goes_on(self, made, tmp_path, monkeypatch):
        store = Store(tmp_path)

        def stop_drawing(stage, done, total):
            if (stage, done) == ("prompts", 2):
                raise KeyboardInterrupt

        with pytest.raises(KeyboardInterrupt):
            network.make(Generator(), Light(), SMALL, store, stop_drawing)
        steps, whole = [], BankShift.__call__

        def stop_training(self, net, generator):
            steps.append(1)
            if len(steps) == 70:
                raise KeyboardInterrupt
            return whole(self, net, generator)

        monkeypatch.setattr(BankShift, "__call__", stop_training)
        with pytest.raises(KeyboardInterrupt):
            network.make(Generator(), Light(), SMALL, store)
        net, figures = network.make(Generator(), Light(), SMALL, store)
        assert len(steps) == 70 + SMALL.steps - 50, "it went on where it was saved"
        assert same(net, made[0])
        assert figures == made[1]

    def test_other_settings_start_anew(self, made, tmp_path):
        store = Store(tmp_path)
        network.make(Generator(), Light(), Settings(4, 100, 0.3, 5, 64, 1e-2, (8,), 2), store)
        few = Settings(4, 100, 0.5, 5, 64, 1e-2, (8,), 2)
        with_store, _ = network.make(Generator(), Light(), few, store)
        without, _ = network.make(Generator(), Light(), few)
        assert same(with_store, without)

    def test_the_default_is_small_enough_to_ship(self, tmp_path):
        schedule = DiscreteSchedule(torch.linspace(0.999, 0.005, 1000, dtype=torch.float64))
        net = LatentShift(8, schedule, 96, Settings().widths, 1)
        assert sum(p.numel() for p in net.parameters()) <= 750_000
        net.half().save(tmp_path / network.FILE)
        assert (tmp_path / network.FILE).stat().st_size < 1.5e6


@pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning")
def test_the_command_writes_network_figures_and_card(tmp_path, monkeypatch, capsys):
    pytest.importorskip("diffusers")
    tokenizer = train_tokenizer(load_names()["train"], tmp_path / "words", size=600)
    autoencoder = vae.new(smoke=True).eval()
    pipe = turbo.new(flow.new(autoencoder, tokenizer, smoke=True), smoke=True)
    backbone = backbones.from_pipeline(pipe, height=64, width=64, steps=1)
    loaded = []

    def load(*names):
        loaded.append(names)
        return backbone if "turbo" in names[0] else Light()

    monkeypatch.setattr(backbones, "load", load)
    monkeypatch.setattr(rewards, "load", load)
    out = tmp_path / "guide"
    network.train(str(tmp_path), "emoji-hps", out, smoke=True)
    assert loaded == [("emoji-turbo", str(tmp_path)), ("emoji-hps",)]
    assert "gain_of_names_held_out" in capsys.readouterr().out
    net, figures = network.read(out)
    assert json.loads((out / "figures.json").read_text()) == figures
    card = (out / "README.md").read_text()
    assert "--reward emoji-hps" in card
    assert f"| beta | {figures['beta']:g} |" in card
    assert networks.load(out / network.FILE).last.weight.dtype == torch.float16
    assert net.last.weight.dtype == torch.float32
    condition = backbone.condition(["cat"] * 2)
    x_t = backbone.draw_noise(2, torch.Generator().manual_seed(0))
    assert net(x_t, torch.ones(2, dtype=torch.float64), condition).shape == x_t.shape


def test_where_there_is_no_network_it_says_so(tmp_path):
    with pytest.raises(FileNotFoundError, match="no network at"):
        network.read(tmp_path)


def test_importance_sampling_is_what_the_objective_asks():
    bank, _ = gaussian_bank(6)
    tilt = Tilt(lambda x, y: x.flatten(1).mean(1), 1.0)
    assert isinstance(BankShift(bank, tilt, SCHEDULE, batch_size=8).importance, ImportanceSampling)
