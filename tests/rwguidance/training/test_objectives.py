"""Objectives: batches, and terms by hand."""

import math

import pytest
import torch
from torch import nn

from common import assert_within, randn
from rwguidance import Bank, DenoiserModel
from rwguidance.losses import contrastive
from rwguidance.networks import ExpectationMLP
from rwguidance.training import (
    ExpectationObjective,
    ShiftObjective,
    objectives,
    train,
    uniform_times,
)
from training_problems import (
    LABELS,
    LAW,
    MODEL,
    SCHEDULE,
    TILT,
    Ramp,
    make_bank,
    make_network,
    make_objective,
    parameters,
    rng,
)

# -- batches -------------------------------------------------------------------------------------


def test_a_batch_is_noised_at_its_own_times():
    batch = make_objective().noised(rng())
    assert batch.t.shape == (8,)
    assert batch.t.dtype == torch.float64
    assert len(batch.t.unique()) == 8
    assert len(batch.noise.unique()) == 16
    alpha, sigma = torch.cos(torch.pi / 2 * batch.t), torch.sin(torch.pi / 2 * batch.t)
    expected = alpha[:, None] * batch.x_0 + sigma[:, None] * batch.noise
    torch.testing.assert_close(batch.x_t, expected, rtol=1e-13, atol=1e-13)


def test_every_draw_is_drawn_alike():
    objective = ExpectationObjective(MODEL, make_bank(5), TILT, batch_size=5000)
    x_0 = objective.noised(rng()).x_0
    counts = torch.stack([(x_0 == row).all(1).sum() for row in objective.bank.x_0])
    assert counts.sum() == 5000
    assert_within(counts / 5000, torch.full((5,), 0.2), (0.2 * 0.8 / 5000) ** 0.5)


def test_times_are_uniform():
    t = uniform_times(20_000, rng())
    assert t.shape == (20_000,)
    assert t.dtype == torch.float64
    assert 0.001 <= t.min() < 0.002
    assert 0.999 < t.max() < 1
    assert_within(t.mean(), 0.5005, 0.999 / (12 * 20_000) ** 0.5)
    assert torch.equal(t, uniform_times(20_000, rng()))


def test_conditions_travel_with_their_draws():
    condition = [LABELS[i % 3] for i in range(24)]  # interleaved: the bank reorders
    bank = make_bank(condition=condition)
    objective = ExpectationObjective(MODEL, bank, TILT, batch_size=64)
    batch = objective.noised(rng())
    assert set(batch.condition) == set(LABELS)
    x_0 = LAW.sample(24, rng(5))  # as the bank was made
    for label, x, log_w in zip(batch.condition, batch.x_0, batch.log_w, strict=True):
        (source,) = (x_0 == x).all(1).nonzero().flatten().tolist()
        assert condition[source] == label
        own = TILT(x_0[[i for i in range(24) if condition[i] == label]])
        expected = TILT(x[None])[0] - (own.logsumexp(0) - math.log(8))
        torch.testing.assert_close(log_w, expected, rtol=1e-12, atol=1e-12)


def test_the_model_and_the_network_see_the_condition():
    class Conditional(DenoiserModel):
        def denoise(self, x_t, t, condition=None):
            return torch.tensor([LABELS.index(key) for key in condition]).to(x_t)[:, None] + 0 * x_t

    bank = make_bank(condition=[LABELS[i % 3] for i in range(24)])
    objective = ExpectationObjective(Conditional(SCHEDULE), bank, TILT, batch_size=16)
    batch = objective.noised(rng())
    expected = torch.tensor([LABELS.index(key) for key in batch.condition]).double()
    assert torch.equal(objective.base(batch).mean, expected[:, None].expand(16, 2))
    network = Ramp()
    objective(network, rng())
    assert network.calls[0][2] == batch.condition
    assert torch.equal(network.calls[0][0], batch.x_t)


