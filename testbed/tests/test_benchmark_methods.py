"""The benchmark of methods, on cases whose answers are known."""

import csv
import math
from dataclasses import replace

import pytest
import torch
from rich.progress import Progress
from still_backbone import Named, Still, red

import rwguidance as rw
from common import assert_rounds_to, assert_within
from rwguidance.noise_space import flow_map
from rwguidance.support.randomness import generator_for

# Of diffusers, in versions that are older than the warning.
# Of diffusers, in versions that are older than the warning.
pytestmark = pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning")


def case_of(bench, steps, methods, bank=24, large=32, strengths=(0.5, 1.0)):
    return bench.block.Case(
        "still", Still(), red, Named(), methods, steps, bank, large, 2, 0, strengths
    )


def run(bench, case, out, prompts=6, block=3):
    some = bench.methods.prompts_of(prompts)
    with Progress(disable=True) as progress:
        files = bench.methods.run_case(case, some, out, block, False, progress)
    results = bench.results.read(files, some)
    rows = bench.tables.table_of(case.name, results, {"judge": case.judge})
    return results, [row for row in rows if row["part"] == "all"]


def test_prompts_are_of_all_names_with_and_without_backgrounds_and_styles(bench):
    prompts = bench.methods.prompts_of(200)
    assert len({prompt.text for prompt in prompts}) == 200
    assert len({prompt.name for prompt in prompts}) == 195
    assert 16 <= sum(prompt.part == "held out" for prompt in prompts) <= 19
    assert [p.text for p in bench.methods.prompts_of(20)] == [p.text for p in prompts[:20]]
    for prompt in prompts:
        assert prompt.real.startswith(prompt.name)
        assert prompt.text.removeprefix(prompt.real) == "" or prompt.text.endswith(" style")
    assert sum("background" in prompt.real for prompt in prompts) == 100
    assert sum("style" in prompt.text for prompt in prompts) == 100


