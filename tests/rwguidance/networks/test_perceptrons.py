"""Perceptrons: where they start, what they depend on, what they refuse."""

import pytest
import torch
from safetensors.torch import load_file, save_file

from common import SCHEDULES, randn
from rwguidance.networks import ExpectationMLP, ShiftMLP

EVENTS = [(3,), (2, 2, 3)]
LABELS = ["cat", "dog", "owl"]


def build(kind, event=(3,), labels=None, seed=0, schedule=None, depth=2):
    if kind == "expectation":
        return ExpectationMLP(event, labels, width=16, depth=depth, seed=seed).double()
    schedule = SCHEDULES["cosine"] if schedule is None else schedule
    return ShiftMLP(event, schedule, labels, width=16, depth=depth, seed=seed).double()


def awake(network, seed=1):
    """The same network with a last layer that is not zero."""

    for i, parameter in enumerate(network.trunk.last.parameters()):
        parameter.data = randn(seed + i, *parameter.shape)
    return network


def inputs(event, n=5):
    return randn(3, n, *event), torch.linspace(0.05, 0.95, n, dtype=torch.float64)


@pytest.fixture(params=["expectation", "shift"])
def kind(request):
    return request.param


@pytest.mark.parametrize("labels", [None, LABELS])
@pytest.mark.parametrize("event", EVENTS)
def test_training_starts_from_no_guidance(kind, event, labels):
    x, t = inputs(event)
    out = build(kind, event, labels)(x, t, None if labels is None else ["dog"] * len(x))
    assert torch.equal(out, torch.zeros_like(x) if kind == "shift" else x.new_zeros(len(x)))


def test_a_perceptron_is_the_residual_one_that_weights_are_stored_for(kind):
    network = awake(build(kind, labels=LABELS, depth=3))
    (x, t), labels, trunk = inputs((3,)), ["owl", "cat", "owl", "dog", "cat"], network.trunk
    silu = lambda value: value / (1 + (-value).exp())
    angles = torch.pi / 2 * t[:, None] * torch.arange(1, 17)
    hidden = torch.cat((x, angles.sin(), angles.cos()), 1) @ trunk.first.weight.T
    hidden = hidden + trunk.first.bias + trunk.embedding.weight[[2, 0, 2, 1, 0]]
    for layer in trunk.hidden:
        hidden = hidden + silu(hidden) @ layer.weight.T + layer.bias
    out = silu(hidden) @ trunk.last.weight.T + trunk.last.bias
    # Of the cosine path, sigma^2 is the variance in front of a shift.
    expected = (torch.pi / 2 * t).sin().square()[:, None] * out if kind == "shift" else out[:, 0]
    assert len(trunk.hidden) == 2
    torch.testing.assert_close(network(x, t, labels), expected, rtol=1e-10, atol=1e-12)


@pytest.mark.parametrize("depth", [1, 3])
def test_the_first_step_of_training_already_has_a_gradient(kind, depth):
    network = build(kind, depth=depth)
    (network(*inputs((3,))) - 1).square().sum().backward()
    assert network.trunk.last.weight.grad.abs().max() > 0
    assert len(network.trunk.hidden) == depth - 1


def test_the_seed_alone_decides_the_weights(kind):
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(1)
        one = build(kind, labels=LABELS).state_dict()
        state = torch.random.get_rng_state()
        torch.manual_seed(2)
        two = build(kind, labels=LABELS).state_dict()
        torch.manual_seed(1)
        build(kind, labels=LABELS, seed=9)
        assert torch.equal(torch.random.get_rng_state(), state)
    other = build(kind, labels=LABELS, seed=1).state_dict()
    for name in one:
        assert torch.equal(one[name], two[name])
        assert ".last." in name or not torch.equal(one[name], other[name])


def test_a_network_does_not_seed_the_accelerators(monkeypatch, kind):
    def refuse(seed):
        raise AssertionError("the accelerators' generators were seeded")

    monkeypatch.setattr(torch.cuda, "manual_seed_all", refuse)
    monkeypatch.setattr(torch, "manual_seed", refuse)
    build(kind)