def test_groups_share_their_time_and_condition():
    condition = ["cat"] * 16 + ["dog"] * 6 + ["owl"] * 2
    shapes = []

    def loss(log_h, log_w):
        shapes.append((log_h.shape, log_w.shape))
        return contrastive(log_h, log_w)

    bank = make_bank(condition=condition)
    objective = ExpectationObjective(MODEL, bank, TILT, loss=loss, group_size=4, batch_size=4 * 500)
    network = Ramp()
    assert objective(network, rng())["loss"].isfinite()
    assert shapes == [((500, 4), (500, 4))]
    x_t, t, seen = network.calls[0]
    assert torch.equal(t.reshape(500, 4), t[::4, None].expand(500, 4))
    assert len(t.unique()) == 500
    assert len(x_t.unique()) == 4000
    groups = [set(seen[4 * i : 4 * i + 4]) for i in range(500)]
    assert all(len(group) == 1 for group in groups)
    # a condition is drawn in proportion to its draws
    for label, share in (("cat", 16 / 24), ("dog", 6 / 24), ("owl", 2 / 24)):
        found = sum(group == {label} for group in groups) / 500
        assert_within(found, share, (share * (1 - share) / 500) ** 0.5)
    # and every draw belongs to its group's condition
    batch = objective._grouped(rng())
    of = {tuple(x.tolist()): key for x, key in zip(bank.x_0, bank.condition, strict=True)}
    assert [of[tuple(x.tolist())] for x in batch.x_0] == batch.condition
    assert len({tuple(x.tolist()) for x in batch.x_0}) == 24


def test_weights_have_mean_one_under_every_condition():
    bank = make_bank(condition=["cat"] * 5 + ["dog"] * 19)
    log_w = ExpectationObjective(MODEL, bank, TILT).log_w
    for rows in bank.rows.values():
        assert abs(log_w[rows].exp().mean() - 1) < 1e-13
        # and only a constant was subtracted
        assert (log_w[rows] - TILT(bank.x_0[rows])).std() < 1e-13


def test_zero_weights_are_kept_and_a_hopeless_condition_is_refused():
    rewards = make_bank().rewards.clone()
    rewards[::3] = -math.inf
    bank = make_bank(condition=["cat", "dog"] * 12, rewards=rewards)
    objective = ExpectationObjective(MODEL, bank, TILT, batch_size=8)
    assert int((objective.log_w == -math.inf).sum()) == 8
    assert bool(train(make_network(labels=["cat", "dog"]), objective, 3).isfinite().all())

    rewards[1::2] = -math.inf
    bank = make_bank(condition=["cat", "dog"] * 12, rewards=rewards)
    with pytest.raises(ValueError, match=r"every reward of condition 'dog' is -inf"):
        ExpectationObjective(MODEL, bank, TILT)


def test_an_unscored_bank_is_scored():
    scored = ExpectationObjective(MODEL, make_bank(), TILT)
    bare = ExpectationObjective(MODEL, Bank(make_bank().x_0), TILT)
    assert torch.equal(scored.log_w, bare.log_w)


def test_offsets_of_the_reward_do_not_matter():
    condition = ["cat"] * 10 + ["dog"] * 14
    rewards = make_bank().rewards
    offset = torch.where(torch.arange(24) < 10, 30.0, -7.0).double()
    networks = [make_network(labels=["cat", "dog"]) for _ in range(3)]
    results = []
    for network, moved in zip(networks, (0.0, 4.0, offset), strict=True):
        bank = make_bank(condition=condition, rewards=rewards + moved)
        objective = ExpectationObjective(MODEL, bank, TILT, batch_size=8)
        results.append((objective.log_w, train(network, objective, 10, learning_rate=1e-2)))
    for network, (log_w, losses) in zip(networks[1:], results[1:], strict=True):
        torch.testing.assert_close(log_w, results[0][0], rtol=0, atol=1e-13)
        # Adam divides by at least 1e-8: a rounding of 1e-14 moves a step by at most 1e-2 * 1e-6
        torch.testing.assert_close(losses, results[0][1], rtol=0, atol=1e-7)
        torch.testing.assert_close(parameters(network), parameters(networks[0]), rtol=0, atol=1e-7)


