"""Parts, processes, averages and the rest of a recipe: what a step is, and that runs go on."""

import json
import math
import sys

import pytest
import torch
from torch import nn

from processes_of_a_run import launch
from rwguidance.support.processes import joined
from rwguidance.support.randomness import seeded
from rwguidance.support.tensors import read_pickle
from rwguidance.training import Recipe, train
from rwguidance.training.recipe import InBfloat16
from training_problems import Ramp, make_network, make_objective, parameters

EVERYTHING = Recipe(parts=3, weight_decay=0.1, warm_up=4, average=0.9)


def constant(network, generator):
    return {"loss": (network.v * torch.tensor([2.0, -3.0])).sum()}


def test_a_step_follows_the_mean_of_its_parts():
    # Adam's first step tells signs alone, so the gradient itself is looked at.
    seen = []

    class Values(nn.Module):
        def __init__(self):
            super().__init__()
            self.v = nn.Parameter(torch.zeros(2, dtype=torch.float64))

    def objective(network, generator):
        target = torch.randn(2, generator=generator, dtype=torch.float64)
        seen.append(target)
        return {"loss": (network.v * target).sum() + 7, "more": target.sum()}

    network, told = Values(), []
    losses = train(
        network,
        objective,
        1,
        recipe=Recipe(parts=4),
        report=lambda step, figures: told.append((step, figures)),
    )
    assert len(seen) == 4
    assert len({float(target[0]) for target in seen}) == 4  # each part has numbers of its own
    mean = torch.stack(seen).mean(0)
    torch.testing.assert_close(network.v.grad, mean)
    expected = 7 + float(mean.sum())
    assert losses.dtype == torch.float64
    assert float(losses[0]) == pytest.approx(expected, rel=1e-14)
    ((step, figures),) = told
    assert step == 0
    assert figures["loss"] == pytest.approx(expected)
    assert figures["term more"] == pytest.approx(float(mean.sum()))
    assert figures["gradient norm"] == pytest.approx(float(mean.norm()))
    assert figures["learning rate"] == 1e-3


class TestValidation:
    """What looks at a network while it is trained."""

    def trained(self, steps=7, **options):
        network, told = make_network(), {}
        report = lambda step, figures: told.update({step: figures})
        train(network, make_objective(), steps, 0.01, recipe=EVERYTHING, report=report, **options)
        return network, told

    def test_it_is_asked_every_so_many_steps_and_after_the_last(self):
        validate = lambda network: {"seen": 1.0}
        _, told = self.trained(validate=validate, validate_every=3)
        assert [step for step, figures in told.items() if "seen" in figures] == [2, 5, 6]

    def test_it_sees_the_average_and_leaves_the_training_alone(self):
        seen = []

        def validate(network):
            seen.append([p.detach().clone() for p in network.parameters()])
            return {}

        plain, _ = self.trained()
        network, _ = self.trained(validate=validate, validate_every=2)
        for p, q in zip(plain.parameters(), network.parameters(), strict=True):
            assert torch.equal(p, q)
        for last, p in zip(seen[-1], network.parameters(), strict=True):
            assert torch.equal(last, p)  # at the end, the average is what is left
        assert any(not torch.equal(a, b) for a, b in zip(seen[0], seen[1], strict=True))

    def test_a_number_of_steps_below_one_is_refused(self):
        with pytest.raises(ValueError, match="validate_every must be"):
            self.trained(validate_every=0)


def test_the_first_part_is_a_training_without_parts():
    one, other = make_network(), make_network()
    losses = train(one, make_objective(), 3)
    assert torch.equal(train(other, make_objective(), 3, recipe=Recipe()), losses)
    assert not torch.equal(
        train(make_network(), make_objective(), 3, recipe=Recipe(parts=2)), losses
    )


