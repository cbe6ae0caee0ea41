"""Draws and banks of a run, and their origin."""

import pytest
import torch

from pixel_law import QUIET, Brightness, Law, run
from rwguidance.bank import Bank
from rwguidance.generation import SMC, Importance, Pool, Resample, Store
from rwguidance.generation.noise import NoiseChain
from rwguidance.generation.run import Run
from rwguidance.support.fingerprint import fingerprint
from square_generator import Squares

pytestmark = QUIET


def test_the_draws_of_a_long_bank_begin_with_those_of_a_short_one(tmp_path):
    store = Store(tmp_path)
    make = lambda batch_size, store: Run(
        Law(), Brightness(), Law().times(4), 0, batch_size, None, store
    )
    short = make(3, store).bank("ab", 7, "bank")
    long = make(4, store).bank("ab", 20, "bank")
    fresh = make(20, None).bank("ab", 20, "bank")
    torch.testing.assert_close(long.x_0, fresh.x_0, rtol=1e-12, atol=1e-12)
    torch.testing.assert_close(long.rewards, fresh.rewards, rtol=1e-9, atol=0)
    assert torch.equal(long.x_0[:7], short.x_0)
    assert len({float(x) for x in fresh.rewards}) == 20
    short.check_origin(prompt="ab", seed=0)
    with pytest.raises(ValueError, match="prompt is 'ab', expected 'cd'"):
        short.check_origin(prompt="cd")


def test_batches_of_draws_begin_at_multiples_of_their_size(tmp_path):
    class Watched(Law):
        depends_on = Law.depends_on

        def forward(self, x_t, t, condition=None):
            sizes.append(len(x_t))
            return super().forward(x_t, t, condition)

    make = lambda: Run(Watched(), Brightness(), Law().times(2), 0, 4, None, Store(tmp_path))
    for n, expected in ((7, [4, 3]), (13, [4, 4, 1]), (16, [4]), (16, [])):
        sizes = []
        draws = make().draws("ab", n, "bank")
        assert sizes[::2] == expected, f"{n} draws"
        assert len({float(x) for x in draws.flatten()}) == 3 * n


@pytest.mark.parametrize("kept", [False, True])
def test_banks_of_several_pictures_fill_batches_together(tmp_path, kept):
    law = Law()
    run = Run(law, Brightness(), law.times(2), 0, 4, None, Store(tmp_path) if kept else None)
    streams = [("candidates", number) for number in range(5)]
    together = run.banks("ab", 3, streams)
    assert law.calls == 2 * 4, "fifteen draws in batches of four"
    for stream, bank in zip(streams, together, strict=True):
        alone = Run(law, Brightness(), law.times(2)).bank("ab", 3, *stream)
        torch.testing.assert_close(bank.x_0, alone.x_0, rtol=1e-12, atol=1e-12)
        torch.testing.assert_close(bank.rewards, alone.rewards, rtol=1e-12, atol=0)
        assert bank.origin == alone.origin
        drawn = run.drawn("ab", [("draw", *stream, "ab", 2)])
        torch.testing.assert_close(bank.x_0[2:], drawn, rtol=1e-12, atol=1e-12)
    if kept:
        before = law.calls
        again = Run(law, Brightness(), law.times(2), 0, 4, None, Store(tmp_path))
        assert torch.equal(again.bank("ab", 3, *streams[3]).x_0, together[3].x_0)
        assert law.calls == before


def test_an_origin_names_all_that_draws_depend_on(tmp_path):
    law, other, store = Law(), Law(std=0.2), Store(tmp_path)
    make = lambda law, reward=None, **options: Run(
        law, reward or Brightness(), Law().times(2), 5, store=store, **options
    )
    one = make(law, negative_prompt="ugly")
    assert one.origin == {
        "backbone": fingerprint(law, law.incidental),
        "sampler": fingerprint(law.sampler),
        "times": [1.0, 0.5, 0.0],
        "negative prompt": "ugly",
        "seed": 5,
    }
    assert (one.reward_key, one.undescribed) == (fingerprint(Brightness()), [])
    assert make(other).origin["backbone"] not in (None, one.origin["backbone"])
    assert make(law, Brightness(factor=2.0)).reward_key not in (None, one.reward_key)
    assert make(Squares()).origin["sampler"] == "one call"
    plain = make(law, lambda images, prompts: images.mean((1, 2, 3)))
    assert plain.reward_key is None
    (reason,) = plain.undescribed
    assert "cannot say" in reason
    assert plain.drawer("ab", ["bank"]) is not None
    silent = make(type("Silent", (Law,), {})())
    assert silent.origin["backbone"] is None
    assert silent.drawer("ab", ["bank"]) is None


