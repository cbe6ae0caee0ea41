"""The training loop: Adam by hand, and runs that resume bit for bit."""

import math
import re

import pytest
import torch
from torch import nn
from torch.optim.optimizer import register_optimizer_step_pre_hook

from rwguidance import Tilt, VPSchedule, toy
from rwguidance.losses import log_mse
from rwguidance.networks import ExpectationMLP, ShiftMLP
from rwguidance.support import files
from rwguidance.training import ExpectationObjective, ShiftObjective, origin, train
from training_problems import (
    MODEL,
    TILT,
    Ramp,
    make_bank,
    make_network,
    make_objective,
    parameters,
    rng,
)


class Interrupted(Exception):
    pass


class interrupted:
    """The objective, until it is called for the `step`-th time."""

    depends_on = ("objective",)

    def __init__(self, objective, step):
        self.objective, self.step, self.calls = objective, step, 0

    def __call__(self, network, generator):
        if self.calls == self.step:
            raise Interrupted
        self.calls += 1
        return self.objective(network, generator)


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
    last = interrupted(objective, 12)
    options = {**SETTINGS, "checkpoint": tmp_path / "run.pt", "save_every": 2}
    for _ in range(5):
        with pytest.raises(Interrupted):
            train(make_network(), interrupted(objective, 3), 12, **options)
    network = make_network()
    assert torch.equal(train(network, last, 12, **options), losses)
    assert torch.equal(parameters(network), parameters(reference))


def test_a_finished_run_is_only_read(tmp_path):
    options = {**SETTINGS, "checkpoint": tmp_path / "run.pt", "save_every": 4}
    network = make_network()
    losses = train(network, interrupted(make_objective(), 6), 6, **options)
    other = make_network(seed=9)
    assert torch.equal(train(other, interrupted(make_objective(), 0), 6, **options), losses)
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
    message = rf"made with another {name}: {name} was {options[name]}, is {changed[name]}"
    with pytest.raises(ValueError, match=rf"run\.pt was {message}.*or another file"):
        train(network, make_objective(), checkpoint=path, **{**options, **changed})
    assert torch.equal(parameters(network), before)
    assert path.read_bytes() == content


class FixedTimes:
    depends_on = ("t",)

    def __init__(self, t):
        self.t = t

    def __call__(self, n, generator):
        return torch.full((n,), self.t, dtype=torch.float64)


@pytest.mark.parametrize(
    ("names", "network", "objective"),
    [
        ("betas, log_w", {}, {"tilt": Tilt(toy.Linear([1.0, 0.5]), 0.1)}),
        ("bank, log_w", {}, {"bank": make_bank(n=20)}),
        ("batch_size", {}, {"batch_size": 16}),
        (
            "model",
            {},
            {"model": toy.Gaussian([0.0, 0.0], torch.eye(2)).model(VPSchedule(0.1, 9.0))},
        ),
        ("network", {"width": 24}, {}),
        ("eta", {}, {"eta": 0.1}),
        ("loss", {}, {"loss": log_mse}),
        ("times", {}, {"times": FixedTimes(0.5)}),
    ],
)
def test_a_checkpoint_of_another_training_is_refused_by_name(tmp_path, names, network, objective):
    path = tmp_path / "run.pt"
    make = lambda **options: ExpectationObjective(
        **{"model": MODEL, "bank": make_bank(), "tilt": TILT, "batch_size": 8, **options}
    )
    net = lambda **options: ExpectationMLP((2,), **{"width": 16, **options}).double()
    losses = train(net(), make(), 4, checkpoint=path)
    content = path.read_bytes()
    with pytest.raises(ValueError, match=f"made with another {names}: "):
        train(net(**network), make(**objective), 4, checkpoint=path)
    assert path.read_bytes() == content
    assert torch.equal(train(net(), make(), 4, checkpoint=path), losses)


def test_keys_that_came_or_went_are_named_by_their_beginning():
    was, now = "0123456789abcdef" * 4, "fedcba9876543210" * 4
    found = {"steps": "4", "objective.bank": was, "seed": was[:20]}
    expected = {"steps": "4", "objective.tilt": now, "seed": "0 of more"}
    message = (
        "made with another tilt, seed, bank: tilt was not there, is fedcba987654; "
        "seed was 0123456789abcdef0123, is 0; bank was 0123456789ab, is not there. Use the same"
    )
    with pytest.raises(ValueError, match=re.escape(message)):
        origin.check_origin("run.pt", found, expected)
    with pytest.raises(ValueError, match="; loss cannot be told apart, as the class does not say"):
        origin.check_origin("run.pt", {"loss": "undescribed function 1 2"}, {"loss": now})


