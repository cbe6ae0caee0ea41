"""A one-step student against a critic: losses, groups, names, and a reader."""

import math
from dataclasses import replace

import pytest
import torch
from torch import nn

from common import assert_within
from rwguidance.support.randomness import seeded
from rwguidance_testbed import flow
from rwguidance_testbed.adversarial import examples, objective
from rwguidance_testbed.adversarial.critic import GROUP, Critic, Features, deviations
from rwguidance_testbed.adversarial.examples import Examples
from rwguidance_testbed.adversarial.names import recombined_names
from rwguidance_testbed.adversarial.objective import Networks, Weights, Widening
from rwguidance_testbed.adversarial.reader import Reader, train_reader
from rwguidance_testbed.data import load_names
from rwguidance_testbed.training.timed import adam, descend, set_rate

pytest.importorskip("diffusers")
pytestmark = pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning")

TEXTS = ["red apple", "pizza", "sun on a blue background"]
CPU = torch.device("cpu")


def features_of(pipe, blocks=1):
    return Features(pipe.transformer, blocks, examples.words(pipe, [""]))


class TestCritic:
    def test_the_loss_pushes_as_far_as_the_odds_say(self):
        wanted = torch.tensor([0.0, 2.0], requires_grad=True)
        drawn = torch.tensor([0.0, -1.0], requires_grad=True)
        loss = objective.paired(wanted, drawn)
        loss.backward()
        assert loss.item() == pytest.approx((math.log(2) + math.log(1 + math.exp(-3))) / 2)
        odds = torch.tensor([0.5, 1 / (1 + math.exp(3))])
        assert torch.allclose(drawn.grad, odds / 2)
        assert torch.allclose(wanted.grad, -odds / 2)

    def test_roughness_of_a_plane_is_the_square_of_its_slope(self, generator):
        slope = torch.tensor([0.6, -0.8, 2.0])
        features = torch.randn(20_000, 3, generator=generator)
        found = objective.roughness(lambda x: x @ slope, features, features @ slope, generator)
        square = float(slope.square().sum())
        # The square of a normal number of that variance has the variance 2 square ** 2.
        assert_within(found, square, square * (2 / 20_000) ** 0.5)

    def test_features_are_those_of_the_flow(self, teacher_flow, generator):
        network = teacher_flow.transformer
        states = []
        for block in network.transformer_blocks:
            block.register_forward_hook(lambda *args: states.append(args[2][1]))
        words = examples.words(teacher_flow, TEXTS)
        x, t = torch.randn(3, 8, 8, 8, generator=generator), torch.tensor([0.2, 0.5, 0.9])
        features = features_of(teacher_flow)
        found, _ = features(x, t, *words)
        flow.velocity(network, x, t, *words, torch.zeros(3))
        wanted = nn.functional.layer_norm(states[1], states[1].shape[-1:])
        assert torch.allclose(found[:, 0], wanted, atol=1e-5)
        bare = features(x, t, *examples.words(teacher_flow, [""] * 3))
        for part, same in zip(features.without_captions(x, t), bare, strict=True):
            assert torch.allclose(part, same, atol=1e-5)

    def test_deviations_are_those_of_each_group(self, generator):
        h = torch.randn(2 * GROUP, 3, 2, 2, generator=generator, dtype=torch.float64)
        h[GROUP:] *= 10.0
        found = deviations(h)
        for group, row in zip(h.split(GROUP), found, strict=True):
            means = group.mean(dim=(2, 3)).std(dim=0)
            assert torch.allclose(row, torch.cat((means, group.std(dim=0).mean(dim=(1, 2)))), 1e-2)
        assert bool((found[1] > found[0]).all())
        same = deviations(h[:1].expand(GROUP, -1, -1, -1))
        assert torch.allclose(same, torch.full_like(same, 0.01))

    def test_it_is_undecided_and_then_sees_how_a_group_differs(self, generator):
        with seeded(0):
            critic = Critic(1, 6, 5, hidden=8)
        about, pooled = torch.zeros(2 * GROUP, 6), torch.ones(2 * GROUP, 5)
        one = torch.randn(1, 1, 16, 6, generator=generator)
        others = one + torch.randn(GROUP, 1, 16, 6, generator=generator)
        features = torch.cat((one.expand(GROUP, -1, -1, -1), others))
        assert torch.equal(critic(features, about, pooled), torch.zeros(2 * GROUP, 1))
        for layer in (critic.heads[0].spread.by_caption, critic.heads[0].spread.always):
            nn.init.ones_(layer.weight)
            narrow, wide = critic(features, about, pooled).split(GROUP)
            assert bool((wide > narrow.max()).all())
            assert bool((wide == wide[0]).all())
            nn.init.zeros_(layer.weight)


class PlainFeatures:
    """States as their own features."""

    def __call__(self, x, t, text, pooled):
        return x.flatten(1)[:, None], pooled


