"""The demo's own pieces: laws where gain and target are known, its rewards, its exact model."""

import csv
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
from rwguidance.app.demo.pictures import Case, Pairs, Settings, Task, _pairs, write_csv
from rwguidance.evaluation import BASE, Cell, embeddings, prompts
from rwguidance.generation import BestOfN, Importance, Network
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


class LightAsAsked:
    """The match: one where a picture is lighter than 0.5 as the prompt says, else zero."""

    depends_on = ()

    def __call__(self, pictures, prompts):
        lighter = pictures.flatten(1).mean(1) > 0.5
        return (lighter == torch.tensor([prompt[0] == "l" for prompt in prompts])).float()


class Lightness:
    """The embedding: the mean of a picture, (B, 1)."""

    depends_on = ()

    def __call__(self, pictures):
        return pictures.flatten(1).mean(1, keepdim=True)


class Add(nn.Module):
    """A shift that is the same everywhere."""

    depends_on = ("value",)

    def __init__(self, value):
        super().__init__()
        self.value = value

    def forward(self, x_t, t, condition=None):
        return torch.full_like(x_t, self.value)


def task(gold=-1.0):
    return Task(PROMPTS_OF_TOY, Light(), Light(gold), LightAsAsked(), Lightness())


SMALL = Settings(images=3, nats=0.5, target=200, batch=64)
METHODS = {"importance": Importance(kl=1.0, bank=200), "best of 5": BestOfN(5)}


@pytest.fixture
def lines(tmp_path, capsys):
    """Runs the demo, and returns the lines of its table."""

    def lines(*cases, gold=-1.0, settings=SMALL, seed=0):
        files = run(cases, task(gold), tmp_path / "new" / "folder", settings, seed)
        assert [file.name for file in files] == ["emoji.png", "emoji.csv"]
        with files[1].open() as file:
            return list(csv.DictReader(file))

    return lines


def figure(line, name):
    return float(line[name]), float(line[f"{name} error"])


class TestEmoji:
    def test_one_step_of_a_linear_reward_meets_the_target(self, lines):
        base, guided, best, target = lines(Case("toy", Generator(), 1, METHODS))
        assert [line["method"] for line in (base, guided, best, target)] == [
            "base", "importance", "best of 5", "tilted law"
        ]  # fmt: skip
        # A linear reward of a normal law: sqrt(2 nats) standard deviations.
        exact = (2 * SMALL.nats) ** 0.5 * STD / 12**0.5
        for line in (guided, target):
            assert_within(float(line["proxy"]), exact, exact * (3 / 600) ** 0.5)
        assert_within(float(base["proxy"]), (0.4 + 0.4 + 0.6) / 3, STD / 12**0.5 / 3)
        assert float(guided["gold"]) == pytest.approx(-float(guided["proxy"]), abs=1e-6)
        assert_within(float(guided["share"]), 1.0, (6 / 600) ** 0.5)
        # The largest of five normal numbers: 1.163 standard deviations.
        assert_within(float(best["proxy"]), 1.163 * STD / 12**0.5, STD / 12**0.5 * 1.2 / 3)
        # Guided pictures have the tilted law, up to noise of nine; base ones are one error off.
        assert float(guided["judge energy"]) < float(base["judge energy"])

    def test_calls_are_counted_and_those_of_a_bank_stand_apart(self, lines):
        backbone = Generator()
        base, guided, best, target = lines(Case("toy", backbone, 4, METHODS))
        calls = [(float(line["calls"]), float(line["shared calls"])) for line in (guided, best)]
        assert calls == [(4, 800), (20, 0)]
        assert (float(base["calls"]), float(target["calls"])) == (4, 0)
        # The target's draws are no method's.
        assert backbone.calls == 3 * (3 * (4 + 4 + 16) + 800 + 800)
        assert min(float(line["seconds"]) for line in (base, guided, best)) > 0

    @pytest.mark.parametrize(
        ("factor", "words"), [(0.5, "not reached by network"), (2.0, "overshot by network")]
    )
    def test_it_says_how_it_went(self, lines, capsys, factor, words):
        method = {"network": Importance(kl=1.0, bank=200, scale=factor)}
        lines(Case("toy", Generator(), 1, method))
        out = " ".join(capsys.readouterr().out.split())
        assert words in out
        assert "While proxy rises, gold falls with network" in out
        assert "emoji.png" in out

    def test_a_failure_is_one_error_that_names_it(self, lines, monkeypatch):
        def fail(*arguments):
            raise OSError("no space")

        monkeypatch.setattr(BestOfN, "align", fail)
        with pytest.raises(RuntimeError, match=r"toy, best of 5, dark cat: .*no space"):
            lines(Case("toy", Generator(), 1, METHODS))

    def test_the_sheet_shows_the_first_method_of_each_model(self, lines, tmp_path):
        cases = [
            Case("one", Generator(), 1, METHODS),
            Case("two", Generator(), 1, {"network": Network(Add(0.2)), **METHODS}),
        ]
        found = lines(*cases)
        assert [line["model"] for line in found] == ["one"] * 4 + ["two"] * 5
        assert float(found[5]["proxy"]) == pytest.approx(0.2, rel=1e-4)
        assert found[0]["share"] == ""
        with Image.open(tmp_path / "new" / "folder" / "emoji.png") as sheet:
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
            return {"emoji-pick": Light(), "emoji-gold": Light(-1.0)}.get(name, LightAsAsked())

        def load_backbone(name):
            asked.append(name)
            return Generator()

        def load_embedding(name):
            asked.append(name)
            return Lightness()

        def load_network(name):
            asked.append(name)
            return Add(0.01)

        texts = types.SimpleNamespace(prompts=("dark", "light", "lighter"))
        monkeypatch.setattr(rewards, "load", load)
        monkeypatch.setattr(backbones, "load", load_backbone)
        monkeypatch.setattr(networks, "load", load_network)
        monkeypatch.setattr(prompts, "load", lambda name: texts)
        monkeypatch.setattr(embeddings, "load", load_embedding)
        code, out, err = command("--quick", "--out", str(tmp_path))
        assert (code, err.strip()) == (0, "")  # of the bars, lines are left
        assert out.index("emoji-flow") < out.index("emoji-turbo") < out.index("noise gradient")
        assert {"emoji.csv", "emoji.png"} < {path.name for path in tmp_path.iterdir()}
        assert asked == [
            *("emoji-pick", "emoji-gold", "emoji-match"),
            *("emoji-judge", "emoji-flow", "emoji-turbo-change", "emoji-turbo"),
        ]

    @pytest.mark.parametrize("missing", [prompts, rewards, embeddings, backbones, networks])
    def test_without_the_test_bed_it_says_what_to_install(
        self, command, monkeypatch, tmp_path, missing
    ):
        def load(name):
            raise LookupError(f"there is none {name!r}, there are 'others'")

        texts = types.SimpleNamespace(prompts=("dark",))
        monkeypatch.setattr(prompts, "load", lambda name: texts)
        for module in (rewards, embeddings, backbones, networks):
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