class TestKnownAnswers:
    def test_in_one_step_guidance_goes_the_whole_way_for_every_picture(self, bench, tmp_path):
        methods = bench.catalog.methods_of(1, 8, 24, 24, 2)
        case = case_of(bench, 1, methods, bank=24, large=24)
        case = replace(case, methods=[m for m in methods if "best" not in m.name])
        results, rows = run(bench, case, tmp_path, block=2)
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

    def test_the_first_of_two_steps_goes_half_the_way(self, bench, tmp_path):
        first = bench.catalog.Guided("first", bench.catalog.importance(), (1.0,), 24, 1)
        case = case_of(bench, 2, [first], bank=24, large=24, strengths=(1.0,))
        _, rows = run(bench, case, tmp_path)
        (row,) = [row for row in rows if row["method"] == "first"]
        assert row["share"] == pytest.approx(0.5, rel=1e-4)
        assert row["share error"] < 1e-4
        assert row["calls"] == 2
        assert row["prompts"] == 6

    def test_a_gaussian_law_and_a_linear_reward_have_a_closed_form(self, bench, tmp_path):
        case = case_of(bench, 1, [], bank=400, large=400, strengths=(0.5,))
        results, _ = run(bench, case, tmp_path, prompts=8, block=4)
        # The reward has standard deviation s = 0.05 / 4; at KL = d^2 / 2 the mean moves by d s.
        s, n = 0.05 / 4, 8 * 400
        about = results.targets[0.5]
        way = about["proxy"] - results.targets[0.0]["proxy"]
        assert_within(results.targets[0.0]["proxy"].mean(), 0.5, s / math.sqrt(n))
        assert float(way.mean()) == pytest.approx(s, rel=0.03)
        assert float(about["beta"].mean()) == pytest.approx(s, rel=0.05)
        # Weights e^{d z} keep e^{-d^2} of the draws.
        assert float(about["ess"].mean()) / 400 == pytest.approx(math.exp(-1), rel=0.15)

    def test_no_guidance_is_the_base_picture_bit_by_bit(self, bench, tmp_path):
        class Nothing(rw.ConditionalExpectation):
            def forward(self, model, x_t, t, condition=None):
                prediction = model(x_t, t, condition)
                return rw.Estimate(prediction, torch.zeros(len(x_t)), torch.zeros_like(x_t))

        nothing = bench.catalog.Guided("nothing", lambda material: Nothing(), (None,), 0)
        results, rows = run(bench, case_of(bench, 3, [nothing]), tmp_path)
        base, same = (results.columns[key, None].all() for key in ("base", "nothing"))
        for name in ("proxy", "gold", "embedding"):
            assert torch.equal(getattr(base, name), getattr(same, name))
        (row,) = [row for row in rows if row["method"] == "nothing"]
        assert row["proxy gain"] == row["gold gain error"] == row["right gain"] == 0
        assert row["calls"] == 3

    def test_the_best_of_n_is_the_best_of_the_base_and_the_bank(self, bench):
        picked = bench.catalog.Picked
        methods = [picked("best of 4", 4), picked("soft", 8, True, (0.5,))]
        case = case_of(bench, 2, methods)
        block = bench.block.Block(case, bench.methods.prompts_of(3), 1)
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

    def test_soft_picks_follow_the_weights(self, bench):
        case = case_of(bench, 1, [], bank=3, large=3, strengths=(0.2,))
        block = bench.block.Block(case, bench.methods.prompts_of(1), 0)
        block.run()
        pool = torch.cat((block.base.proxy, block.bank.proxy[0, :2]))
        weight = (pool / block.betas[0.2][block.texts[0]]).softmax(0)
        seen = torch.zeros(3)
        for i in range(400):
            block._pick(bench.catalog.Picked(f"soft {i}", 3, True, (0.2,)), 0.2)
            seen += block.tensors[f"soft {i}/0.2/proxy"] == pool
        error = (weight * (1 - weight) / 400).sqrt()
        assert_within(seen / 400, weight, error)

    def test_every_prompt_has_a_beta_of_its_own(self, bench):
        case = case_of(bench, 1, [], bank=16, large=16, strengths=(1.0,))
        block = bench.block.Block(case, bench.methods.prompts_of(3), 0)
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

    def test_one_block_in_so_many_has_the_large_banks(self, bench):
        case = case_of(bench, 1, [], bank=24, large=32)
        prompts = bench.methods.prompts_of(1)
        sizes = [bench.block.Block(case, prompts, number).n for number in range(4)]
        assert sizes == [32, 24, 32, 24]

    def test_pictures_start_from_their_own_noise_whatever_the_block(self, bench):
        case = case_of(bench, 1, [])
        prompts = bench.methods.prompts_of(3)
        whole, alone = bench.block.Block(case, prompts, 1), bench.block.Block(case, prompts[1:2], 1)
        generate = flow_map(case.backbone, case.backbone.sampler, case.times)
        name = [("image", prompts[1].text)]
        x_0 = whole.sample(case.backbone, [("image", p.text) for p in prompts])[0]
        assert_rounds_to(x_0[1:2], alone.sample(case.backbone, name)[0], terms=64)
        noise = case.backbone.draw_noise(1, generator_for(0, *name[0]))
        assert_rounds_to(generate(noise, None), x_0[1:2], terms=64)


class TestRuns:
    def test_finished_blocks_are_kept(self, bench, tmp_path, monkeypatch):
        case = case_of(bench, 1, [bench.catalog.Picked("best of 4", 4)])
        _, before = run(bench, case, tmp_path)
        (tmp_path / "blocks" / "still" / "0001.safetensors").unlink()
        made = []
        original = bench.block.Block.run
        monkeypatch.setattr(
            bench.block.Block, "run", lambda self, r: (made.append(self.number), original(self, r))
        )
        _, after = run(bench, case, tmp_path)
        assert made == [1]
        drop = lambda rows: [{k: v for k, v in r.items() if "seconds" not in k} for r in rows]
        assert repr(drop(after)) == repr(drop(before))

    def test_results_of_other_settings_are_refused(self, bench, tmp_path):
        run(bench, case_of(bench, 1, []), tmp_path)
        with pytest.raises(ValueError, match="other settings: times differ; write elsewhere"):
            run(bench, case_of(bench, 2, []), tmp_path)
        some = bench.methods.prompts_of(6)
        with Progress(disable=True) as progress:
            case = case_of(bench, 2, [])
            files = bench.methods.run_case(case, some, tmp_path, 3, True, progress)
        assert bench.results.read(files, some).columns["base", None].calls == 2

    def test_the_whole_command_in_small(self, bench, tmp_path):
        few = ["--smoke", "--prompts", "4", "--block", "4"]
        table = bench.methods.main([*few, "--out", str(tmp_path)])
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
