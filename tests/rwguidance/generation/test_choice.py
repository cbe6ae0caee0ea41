"""The method of a run that was not told one."""

import math
from dataclasses import replace

import pytest
from torch import nn

from pixel_law import QUIET, Brightness, Law, run
from rwguidance import DDIM
from rwguidance.generation import BestOfN, Importance, NoiseGradient, Pool, Resample
from rwguidance.generation.choice import (
    AUTO,
    Situation,
    calls_of,
    check_calls,
    choose,
    situation_of,
)
from rwguidance.generation.methods import METHODS
from rwguidance.generation.settings import build
from square_generator import Squares

pytestmark = QUIET

BLACK = Situation(images=16, steps=4, path=True, gradient=False)
SMOOTH = replace(BLACK, gradient=True)
ONE_STEP = replace(BLACK, steps=1)
GENERATOR = replace(ONE_STEP, path=False)

# Of each situation and what was given: the method, its settings, and its calls a picture.
TABLE = [
    # pictures of a prompt share the bank
    (BLACK, {}, Pool, {"pictures": 16, "bank": 32}, 12),
    (SMOOTH, {}, Pool, {"pictures": 16, "bank": 32}, 12),
    (replace(BLACK, images=64), {}, Pool, {"pictures": 16, "bank": 32}, 6),
    (replace(BLACK, images=4), {}, Pool, {"pictures": 4, "bank": 32}, 36),
    (ONE_STEP, {}, Pool, {"pictures": 16, "bank": 32}, 3),
    (BLACK, {"ess": 0.1}, Pool, {"pictures": 16, "bank": 32}, 12),
    (BLACK, {"beta": 2.0}, Pool, {"pictures": 16, "bank": 32}, 12),
    # strong tilts need more draws, and a bank that was given is taken
    (BLACK, {"kl": 2.0}, Pool, {"pictures": 16, "bank": 32}, 12),
    (BLACK, {"kl": 4.0}, Pool, {"pictures": 16, "bank": 219}, 58.75),
    (BLACK, {"kl": 2.0, "bank": 100}, Pool, {"pictures": 16}, 29),
    # calls are kept to by smaller banks, then without guidance
    (replace(BLACK, calls=8), {}, Pool, {"pictures": 16, "bank": 16}, 8),
    (replace(BLACK, calls=100), {}, Pool, {"pictures": 16, "bank": 32}, 12),
    (replace(BLACK, calls=6), {}, Resample, {"pictures": 16, "bank": 24}, 6),
    (replace(ONE_STEP, calls=2), {}, Pool, {"pictures": 16, "bank": 16}, 2),
    # few pictures, and models without a path
    (replace(BLACK, images=1), {}, Resample, {"pictures": 1, "bank": 64}, 256),
    (replace(SMOOTH, images=1), {}, Resample, {"pictures": 1, "bank": 64}, 256),
    (replace(BLACK, images=3), {}, Resample, {"pictures": 3, "bank": 64}, 256 / 3),
    (replace(BLACK, images=1, calls=60), {}, Resample, {"pictures": 1, "bank": 15}, 60),
    (replace(BLACK, images=1), {"kl": 4.0}, Resample, {"pictures": 1, "bank": 219}, 876),
    (GENERATOR, {}, Resample, {"pictures": 16, "bank": 64}, 4),
    # a gradient in place of a bank
    (replace(SMOOTH, images=1, calls=30), {"beta": 2.0}, NoiseGradient, {"size": 0.9}, 20),
    (
        replace(GENERATOR, images=1, gradient=True, calls=4),
        {"beta": 2.0},
        NoiseGradient,
        {"size": 0.65},
        4,
    ),
    (SMOOTH, {"beta": 2.0, "through": 2}, NoiseGradient, {"size": 0.9}, 12),
]


@pytest.mark.parametrize(("situation", "given", "kind", "settings", "calls"), TABLE)
def test_the_choice_is_that_of_the_table(situation, given, kind, settings, calls):
    found = choose(situation, given)
    assert (found.kind, dict(found.settings)) == (kind, settings)
    assert found.calls == pytest.approx(calls)
    assert found.why.startswith(f"method {kind.name}, at most {calls:.3g} calls a picture: ")
    assert found.why.endswith("; --method chooses another")
    method = build(found.kind, {**found.settings, **given})
    assert calls_of(method, situation) == found.calls
    assert found.calls <= (situation.calls or math.inf)


