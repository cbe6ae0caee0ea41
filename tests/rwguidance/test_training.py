"""Training: batches, objectives by hand, resuming bit for bit, and the optimum of a toy problem."""

import math

import pytest
import torch
from torch import nn

from common import SCHEDULES, assert_within, randn
from problems import mixture
from rwguidance import Bank, DenoiserModel, Tilt
from rwguidance.estimators import LearnedExpectation, LearnedShift
from rwguidance.losses import contrastive
from rwguidance.networks import ExpectationMLP, ShiftMLP
from rwguidance.toy import GaussianMixture, Linear
from rwguidance.training import (
    ExpectationObjective,
    ShiftObjective,
    objectives,
    train,
    uniform_times,
)

LAW = mixture(3, 2)
TILT = Tilt(Linear([0.9, -0.6]), 1.5)
SCHEDULE = SCHEDULES["cosine"]
MODEL = LAW.model(SCHEDULE)
LABELS = ["cat", "dog", "owl"]


def make_bank(n=24, condition=None, rewards=None):
    x_0 = LAW.sample(n, torch.Generator().manual_seed(5))
    return Bank(x_0, condition, TILT.score(x_0) if rewards is None else rewards)


def make_network(seed=0, labels=None):
    return ExpectationMLP((2,), labels, width=8, depth=2, seed=seed).double()


def make_objective(**options):
    return ExpectationObjective(MODEL, make_bank(), TILT, batch_size=8, **options)


def rng(seed=0):
    return torch.Generator().manual_seed(seed)


class Ramp(nn.Module):
    """log h = v . x + u t, with a known gradient; remembers what it was called with."""

    def __init__(self):
        super().__init__()
        self.v = nn.Parameter(randn(1, 2))
        self.calls, self.recorded = [], []

    def forward(self, x_t, t, condition=None):
        self.calls.append((x_t.detach(), t, condition))
        self.recorded.append(torch.is_grad_enabled())
        return x_t @ self.v + 0.3 * t


def parameters(network):
    return nn.utils.parameters_to_vector(network.parameters()).detach()


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


# -- objectives ----------------------------------------------------------------------------------


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


# -- the loop ------------------------------------------------------------------------------------


class Interrupted(Exception):
    pass


def interrupted(objective, step):
    """The objective, until it is called for the `step`-th time."""

    calls = 0

    def call(network, generator):
        nonlocal calls
        if calls == step:
            raise Interrupted
        calls += 1
        return objective(network, generator)

    return call


SETTINGS = {"learning_rate": 1e-2, "seed": 4, "max_norm": 0.5}


def test_an_interrupted_run_ends_where_the_uninterrupted_one_does(tmp_path):
    objective = make_objective(eta=0.1)
    reference = make_network()
    losses = train(reference, objective, 20, **SETTINGS)
    assert losses.shape == (20,)
    assert losses.dtype == torch.float64
    for stop in (3, 6, 7, 13, 19):  # before the first save, at one, after one, mid-interval, last
        options = {**SETTINGS, "checkpoint": tmp_path / f"{stop}.pt", "save_every": 6}
        with pytest.raises(Interrupted):
            train(make_network(), interrupted(objective, stop), 20, **options)
        saved = stop - stop % 6
        assert (tmp_path / f"{stop}.pt").is_file() == (saved > 0)
        # a network of another seed: everything comes from the file, if there is one
        network = make_network(seed=9 if saved else 0)
        again = interrupted(objective, 20 - saved)  # no step is repeated that was saved
        assert torch.equal(train(network, again, 20, **options), losses)
        assert torch.equal(parameters(network), parameters(reference))


def test_a_run_may_be_interrupted_often(tmp_path):
    objective = make_objective()
    reference = make_network()
    losses = train(reference, objective, 12, **SETTINGS)
    options = {**SETTINGS, "checkpoint": tmp_path / "run.pt", "save_every": 2}
    for _ in range(5):
        with pytest.raises(Interrupted):
            train(make_network(), interrupted(objective, 3), 12, **options)
    network = make_network()
    assert torch.equal(train(network, objective, 12, **options), losses)
    assert torch.equal(parameters(network), parameters(reference))


def test_a_finished_run_is_only_read(tmp_path):
    options = {**SETTINGS, "checkpoint": tmp_path / "run.pt", "save_every": 4}
    network = make_network()
    losses = train(network, make_objective(), 6, **options)
    other = make_network(seed=9)
    assert torch.equal(train(other, interrupted(None, 0), 6, **options), losses)
    assert torch.equal(parameters(other), parameters(network))


