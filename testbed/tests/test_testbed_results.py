"""The benchmark of the test bed, on cases whose answers are known."""

import csv
import importlib
import math
import sys
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from rich.progress import Progress
from test_metrics import Light

import rwguidance as rw
from backbones import Backbone
from common import assert_rounds_to, assert_within
from rwguidance import toy
from rwguidance.noise_space import flow_map
from rwguidance.support.randomness import generator_for, normal
from rwguidance.testing import check_estimator
from rwguidance_testbed.data import Drawing, Drawings

ROOT = Path(__file__).parents[2]

# Of diffusers, in versions that are older than the warning.
pytestmark = pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning")


@pytest.fixture(scope="module")
def testbed():
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(ROOT / "testbed" / "benchmarks")
        yield importlib.import_module("methods")
    for name in ("methods", "models", "report", "figures"):
        sys.modules.pop(name, None)


@pytest.fixture(scope="module")
def report(testbed):
    return importlib.import_module("report")


class Still(Backbone):
    """Noise that stands still, so that samples are noise; pictures are latents around gray."""

    def __init__(self):
        super().__init__(rw.RectifiedSchedule())

    def condition(self, prompts):
        return list(prompts)

    def draw_noise(self, n, generator=None):
        return normal((n, 3, 4, 4), generator)

    def decode(self, latents):
        return torch.nn.functional.interpolate(0.5 + 0.05 * latents, scale_factor=16.0)

    def times(self, steps):
        return torch.linspace(1, 0, steps + 1, dtype=torch.float64)

    def forward(self, x_t, t, condition=None):
        scales = self.schedule.at(t, like=x_t)
        return rw.Prediction.from_velocity(torch.zeros_like(x_t), x_t, scales)


class Named(Light):
    """A judge whose captions are prompts with and without backgrounds."""

    def embed_captions(self, captions):
        return torch.stack([torch.tensor([len(c), c.count("e"), 1.0]) for c in captions])


def red(images, prompts):
    """Linear in the latents."""

    return images[:, 0].mean((1, 2)).double()


def case_of(testbed, steps, methods, bank=24, large=32, strengths=(0.5, 1.0)):
    return testbed.Case(
        "still", Still(), red, Named(), methods, steps, bank, large, 2, 0, strengths
    )


def run(testbed, report, case, out, prompts=6, block=3):
    some = testbed.prompts_of(prompts)
    with Progress(disable=True) as progress:
        files = testbed.run_case(case, some, out, block, False, progress)
    results = report.read(files, some)
    rows = report.table_of(case.name, results, {"judge": case.judge})
    return results, [row for row in rows if row["part"] == "all"]


def test_prompts_are_of_all_names_with_and_without_backgrounds_and_styles(testbed):
    prompts = testbed.prompts_of(200)
    assert len({prompt.text for prompt in prompts}) == 200
    assert len({prompt.name for prompt in prompts}) == 195
    assert 16 <= sum(prompt.part == "held out" for prompt in prompts) <= 19
    assert [p.text for p in testbed.prompts_of(20)] == [p.text for p in prompts[:20]]
    for prompt in prompts:
        assert prompt.real.startswith(prompt.name)
        assert prompt.text.removeprefix(prompt.real) == "" or prompt.text.endswith(" style")
    assert sum("background" in prompt.real for prompt in prompts) == 100
    assert sum("style" in prompt.text for prompt in prompts) == 100


