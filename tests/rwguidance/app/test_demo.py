"""The demo's own pieces: laws where gain and target are known, its rewards, its exact model."""

import csv
import dataclasses
import itertools
import sys
import types

import numpy
import pytest
import torch
from PIL import Image
from torch import nn

from common import SCHEDULES, assert_within, randn
from rwguidance import RectifiedSchedule, backbones, networks, rewards, toy
from rwguidance.app.cli import main
from rwguidance.app.demo import run
from rwguidance.app.demo.digits import PROMPTS, Digits, lightness, thickness
from rwguidance.app.demo.figures import draw_pictures
from rwguidance.app.demo.mixture import problem
from rwguidance.app.demo.pictures import Case, Mean, Pairs, Row, Scorer, Settings, align, verdict
from rwguidance.evaluation import prompts
from rwguidance.prediction import Prediction
from rwguidance.support.randomness import normal
from rwguidance.testing import check_model, check_reward

pytestmark = pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning")


@pytest.fixture(scope="module")
def digits():
    return Digits()


def test_the_rewards_count_ink_and_measure_paper():
    picture = torch.full((1, 8, 8), -1.0)
    picture[0, 2, 1:4] = 1.0
    assert thickness(picture).item() == 3
    assert lightness(picture).item() == pytest.approx(100 * 61 / 64)
    check_reward(lightness, randn(0, 5, 8, 8), differentiable=True)
    check_reward(thickness, randn(0, 5, 8, 8), differentiable=False)


@pytest.mark.parametrize("name", ["vp", "rectified"])
def test_the_conditional_model_conforms(digits, name, generator):
    model = digits.model(SCHEDULES[name])
    prompts = ["zero", "nine", "zero", "one"]
    x_0 = torch.cat([digits.laws[p].sample(1, generator) for p in prompts])
    check_model(model, x_0, condition=prompts)


def test_each_prompt_has_its_own_law(digits):
    schedule = SCHEDULES["rectified"]
    x_t = randn(1, 3, 8, 8)
    prompts = ["two", "seven", "two"]
    prediction = digits.model(schedule)(x_t, 0.6, prompts)
    for i, prompt in enumerate(prompts):
        alone = digits.laws[prompt].denoise(x_t[i : i + 1], 0.6, schedule)
        torch.testing.assert_close(prediction.mean[i : i + 1], alone, rtol=1e-12, atol=1e-12)


def test_a_bank_holds_draws_of_every_prompt(digits, generator):
    bank = digits.sample(5, generator)
    assert tuple(bank.rows) == PROMPTS
    assert bank.x_0.dtype == torch.float32
    points = digits.laws["six"].points
    nearest = torch.cdist(bank.x_0[bank.rows["six"]].double().flatten(1), points.flatten(1)).amin(1)
    assert bool((nearest < 0.05 * 64**0.5 * 1.5).all()), "draws lie a bandwidth from a picture"


def test_the_mixture_has_a_closed_target():
    law, tilt = problem()
    assert isinstance(law.tilted(tilt), toy.GaussianMixture)


PROMPTS_OF_TOY = ["dark cat", "dog", "light cat"]
STD = 0.1


class Generator(backbones.Backbone):
    """One step from noise to independent pixels N(c, 0.1^2), where c is that of the prompt."""

    depends_on = ("schedule",)

    def __init__(self):
        super().__init__(RectifiedSchedule())
        self.calls = 0

    def condition(self, prompts):
        return list(prompts)

    def forward(self, x_t, t, condition=None):
        self.calls += len(x_t)
        center = torch.tensor([{"d": 0.4, "l": 0.6}[p[0]] for p in condition])
        mean = center[:, None, None, None] + STD * x_t
        return Prediction.from_mean(mean, x_t, self.schedule.at(t, like=x_t))

    def draw_noise(self, n, generator=None):
        return normal((n, 3, 2, 2), generator)

    def decode(self, latents):
        return latents

    def times(self, steps):
        return torch.linspace(1, 0, steps + 1, dtype=torch.float64)


class Light(nn.Module):
    """Mean of a picture, of variance 0.01 / 12; and minus that, as gold."""

    depends_on = ("sign",)

    def __init__(self, sign=1.0):
        super().__init__()
        self.sign = sign

    def forward(self, pictures, prompts):
        assert len(pictures) == len(prompts)
        return self.sign * pictures.flatten(1).mean(1)