def test_the_rate_warms_up():
    told = []
    report = lambda step, figures: told.append(figures["learning rate"])
    train(Ramp(), constant, 8, learning_rate=0.1, recipe=Recipe(warm_up=4), report=report)
    cosine = [0.05 * (1 + math.cos(math.pi * step / 8)) for step in range(8)]
    expected = [rate * min(1, (step + 1) / 4) for step, rate in enumerate(cosine)]
    assert told == pytest.approx(expected)


def test_weights_decay_apart_from_the_gradient():
    plain, decayed = Ramp(), Ramp()
    start = plain.v.detach().clone()
    decayed.load_state_dict(plain.state_dict())
    train(plain, constant, 1, learning_rate=0.1)
    train(decayed, constant, 1, learning_rate=0.1, recipe=Recipe(weight_decay=0.5))
    torch.testing.assert_close(plain.v - decayed.v, 0.05 * start)


def test_the_average_takes_the_place_of_the_weights():
    seen = []

    def objective(network, generator):
        seen.append(network.v.detach().clone())
        return constant(network, generator)

    plain, averaged = Ramp(), Ramp()
    averaged.load_state_dict(plain.state_dict())
    train(plain, objective, 5, learning_rate=0.1)
    weights = [*seen, plain.v.detach().clone()]
    train(averaged, constant, 5, learning_rate=0.1, recipe=Recipe(average=0.3))
    expected = weights[0]
    for n, value in enumerate(weights[1:]):
        decay = min(0.3, (1 + n) / (10 + n))
        expected = decay * expected + (1 - decay) * value
    torch.testing.assert_close(averaged.v.detach(), expected)
    assert not torch.allclose(averaged.v, plain.v)


def test_a_run_with_everything_goes_on_where_it_stopped(tmp_path):
    options = {"learning_rate": 1e-2, "seed": 4, "recipe": EVERYTHING}
    reference = make_network()
    losses = train(reference, make_objective(), 9, **options)
    objective, calls = make_objective(), 0

    class Stops:
        depends_on = ("objective",)

        def __init__(self):
            self.objective = objective

        def __call__(self, network, generator):
            nonlocal calls
            calls += 1
            if calls == 17:  # in the middle of a step
                raise KeyboardInterrupt
            return self.objective(network, generator)

    options |= {"checkpoint": tmp_path / "run.pt", "save_every": 2}
    with pytest.raises(KeyboardInterrupt):
        train(make_network(), Stops(), 9, **options)
    network = make_network(seed=9)
    assert torch.equal(train(network, Stops(), 9, **options), losses)
    assert torch.equal(parameters(network), parameters(reference))
    again = make_network(seed=5)  # of a finished run the averages are read as well
    train(again, Stops(), 9, **options)
    assert torch.equal(parameters(again), parameters(reference))
    averages = read_pickle(tmp_path / "run.pt")["averages"]
    assert averages
    assert not any(mean.requires_grad for mean in averages)


@pytest.mark.parametrize(
    "changed", [{"parts": 2}, {"weight_decay": 0.2}, {"warm_up": 1}, {"average": 0.5}]
)
def test_a_checkpoint_of_another_recipe_is_refused(tmp_path, changed):
    path = tmp_path / "run.pt"
    train(make_network(), make_objective(), 2, checkpoint=path)
    (name,) = changed
    with pytest.raises(ValueError, match=f"made with another {name}"):
        train(make_network(), make_objective(), 2, checkpoint=path, recipe=Recipe(**changed))


def test_a_checkpoint_tells_two_recipes_apart_that_are_not_plain(tmp_path):
    options = {"checkpoint": tmp_path / "run.pt"}
    train(make_network(), make_objective(), 2, recipe=Recipe(average=0.9), **options)
    with pytest.raises(ValueError, match=r"average was 0\.9, is 0\.5"):
        train(make_network(), make_objective(), 2, recipe=Recipe(average=0.5), **options)
    assert Recipe().settings == {}  # of a plain training no setting is told
    assert EVERYTHING.settings == {"parts": 3, "weight_decay": 0.1, "warm_up": 4, "average": 0.9}