@pytest.mark.parametrize(
    ("situation", "given", "words"),
    [
        (
            replace(BLACK, images=1, calls=4),
            {"kl": 4.0},
            ["no method makes 1 picture of a prompt at 4 nats with 4 calls", "resample needs 876",
             "pool 58.8 if 16 pictures share", "noise-gradient 20, with a differentiable reward"],
        ),
        (
            replace(BLACK, images=1, calls=40),
            {},
            ["at 1 nats with 40 calls", "resample needs 44", "resample goes 0.92 nats far with 40"],
        ),
        (
            replace(SMOOTH, images=2, calls=10),
            {"beta": 3.0},
            ["2 pictures of a prompt at beta 3", "noise-gradient needs 20", "resample needs 32"],
        ),
        (replace(GENERATOR, images=1, calls=4), {}, ["resample 0.688 if 16 pictures share"]),
    ],
)  # fmt: skip
def test_what_cannot_be_is_refused_with_what_can(situation, given, words):
    with pytest.raises(ValueError, match=r"^no method makes") as refused:
        choose(situation, given)
    for part in words:
        assert part in str(refused.value)


def test_what_a_refusal_names_is_possible():
    given = {"kl": 0.9}
    choose(replace(BLACK, images=1, calls=44), {})
    choose(replace(BLACK, images=1, calls=40), given)
    choose(replace(BLACK, calls=58.75), {"kl": 4.0})


def test_settings_that_no_method_of_the_choice_takes_are_refused():
    with pytest.raises(
        ValueError, match=r"--method is needed with --size: .* pool, resample and n"
    ):
        choose(SMOOTH, {"size": 0.5})  # which is for a temperature that is known
    with pytest.raises(ValueError, match="--method is needed with --network"):
        choose(BLACK, {"network": "x"})
    with pytest.raises(ValueError, match="kl must be less than log"):
        choose(BLACK, {"kl": 4.0, "bank": 16})


def test_calls_bound_a_method_that_was_asked_for():
    check_calls(Importance(bank=64, kl=1.0), replace(BLACK, calls=20))
    with pytest.raises(ValueError, match="importance takes up to 20 calls of the network a pic"):
        check_calls(Importance(bank=64, kl=1.0), replace(BLACK, calls=19))
    # the unguided picture is among those that best of n chooses from
    assert calls_of(BestOfN(4), BLACK) == 16


class Smooth(Brightness):
    depends_on = Brightness.depends_on
    spec = type("Spec", (), {"differentiable": True})


class Rough(Brightness):
    depends_on = Brightness.depends_on
    spec = type("Spec", (), {"differentiable": False})


class Random(Law):
    depends_on = Law.depends_on

    @property
    def sampler(self):
        return DDIM(eta=1.0)


@pytest.mark.parametrize(
    ("backbone", "reward", "steps", "expected"),
    [
        (Law(), Smooth(), 4, Situation(3, 4, True, True, 9.0)),
        (Law(), Smooth(), None, Situation(3, 12, True, True, 9.0)),
        (Law(), Rough(), 4, Situation(3, 4, True, False, 9.0)),
        (Law(), lambda images, prompts: images.mean((1, 2, 3)), 4, Situation(3, 4, True, False, 9)),
        (Random(), Smooth(), 4, Situation(3, 4, True, False, 9.0)),
        (Squares(), Smooth(), None, Situation(3, 1, False, True, 9.0)),
    ],
)
def test_model_and_reward_are_asked_what_they_can(backbone, reward, steps, expected):
    assert situation_of(backbone, reward, 3, steps, 9.0) == expected


@pytest.mark.parametrize("images", [1, 3, 4])
def test_what_is_chosen_runs(tmp_path, images):
    class Calls(nn.Module):
        depends_on = ()

        def forward(self, images, prompts):
            return images.double().mean((1, 2, 3))

    law = Law()
    situation = situation_of(law, Calls(), images, 3, None)
    found = choose(situation, {"bank": 8, "kl": 0.5})
    method = build(found.kind, {**found.settings, "bank": 8, "kl": 0.5})
    made = run(tmp_path, method, ["ab"], law, Calls(), images=images, steps=3, batch_size=1)
    assert len(made.rows) == images
    assert law.calls == images * (3 + found.calls)  # with those of the unguided pictures


def test_importance_on_a_generator_is_refused_with_what_works(tmp_path):
    with pytest.raises(
        ValueError, match=r"importance needs .* path.* resample, best-of-n, pcn and"
    ):
        run(tmp_path, Importance(kl=1.0), ["ab"], backbone=Squares())


def test_no_method_has_the_name_of_the_choice():
    assert AUTO not in METHODS
