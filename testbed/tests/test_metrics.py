"""The figures that tell pictures from real ones, and the share that shows what was asked for."""

import itertools
import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from common import assert_within
from rwguidance.metrics import Sample, frechet_distance, kernel_distance, precision_recall
from rwguidance_testbed import metrics
from rwguidance_testbed.data import SIZE, Drawing, Drawings
from rwguidance_testbed.encoders import Towers
from rwguidance_testbed.scenes import COLORS
from rwguidance_testbed.towers import top_one_accuracy


def normal(generator, *shape):
    return torch.randn(*shape, generator=generator, dtype=torch.float64)


class Light(Towers):
    """Embeds pictures by the means of their colors, and captions by a color named in them."""

    log_scale = torch.zeros(())

    def __init__(self):
        super().__init__(None)

    def embed_pictures(self, pictures):
        return pictures.mean((2, 3))

    def embed_captions(self, captions):
        known = {name: torch.tensor(color) / 255 for name, color in COLORS.items()}
        return torch.stack([known[caption.split()[-2]] for caption in captions])

    def write(self, folder):
        raise NotImplementedError


class Given(Light):
    """Embeds captions, which are numbers, by rows that are given."""

    def __init__(self, rows):
        super().__init__()
        self.rows = rows

    def embed_captions(self, captions):
        return torch.stack([self.rows[int(caption)] for caption in captions])


class TestRight:
    @settings(max_examples=20)
    @given(st.integers(2, 9), st.integers(0, 1000))
    def test_it_is_the_mean_over_all_choices_of_others(self, count, seed):
        generator = torch.Generator().manual_seed(seed)
        judge = Given(normal(generator, 9, 2))
        x = normal(generator, 4, 2)
        captions = ["3", "0", "3", "8"]
        found = metrics.right(judge, x, captions, [str(i) for i in range(9)], count)
        cosine = lambda a, b: float(a @ b / a.norm() / b.norm())
        for picture, caption, value in zip(x, captions, found.tolist(), strict=True):
            score = [cosine(picture, row) for row in judge.rows]
            own = int(caption)
            choices = list(itertools.combinations([i for i in range(9) if i != own], count - 1))
            won = [all(score[i] < score[own] for i in others) for others in choices]
            assert value == pytest.approx(sum(won) / len(won), abs=1e-12)

    def test_it_is_first_of_on_average(self, generator):
        judge = Given(normal(generator, 40, 3))
        x = normal(generator, 30, 3)
        own = torch.arange(30)
        candidates = [str(i) for i in range(40)]
        found = metrics.right(judge, x, candidates[:30], candidates, 5)
        unit = lambda z: torch.nn.functional.normalize(z, dim=-1)
        scores = unit(x) @ unit(judge.rows).T
        seen = torch.tensor([top_one_accuracy(scores, own, 5, generator) for _ in range(800)])
        assert_within(seen.mean(), found.mean(), seen.std() / math.sqrt(800))

    def test_equal_scores_do_not_count(self):
        judge = Given(torch.ones(3, 2, dtype=torch.float64))
        found = metrics.right(judge, torch.ones(1, 2), ["1"], ["0", "1", "2"], 2)
        assert found.tolist() == [0.0]

    def test_what_cannot_be_found_is_refused(self):
        judge = Given(torch.eye(3, dtype=torch.float64))
        x = torch.ones(1, 3)
        for captions, candidates, count, problem in (
            (["7"], ["0", "1"], 2, "lack '7'"),
            (["0"], ["0", "1", "1"], 2, "repeat"),
            (["0"], ["0", "1"], 3, "at most 2, got 1 and 3"),
            (["0", "1"], ["0", "1"], 2, "each of 1 pictures"),
        ):
            with pytest.raises(ValueError, match=problem):
                metrics.right(judge, x, captions, candidates, count)


def blank(names, role="judge"):
    """A drawing of one small dark square for each name: pictures are their background."""

    pixels = torch.zeros(len(names), 4, SIZE, SIZE, dtype=torch.uint8)
    pixels[:, 3, 30:50, 30:50] = 255
    entries = [Drawing(name, "noto", "x", "y", (), role) for name in names]
    return Drawings(entries, pixels)


class TestTable:
    captions = tuple(f"key on a {color} background" for color in ("red", "blue", "green") * 4)

    def test_real_pictures_come_round_by_round(self, generator):
        drawings = blank(["key", "lock"])
        pictures = metrics.real_pictures(drawings, self.captions[:6], 2, generator)
        assert pictures.shape == (12, 3, 64, 64)
        colors = [torch.tensor(COLORS[c]) / 255 for c in ("red", "blue", "green")] * 4
        assert torch.allclose(pictures[:, :, 0, 0], torch.stack(colors), atol=1e-6)
        assert len(pictures.flatten(1).unique(dim=0)) == 12
        with pytest.raises(ValueError, match="no scene of these drawings has the caption 'bell'"):
            metrics.real_pictures(drawings, ["bell"], 1, generator)

    def test_it_tells_real_pictures_from_others(self, generator):
        drawings = blank(["key"])
        made = metrics.real_pictures(drawings, self.captions, 1, generator)
        wrong = made.roll(1, 0)
        noise = torch.rand(made.shape, generator=generator)
        found = metrics.table(
            Light(),
            {"made": made, "wrong": wrong, "noise": noise},
            drawings,
            self.captions,
            self.captions,
            [f"key on a {color} background" for color in COLORS],
            generator,
            count=12,
        )
        assert list(found) == ["real", "made", "wrong", "noise"]
        for name in ("real", "made"):
            assert found[name].right == 1.0
            assert found[name].precision > 0.7
            assert abs(found[name].kernel) < 5 * found[name].kernel_error
        # The pictures of other captions: the judge sees it, distances of all do not.
        assert found["wrong"].right == 0.0
        assert found["wrong"].frechet == pytest.approx(found["made"].frechet)
        assert found["noise"].kernel > 3 * found["noise"].kernel_error
        assert found["noise"].precision == 0.0
        assert found["noise"].frechet > 3 * found["real"].frechet

    def test_compare_takes_as_many_real_ones_as_pictures_for_recall(self, generator):
        x, y = normal(generator, 10, 3), normal(generator, 40, 3)
        found = torch.tensor([1.0, 0.0] * 5, dtype=torch.float64)
        quality = metrics.compare(x, y, found)
        shares = precision_recall(x, y[:10])
        assert quality.precision == shares.precision.value
        assert quality.recall == shares.recall.value
        assert quality.frechet == pytest.approx(frechet_distance(x, y).value)
        sets = (Sample(z, None, [i % 10 for i in range(len(z))]) for z in (x, y))
        distance = kernel_distance(*sets, pooled=True)
        assert (quality.kernel, quality.kernel_error) == (distance.value, distance.error)
        assert quality.right == 0.5
        assert quality.right_error == pytest.approx(math.sqrt(10 / 4 / 9 / 10))
        with pytest.raises(ValueError, match=r"a multiple of 10 items.* found 10, got 15 and 10"):
            metrics.compare(x, y[:15], found)

    def test_sets_must_fit(self, generator):
        drawings, pictures = blank(["key"]), torch.zeros(2, 3, 64, 64)
        arguments = drawings, self.captions[:3], self.captions[:3], self.captions[:3], generator
        for sets in ({"made": pictures}, {"real": pictures[:1].repeat(3, 1, 1, 1)}):
            with pytest.raises(ValueError, match="sets must have 3 pictures"):
                metrics.table(Light(), sets, *arguments)