def toy_examples(generator, shape=(2, 2, 2)):
    """Two recombined names, three painted ones, eight pictures of each, half of these pairs."""

    painted = torch.tensor([0, 1, 2] * 8)
    names = torch.cat((torch.tensor([3, 4]).repeat_interleave(GROUP), painted))
    count, paired = len(names), 2 * GROUP + len(painted) // 2
    normal = lambda *size: torch.randn(*size, generator=generator)
    latents, words = normal(count, *shape), (normal(count, 2, 3), normal(count, 3))
    noise, ends = normal(paired, *shape), normal(paired, *shape)
    bare = torch.arange(count) % 4 == 0
    return Examples(latents, words, words, noise, ends, names, bare, 2 * GROUP, torch.zeros(5, 3))


def widening_of(student, draw, critic, read, found, generator, groups=4, **weights):
    networks = Networks(draw, PlainFeatures(), critic, read)
    optimizers = {
        "student": torch.optim.SGD(student, lr=1.0),
        "critic": torch.optim.SGD(critic.parameters(), lr=0.0),
    }
    return Widening(networks, optimizers, found, groups, Weights(**weights), generator)


def idle(found, generator, groups):
    """One that takes no step."""

    parameters = [nn.Parameter(torch.zeros(()))]
    critic = PlaneCritic(torch.zeros(8))
    return widening_of(parameters, None, critic, None, found, generator, groups)


class PlaneCritic(nn.Module):
    """A critic linear in states."""

    def __init__(self, slope):
        super().__init__()
        self.slope = nn.Parameter(slope)

    def forward(self, features, about, pooled):
        return features @ self.slope


class TestSteps:
    @pytest.mark.parametrize("squares", [0.0, 2.5])
    def test_the_student_goes_down_the_sum_of_its_terms(self, generator, monkeypatch, squares):
        """With states that are clean, every term has a slope that can be written down."""

        monkeypatch.setattr(objective, "noisy", lambda latents, noise, t: latents)
        found = toy_examples(generator)
        slope, toward = (torch.randn(8, generator=generator) for _ in range(2))
        student = nn.Parameter(torch.zeros(16, 2, 2, 2))
        logits = lambda x, t: (x.flatten(1) @ toward)[:, None] * torch.eye(5)[0]
        widening = widening_of(
            [student], lambda *_: 1.0 * student, PlaneCritic(slope), logits, found, generator,
            squares=squares, names=0.3, flow=1.0,
        )  # fmt: skip
        widening.places = lambda: torch.arange(16)
        widening.step(0)
        ends, wanted = found.ends[:8], torch.cat((found.ends[:8], found.latents[8:16]))
        odds = torch.sigmoid(wanted.flatten(1) @ slope)  # of the wanted picture: drawn ones are 0
        gradient = -odds[:, None] * slope / 16
        chosen = (found.names[:16] == 0).float()
        gradient = gradient + 0.3 * (0.2 - chosen)[:, None] * toward / 16
        gradient[:8] -= squares * 2 * ends.flatten(1) / ends.numel()
        assert gradient.norm() < 1  # so that it is not clipped
        assert torch.allclose(student.flatten(1), -gradient, atol=1e-6)
        assert widening.losses["squares"].item() == pytest.approx(ends.square().mean().item())
        assert widening.losses["names"].item() == pytest.approx(math.log(5))

    @pytest.mark.parametrize("side", [1.0, -1.0])
    def test_a_student_goes_where_pictures_are(self, generator, side):
        mean, critic = nn.Parameter(torch.zeros(())), PlaneCritic(torch.zeros(8))
        found = toy_examples(generator)
        found = replace(found, latents=0 * found.latents + side, ends=0 * found.ends + side)
        read = lambda x, t: torch.zeros(len(x), 5) + 0 * x.sum()
        widening = widening_of(
            [mean], lambda noise, _: mean + 0.1 * noise, critic, read, found, generator, squares=0.0
        )  # fmt: skip
        for name, parameters in (("student", [mean]), ("critic", critic.parameters())):
            widening.optimizers[name] = adam(parameters, CPU, (0.0, 0.9))
            set_rate(widening.optimizers[name], 0.02)
        widening.step(0, alone=True)
        assert mean.item() == 0.0
        assert bool((critic.slope * side > 0).all())
        for number in range(1, 21):
            widening.step(number)
        assert mean.item() * side > 0.1

    def test_groups_hold_one_name_each_and_the_first_half_are_pairs(self, generator):
        found = toy_examples(generator)
        widening = idle(found, generator, groups=12)
        recombined = bare = 0
        rounds = 400
        for _ in range(rounds):
            groups = widening.places().unflatten(0, (12, GROUP))
            names = found.names[groups]
            assert bool((names == names[:, :1]).all())
            assert int(groups[:6].max()) < len(found.ends)
            assert int(groups[6:].min()) >= found.recombined
            assert all(len(set(group.tolist())) == GROUP for group in groups[:6])
            recombined += int((names[:6, 0] > 2).sum())
            bare += int(found.bare[groups[6:]].all(1).sum())
        # Each name has two bare pictures of eight, so other groups of four are never all bare.
        for count, share in ((recombined, 0.8), (bare, 0.5)):
            assert_within(count / (6 * rounds), share, (share * (1 - share) / (6 * rounds)) ** 0.5)

    def test_pictures_of_pairs_are_the_flows_or_painted_ones(self, generator):
        found = toy_examples(generator)
        found = replace(found, latents=torch.zeros(32, 2, 2, 2), ends=torch.ones(20, 2, 2, 2))
        widening = idle(found, generator, groups=2000)
        index = torch.full((2000 * GROUP,), 10)
        wanted = widening._wanted(index, found.ends[index[: widening.pairs]])
        flows = wanted.mean(dim=(1, 2, 3))
        assert set(flows.tolist()) == {0.0, 1.0}
        assert bool((flows[widening.pairs :] == 0).all())
        assert_within(flows[: widening.pairs].mean(), 0.5, 0.5 / widening.pairs**0.5)

    def test_the_critic_weighs_other_captions_and_every_second_step_a_penalty(
        self, generator, monkeypatch
    ):
        """A critic of captions alone tells no pictures apart, but captions by their logits."""

        found, totals = toy_examples(generator), []
        monkeypatch.setattr(objective, "roughness", lambda *_: torch.tensor(100.0))
        monkeypatch.setattr(objective, "descend", lambda _, loss, largest: totals.append(loss))
        slope, drawn = torch.randn(3, generator=generator), torch.zeros(16, 2, 2, 2)
        critic = PlaneCritic(slope)
        critic.forward = lambda features, about, pooled: pooled @ critic.slope
        student = [nn.Parameter(torch.zeros(()))]
        widening = widening_of(student, lambda *_: drawn, critic, None, found, generator)
        widening.places = lambda: torch.arange(16)
        for number in range(2):
            widening.step(number, alone=True)
        logits = found.seen[1][:16] @ slope
        mistaken = nn.functional.softplus(logits.roll(GROUP) - logits).mean()
        wanted = math.log(2) + 0.5 * mistaken.item()
        assert totals[0].item() == pytest.approx(wanted)
        assert totals[1].item() == pytest.approx(wanted + 2 * 0.08 * 2 * 100)

    def test_gradients_are_scaled_down_to_their_largest_norm(self):
        for largest, wanted in ((2.0, 2.0), (7.0, 5.0)):
            x = nn.Parameter(torch.zeros(2))
            descend(torch.optim.SGD([x], lr=1.0), 3 * x[0] + 4 * x[1], largest)
            assert float(x.detach().norm()) == pytest.approx(wanted, rel=1e-5)