class TestPooled:
    law = toy.Gaussian(torch.zeros(48), torch.eye(48))

    def ingredients(self, generator):
        x_0 = self.law.sample(40, generator).float().reshape(40, 3, 4, 4)
        keys = ["a"] * 20 + ["b"] * 20
        bank = rw.Bank(x_0, keys, normal((40,), generator))
        states = normal((4, 3, 4, 4), generator)
        return Still(), bank, rw.Tilt(red, 1.0), states, ["a", "b", "b", "a"]

    def test_of_single_positions_it_is_plain_importance_sampling(self, testbed, generator):
        model, bank, tilt, x_t, keys = self.ingredients(generator)
        for t in (1.0, 0.9, 0.6):
            found = testbed.Pooled(bank, tilt, 1)(model, x_t, t, keys)
            exact = rw.ImportanceSampling(bank, tilt)(model, x_t, t, keys)
            assert torch.allclose(found.shift, exact.shift, atol=1e-5)
            assert torch.allclose(found.log_h, exact.log_h, atol=1e-4)
            for name in ("ess", "ess_tilted", "pareto_k"):
                expected = exact.diagnostics[name]
                assert torch.allclose(found.diagnostics[name], expected, rtol=1e-3, equal_nan=True)

    def test_its_weights_are_those_of_pooled_states_and_draws(self, testbed, generator):
        model, bank, tilt, x_t, keys = self.ingredients(generator)
        pool = lambda x: 2 * torch.nn.functional.avg_pool2d(x, 2)
        small = rw.Bank(pool(bank.x_0), bank.condition, bank.rewards)
        for t in (0.9, 0.5):
            found = testbed.Pooled(bank, tilt, 2)(model, x_t, t, keys)
            exact = rw.ImportanceSampling(small, tilt)(model, pool(x_t), t, keys)
            assert torch.allclose(found.log_h, exact.log_h, atol=1e-4)
            assert torch.allclose(pool(found.shift), exact.shift, atol=1e-5)
            full = rw.ImportanceSampling(bank, tilt)(model, x_t, t, keys)
            assert bool((found.diagnostics["ess"] > full.diagnostics["ess"]).all())

    def test_it_is_an_estimator(self, testbed, generator):
        model, bank, tilt, x_t, keys = self.ingredients(generator)
        check_estimator(testbed.Pooled(bank, tilt, 2), model, x_t=x_t, condition=keys)


class TestArithmetic:
    def test_paired_differences(self, report, generator):
        before = torch.tensor([1.0, 2.0, 4.0])
        after = torch.tensor([2.0, 2.0, 7.0])
        # Differences 1, 0 and 3: mean 4/3, variance (1/9 + 16/9 + 25/9) / 2.
        assert report.paired(after, before) == pytest.approx((4 / 3, math.sqrt(21 / 9 / 3)))

    def test_the_tilted_mean_is_self_normalized(self, testbed, generator):
        values = normal((30,), generator, dtype=torch.float64)
        weights = [math.exp(2 * v) for v in values.tolist()]
        expected = sum(w * v for w, v in zip(weights, values.tolist(), strict=True)) / sum(weights)
        assert testbed.tilted_mean(2 * values, values)[0] == pytest.approx(expected, rel=1e-12)
        flat = testbed.tilted_mean(torch.zeros(30), values)
        error = float(values.std()) / math.sqrt(30)
        assert flat == pytest.approx((float(values.mean()), error))

    def test_the_tilted_mean_has_the_error_that_it_shows(self, testbed, generator):
        rows = []
        for _ in range(800):
            values = normal((200,), generator, dtype=torch.float64)
            rows.append(testbed.tilted_mean(0.6 * values, values))
        means, errors = torch.tensor(rows, dtype=torch.float64).T
        assert float(errors.mean()) == pytest.approx(float(means.std()), rel=0.15)
        assert float(means.mean()) == pytest.approx(0.6, abs=0.02)