@pytest.mark.parametrize("event", EVENTS)
def test_a_batch_equals_its_samples(kind, event):
    network = awake(build(kind, event, LABELS))
    x, t = inputs(event)
    condition = ["cat", "owl", "owl", "dog", "cat"]
    together = network(x, t, condition)
    alone = [network(x[i : i + 1], t[i : i + 1], [condition[i]]) for i in range(len(x))]
    torch.testing.assert_close(together, torch.cat(alone), rtol=1e-12, atol=1e-12)
    assert together.shape == (x.shape if kind == "shift" else (len(x),))


def test_the_output_depends_on_the_state_the_time_and_the_label(kind):
    network = awake(build(kind, labels=LABELS))
    x, t = inputs((3,))
    condition = ["cat"] * len(x)
    out = network(x, t, condition).flatten(0)
    for changed in (
        network(x + 0.1, t, condition),
        network(x, t + 0.01, condition),
        network(x, t, ["dog"] * len(x)),
    ):
        assert (changed.flatten(0) - out).abs().min() > 1e-6


def test_the_two_ends_of_time_are_told_apart(kind):
    network, x = awake(build(kind, schedule=SCHEDULES["ve"])), randn(0, 1, 3).expand(101, 3)
    out = network(x, torch.linspace(0, 1, 101, dtype=torch.float64)).reshape(101, -1)
    assert torch.pdist(out).min() > 1e-6


def test_labels_may_be_a_tensor(kind):
    network = awake(build(kind, labels=[7, 3]))
    x, t = inputs((3,), n=4)
    labels = [3, 7, 7, 3]
    assert torch.equal(network(x, t, torch.tensor(labels)), network(x, t, labels))
    swapped = network(x, t, [7, 3, 3, 7])
    assert not torch.isclose(network(x, t, labels), swapped).any()


def test_unknown_labels_are_named(kind):
    x, t = inputs((3,), n=3)
    network = build(kind, labels=LABELS)
    with pytest.raises(ValueError, match=r"\['cat', 'dog', 'owl'\], got \['cow', 'fox'\]"):
        network(x, t, ["cow", "fox", "cow"])
    with pytest.raises(ValueError, match=r"got \['cow'\]"):
        network(x, t, ["cat", "cow", "dog"])
    with pytest.raises(ValueError, match="got None"):
        network(x, t)
    with pytest.raises(ValueError, match="one item per sample, 3, got 2"):
        network(x, t, ["cat", "dog"])


def test_without_labels_the_condition_is_ignored(kind):
    network = awake(build(kind))
    x, t = inputs((3,))
    assert torch.equal(network(x, t, ["anything"] * len(x)), network(x, t))


def test_it_is_differentiable_twice(kind):
    network = awake(build(kind))
    x, t = inputs((3,), n=2)
    x.requires_grad_()
    with torch.random.fork_rng(devices=[]):  # the check draws directions
        torch.manual_seed(0)
        assert torch.autograd.gradcheck(lambda x: network(x, t), (x,))
        assert torch.autograd.gradgradcheck(lambda x: network(x, t), (x,))


def test_the_shift_has_the_size_of_the_posterior_variance(schedule):
    network = build("shift", (2, 2), schedule=schedule)
    torch.nn.init.ones_(network.trunk.last.bias)
    t = torch.linspace(0, 1, 9, dtype=torch.float64)
    x = randn(0, 9, 2, 2)
    scales = schedule.at(t, like=x)
    variance = 1 / (1 + (scales.alpha / scales.sigma) ** 2)  # unit prior, seen through the noise
    torch.testing.assert_close(network(x, t), variance.expand_as(x), rtol=1e-12, atol=1e-15)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_the_output_has_the_dtype_of_the_network(kind, dtype):
    x, t = inputs((3,))
    assert build(kind).to(dtype)(x.to(dtype), t).dtype == dtype


def test_the_weights_survive_safetensors(kind, tmp_path):
    network = awake(build(kind, labels=LABELS))
    save_file(network.state_dict(), tmp_path / "network.safetensors")
    other = build(kind, labels=LABELS, seed=5)
    other.load_state_dict(load_file(tmp_path / "network.safetensors"))
    x, t = inputs((3,))
    assert torch.equal(other(x, t, LABELS + LABELS[:2]), network(x, t, LABELS + LABELS[:2]))
