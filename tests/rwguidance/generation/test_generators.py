"""Generators: backbones without a path, whose noise has another shape than their pictures."""

import math
from contextlib import nullcontext

import pytest
import torch

from common import assert_within
from pixel_law import QUIET, Brightness, run
from rwguidance import backbones
from rwguidance.evaluation import Cell, evaluate
from rwguidance.generation import BestOfN, Importance, Network, NoiseGradient, PlugInMean, Resample
from rwguidance.generation.extensions import sampling_times
from rwguidance.support.randomness import generator_for
from rwguidance.testing import check_generator
from square_generator import STD, Squares

pytestmark = QUIET

S = 100 * 0.05 / math.sqrt(3)  # standard deviation of the reward of squares


def backwards(sources):
    return sources[::-1] if isinstance(sources, list) else sources


def one_pixel(images, value):
    """Images of which the last pixel is another one."""

    images = images.clone()
    images.view(-1)[-1] = value
    return images


def test_squares_conform():
    check_generator(Squares(), ["a", "abcdef", "abc"])


def test_a_generator_may_leave_some_of_its_noise_unused():
    part = torch.tensor([0.0, 1.0, 1.0], dtype=torch.float64)
    generate = lambda self, z, c: Squares.generate(self, part * z, c)
    check_generator(type("Part", (Squares,), {"generate": generate})(), ["a", "abcdef"])


@pytest.mark.parametrize(
    ("change", "match"),
    [
        ({"std": 1.0}, r"standard deviation std = 1.0, got .* 1\.99"),
        ({"decode": lambda self, x: x + 5}, r"images in \[0, 1\]"),
        ({"decode": lambda self, x: one_pixel(Squares.decode(self, x), 1.01)}, "images in"),
        ({"decode": lambda self, x: one_pixel(Squares.decode(self, x), -0.01)}, "images in"),
        ({"generate": lambda self, z, c: Squares.generate(self, z.detach(), c)}, "must carry gra"),
        ({"generate": lambda self, z, c: Squares.generate(self, z, ["a"] * len(z))}, "condition"),
        (
            {"generate": lambda self, z, c: Squares.generate(self, z, c) + z.mean() / 9},
            "others of its batch",
        ),
        ({"draw_noise": lambda self, n, g=None: STD * torch.ones(n, 3)}, "must be centered"),
        (
            {"draw_noise": lambda self, n, g: Squares.draw_noise(self, n, backwards(g))},
            "must take one source per sample",
        ),
        (
            {"generate": lambda self, z, c: Squares.generate(self, z, c) + 0.1 * self.calls},
            "two equal calls",
        ),
    ],
)
def test_what_breaks_the_contract_is_found(change, match):
    broken = type("Broken", (Squares,), change)()
    with pytest.raises(AssertionError, match=match):
        check_generator(broken, ["a", "abcdef"])


@pytest.mark.parametrize(("errors", "conforms"), [(4.8, True), (5.2, False), (-5.2, False)])
def test_the_standard_deviation_is_held_to_five_standard_errors(errors, conforms):
    noise = Squares().draw_noise(4096, generator_for(0, "std"))
    std = float(noise.std()) / (1 + errors / math.sqrt(2 * noise.numel()))
    stated = type("Stated", (Squares,), {"std": std})()
    with nullcontext() if conforms else pytest.raises(AssertionError, match="standard deviation"):
        check_generator(stated, ["a", "abcdef"])


def test_a_graph_is_recorded_for_the_gradient_alone():
    graphs = []

    class Watched(Squares):
        def generate(self, noise, condition):
            graphs.append(torch.is_grad_enabled())
            return super().generate(noise, condition)

    check_generator(Watched(), ["a", "abcdef"])
    assert graphs.count(True) == 1


@pytest.mark.parametrize(
    "method", [Resample(bank=500, kl=0.5), BestOfN(24, kl=0.5, draws=500)], ids=lambda m: m.name
)
def test_black_box_methods_reach_the_tilted_law(tmp_path, method):
    reward = Brightness(bad=lambda images, prompts: None)
    made = run(
        tmp_path, method, ["abcd"], backbone=Squares(), reward=reward, images=48, batch_size=500
    )
    gains = torch.tensor([row.rewards[1] for row in made.rows]).double()
    exact = 50 + 4 + math.sqrt(2 * 0.5) * S
    assert_within(gains.mean(), exact, S / 48**0.5 + 0.1 * S / 5)


def test_the_best_is_better_and_the_noise_is_shared(tmp_path):
    made = run(tmp_path, BestOfN(8), ["ab"], backbone=Squares(), images=6)
    again = run(tmp_path / "again", BestOfN(2), ["ab"], backbone=Squares(), images=6, batch_size=1)
    assert all(row.gain >= 0 for row in made.rows)
    bases = [[row.rewards[0] for row in one.rows] for one in (made, again)]
    assert bases[0] == pytest.approx(bases[1])


@pytest.mark.parametrize(
    "method",
    [Importance(kl=1.0), PlugInMean(kl=1.0), Network(torch.nn.Identity())],
    ids=lambda method: method.name,
)
def test_guidance_is_refused_by_name_before_any_work(tmp_path, method):
    squares = Squares()
    with pytest.raises(ValueError, match=f"{method.name} needs a model with a path.*Squares"):
        run(tmp_path, method, ["ab"], backbone=squares)
    with pytest.raises(ValueError, match=f"mine.*{method.name} needs a model with a path"):
        evaluate(squares, Brightness(), ["ab"], tmp_path / "e", {"mine": method}, strengths=())
    assert squares.calls == 0


def test_a_generator_is_evaluated(tmp_path):
    methods = {"gradient": NoiseGradient(kl=1.0, bank=64), "best": BestOfN(4)}
    results = evaluate(
        Squares(), Brightness(), ["ab", "abcd"], tmp_path, methods, strengths=[0.5], images=4,
        target_draws=64,
    )  # fmt: skip
    assert Cell("gradient", 0.5) in results.cells
    assert Cell("best") in results.cells


def test_a_generator_makes_one_step(tmp_path):
    for steps in (None, 1):
        assert sampling_times(Squares(), steps).tolist() == [1, 0]
    with pytest.raises(ValueError, match="steps must be 1 for Squares, got 2"):
        sampling_times(Squares(), 2)
    with pytest.raises(ValueError, match="steps must be 1 for Squares, got 4"):
        run(tmp_path, BestOfN(2), ["ab"], backbone=Squares(), steps=4)


def test_a_generator_is_found_by_name():
    backbones.register("test-squares")(Squares)
    assert isinstance(backbones.load("test-squares"), backbones.Generator)