class TestKnownAnswers:
    def test_in_one_step_guidance_goes_the_whole_way_for_every_picture(
        self, testbed, report, tmp_path
    ):
        methods = testbed.methods_of(1, 8, 24, 24, 2)
        case = case_of(testbed, 1, methods, bank=24, large=24)
        case = replace(case, methods=[m for m in methods if "best" not in m.name])
        results, rows = run(testbed, report, case, tmp_path, block=2)
        base = results.columns["base", None].all().proxy
        whole = {"importance", "15 % ESS", "5 % ESS", "tempered by 0.25"}
        whole |= {"pooled to 2 x 2", "pooled to 1 x 1"}
        for (method, nats), column in results.columns.items():
            gain = column.all().proxy - base[column.rows]
            if nats in (0.5, 1.0) and method in whole:
                way = results.targets[nats]["proxy"] - results.targets[0.0]["proxy"]
                assert torch.allclose(gain, way, rtol=1e-4)
        found = {(row["method"], row["nats"]): row for row in rows}
        assert found["importance", 1.0]["share"] == pytest.approx(1.0, rel=1e-4)
        assert found["importance, bank of 8", 1.0]["share error"] > 0.01
        seldom = found["importance, bank of 24", 1.0]  # on the first and the third block
        assert seldom["prompts"] == 4
        assert seldom["share"] == pytest.approx(1.0, rel=1e-4)
        assert seldom["share error"] < 1e-4
        # The reward is linear, and the law nearly normal with the variance of the bank.
        plug = found["plug-in", 0.5]
        assert plug["prompts"] == 4
        assert found["importance", 0.5]["prompts"] == 6
        assert abs(plug["share"] - 1) < 5 * plug["share error"] + 0.1

    def test_the_first_of_two_steps_goes_half_the_way(self, testbed, report, tmp_path):
        first = testbed.Guided("first", testbed.importance(), (1.0,), 24, 1)
        case = case_of(testbed, 2, [first], bank=24, large=24, strengths=(1.0,))
        _, rows = run(testbed, report, case, tmp_path)
        (row,) = [row for row in rows if row["method"] == "first"]
        assert row["share"] == pytest.approx(0.5, rel=1e-4)
        assert row["share error"] < 1e-4
        assert row["calls"] == 2
        assert row["prompts"] == 6

    def test_a_gaussian_law_and_a_linear_reward_have_a_closed_form(self, testbed, report, tmp_path):
        case = case_of(testbed, 1, [], bank=400, large=400, strengths=(0.5,))
        results, _ = run(testbed, report, case, tmp_path, prompts=8, block=4)
        # The reward has standard deviation s = 0.05 / 4; at KL = d^2 / 2 the mean moves by d s.
        s, n = 0.05 / 4, 8 * 400
        about = results.targets[0.5]
        way = about["proxy"] - results.targets[0.0]["proxy"]
        assert_within(results.targets[0.0]["proxy"].mean(), 0.5, s / math.sqrt(n))
        assert float(way.mean()) == pytest.approx(s, rel=0.03)
        assert float(about["beta"].mean()) == pytest.approx(s, rel=0.05)
        # Weights e^{d z} keep e^{-d^2} of the draws.
        assert float(about["ess"].mean()) / 400 == pytest.approx(math.exp(-1), rel=0.15)

    def test_no_guidance_is_the_base_picture_bit_by_bit(self, testbed, report, tmp_path):
        class Nothing(rw.ConditionalExpectation):
            def forward(self, model, x_t, t, condition=None):
                prediction = model(x_t, t, condition)
                return rw.Estimate(prediction, torch.zeros(len(x_t)), torch.zeros_like(x_t))

        nothing = testbed.Guided("nothing", lambda material: Nothing(), (None,), 0)
        results, rows = run(testbed, report, case_of(testbed, 3, [nothing]), tmp_path)
        base, same = (results.columns[key, None].all() for key in ("base", "nothing"))
        for name in ("proxy", "gold", "embedding"):
            assert torch.equal(getattr(base, name), getattr(same, name))
        (row,) = [row for row in rows if row["method"] == "nothing"]
        assert row["proxy gain"] == row["gold gain error"] == row["right gain"] == 0
        assert row["calls"] == 3

    def test_the_best_of_n_is_the_best_of_the_base_and_the_bank(self, testbed):
        methods = [testbed.Picked("best of 4", 4), testbed.Picked("soft", 8, True, (0.5,))]
        case = case_of(testbed, 2, methods)
        block = testbed.Block(case, testbed.prompts_of(3), 1)
        block.run()
        pool = torch.cat((block.base.proxy[:, None], block.bank.proxy), dim=1)
        found = block.tensors["best of 4/None/proxy"]
        assert torch.equal(found, pool[:, :4].max(1).values)
        place = pool[:, :4].argmax(1) - 1
        for i, k in enumerate(place.tolist()):
            gold = block.base.gold[i] if k < 0 else block.bank.gold[i, k]
            assert block.tensors["best of 4/None/gold"][i] == gold
        soft = block.tensors["soft/0.5/proxy"]
        assert bool((soft[:, None] == pool[:, :8]).any(1).all())
        assert block.facts["cells"]["best of 4/None"]["calls"] == 8

    def test_soft_picks_follow_the_weights(self, testbed):
        case = case_of(testbed, 1, [], bank=3, large=3, strengths=(0.2,))
        block = testbed.Block(case, testbed.prompts_of(1), 0)
        block.run()
        pool = torch.cat((block.base.proxy, block.bank.proxy[0, :2]))
        weight = (pool / block.betas[0.2][block.texts[0]]).softmax(0)
        seen = torch.zeros(3)
        for i in range(400):
            block._pick(testbed.Picked(f"soft {i}", 3, True, (0.2,)), 0.2)
            seen += block.tensors[f"soft {i}/0.2/proxy"] == pool
        error = (weight * (1 - weight) / 400).sqrt()
        assert_within(seen / 400, weight, error)

    def test_every_prompt_has_a_beta_of_its_own(self, testbed):
        case = case_of(testbed, 1, [], bank=16, large=16, strengths=(1.0,))
        block = testbed.Block(case, testbed.prompts_of(3), 0)
        block.run()
        material = block.material(1.0, 16)
        for i, text in enumerate(block.texts):
            log_w = material.tilt.weigh(material.bank.rewards[material.bank.rows[text]])
            kl = float((log_w.softmax(0) * log_w.log_softmax(0)).sum()) + math.log(16)
            assert kl == pytest.approx(1.0, rel=1e-6)
            images = case.backbone.decode(block.x_0[i])
            expected = red(images, None) / block.betas[1.0][text]
            assert torch.allclose(material.tilt(block.x_0[i], [text] * 16), expected)
        assert len(set(block.betas[1.0].values())) == 3
        few = block.material(1.0, 5).bank
        for i, text in enumerate(block.texts):
            assert torch.equal(few.x_0[few.rows[text]], block.x_0[i, :5])
            assert torch.equal(few.rewards[few.rows[text]], material.bank.rewards[16 * i :][:5])

    def test_one_block_in_so_many_has_the_large_banks(self, testbed):
        case = case_of(testbed, 1, [], bank=24, large=32)
        sizes = [testbed.Block(case, testbed.prompts_of(1), number).n for number in range(4)]
        assert sizes == [32, 24, 32, 24]

    def test_pictures_start_from_their_own_noise_whatever_the_block(self, testbed):
        case = case_of(testbed, 1, [])
        prompts = testbed.prompts_of(3)
        whole, alone = testbed.Block(case, prompts, 1), testbed.Block(case, prompts[1:2], 1)
        generate = flow_map(case.backbone, case.backbone.sampler, case.times)
        name = [("image", prompts[1].text)]
        x_0 = whole.sample(case.backbone, [("image", p.text) for p in prompts])[0]
        assert_rounds_to(x_0[1:2], alone.sample(case.backbone, name)[0], terms=64)
        noise = case.backbone.draw_noise(1, generator_for(0, *name[0]))
        assert_rounds_to(generate(noise, None), x_0[1:2], terms=64)