class TestNames:
    def test_they_are_new_and_of_known_words(self, generator):
        own = load_names()
        names = recombined_names(own["train"], own["held_out"], 1000, generator)
        assert len(set(names)) == 1000
        assert not {*names} & {*own["train"], *own["held_out"]}
        words = {word for name in [*own["train"], *examples.COLORS] for word in name.split()}
        assert {word for name in names for word in name.split()} <= words
        assert all(len(set(name.split())) == len(name.split()) > 1 for name in names)

    def test_held_out_ones_are_left_out(self, generator):
        """Twelve colors and three words make 36 names, one of them learned and one held out."""

        learned, held_out = ["red apple", "sun", "cat"], ["blue sun"]
        names = recombined_names(learned, held_out, 34, generator)
        assert not {*names} & {"red apple", "blue sun"}
        with pytest.raises(ValueError, match="fewer than 35 others"):
            recombined_names(learned, held_out, 35, generator)


class TestReader:
    def test_logits_are_scaled_cosines(self, generator):
        with seeded(0):
            reader = Reader(2, 6, 4, 5, hidden=8).eval()
        features = torch.randn(3, 2, 4, 6, generator=generator)
        about, table = (torch.randn(n, w, generator=generator) for n, w in ((3, 6), (7, 5)))
        with torch.no_grad():
            found, seen = reader(features, about, table), reader.seen(features, about)
            names = reader.names(table)
            scale = reader.log_scale.exp()
        cosine = nn.functional.cosine_similarity(seen[:, None], names[None], dim=2)
        assert torch.allclose(found, scale * cosine, atol=1e-4)
        assert torch.allclose(seen.norm(dim=1), torch.ones(3))
        assert float(scale) == pytest.approx(math.exp(2.5))

    def test_it_learns_to_name_pictures(self, teacher_flow, generator):
        """Eight pictures of two names, far apart, against the chance of one half."""

        features = features_of(teacher_flow)
        names = torch.arange(8) % 2
        latents = torch.randn(2, 8, 8, 8, generator=generator)[names]
        table = torch.randn(2, 5, generator=generator)
        found = replace(toy_examples(generator), latents=latents, names=names, table=table)
        with seeded(0):
            reader = Reader(1, 32, 16, 5, hidden=16)
        train_reader(reader, features, found, 20, seed=0)
        reader.eval()
        with torch.no_grad():
            logits = reader(*features.without_captions(latents, torch.full((8,), 0.2)), table)
        assert torch.equal(logits.argmax(1), names)