def test_checkpoints_do_not_change_a_run(tmp_path):
    plain, saved = make_network(), make_network()
    losses = train(plain, make_objective(), 7, **SETTINGS)
    options = {"checkpoint": tmp_path / "run.pt", "save_every": 2}
    assert torch.equal(train(saved, make_objective(), 7, **SETTINGS, **options), losses)
    assert torch.equal(parameters(plain), parameters(saved))
    assert [path.name for path in tmp_path.iterdir()] == ["run.pt"]


@pytest.mark.parametrize(
    "changed", [{"steps": 7}, {"learning_rate": 2e-2}, {"seed": 5}, {"max_norm": None}]
)
def test_a_checkpoint_of_another_run_is_refused(tmp_path, changed):
    path = tmp_path / "run.pt"
    options = {"steps": 6, **SETTINGS}
    train(make_network(), make_objective(), checkpoint=path, **options)
    network = make_network(seed=9)
    before = parameters(network)
    content = path.read_bytes()
    (name,) = changed
    message = rf"made with .*'{name}': {options[name]}.*asks for .*'{name}': {changed[name]}"
    with pytest.raises(ValueError, match=rf"run\.pt was {message}.*or another file"):
        train(network, make_objective(), checkpoint=path, **{**options, **changed})
    assert torch.equal(parameters(network), before)
    assert path.read_bytes() == content


def test_a_failed_write_leaves_the_old_checkpoint(tmp_path, monkeypatch):
    path = tmp_path / "run.pt"
    objective = make_objective()
    reference = make_network()
    losses = train(reference, objective, 9, **SETTINGS)
    options = {**SETTINGS, "checkpoint": path, "save_every": 3}
    original, writes = torch.save, []

    def full_disk(state, file):
        writes.append(file)
        if len(writes) == 2:
            file.write_bytes(b"half a checkpo")
            raise OSError("no space left on device")
        original(state, file)

    with monkeypatch.context() as patch:
        patch.setattr(torch, "save", full_disk)
        with pytest.raises(OSError, match="no space left"):
            train(make_network(), objective, 9, **options)
    assert path not in writes
    assert torch.load(path, weights_only=True)["step"] == 3
    network = make_network(seed=9)
    assert torch.equal(train(network, objective, 9, **options), losses)
    assert torch.equal(parameters(network), parameters(reference))


def test_the_seed_decides_the_run():
    one, two, other = make_network(), make_network(), make_network()
    losses = train(one, make_objective(), 4, seed=1)
    assert torch.equal(train(two, make_objective(), 4, seed=1), losses)
    assert torch.equal(parameters(one), parameters(two))
    assert not torch.isclose(train(other, make_objective(), 4, seed=2), losses).any()
    assert not torch.equal(parameters(one), parameters(other))


@pytest.mark.parametrize("bad", [math.nan, math.inf])
def test_a_loss_that_is_not_finite_stops_the_run(bad, tmp_path):
    objective = make_objective(penalty=0.1)
    step = 0

    def sometimes(network, generator):
        nonlocal step
        terms = objective(network, generator)
        step += 1
        return {**terms, "loss": terms["loss"] * (bad if step == 4 else 1)}

    network, reference = make_network(), make_network()
    path = tmp_path / "run.pt"
    message = rf"not finite at step 3: .*'loss': -?{bad}.*'penalty': \d"
    with pytest.raises(FloatingPointError, match=message):
        train(network, sometimes, 6, checkpoint=path, save_every=1)
    with pytest.raises(Interrupted):
        train(reference, interrupted(objective, 3), 6)
    assert torch.equal(parameters(network), parameters(reference))  # no step was taken
    assert torch.load(path, weights_only=True)["step"] == 3


def test_the_reported_loss_is_the_sum_of_the_terms():
    objective, network = make_objective(penalty=3.0, eta=1.0), Ramp().double()
    terms = objective(network, rng(4))
    losses = train(network, objective, 1, seed=4)
    total = sum(value.detach() for value in terms.values())
    torch.testing.assert_close(losses[0], total, rtol=1e-14, atol=0)


def test_every_step_is_adam_with_a_cosine_rate():
    # Adam moves every parameter by the rate, in the direction of the sign, as long as the gradient
    # is constant: m / sqrt(v) = sign, up to Adam's epsilon of 1e-8
    network = Ramp()
    start = network.v.detach().clone()
    objective = lambda network, generator: {"loss": (network.v * torch.tensor([2.0, -3.0])).sum()}
    train(network, objective, 5, learning_rate=0.1)
    rates = [0.05 * (1 + math.cos(math.pi * step / 5)) for step in range(5)]
    expected = start - sum(rates) * torch.tensor([1.0, -1.0], dtype=torch.float64)
    torch.testing.assert_close(network.v.detach(), expected, rtol=0, atol=1e-8)