# -- terms ---------------------------------------------------------------------------------------


def test_the_terms_are_their_formulas():
    classifier = lambda x_t, t, condition: x_t.square().sum(1) - t
    objective = make_objective(eta=0.7, penalty=0.2, cycle_weight=0.4, classifier=classifier)
    network = Ramp()
    batch = objective.noised(rng(3))
    terms = objective(network, rng(3))
    sigma = torch.sin(torch.pi / 2 * batch.t)[:, None]
    v, w = network.v, batch.log_w.exp()
    log_h = batch.x_t @ v + 0.3 * batch.t
    guided = MODEL(batch.x_t, batch.t).noise - sigma * v  # eps - s grad f
    expected = {
        "loss": (w * torch.exp(-log_h) + log_h).mean(),
        "penalty": 0.2 * (sigma * v).square().mean(),
        "consistency": 0.7 * (w * (guided - batch.noise).square().mean(1)).mean(),
        "cycle": 0.4 * (w * (log_h - classifier(batch.x_t, batch.t, None)).square()).mean(),
    }
    assert set(terms) == set(expected)
    for name, value in expected.items():
        torch.testing.assert_close(terms[name], value, rtol=1e-12, atol=1e-12)


def test_preferred_samples_enter_as_they_are(monkeypatch):
    point = torch.tensor([[0.7, -1.1]], dtype=torch.float64)
    objective = make_objective(eta=0.5, preferred=Bank(point))
    network, values = Ramp(), []
    original = objectives.consistency

    def spy(guided, noise, log_w=None):
        assert log_w is None
        values.append((guided, noise, original(guided, noise)))
        return values[-1][2]

    monkeypatch.setattr(objectives, "consistency", spy)
    terms = objective(network, rng())
    ((guided, noise, value),) = values
    x_t, t, _ = network.calls[1]
    alpha, sigma = torch.cos(torch.pi / 2 * t)[:, None], torch.sin(torch.pi / 2 * t)[:, None]
    assert len(t.unique()) == 8
    torch.testing.assert_close(x_t, alpha * point + sigma * noise, rtol=1e-12, atol=1e-12)
    expected = MODEL(x_t, t).noise - sigma * network.v
    torch.testing.assert_close(guided.noise, expected, rtol=1e-10, atol=1e-10)
    assert torch.equal(terms["consistency"], 0.5 * value.mean())


@pytest.mark.parametrize(
    "options",
    [{"eta": 0.0}, {"eta": 0.0, "preferred": Bank(randn(1, 4, 2))}, {"penalty": 0.0}],
    ids=["eta", "preferred", "penalty"],
)
def test_a_weight_of_zero_is_off_bit_for_bit(options, monkeypatch):
    plain = make_network()
    losses = train(plain, make_objective(), 5)

    def refuse(*arguments):
        raise AssertionError("a term of weight zero was computed")

    for name in ("consistency", "gradient_penalty", "differentiable_gradient", "cycle"):
        monkeypatch.setattr(objectives, name, refuse)
    network = make_network()
    assert torch.equal(train(network, make_objective(**options), 5), losses)
    assert torch.equal(parameters(network), parameters(plain))


@pytest.mark.parametrize("name", ["eta", "penalty"])
def test_the_input_gradient_trains_the_parameters(name):
    # the terms alone, without the loss: against finite differences in every parameter
    objective = make_objective(**{name: 1.0})
    term = {"eta": "consistency", "penalty": "penalty"}[name]
    network = make_network()
    vector = parameters(network) + 0.3 * randn(4, len(parameters(network)))

    def value(vector):
        nn.utils.vector_to_parameters(vector, network.parameters())
        return objective(network, rng(1))[term]

    network.zero_grad()
    value(vector).backward()
    gradients = [torch.zeros_like(p) if p.grad is None else p.grad for p in network.parameters()]
    found = nn.utils.parameters_to_vector(gradients)
    assert found.norm() > 1e-3
    for direction in randn(5, 4, len(vector)):
        step = 1e-4 * direction
        difference = (value(vector + step) - value(vector - step)).detach() / 2e-4
        # the error of the difference is of order (1e-4)^2 in the units of the value
        torch.testing.assert_close(found @ direction, difference, rtol=1e-6, atol=1e-7)
        assert difference.abs() > 1e-4