def test_first_pictures_of_model_and_first_method_are_paired(tmp_path):
    def saved(name, seed):
        levels = numpy.random.default_rng(seed).integers(0, 256, (2, 4, 3), dtype=numpy.uint8)
        Image.fromarray(levels).save(tmp_path / name)
        return levels.transpose(2, 0, 1) / 255

    cells, expected = {}, {}
    for i, cell in enumerate((BASE, Cell("first", 1.0), Cell("second", 1.0))):
        names = [f"{i}-{number}.png" for number in range(3)]
        expected[cell] = numpy.stack([saved(name, f) for f, name in enumerate(names, 10 * i)])
        files = {number: tmp_path / name for number, name in enumerate(names)}
        cells[cell] = types.SimpleNamespace(files=files)
    results = types.SimpleNamespace(cells=cells, prompts=["a", "b", "c"])
    pairs = _pairs(types.SimpleNamespace(name="mine"), results)
    assert pairs.model == "mine"
    for found, cell in ((pairs.base, BASE), (pairs.aligned, Cell("first", 1.0))):
        assert found.shape == (3, 1, 3, 2, 4)
        assert found[:, 0].numpy() == pytest.approx(expected[cell])


def test_columns_of_a_table_are_in_the_order_of_its_first_row(tmp_path):
    write_csv(tmp_path / "a.csv", [{"x": 1, "y": "ä"}, {"y": "b", "x": 2}])
    assert (tmp_path / "a.csv").read_bytes() == "x,y\r\n1,ä\r\n2,b\r\n".encode()


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


def test_a_sheet_says_nothing_over_columns_that_it_does_not_need(tmp_path):
    picture = torch.ones(1, 1, 3, 8, 8)
    draw_pictures(["a"], [Pairs("model", picture, picture)], tmp_path / "sheet.png", columns=3)
    sheet = numpy.array(Image.open(tmp_path / "sheet.png"))
    used = (sheet < 255).any((0, 2)).nonzero()[0]
    assert used.max() < sheet.shape[1] / 3