def light_as_asked(pictures, prompts):
    """The match: one where a picture is lighter than 0.5 as the prompt says, else zero."""

    lighter = pictures.flatten(1).mean(1) > 0.5
    return (lighter == torch.tensor([prompt[0] == "l" for prompt in prompts])).float()


class Add(nn.Module):
    """A shift that is the same everywhere."""

    depends_on = ("value",)

    def __init__(self, value):
        super().__init__()
        self.value = value

    def forward(self, x_t, t, condition=None):
        return torch.full_like(x_t, self.value)


def scorer(gold=-1.0):
    return Scorer(Light(), Light(gold), light_as_asked, PROMPTS_OF_TOY)


SMALL = Settings(images=3, bank=200, candidates=5, nats=0.5, batch=64)


class TestEmoji:
    def test_one_step_of_a_linear_reward_meets_the_target(self):
        backbone = Generator()
        rows, pairs = align(Case("toy", backbone, 1), scorer(), SMALL)
        base, guided, best, target = rows
        assert [row.method for row in rows] == [
            "base", "importance guidance", "best of 5", "target"
        ]  # fmt: skip
        # The whole law moves by the difference of the two means of the bank.
        assert guided.proxy.value == pytest.approx(target.proxy.value, abs=1e-6)
        assert guided.excess.value == pytest.approx(0, abs=1e-6)
        assert guided.gold.value == pytest.approx(-guided.proxy.value, abs=1e-6)
        # A linear reward of a normal law: sqrt(2 nats) standard deviations.
        exact = (2 * SMALL.nats) ** 0.5 * STD / 12**0.5
        assert_within(guided.proxy.value, exact, exact * (3 / 600) ** 0.5)
        assert_within(base.proxy.value, (0.4 + 0.4 + 0.6) / 3, STD / 12**0.5 / 3)
        assert pairs.base.shape == (3, 3, 3, 2, 2)
        moved = pairs.aligned - pairs.base
        torch.testing.assert_close(moved, moved[:, :1].expand_as(moved), atol=1e-5, rtol=0)
        # The first two prompts have the same law, but banks and noise of their own.
        assert not torch.allclose(moved[0, 0], moved[1, 0], atol=1e-3)
        pictures = pairs.base[:2].flatten(0, 1).flatten(1)
        assert float(torch.pdist(pictures).min()) > 0.01
        assert best.proxy.value > 0

    def test_calls_are_counted(self):
        backbone = Generator()
        rows, _ = align(Case("toy", backbone, 4), scorer(), SMALL)
        base, guided, best, target = rows
        assert (base.calls, guided.calls, best.calls, target.calls) == (4, 4, 20, 0)
        assert guided.setup_calls == 800
        assert backbone.calls == 3 * (3 * (4 + 4 + 20) + 800)
        assert len(guided.ess) == 4
        assert guided.ess[0] == pytest.approx(200 / 2.7, rel=0.5)
        assert min(row.seconds for row in (base, guided, best)) > 0

    @pytest.mark.parametrize(("factor", "words"), [(0.5, "stays short"), (2.0, "overshoots")])
    def test_a_network_is_held_against_the_target_of_its_own_beta(self, factor, words):
        beta = 0.02
        exact = STD**2 / 12 / beta  # of one pixel: the reward is their mean
        case = Case("toy", Generator(), 1, Add(factor * exact), beta)
        _, guided, _, target = align(case, scorer(), SMALL)[0]
        assert guided.method == "guidance network"
        assert guided.proxy.value == pytest.approx(factor * exact, rel=1e-4)
        # Self-normalized, from 200 draws of each of three prompts.
        assert_within(target.proxy.value, exact, STD / 12**0.5 * (8 / 600) ** 0.5)
        assert words in verdict(guided)
        assert "gold falls" in verdict(guided)
        assert guided.setup_calls == 0

    def test_the_best_of_one_is_the_base_and_of_more_is_better_in_every_picture(self):
        settings = dataclasses.replace(SMALL, candidates=1)
        rows, _ = align(Case("toy", Generator(), 1), scorer(), settings)
        assert rows[2].proxy.value == pytest.approx(0, abs=1e-6)
        assert rows[2].proxy.error == pytest.approx(0, abs=1e-6)
        rows, _ = align(Case("toy", Generator(), 1), scorer(), SMALL)
        # The largest of five normal numbers: 1.163 standard deviations.
        assert_within(rows[2].proxy.value, 1.163 * STD / 12**0.5, STD / 12**0.5 * 1.2 / 3)

    def test_a_picture_has_proxy_gold_and_match(self):
        pictures = torch.tensor([0.2, 0.8]).reshape(2, 1, 1, 1).expand(2, 3, 2, 2)
        values = scorer()(pictures, ["dark"] * 2)
        torch.testing.assert_close(values[:, 2], torch.tensor([1.0, 0.0], dtype=torch.float64))
        torch.testing.assert_close(values[:, 0].float(), torch.tensor([0.2, 0.8]))
        torch.testing.assert_close(values[:, 1], -values[:, 0])

    def test_a_mean_has_the_error_of_its_prompts(self):
        mean = Mean.of(torch.tensor([1.0, 2.0, 6.0]))
        assert (mean.value, mean.error) == (3.0, pytest.approx((7 / 3) ** 0.5))
        assert Mean.of(torch.tensor([1.0])) == Mean(1.0, 0.0)

    def test_the_seed_decides_everything_and_batches_nothing(self):
        few = dataclasses.replace(SMALL, bank=20)
        found = [
            align(Case("toy", Generator(), 2), scorer(), dataclasses.replace(few, batch=b), seed)
            for b, seed in ((20, 0), (7, 0), (20, 1))
        ]
        values = [[row.proxy.value for row in rows] for rows, _ in found]
        assert values[0] == pytest.approx(values[1], abs=1e-6)
        assert all(
            a != pytest.approx(b, abs=1e-5) for a, b in zip(values[0], values[2], strict=True)
        )

    @pytest.mark.parametrize(
        ("excess", "gold", "words"),
        [
            (Mean(-0.3, 0.1), Mean(0.3, 0.1), ("stays short of the target, at 77%", "gold rises")),
            (Mean(0.5, 0.1), Mean(-0.3, 0.1), ("overshoots the target, at 200%", "gold falls")),
            (Mean(0.1, 0.1), Mean(0.1, 0.1), ("meets the target", "of none")),
        ],
    )
    def test_the_verdict_is_in_words(self, excess, gold, words):
        row = Row("toy", "guided", Mean(1.0, 0.1), gold, Mean(0.0, 0.0), excess)
        assert all(word in verdict(row) for word in words)

    def test_what_has_no_target_has_no_verdict(self):
        none = Mean(0.0, 0.0)
        with pytest.raises(ValueError, match="base was not held against a target"):
            verdict(Row("toy", "base", none, none, none))

    def test_it_writes_a_sheet_and_a_table_and_says_how_it_went(
        self, tmp_path, capsys, monkeypatch
    ):
        monkeypatch.setenv("COLUMNS", "140")
        cases = [Case("one", Generator(), 1), Case("two", Generator(), 1, Add(0.2), 0.02)]
        files = run(cases, scorer(), tmp_path / "new" / "folder", SMALL)
        assert [file.name for file in files] == ["emoji.png", "emoji.csv"]
        out = capsys.readouterr().out
        assert "two, guidance network: overshoots the target" in out
        assert "emoji.png" in out
        with files[1].open() as file:
            rows = list(csv.DictReader(file))
        assert [row["model"] for row in rows] == ["one"] * 4 + ["two"] * 4
        assert float(rows[5]["proxy"]) == pytest.approx(0.2, rel=1e-4)
        assert rows[0]["excess"] == ""
        with Image.open(files[0]) as sheet:
            pixels = sheet.convert("RGB")
        # The first prompt: base and aligned of both models.
        lefts = [18, 18 + 131, 18 + 277, 18 + 277 + 131]
        light = [pixels.crop((x, 66, x + 128, 66 + 128)) for x in lefts]
        means = [numpy.asarray(tile, dtype=numpy.float32).mean() / 255 for tile in light]
        assert means[0] == pytest.approx(means[2], abs=0.01), "the same noise"
        assert means[3] - means[2] == pytest.approx(0.2, abs=0.02)
        # The third prompt is lighter.
        third = pixels.crop((18 + 2 * 572, 66, 18 + 2 * 572 + 128, 66 + 128))
        assert numpy.asarray(third, dtype=numpy.float32).mean() / 255 > means[0] + 0.08