class TestRuns:
    def test_finished_blocks_are_kept(self, testbed, report, tmp_path, monkeypatch):
        case = case_of(testbed, 1, [testbed.Picked("best of 4", 4)])
        _, before = run(testbed, report, case, tmp_path)
        (tmp_path / "blocks" / "still" / "0001.safetensors").unlink()
        made = []
        original = testbed.Block.run
        monkeypatch.setattr(
            testbed.Block, "run", lambda self, r: (made.append(self.number), original(self, r))
        )
        _, after = run(testbed, report, case, tmp_path)
        assert made == [1]
        drop = lambda rows: [{k: v for k, v in r.items() if "seconds" not in k} for r in rows]
        assert repr(drop(after)) == repr(drop(before))

    def test_results_of_other_settings_are_refused(self, testbed, report, tmp_path):
        run(testbed, report, case_of(testbed, 1, []), tmp_path)
        with pytest.raises(ValueError, match="other settings: times differ; write elsewhere"):
            run(testbed, report, case_of(testbed, 2, []), tmp_path)
        some = testbed.prompts_of(6)
        with Progress(disable=True) as progress:
            case = case_of(testbed, 2, [])
            files = testbed.run_case(case, some, tmp_path, 3, True, progress)
        assert report.read(files, some).columns["base", None].calls == 2

    def test_the_whole_command_in_small(self, testbed, tmp_path):
        table = testbed.main(["--smoke", "--prompts", "4", "--block", "4", "--out", str(tmp_path)])
        names = {"results.csv", "targets.csv", "steps.csv", "results.md"}
        names |= {f"{model}{end}" for model in ("flow", "turbo") for end in (".png", "-sheet.png")}
        assert names <= {path.name for path in tmp_path.iterdir()}
        with (tmp_path / "results.csv").open(encoding="utf-8") as file:
            rows = list(csv.DictReader(file))
        assert len(rows) == len(table)
        flow = [row for row in table if row["model"] == "flow" and row.get("part") == "all"]
        methods = {row["method"] for row in flow}
        assert {"importance, first step", "plug-in, Jacobian", "best of 8"} <= methods
        turbo = {row["method"] for row in table if row["model"] == "turbo"}
        assert "network" in turbo
        # Its last layer is zero, so that it is the base model.
        (network,) = [r for r in table if r["method"] == "network" and r["part"] == "all"]
        assert network["proxy gain"] == network["gold gain"] == 0
        assert "importance, first step" not in turbo
        for row in table:
            assert math.isfinite(row.get("proxy gain", 0.0))
            if row["method"] == "base" and row["part"] == "all":
                assert row["proxy gain"] == row["gold gain"] == 0
                assert math.isfinite(row["kernel"])
        best = {r["method"]: r["proxy gain"] for r in flow if r["method"].startswith("best of")}
        assert 0 <= best["best of 2"] <= best["best of 4"] <= best["best of 8"]
        (plug,) = [r for r in flow if r["method"] == "plug-in" and r["nats"] == 1.0]
        assert plug["prompts"] == 4