def test_max_norm_bounds_the_gradient():
    seen = []

    class Spy(nn.Module):
        def __init__(self):
            super().__init__()
            self.v = nn.Parameter(torch.tensor([3.0, -4.0], dtype=torch.float64))

    network = Spy()

    def objective(network, generator):
        if network.v.grad is not None:
            seen.append(network.v.grad.clone())
        return {"loss": 10 * network.v.square().sum()}

    train(network, objective, 3, max_norm=0.25)
    assert len(seen) == 2
    for gradient in seen:
        torch.testing.assert_close(gradient.norm().item(), 0.25, rtol=1e-6, atol=0)


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


def test_progress_is_shown_on_request(capsys):
    quiet, loud = make_network(), make_network()
    losses = train(quiet, make_objective(), 2)
    assert capsys.readouterr().out == ""
    assert torch.equal(train(loud, make_objective(), 2, progress=True), losses)
    assert "training" in capsys.readouterr().out


# -- errors --------------------------------------------------------------------------------------


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
        ({"group_size": 0}, "group_size must divide"),
    ],
)
def test_objectives_refuse(options, message):
    with pytest.raises(ValueError, match=message):
        ExpectationObjective(MODEL, make_bank(), TILT, **options)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"steps": 0}, "steps and save_every must be at least 1, got 0 and 500"),
        ({"steps": 1, "save_every": 0}, "must be at least 1, got 1 and 0"),
        ({"steps": 1, "learning_rate": 0.0}, "learning_rate must be positive, got 0.0"),
        ({"steps": 1, "learning_rate": math.nan}, "learning_rate must be positive, got nan"),
    ],
)
def test_train_refuses(options, message):
    with pytest.raises(ValueError, match=message):
        train(make_network(), make_objective(), **options)


def test_the_consistency_term_refuses_pure_noise():
    objective = make_objective(eta=0.1, times=lambda n, generator: torch.ones(n).double())
    with pytest.raises(ValueError, match="draw training times below 1"):
        objective(make_network(), rng())


# -- the optimum ---------------------------------------------------------------------------------

TWO = GaussianMixture(
    [0.0, 0.4], [[1.2, 0.4], [-0.9, -0.7]], [[[0.3, 0.1], [0.1, 0.2]], [[0.2, 0.0], [0.0, 0.4]]]
)
TWO_TILT = Tilt(Linear([1.0, -0.5]), 0.8)


def between(n, generator):
    return 0.2 + 0.7 * torch.rand(n, generator=generator, dtype=torch.float64)


def relative_error(estimator):
    """Root mean square error of the shift over states of the path, where no guidance has 1."""

    x_0 = TWO.sample(2000, rng(100))
    t = between(2000, rng(101))
    x_t = SCHEDULE.perturb(x_0, t, randn(102, 2000, 2))
    exact = TWO.shift(TWO_TILT, x_t, t, SCHEDULE)
    found = estimator(TWO.model(SCHEDULE), x_t, t).shift.detach()
    return ((found - exact).square().sum() / exact.square().sum()).sqrt().item()


@pytest.fixture(scope="module")
def trained():
    """A network for log h and the objectives' common options."""

    bank = Bank(TWO.sample(20_000, rng(1)))
    options = {"model": TWO.model(SCHEDULE), "bank": bank, "tilt": TWO_TILT, "times": between}
    network = ExpectationMLP((2,), width=48, depth=2).double()
    train(network, ExpectationObjective(**options), 400, learning_rate=1e-2)
    return network, options


def test_a_trained_expectation_is_near_the_oracle(trained):
    untrained = ExpectationMLP((2,), width=48, depth=2).double()
    assert relative_error(LearnedExpectation(untrained)) == 1
    assert relative_error(LearnedExpectation(trained[0])) < 0.25


@pytest.mark.parametrize("centered", [False, True])
def test_a_trained_shift_is_near_the_oracle(trained, centered):
    expectation, options = trained
    network = ShiftMLP((2,), SCHEDULE, width=48, depth=2).double()
    assert relative_error(LearnedShift(network)) == 1
    objective = ShiftObjective(**options, expectation=expectation if centered else None)
    train(network, objective, 300, learning_rate=1e-2)
    assert relative_error(LearnedShift(network)) < 0.25


def test_a_checkpoint_in_a_missing_folder_is_refused_before_any_step(tmp_path):
    def objective(network, generator):
        raise AssertionError("a step was taken")

    with pytest.raises(ValueError, match="checkpoint must lie in an existing folder, got"):
        train(ExpectationMLP((1,)), objective, 1, checkpoint=tmp_path / "missing" / "run.pt")