def test_one_value_of_each_kind_is_kept_and_so_is_a_failure():
    run, made = Run(Law(), Brightness(), Law().times(2)), []

    def keep(kind, key):
        return run.keep(kind, key, lambda: made.append((kind, key)) or f"value {key}")

    def fail():
        made.append("failed")
        raise RuntimeError("out of luck")

    calls = [("a", 1), ("a", 1), ("b", "value 1"), ("a", 1), ("a", 2), ("a", 1), ("b", "value 1")]
    assert [keep(*call) for call in calls] == [f"value {key}" for _, key in calls]
    assert made == [("a", 1), ("b", "value 1"), ("a", 2), ("a", 1)]
    made.clear()
    with pytest.raises(RuntimeError, match=r"^out of luck$"):
        run.keep("a", 3, fail)
    for _ in range(2):
        with pytest.raises(ValueError, match=r"^RuntimeError: out of luck$"):
            run.keep("a", 3, fail)
    assert made == ["failed"]
    assert keep("a", 4) == "value 4"


class Trained(Law):
    """A backbone with a weight, as networks have them, on which its predictions depend."""

    depends_on = Law.depends_on

    def __init__(self):
        super().__init__()
        self.weight = torch.nn.Parameter(torch.ones((), dtype=torch.float64))

    def forward(self, x_t, t, condition=None):
        return super().forward(self.weight * x_t, t, condition)


def test_samples_keep_no_graph_of_the_backbone():
    backbone = Trained()
    state = backbone.draw_noise(1, torch.Generator().manual_seed(0))
    assert backbone(state, 0.5, ["ab"]).mean.requires_grad
    run = Run(backbone, Brightness(), backbone.times(2))
    assert not run.sample(backbone, "ab", [("picture", 0)]).requires_grad
    assert torch.is_grad_enabled()


def test_a_bank_keeps_its_origin_on_disk(tmp_path):
    bank = Bank(torch.ones(2, 1), ["a", "a"], torch.zeros(2), {"backbone": "x", "seed": 1})
    bank.save(tmp_path / "bank.safetensors")
    loaded = Bank.load(tmp_path / "bank.safetensors")
    loaded.check_origin(backbone="x", seed=1)
    for wrong in ({"backbone": "y"}, {"reward": "r"}):
        with pytest.raises(ValueError, match="this bank is of another origin"):
            loaded.check_origin(**wrong)
    with pytest.raises(ValueError, match="not stated"):
        Bank(torch.ones(2, 1)).check_origin(backbone="x")


@pytest.mark.parametrize(("calls", "made"), [(None, 4), (1, 1), (3, 3), (4, 4), (9, 4)])
def test_a_cheaper_map_makes_the_first_calls_and_goes_to_the_end(calls, made):
    law = Law()
    run = Run(law, Brightness(), law.times(4), 0, 2)
    noise = law.draw_noise(2, torch.Generator().manual_seed(0))
    states = run.generator("ab", calls=calls)(noise, None)
    assert law.calls == made
    whole = Run(law, Brightness(), law.times(4), 0, 2).generator("ab")(noise, None)
    assert torch.equal(states, whole) == (made == 4)


def test_facts_have_two_or_three_digits(tmp_path):
    digits = dict.fromkeys(("acceptance", "misfit", "reach", "rho"), 3)
    digits |= {f"effective {name}": 2 for name in ("draws", "particles", "candidates")}
    seen = set()
    methods = [
        Importance(bank=7, kl=0.5),
        SMC(particles=7, kl=0.5, bank=7, pictures=1),
        Pool(bank=7, kl=0.5, pictures=2),
        Resample(bank=7, kl=0.5, pictures=2, renew=1),
        NoiseChain(kl=0.5, bank=7, burn_in=2, moves=7),
    ]
    for i, method in enumerate(methods):
        made = run(tmp_path / str(i), method, prompts=["ab"], images=3, steps=3)
        for name, value in ((name, row.facts[name]) for row in made.rows for name in row.facts):
            if name in digits:
                values = value if isinstance(value, list) else [value]
                assert values == [round(one, digits[name]) for one in values], name
                seen.add(name)
    assert seen == set(digits)