@pytest.fixture
def command(monkeypatch, capsys):
    def command(*arguments):
        monkeypatch.setattr(sys, "argv", ["rwguidance", "demo", *arguments])
        try:
            main()
            code = 0
        except SystemExit as stop:
            code = stop.code or 0
        captured = capsys.readouterr()
        return code, captured.out, captured.err

    return command


class TestCommand:
    def test_it_loads_by_name_and_runs(self, command, monkeypatch, tmp_path):
        asked = []

        def load(name):
            asked.append(name)
            return {"emoji-pick": Light(), "emoji-gold": Light(-1.0)}.get(name, light_as_asked)

        def load_backbone(name):
            asked.append(name)
            return Generator()

        def load_network(name):
            asked.append(name)
            return Add(0.01)

        known = types.SimpleNamespace(beta=0.05)
        texts = types.SimpleNamespace(prompts=("dark", "light", "lighter"))
        monkeypatch.setattr(rewards, "load", load)
        monkeypatch.setattr(backbones, "load", load_backbone)
        monkeypatch.setattr(networks, "load", load_network)
        monkeypatch.setattr(networks, "published", lambda name: known)
        monkeypatch.setattr(prompts, "load", lambda name: texts)
        code, out, err = command("--quick", "--out", str(tmp_path))
        assert (code, err) == (0, "")
        assert "emoji-turbo, guidance network:" in out
        assert sorted(path.name for path in tmp_path.iterdir()) == ["emoji.csv", "emoji.png"]
        assert asked == [
            *("emoji-pick", "emoji-gold", "emoji-match"),
            *("emoji-flow", "emoji-turbo", "emoji-turbo-guide"),
        ]

    @pytest.mark.parametrize("missing", [prompts, rewards, backbones, networks])
    def test_without_the_test_bed_it_says_what_to_install(
        self, command, monkeypatch, tmp_path, missing
    ):
        def load(name):
            raise LookupError(f"there is none {name!r}, there are 'others'")

        texts = types.SimpleNamespace(prompts=("dark",))
        monkeypatch.setattr(prompts, "load", lambda name: texts)
        for module in (rewards, backbones, networks):
            monkeypatch.setattr(module, "load", lambda name: nn.Identity())
        monkeypatch.setattr(missing, "load", load)
        code, out, err = command("--out", str(tmp_path))
        assert (code, out) == (1, "")
        assert err.startswith("error: the demo needs the models of the test bed (there is none 'e")
        assert err.endswith(
            "install rwguidance-testbed, with `pip install ./testbed` in a clone of rwguidance; "
            "`rwguidance demo --digits` needs none\n"
        )

    @pytest.mark.parametrize("module", ["diffusers", "transformers", "PIL"])
    def test_a_missing_package_is_one_message(self, command, monkeypatch, tmp_path, module):
        monkeypatch.setitem(sys.modules, module, None)
        code, out, err = command("--out", str(tmp_path))
        assert (code, out) == (1, "")
        assert err == f"error: the demo needs {module}: pip install 'rwguidance[demo]'\n"


