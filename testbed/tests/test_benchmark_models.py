"""The benchmark of models, on pictures that are known."""

import math

import pytest
import torch
from still_backbone import Still
from test_metrics import Light

from rwguidance_testbed.data import Drawing, Drawings

# Of diffusers, in versions that are older than the warning.
pytestmark = pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning")


class Drawn(Still):
    """Pictures of one color."""

    def times(self, steps=1):
        return super().times(steps)

    def decode(self, latents):
        return (0.5 + 0.2 * latents.mean((2, 3), keepdim=True).tanh()).expand(-1, 3, 64, 64)


class TestModels:
    def test_names_of_prompts(self, bench):
        names = ["red heart", "cat on a mat", "house on an orange background"]
        found = [bench.measures.name_of(name) for name in names]
        assert found == ["red heart", "cat on a mat", "house"]

    def test_means_are_over_groups_without_what_is_unknown(self, bench):
        groups = ["a", "a", "b", "b", "c", "d"]
        values = torch.tensor([1.0, 3.0, 5.0, math.nan, math.nan, 2.0])
        # Means 2, 5 and 2: mean 3, variance 3.
        assert bench.measures.mean_over(groups, values) == pytest.approx((3.0, 1.0))

    def test_a_proxy_that_is_gold_always_agrees_and_its_opposite_never(self, bench, generator):
        names = {"gold": 1.0, "opposite": -1.0}
        gold = lambda pictures, prompts: pictures.mean((1, 2, 3)) * len(prompts[0])
        proxies = {
            name: (lambda pictures, prompts, sign=sign: sign * pictures.mean((1, 2, 3)))
            for name, sign in names.items()
        }
        sizes = bench.measures.Sizes(captions=5, pictures=2)
        rows = bench.measures.measure_proxies(
            proxies, {"one": Drawn(), "two": Drawn()}, gold, sizes
        )
        found = {row["method"]: (row["all pairs"], row["held-out names"]) for row in rows}
        assert found == {"gold": (1.0, 1.0), "opposite": (0.0, 0.0)}

    def test_a_proxy_that_knows_nothing_agrees_half_of_the_time(self, bench):
        gold = lambda pictures, prompts: pictures.mean((1, 2, 3))
        calls = iter(range(1000))
        noise = lambda pictures, prompts: torch.rand(
            len(pictures), generator=torch.Generator().manual_seed(next(calls))
        )
        sizes = bench.measures.Sizes(captions=100, pictures=4)
        row = bench.measures.measure_proxies({"noise": noise}, {"one": Drawn()}, gold, sizes)[0]
        assert row["all pairs"] == pytest.approx(0.5, abs=4 * row["all pairs error"])
        # Of six pairs of four pictures, within 100 captions.
        assert 0.01 < row["all pairs error"] < 0.04

    def test_ties_of_gold_have_no_part(self, bench):
        gold = lambda pictures, prompts: torch.zeros(len(pictures))
        sizes = bench.measures.Sizes(captions=4, pictures=2)
        row = bench.measures.measure_proxies({"any": gold}, {"one": Drawn()}, gold, sizes)[0]
        assert math.isnan(row["all pairs"])

    def test_modes_are_the_drawings_that_pictures_spread_over(self, bench):
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
        centers = bench.measures.centers_of(judge, drawings, ["red heart"])
        even = {"red heart": plain.repeat(8, 1, 1, 1)}
        assert bench.measures.modes(judge, centers, {**even, **even})[0] == pytest.approx(3.0)
        one = {"red heart": plain[:1].repeat(8, 1, 1, 1)}
        assert bench.measures.modes(judge, centers, one)[0] == pytest.approx(1.0)
        uneven = {"red heart": plain[[0, 0, 0, 1]]}
        entropy = -(0.75 * math.log(0.75) + 0.25 * math.log(0.25))
        assert bench.measures.modes(judge, centers, uneven)[0] == pytest.approx(math.exp(entropy))

    @pytest.mark.slow
    def test_it_measures_what_is_shipped(self, bench, tmp_path):
        tables = bench.models.main(["--smoke", "--data", str(tmp_path), "--out", str(tmp_path)])
        assert 0.4 < tables["generators"][0]["right"] <= 1
        assert {row["method"] for row in tables["proxies"]} <= {"emoji-pick", "emoji-hps"}
        page = (tmp_path / "models.md").read_text(encoding="utf-8").split("\n\n")
        assert [len(part.splitlines()) - 2 for part in page] == [
            len(tables[key]) for key in ("generators", "proxies")
        ]
        assert (tmp_path / "emoji-flow.png").is_file()
