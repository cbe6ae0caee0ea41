"""Networks for latents: where they start, what they depend on, refuse, and how they are stored."""

import json

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file

from backbones import TextCondition
from common import SCHEDULES, randn
from rwguidance import (
    Bank,
    CosineSchedule,
    DenoiserModel,
    LearnedExpectation,
    LearnedShift,
    Tilt,
    networks,
    toy,
)
from rwguidance.networks import LatentExpectation, LatentShift
from rwguidance.support.conditions import lookup
from rwguidance.training import ExpectationObjective, ShiftObjective, train

CLASSES = {"expectation": LatentExpectation, "shift": LatentShift}
TEXT = 6


@pytest.fixture(params=["expectation", "shift"])
def kind(request):
    return request.param


def build_latent(kind, channels=4, text=None, schedule=None, seed=0, widths=(8, 16, 24)):
    schedule = SCHEDULES["cosine"] if schedule is None else schedule
    return CLASSES[kind](channels, schedule, text, widths, depth=1, seed=seed).double()


def awake_latent(network, seed=1):
    """The same network with a last layer that is not zero."""

    for i, parameter in enumerate(network.last.parameters()):
        parameter.data = 0.1 * randn(seed + i, *parameter.shape).to(parameter)
    return network


def latents(n=3, channels=4, height=8, width=8):
    return randn(3, n, channels, height, width), torch.linspace(0.1, 0.9, n, dtype=torch.float64)


def prompts_of(n, seed=7):
    return TextCondition(tuple(f"prompt {i}" for i in range(n)), {"pooled": randn(seed, n, TEXT)})


@pytest.mark.parametrize(("channels", "height", "width"), [(4, 8, 8), (16, 4, 12), (4, 7, 5)])
@pytest.mark.parametrize("text", [None, TEXT])
def test_latents_of_any_size_start_from_no_guidance(kind, channels, height, width, text):
    network = build_latent(kind, channels, text)
    x, t = latents(3, channels, height, width)
    condition = None if text is None else prompts_of(3)
    out = network(x, t, condition)
    assert torch.equal(out, torch.zeros_like(x) if kind == "shift" else x.new_zeros(len(x)))
    out = awake_latent(network)(x, t, condition)
    assert out.shape == (x.shape if kind == "shift" else (len(x),))
    assert out.abs().min() > 0


@pytest.mark.parametrize(
    ("kind", "channels", "text", "millions"),
    [
        ("shift", 4, 1280, 17.884),
        ("shift", 16, 2048, 18.293),
        ("expectation", 4, 1280, 16.918),
        ("expectation", 16, 2048, 17.320),
    ],
)
def test_the_defaults_have_the_size_that_is_stated(kind, channels, text, millions):
    with torch.device("meta"):
        network = CLASSES[kind](channels, SCHEDULES["cosine"], text)
    count = sum(parameter.numel() for parameter in network.parameters())
    assert count / 1e6 == pytest.approx(millions, abs=1e-3)


def test_latents_do_not_mix_within_a_batch(kind):
    network = awake_latent(build_latent(kind, text=TEXT))
    x, t = latents(4)
    condition = prompts_of(4)
    together = network(x, t, condition)
    alone = [network(x[i : i + 1], t[i : i + 1], condition[i : i + 1]) for i in range(4)]
    torch.testing.assert_close(together, torch.cat(alone), rtol=1e-9, atol=1e-12)


def test_latents_depend_on_the_state_the_time_and_the_text(kind):
    network = awake_latent(build_latent(kind, text=TEXT))
    x, t = latents()
    out = network(x, t, prompts_of(3))
    for changed in (
        network(x + 0.1 * randn(5, *x.shape), t, prompts_of(3)),
        network(x, t + 0.01, prompts_of(3)),
        network(x, t, prompts_of(3, seed=8)),
    ):
        assert (changed - out).flatten(1 - out.ndim).abs().amax(-1).min() > 1e-6
    ignorant = awake_latent(build_latent(kind))
    assert torch.equal(ignorant(x, t, ["anything"] * 3), ignorant(x, t))


@pytest.mark.parametrize("name", list(SCHEDULES))
def test_the_noise_level_is_told_apart_from_end_to_end(kind, name):
    network = awake_latent(build_latent(kind, 1, schedule=SCHEDULES[name], widths=(8, 16)))
    times = torch.linspace(0, 1, 41, dtype=torch.float64)
    out = network(randn(0, 1, 1, 4, 4).expand(41, 1, 4, 4), times).reshape(41, -1)
    assert out.isfinite().all()
    assert torch.pdist(out).min() > 1e-9