def test_a_sheet_has_every_picture_whole_and_in_its_place(tmp_path):
    shape = (2, 3, 2)  # models, prompts, pictures: of base and aligned, all of their own color
    number = torch.arange(24).reshape(2, *shape)
    color = torch.stack((10 * number, 255 - 10 * number, 5 + 3 * number), -1) / 255
    pictures = color[..., None, None].expand(*number.shape, 3, 8, 8)
    base, aligned = pictures
    blocks = [Pairs(f"model {i}", base[i], aligned[i]) for i in range(2)]
    draw_pictures(["a", "b", "c"], blocks, tmp_path / "sheet.png", columns=2, rows=2)
    sheet = torch.from_numpy(numpy.array(Image.open(tmp_path / "sheet.png")))
    places = torch.empty(2, *shape, 2)
    for index in itertools.product(*map(range, number.shape)):
        rows, columns = (sheet == (255 * color[index]).round()).all(-1).nonzero(as_tuple=True)
        assert len(rows) == 128 * 128
        assert (rows.max() - rows.min(), columns.max() - columns.min()) == (127, 127)
        places[index] = torch.tensor([rows.min(), columns.min()])
    down, right = places.unbind(-1)
    assert (down[0] == down[1]).all()  # base and aligned, beside each other
    assert (right[0] < right[1]).all()
    assert (right[:, 0] < right[:, 1]).all()  # models
    assert (down[..., 0] < down[..., 1]).all()  # pictures of a prompt
    assert (right[:, :, 0] < right[:, :, 1]).all()  # prompts: two columns,
    assert (down[:, :, 0] < down[:, :, 2]).all()  # and another row