def test_another_class_of_objective_is_refused(tmp_path):
    path = tmp_path / "run.pt"
    objective = ShiftObjective(MODEL, make_bank(), TILT)
    train(ShiftMLP((2,), MODEL.schedule).double(), objective, 2, checkpoint=path)
    with pytest.raises(ValueError, match=r"made with another network, objective, .*loss"):
        train(make_network(), make_objective(), 2, checkpoint=path)


def test_what_does_not_say_what_it_depends_on_is_known_as_the_object_that_it_is(tmp_path):
    path = tmp_path / "run.pt"
    make = lambda: lambda network, generator: {"loss": network.v.square().sum()}
    objective = make()
    losses = train(Ramp(), objective, 3, checkpoint=path)
    assert torch.equal(train(Ramp(), objective, 3, checkpoint=path), losses)
    with pytest.raises(ValueError, match=r"another objective.*cannot be told apart.*depends_on"):
        train(Ramp(), make(), 3, checkpoint=path)
    state = torch.load(path, weights_only=True)
    state["origin"] = {
        name: key.replace(origin._PROCESS, "0" * 32) for name, key in state["origin"].items()
    }
    torch.save(state, path)  # as another process would have written it
    with pytest.raises(ValueError, match=r"another network, objective.*depends_on"):
        train(Ramp(), objective, 3, checkpoint=path)


def test_a_finished_training_removes_what_a_killed_one_has_left(tmp_path):
    path = tmp_path / "run.pt"
    losses = train(make_network(), make_objective(), 2, checkpoint=path)
    left = tmp_path / f"run.pt.{files._HOST}-0123abcd.partial"  # killed after its last rename
    left.mkdir()
    assert torch.equal(train(make_network(), make_objective(), 2, checkpoint=path), losses)
    assert [found.name for found in tmp_path.iterdir()] == ["run.pt"]


def test_a_checkpoint_of_an_older_version_is_refused(tmp_path):
    path = tmp_path / "run.pt"
    train(make_network(), make_objective(), 2, checkpoint=path)
    state = torch.load(path, weights_only=True)
    state["settings"] = state.pop("origin")
    torch.save(state, path)
    with pytest.raises(ValueError, match="older version: delete it"):
        train(make_network(), make_objective(), 2, checkpoint=path)


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


def test_losses_are_kept_in_double_precision():
    exact = 1 + 2.0**-40
    objective = lambda network, generator: {"loss": network.v.sum() * 0 + exact}
    assert train(Ramp(), objective, 2).tolist() == [exact, exact]


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

    objective = lambda network, generator: {"loss": 10 * network.v.square().sum()}
    hook = register_optimizer_step_pre_hook(lambda *_: seen.append(network.v.grad.clone()))
    try:
        train(network, objective, 3, max_norm=0.25)
    finally:
        hook.remove()
    assert len(seen) == 3
    for gradient in seen:
        torch.testing.assert_close(gradient.norm().item(), 0.25, rtol=1e-6, atol=0)


def test_progress_is_shown_on_request(capsys):
    quiet, loud = make_network(), make_network()
    losses = train(quiet, make_objective(), 2)
    assert capsys.readouterr().out == ""
    assert torch.equal(train(loud, make_objective(), 2, progress=True), losses)
    assert "training" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"steps": 0}, "steps must be at least 1, got 0"),
        ({"steps": 1, "save_every": 0}, "save_every must be at least 1, got 0"),
        ({"steps": 1, "learning_rate": 0.0}, "learning_rate must be positive and finite, got 0.0"),
        (
            {"steps": 1, "learning_rate": math.nan},
            "learning_rate must be positive and finite, got nan",
        ),
    ],
)
def test_train_refuses(options, message):
    with pytest.raises(ValueError, match=message):
        train(make_network(), make_objective(), **options)


def test_a_checkpoint_in_a_missing_folder_is_refused_before_any_step(tmp_path):
    def objective(network, generator):
        raise AssertionError("a step was taken")

    with pytest.raises(ValueError, match="checkpoint must lie in an existing folder, got"):
        train(ExpectationMLP((1,)), objective, 1, checkpoint=tmp_path / "missing" / "run.pt")