def test_the_model_keeps_no_graph_though_it_learns():
    class Scaled(DenoiserModel):
        def __init__(self):
            super().__init__(SCHEDULE)
            self.scale = nn.Parameter(torch.ones(()))

        def denoise(self, x_t, t, condition):
            return self.scale * x_t

    objective = ShiftObjective(Scaled(), make_bank(), TILT, batch_size=8)
    prediction = objective.base(objective.noised(rng()))
    assert not prediction.mean.requires_grad


def test_the_shift_objective_is_its_formula():
    class Shift(nn.Module):
        def __init__(self):
            super().__init__()
            self.a = nn.Parameter(randn(2, 2, 2))

        def forward(self, x_t, t, condition=None):
            return x_t @ self.a

    network, ramp = Shift(), Ramp()
    objective = ShiftObjective(MODEL, make_bank(), TILT, batch_size=8)
    batch = objective.noised(rng(2))
    shift, mean = batch.x_t @ network.a, MODEL(batch.x_t, batch.t).mean
    w = batch.log_w.exp()[:, None]
    terms = objective(network, rng(2))
    assert set(terms) == {"loss"}
    expected = (w * (shift + mean - batch.x_0).square()).mean()
    torch.testing.assert_close(terms["loss"], expected, rtol=1e-12, atol=0)

    centered = ShiftObjective(MODEL, make_bank(), TILT, expectation=ramp, batch_size=8)
    loss = centered(network, rng(2))["loss"]
    h = torch.exp(batch.x_t @ ramp.v + 0.3 * batch.t)[:, None]
    expected = (shift - (w / h - 1) * (batch.x_0 - mean)).square().mean()
    torch.testing.assert_close(loss, expected, rtol=1e-12, atol=0)
    loss.backward()
    assert ramp.v.grad is None
    assert ramp.recorded == [False]  # nor is a graph kept for it
    assert network.a.grad.abs().max() > 0


def test_float32_networks_train_on_float64_rewards():
    bank = make_bank()
    bank = Bank(bank.x_0.float(), rewards=bank.rewards)
    objective = ExpectationObjective(MODEL, bank, TILT, eta=0.1, penalty=0.1, batch_size=8)
    network = ExpectationMLP((2,), width=8)
    assert bool(train(network, objective, 3).isfinite().all())
    assert {p.dtype for p in network.parameters()} == {torch.float32}


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"batch_size": 0}, "batch_size must be at least 1, got 0"),
        ({"eta": -0.1}, "eta must be at least 0, got -0.1"),
        ({"eta": math.nan}, "eta must be at least 0, got nan"),
        ({"penalty": math.inf}, "penalty must be at least 0, got inf"),
        ({"cycle_weight": -1.0}, "cycle_weight must be at least 0, got -1.0"),
        ({"cycle_weight": 1.0}, "cycle_weight and classifier must be given together"),
        ({"classifier": nn.Identity()}, "cycle_weight and classifier must be given together"),
        ({"group_size": 3, "batch_size": 8}, "group_size must divide batch_size=8, got group_size"),
        ({"group_size": 0}, "group_size must be at least 1"),
    ],
)
def test_objectives_refuse(options, message):
    with pytest.raises(ValueError, match=message):
        ExpectationObjective(MODEL, make_bank(), TILT, **options)


def test_the_consistency_term_refuses_pure_noise():
    objective = make_objective(eta=0.1, times=lambda n, generator: torch.ones(n).double())
    with pytest.raises(ValueError, match="draw training times below 1"):
        objective(make_network(), rng())