def test_two_clocks_with_the_same_noise_agree(kind):
    one = awake_latent(build_latent(kind, schedule=SCHEDULES["cosine"]))
    other = awake_latent(build_latent(kind, schedule=SCHEDULES["rectified"]))
    log_snr = torch.tensor([3.0, 0.0, -4.0], dtype=torch.float64)
    x, _ = latents()
    t, s = (SCHEDULES[name].time(log_snr) for name in ("cosine", "rectified"))
    # The same state in the units of either path: on the cosine one its scale is 1.
    scale = ((1 - s) ** 2 + s**2).sqrt()[:, None, None, None]
    torch.testing.assert_close(one(x, t), other(scale * x, s), rtol=1e-9, atol=1e-12)


def test_the_shift_of_latents_has_the_size_of_the_posterior_variance(schedule):
    network = build_latent("shift", schedule=schedule)
    torch.nn.init.ones_(network.last.bias)
    x, t = latents(9)
    scales = schedule.at(t, like=x)
    variance = 1 / (1 + (scales.alpha / scales.sigma) ** 2)
    torch.testing.assert_close(network(x, t), variance.expand_as(x), rtol=1e-12, atol=1e-15)


def test_a_gradient_reaches_every_parameter(kind):
    network = awake_latent(build_latent(kind, text=TEXT))
    (network(*latents(), prompts_of(3)) - 1).square().sum().backward()
    for name, parameter in network.named_parameters():
        assert parameter.grad.abs().max() > 0, name


def test_attention_is_that_of_torch():
    attention = build_latent("shift").encoder.attention
    x = randn(0, 2, 24, 3, 5).requires_grad_()
    query, key, value = attention.project(attention.norm(x)).flatten(2).mT.chunk(3, dim=-1)
    mixed = torch.nn.functional.scaled_dot_product_attention(query, key, value)
    expected = x + attention.last(mixed.mT.reshape(x.shape))
    found = attention(x)
    torch.testing.assert_close(found, expected, rtol=1e-12, atol=1e-12)
    (slope,), (exact,) = (torch.autograd.grad(y.square().sum(), x) for y in (found, expected))
    torch.testing.assert_close(slope, exact, rtol=1e-10, atol=1e-10)