@pytest.fixture(scope="module")
def models(testbed):
    return importlib.import_module("models")


class Drawn(Still):
    """Pictures of one color."""

    def times(self, steps=1):
        return super().times(steps)

    def decode(self, latents):
        return (0.5 + 0.2 * latents.mean((2, 3), keepdim=True).tanh()).expand(-1, 3, 64, 64)


class TestModels:
    def test_names_of_prompts(self, models):
        names = ["red heart", "cat on a mat", "house on an orange background"]
        assert [models.name_of(name) for name in names] == ["red heart", "cat on a mat", "house"]

    def test_means_are_over_groups_without_what_is_unknown(self, models):
        groups = ["a", "a", "b", "b", "c", "d"]
        values = torch.tensor([1.0, 3.0, 5.0, math.nan, math.nan, 2.0])
        # Means 2, 5 and 2: mean 3, variance 3.
        assert models.mean_over(groups, values) == pytest.approx((3.0, 1.0))

    def test_a_proxy_that_is_gold_always_agrees_and_its_opposite_never(self, models, generator):
        names = {"gold": 1.0, "opposite": -1.0}
        gold = lambda pictures, prompts: pictures.mean((1, 2, 3)) * len(prompts[0])
        proxies = {
            name: (lambda pictures, prompts, sign=sign: sign * pictures.mean((1, 2, 3)))
            for name, sign in names.items()
        }
        sizes = models.Sizes(captions=5, pictures=2)
        rows = models.measure_proxies(proxies, {"one": Drawn(), "two": Drawn()}, gold, sizes)
        found = {row["method"]: (row["all pairs"], row["held-out names"]) for row in rows}
        assert found == {"gold": (1.0, 1.0), "opposite": (0.0, 0.0)}

    def test_a_proxy_that_knows_nothing_agrees_half_of_the_time(self, models):
        gold = lambda pictures, prompts: pictures.mean((1, 2, 3))
        calls = iter(range(1000))
        noise = lambda pictures, prompts: torch.rand(
            len(pictures), generator=torch.Generator().manual_seed(next(calls))
        )
        sizes = models.Sizes(captions=100, pictures=4)
        row = models.measure_proxies({"noise": noise}, {"one": Drawn()}, gold, sizes)[0]
        assert row["all pairs"] == pytest.approx(0.5, abs=4 * row["all pairs error"])
        # Of six pairs of four pictures, within 100 captions.
        assert 0.01 < row["all pairs error"] < 0.04

    def test_ties_of_gold_have_no_part(self, models):
        gold = lambda pictures, prompts: torch.zeros(len(pictures))
        sizes = models.Sizes(captions=4, pictures=2)
        row = models.measure_proxies({"any": gold}, {"one": Drawn()}, gold, sizes)[0]
        assert math.isnan(row["all pairs"])

    def test_modes_are_the_drawings_that_pictures_spread_over(self, models):
        pixels = torch.zeros(3, 4, 80, 80, dtype=torch.uint8)
        pixels[:, 3] = 255
        for i in range(3):
            pixels[i, i] = 255
        entries = [
            Drawing("red heart", style, "x", "y", (), "generator")
            for style in ("noto", "fluent", "twemoji")
        ]
        drawings = Drawings(entries, pixels)
        plain = torch.eye(3)[:, :, None, None].expand(3, 3, 64, 64)
        judge = Light()
        centers = models.centers_of(judge, drawings, ["red heart"])
        even = {"red heart": plain.repeat(8, 1, 1, 1)}
        assert models.modes(judge, centers, {**even, **even})[0] == pytest.approx(3.0)
        one = {"red heart": plain[:1].repeat(8, 1, 1, 1)}
        assert models.modes(judge, centers, one)[0] == pytest.approx(1.0)
        uneven = {"red heart": plain[[0, 0, 0, 1]]}
        entropy = -(0.75 * math.log(0.75) + 0.25 * math.log(0.25))
        assert models.modes(judge, centers, uneven)[0] == pytest.approx(math.exp(entropy))

    @pytest.mark.slow
    def test_it_measures_what_is_shipped(self, models, tmp_path):
        tables = models.main(["--smoke", "--data", str(tmp_path), "--out", str(tmp_path)])
        assert 0.4 < tables["generators"][0]["right"] <= 1
        assert {row["method"] for row in tables["proxies"]} <= {"emoji-pick", "emoji-hps"}
        page = (tmp_path / "models.md").read_text(encoding="utf-8").split("\n\n")
        assert [len(part.splitlines()) - 2 for part in page] == [
            len(tables[key]) for key in ("generators", "proxies")
        ]
        assert (tmp_path / "emoji-flow.png").is_file()