def test_a_gradient_that_is_not_finite_ends_the_run_before_the_step(tmp_path):
    network = Ramp()
    with torch.no_grad():
        network.v.zero_()
    start = network.v.detach().clone()
    objective = lambda network, generator: {"loss": network.v.abs().sum().sqrt()}
    with pytest.raises(FloatingPointError, match=r"gradient of the loss is not finite at step 0"):
        train(network, objective, 2)
    assert torch.equal(network.v, start)


def test_bfloat16_is_for_the_network_alone():
    class Linear(nn.Module):
        def __init__(self):
            super().__init__()
            with seeded(0):
                self.layer = nn.Linear(3, 1, bias=False)

        def forward(self, x, t, condition=None):
            out = self.layer(x)
            seen.append(out.dtype)
            return out

    def objective(network, generator):
        x = torch.randn(4, 3, generator=generator)
        loss = (network(x, torch.zeros(4)) - (x @ torch.ones(3, 1))).square().mean()
        seen.append(loss.dtype)
        return {"loss": loss}

    seen = []
    network = Linear()
    full = train(network, objective, 2)
    assert set(seen) == {torch.float32}
    seen.clear()
    half = train(Linear(), objective, 2, recipe=Recipe(bfloat16=True))
    assert set(seen) == {torch.bfloat16, torch.float32}
    assert network.layer.weight.dtype == torch.float32
    wrapped = InBfloat16(network)
    assert wrapped(torch.ones(2, 3), torch.ones(2)).dtype == torch.float32
    assert not torch.equal(full, half)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"parts": 0}, "parts must be at least 1"),
        ({"weight_decay": -1.0}, "weight_decay must be"),
        ({"average": 1.0}, "average must lie in"),
        ({"warm_up": -1}, "warm_up must be at least 0"),
    ],
)
def test_recipes_that_make_no_sense_are_refused(options, message):
    with pytest.raises(ValueError, match=message):
        Recipe(**options)


def shared(path, steps):
    """A program: some steps of a training of four parts, shared by the processes there are."""

    with joined() as processes:
        network = make_network()
        recipe = Recipe(parts=4, average=0.9)
        losses = train(
            network,
            make_objective(eta=0.1),
            int(steps),
            learning_rate=1e-2,
            max_norm=0.5,
            checkpoint=path,
            save_every=2,
            recipe=recipe,
            processes=processes,
        )
        print(json.dumps([losses.tolist(), parameters(network).tolist()]))


def test_two_processes_take_the_steps_of_one(tmp_path):
    shared_run = launch(2, __file__, tmp_path / "two.pt", 6)
    (_, first, _), (_, second, _) = shared_run
    assert first == second
    losses, weights = map(torch.tensor, json.loads(first))
    network = make_network()
    options = {"learning_rate": 1e-2, "max_norm": 0.5}
    recipe = Recipe(parts=4, average=0.9)
    own = train(network, make_objective(eta=0.1), 6, recipe=recipe, **options)
    torch.testing.assert_close(losses.double(), own, rtol=1e-6, atol=1e-7)
    torch.testing.assert_close(weights.double(), parameters(network), rtol=1e-5, atol=1e-6)
    # One process goes on with what two have saved.
    state = torch.load(tmp_path / "two.pt", weights_only=True)
    assert state["step"] == 6
    assert len(state["generators"]) == 4
    read = make_network(seed=3)
    options |= {"checkpoint": tmp_path / "two.pt", "recipe": recipe}
    train(read, make_objective(eta=0.1), 6, **options)
    torch.testing.assert_close(parameters(read), parameters(network), rtol=1e-9, atol=1e-10)


def test_there_must_be_a_part_for_every_process():
    with pytest.raises(ValueError, match="one for each of the 2 processes, got 1"):
        Recipe().check_shared(2)


if __name__ == "__main__":
    shared(*sys.argv[1:])