def test_every_stage_of_the_way_down_reaches_the_way_up():
    network = build_latent("shift")
    outputs = [randn(i, 1, width, 8 // 2**i, 8 // 2**i) for i, width in enumerate((8, 16, 24))]
    embedding = randn(3, 1, 64)
    out = network.decoder(outputs, embedding)
    for i in range(3):
        changed = [value + (i == j) for j, value in enumerate(outputs)]
        assert (network.decoder(changed, embedding) - out).abs().max() > 1e-6


def test_the_embedding_scales_and_shifts_what_is_normalized():
    block = build_latent("shift").encoder.stages[0].blocks[0]
    x, embedding = randn(0, 2, 8, 4, 4), randn(1, 2, 64)
    torch.nn.init.zeros_(block.modulation.weight)
    scale, shift = block.modulation.bias.data.chunk(2)
    scale.fill_(-1)
    shift.fill_(0.7)
    constant = torch.nn.functional.silu(torch.full_like(x, 0.7))
    expected = x + block.second(constant)  # the norm times zero, plus the shift
    torch.testing.assert_close(block(x, embedding), expected, rtol=1e-12, atol=1e-12)


def test_latents_are_differentiated_twice():
    network = awake_latent(build_latent("expectation", 1, widths=(8, 16)))
    x, t = latents(2, 1, 3, 3)
    x.requires_grad_()
    with torch.random.fork_rng(devices=[]):  # the check draws directions
        torch.manual_seed(0)
        assert torch.autograd.gradcheck(lambda x: network(x, t), (x,))
        assert torch.autograd.gradgradcheck(lambda x: network(x, t), (x,), atol=1e-4)


class White(DenoiserModel):
    """The exact model of N(0, I), for states of any shape."""

    def denoise(self, x_t, t, condition=None):
        scales = self.schedule.at(t, like=x_t)
        return scales.alpha / (scales.alpha**2 + scales.sigma**2) * x_t


def test_estimators_take_networks_for_latents(kind):
    network = awake_latent(build_latent(kind, text=TEXT))
    x, t = latents()
    estimator = {"expectation": LearnedExpectation, "shift": LearnedShift}[kind](network)
    with torch.no_grad():
        estimate = estimator(White(SCHEDULES["cosine"]), x, t, prompts_of(3))
        found = network(x, t, prompts_of(3))
    if kind == "shift":
        assert torch.equal(estimate.shift, found)
        return
    step = 1e-5 * randn(4, *x.shape)
    rise = network(x + step, t, prompts_of(3)) - network(x - step, t, prompts_of(3))
    alpha, sigma = torch.cos(torch.pi / 2 * t), torch.sin(torch.pi / 2 * t)
    along = (alpha / sigma**2) * (estimate.shift * 2 * step).flatten(1).sum(1)
    torch.testing.assert_close(along, rise.detach(), rtol=1e-5, atol=1e-12)


@pytest.mark.parametrize("states", [torch.bfloat16, torch.float32])
@pytest.mark.parametrize("weights", [torch.bfloat16, torch.float32])
def test_half_precision_runs_and_returns_float32(kind, states, weights):
    network = awake_latent(build_latent(kind, text=TEXT).float())
    x, t = latents()
    condition = TextCondition(
        ("a", "b", "c"), {"pooled": prompts_of(3).embeddings["pooled"].to(states)}
    )
    exact = network(x.to(states).float(), t, condition)
    out = network.to(weights)(x.to(states), t, condition)
    assert out.dtype == torch.float32
    assert (out - exact).norm() < (1e-6 if weights == torch.float32 else 0.05) * exact.norm()


def test_the_seed_decides_the_weights_of_networks_for_latents(kind):
    one, two, other = (build_latent(kind, text=TEXT, seed=seed).state_dict() for seed in (0, 0, 1))
    assert all(torch.equal(one[name], two[name]) for name in one)
    assert any(not torch.equal(one[name], other[name]) for name in one)


@pytest.mark.parametrize(
    ("arguments", "match"),
    [
        ({"channels": 0}, "channels must be at least 1, got 0"),
        ({"text": 0}, "text must be at least 1, got 0"),
        ({"depth": 0}, "depth must be at least 1, got 0"),
        ({"widths": ()}, r"widths must hold one size at least"),
        ({"widths": (8, 12)}, r"widths must be at least one multiple of 8, got \[8, 12\]"),
    ],
)
def test_impossible_networks_are_refused(kind, arguments, match):
    with pytest.raises(ValueError, match=match):
        CLASSES[kind](**{"channels": 4, "schedule": SCHEDULES["cosine"], **arguments})


def test_what_does_not_fit_the_network_is_named(kind):
    network = build_latent(kind, text=TEXT)
    x, t = latents()
    with pytest.raises(TypeError, match=r"condition.embeddings\['pooled'\].* got list; .*encode="):
        network(x, t, ["a", "b", "c"])
    with pytest.raises(TypeError, match="got NoneType"):
        network(x, t)
    with pytest.raises(ValueError, match=r"must have shape \(3, 6\), got \(2, 6\)"):
        network(x, t, prompts_of(2))
    with pytest.raises(ValueError, match=r"shape \(4, H, W\), got shape \(3, 5, 8, 8\)"):
        network(*latents(channels=5), prompts_of(3))
    with pytest.raises(ValueError, match=r"got shape \(4, 8, 8\)"):
        network(x[0], t, prompts_of(3))


@pytest.mark.parametrize("name", list(SCHEDULES))
def test_networks_for_latents_are_stored_with_their_arguments(kind, name, tmp_path):
    path = tmp_path / "network.safetensors"
    network = awake_latent(build_latent(kind, text=TEXT, schedule=SCHEDULES[name], seed=3))
    network.save(path)
    other = networks.load(path)
    assert type(other) is type(network)
    assert type(other.schedule) is type(network.schedule)
    assert (other.channels, other.text, other.widths) == (4, TEXT, (8, 16, 24))
    assert (other.depth, other.seed) == (1, 3)
    stored = other.state_dict()
    assert all(torch.equal(stored[name], value) for name, value in network.state_dict().items())
    x, t = latents()
    assert torch.equal(other(x, t, prompts_of(3)), network(x, t, prompts_of(3)))
    assert all(parameter.requires_grad for parameter in other.parameters())
    assert [file.name for file in tmp_path.iterdir()] == [path.name]


def test_weights_are_stored_in_their_dtype(kind, tmp_path):
    network = awake_latent(build_latent(kind)).to(torch.bfloat16)
    network.save(tmp_path / "network.safetensors")
    other = networks.load(tmp_path / "network.safetensors").state_dict()
    for name, value in network.state_dict().items():
        assert other[name].dtype == torch.bfloat16
        assert torch.equal(other[name], value)


def test_only_schedules_of_the_library_are_stored(kind, tmp_path):
    class Own(CosineSchedule):
        pass

    with pytest.raises(TypeError, match=r"schedule must be one of \['CosineSchedule'.* got Own"):
        build_latent(kind, schedule=Own()).save(tmp_path / "network.safetensors")
    assert not list(tmp_path.iterdir())
    with pytest.raises(FileNotFoundError, match="no directory"):
        build_latent(kind).save(tmp_path / "missing" / "network.safetensors")


def test_foreign_files_are_refused(kind, tmp_path):
    path = tmp_path / "network.safetensors"
    with pytest.raises(FileNotFoundError, match="no network at"):
        networks.load(path)
    path.write_bytes(b"not a file of tensors")
    with pytest.raises(ValueError, match="not a whole safetensors file"):
        networks.load(path)
    for metadata in (None, {"network": "LatentShift"}, {"network": "Own", "arguments": "{}"}):
        save_file({"x_0": torch.zeros(1)}, path, metadata)
        with pytest.raises(ValueError, match="not one that a network for latents was saved to"):
            networks.load(path)


@pytest.mark.parametrize(
    ("change", "match"),
    [
        ({"widths": [8, 16]}, "does not fit"),
        ({"layers": 3}, "unexpected keyword argument 'layers'"),
        ({"depth": 0}, "depth must be at least 1"),
        ({"schedule": {"name": "os.system"}}, "schedule must be one of .* got 'os.system'"),
        ({"schedule": {"name": "VESchedule", "sigma_min": 1.0}}, "sigma_max"),
        ({"schedule": None}, "does not fit"),
    ],
)
def test_files_that_do_not_fit_are_refused(kind, change, match, tmp_path):
    path = tmp_path / "network.safetensors"
    build_latent(kind).save(path)
    with safe_open(path, framework="pt") as file:
        metadata = file.metadata()
    del metadata["sha256"]  # a file of another version has none
    metadata["arguments"] = json.dumps({**json.loads(metadata["arguments"]), **change})
    save_file(load_file(path), path, metadata)
    with pytest.raises(ValueError, match=match):
        networks.load(path)


# -- training on prompts -------------------------------------------------------------------------

SHAPE = (4, 8, 8)
WHITE = toy.Gaussian(torch.zeros(256), torch.eye(256))
SLOPE = 0.1 * torch.tensor([1.0, -0.5, 0.5, 0.0]).repeat_interleave(64)


def signed(x, condition):
    """More or less of a pattern over the channels, as the prompt asks."""

    sign = torch.tensor([1.0 if prompt == "more" else -1.0 for prompt in condition])
    return sign * (x.flatten(1) @ SLOPE.to(x))


def prompted(kind, n, **options):
    """An objective on n draws for each of two prompts, and a table of their embeddings."""

    x_0 = torch.randn(2 * n, *SHAPE, generator=torch.Generator().manual_seed(0))
    bank = Bank(x_0, ["more"] * n + ["less"] * n)
    pooled = torch.randn(2, TEXT, generator=torch.Generator().manual_seed(1))
    condition = TextCondition(("more", "less"), {"pooled": pooled})
    objective = {"expectation": ExpectationObjective, "shift": ShiftObjective}[kind]
    model = White(SCHEDULES["cosine"])
    return objective(model, bank, Tilt(signed, 1.0), encode=lookup(condition), **options), condition


def test_a_bank_of_prompts_trains_on_embeddings(kind):
    objective, condition = prompted(kind, 8, batch_size=6)
    batch = objective.noised(torch.Generator().manual_seed(2))
    assert isinstance(batch.condition, TextCondition)
    for prompt, pooled in zip(batch.condition, batch.condition.embeddings["pooled"], strict=True):
        assert torch.equal(pooled, condition.embeddings["pooled"][int(prompt == "less")])
    network = CLASSES[kind](4, SCHEDULES["cosine"], TEXT, widths=(8, 16), depth=1)
    assert train(network, objective, steps=2).isfinite().all()
    assert network.last.weight.abs().max() > 0


@pytest.mark.slow
def test_training_finds_the_exact_shift(kind):
    schedule = SCHEDULES["cosine"]
    objective, condition = prompted(kind, 32768, batch_size=128)
    network = CLASSES[kind](4, schedule, TEXT, widths=(16, 16), depth=1)
    train(network, objective, steps=500, learning_rate=5e-3)
    estimator = {"expectation": LearnedExpectation, "shift": LearnedShift}[kind](network)
    tilt, generator = Tilt(toy.Linear(SLOPE), 1.0), torch.Generator().manual_seed(3)
    for prompt, sign in (("more", 1), ("less", -1)):
        errors = []
        for t in (0.3, 0.5, 0.7, 0.8):
            x_t = torch.randn(64, *SHAPE, generator=generator)  # the law at every time
            exact = sign * WHITE.shift(tilt, x_t.flatten(1), t, schedule).reshape(x_t.shape)
            with torch.no_grad():
                found = estimator(objective.model, x_t, t, lookup(condition)([prompt] * 64)).shift
            errors.append((found - exact).norm() / exact.norm())
        # The gradient of a scalar is the noisier of the two; the wrong sign would be 2, nothing 1.
        assert torch.stack(errors).mean() < {"shift": 0.2, "expectation": 0.35}[kind]