@pytest.fixture(scope="module")
def figures(testbed):
    return importlib.import_module("figures")


class TestFigures:
    PAGE = (
        "before\n<!-- figures: one -->\nold\n<!-- end -->\n"
        "after\n<!-- figures: two -->\n<!-- end -->\n"
    )

    def test_tables_are_put_between_their_marks(self, figures):
        assert figures.names_in(self.PAGE) == ["one", "two"]
        page = figures.put(self.PAGE, {"one": "| a |\n"})
        assert page == self.PAGE.replace("\nold\n", "\n\n| a |\n\n")
        assert figures.put(page, {"one": "| a |", "three": "| b |"}) == page
        assert "| c |" in figures.put(page, {"two": "| c |"})

    def test_all_marks_are_of_tables_that_are_made(self, figures):
        found = [
            name
            for page in figures.PAGES
            for name in figures.names_in((ROOT / page).read_text(encoding="utf-8"))
        ]
        fixed = {"demo", "generators", "proxies"}
        assert fixed <= set(found)
        assert all(name.startswith("results of emoji ") for name in set(found) - fixed)

    def test_the_table_of_the_demo(self, figures):
        row = {
            "model": "emoji-flow",
            "method": "base",
            "proxy": "2.961",
            "proxy_error": "0.37",
            "gold": "10.1",
            "gold_error": "0.26",
            "match": "0.631",
            "match_error": "0.11",
            "calls": "4",
            "setup_calls": "0",
        }
        guided = {
            **row,
            "method": "importance",
            "proxy": "0.5",
            "match": "-0.02",
            "setup_calls": "8",
        }
        lines = figures.demo_table([row, guided]).splitlines()
        assert lines[2] == "| emoji-flow, base | 2.96 ± 0.37 | 10.10 ± 0.26 | 63.1 ± 11.0 | 4 |"
        expected = "| emoji-flow, importance | +0.50 ± 0.37 | +10.10 ± 0.26 | -2.0 ± 11.0 | "
        assert lines[3] == expected + "4, and 8 once per prompt |"
        assert len({line.count("|") for line in lines}) == 1
