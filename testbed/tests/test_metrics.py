"""The figures that tell pictures from real ones, against closed forms and slow copies."""

import itertools
import math

import pytest
import scipy.linalg
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from common import assert_within
from rwguidance_testbed import metrics
from rwguidance_testbed.data import SIZE, Drawing, Drawings
from rwguidance_testbed.encoders import Towers
from rwguidance_testbed.scenes import COLORS
from rwguidance_testbed.towers import top_one_accuracy


def normal(generator, *shape):
    return torch.randn(*shape, generator=generator, dtype=torch.float64)


def with_moments(x, mean, covariance):
    """The sample moved and stretched so that its moments are exactly these."""

    centered = x - x.mean(0)
    own = torch.linalg.cholesky(centered.T @ centered / (len(x) - 1))
    white = torch.linalg.solve_triangular(own, centered.T, upper=False).T
    return white @ torch.linalg.cholesky(covariance).T + mean


class TestFrechet:
    def test_it_is_that_of_normal_laws_that_commute(self, generator):
        a, b = (torch.tensor(v, dtype=torch.float64) for v in ([1.0, 4.0, 9.0], [4.0, 0.25, 1.0]))
        mean = torch.tensor([1.0, 0.0, -2.0], dtype=torch.float64)
        x = with_moments(normal(generator, 40, 3), torch.zeros(3), a.diag())
        y = with_moments(normal(generator, 25, 3), mean, b.diag())
        expected = 5.0 + float((a.sqrt() - b.sqrt()).square().sum())
        assert metrics.frechet(x, y) == pytest.approx(expected, rel=1e-12)

    def test_it_is_that_of_normal_laws_that_do_not(self, generator):
        a, b = (m @ m.T + 0.1 * torch.eye(4) for m in (normal(generator, 4, 4) for _ in "ab"))
        mean = normal(generator, 4)
        x = with_moments(normal(generator, 30, 4), mean, a)
        y = with_moments(normal(generator, 30, 4), torch.zeros(4), b)
        root = torch.from_numpy(scipy.linalg.sqrtm((a @ b).numpy()).real)
        expected = float(mean.square().sum() + (a + b - 2 * root).trace())
        assert metrics.frechet(x, y) == pytest.approx(expected, rel=1e-9)

    def test_few_embeddings_of_many_dimensions_are_no_special_case(self, generator):
        x, y = normal(generator, 5, 32), normal(generator, 7, 32)
        turn = torch.linalg.qr(normal(generator, 32, 32)).Q
        moved = 3.0 * turn[0]
        assert metrics.frechet(x, x) == pytest.approx(0.0, abs=1e-12)
        assert metrics.frechet(x, x + moved) == pytest.approx(9.0, rel=1e-12)
        assert metrics.frechet(x, y) == pytest.approx(metrics.frechet(y, x), rel=1e-12)
        assert metrics.frechet(x @ turn, y @ turn) == pytest.approx(metrics.frechet(x, y))
        # Covariances in two orthogonal planes: nothing to gain by the root.
        x[:, 8:], y[:, :8] = 0, 0
        trace = float(x.var(0).sum() + y.var(0).sum())
        gap = float((x.mean(0) - y.mean(0)).square().sum())
        assert metrics.frechet(x, y) == pytest.approx(trace + gap, rel=1e-12)

    def test_single_precision_is_widened(self, generator):
        x, y = normal(generator, 50, 6).float(), 0.3 + normal(generator, 50, 6).float()
        large = lambda z: 1000 + z
        exact = metrics.frechet(large(x.double()), large(y.double()))
        assert metrics.frechet(large(x), large(y)) == pytest.approx(exact, rel=1e-3)
        assert metrics.frechet(x, y) == metrics.frechet(x.double(), y.double())

    def test_bad_sets_are_refused(self, generator):
        x = normal(generator, 5, 3)
        with pytest.raises(ValueError, match=r"N and M at least 2, got \(1, 3\) and \(5, 3\)"):
            metrics.frechet(x[:1], x)
        with pytest.raises(ValueError, match=r"got \(5, 3\) and \(5, 2\)"):
            metrics.frechet(x, x[:, :2])
        x[2, 1] = math.nan
        with pytest.raises(ValueError, match="finite"):
            metrics.frechet(x, normal(generator, 5, 3))


def slow_kernel(x, y):
    """Of lists of (unit, embedding)."""

    def mean(first, second):
        values = []
        for i, (unit, a) in enumerate(first):
            for j, (other, b) in enumerate(second):
                if unit != other and not (first is second and i == j):
                    product = sum(p * q for p, q in zip(a, b, strict=True))
                    values.append((product / len(a) + 1) ** 3)
        return sum(values) / len(values)

    return mean(x, x) + mean(y, y) - 2 * mean(x, y)


def slow_error(x, y):
    """One unit left out at a time."""

    without = lambda z, unit: [row for row in z if row[0] != unit]
    value = slow_kernel(x, y)
    units = {unit for unit, _ in (*x, *y)}
    total = sum((value - slow_kernel(without(x, u), without(y, u))) ** 2 for u in units)
    return math.sqrt(total)


class TestKernel:
    @pytest.mark.parametrize(("n", "m", "d"), [(6, 6, 2), (4, 7, 3), (3, 3, 1)])
    def test_it_is_a_slow_copy_of_itself(self, n, m, d, generator):
        x, y = normal(generator, n, d), 0.5 + normal(generator, m, d)
        number = lambda z, first: list(enumerate(z.tolist(), first))
        value, error = metrics.kernel(x, y)
        assert value == pytest.approx(slow_kernel(number(x, 0), number(y, n)), rel=1e-10)
        assert error == pytest.approx(slow_error(number(x, 0), number(y, n)), rel=1e-9)

    def test_pairs_of_one_unit_do_not_count(self, generator):
        x, y = normal(generator, 5, 2), 0.5 + normal(generator, 7, 2)
        units = [0, 1, 2, 2, 9], [1, 0, 2, 9, 5, 5, 0]
        rows = [list(zip(u, z.tolist(), strict=True)) for u, z in zip(units, (x, y), strict=True)]
        value, error = metrics.kernel(x, y, units)
        assert value == pytest.approx(slow_kernel(*rows), rel=1e-10)
        assert error == pytest.approx(slow_error(*rows), rel=1e-9)
        with pytest.raises(ValueError, match=r"5 and 7 embeddings.*, got 5 and 1, 5 and 1 of them"):
            metrics.kernel(x, y, (range(5), [3]))
        with pytest.raises(ValueError, match=r"got 5 and 7, 2 and 5 of them"):
            metrics.kernel(x, y, ([0, 0, 1, 1, 1], units[1]))

    def test_it_is_unbiased_for_pictures_of_the_same_captions(self, generator):
        times, rows = 400, []
        for _ in range(times):
            caption = 2 * normal(generator, 20, 1)
            near = lambda copies, c=caption: (
                c.repeat(copies, 1) + 0.3 * normal(generator, 20 * copies, 1)
            )
            x, y = near(1), near(2)
            units = range(20), [i % 20 for i in range(40)]
            value, error = metrics.kernel(x, y, units)
            rows.append((value, error**2, metrics.kernel(x, y)[0]))
        values, squared, naive = torch.tensor(rows, dtype=torch.float64).T
        error = values.std() / math.sqrt(times)
        assert_within(values.mean(), 0.0, error)
        assert float(squared.mean() / values.var()) > 0.9
        assert naive.mean() < -5 * naive.std() / math.sqrt(times)

    def repeated(self, generator, times, n, m, mean, scale):
        """Distances and squared errors of one-dimensional normal laws, repeatedly."""

        rows = []
        for _ in range(times):
            x, y = normal(generator, n, 1), mean + scale * normal(generator, m, 1)
            value, error = metrics.kernel(x, y)
            rows.append((value, error**2))
        return torch.tensor(rows, dtype=torch.float64).T

    @pytest.mark.parametrize(("n", "m"), [(30, 30), (12, 40)])
    def test_it_is_unbiased_and_its_error_tells_its_spread(self, n, m, generator):
        mean, scale, times = 0.7, 1.3, 1500
        values, squared = self.repeated(generator, times, n, m, mean, scale)
        # In one dimension, by the moments of order 3, 2 and 1.
        second = mean**2 + scale**2
        third = mean**3 + 3 * mean * scale**2
        truth = third**2 + 3 * (second - 1) ** 2 + 3 * mean**2
        assert_within(values.mean(), truth, values.std() / math.sqrt(times))
        ratio = float(squared.mean() / values.var())
        assert 0.9 < ratio < 1.5

    def test_it_is_zero_on_average_for_one_law(self, generator):
        times = 1500
        values, squared = self.repeated(generator, times, 25, 35, 0.0, 1.0)
        assert_within(values.mean(), 0.0, values.std() / math.sqrt(times))
        ratio = float(squared.mean() / values.var())
        assert 1.4 < ratio < 2.8
        assert float((values < 0).double().mean()) > 0.3

    def test_too_few_are_refused(self, generator):
        with pytest.raises(ValueError, match="N and M at least 3"):
            metrics.kernel(normal(generator, 2, 2), normal(generator, 4, 2))


def slow_share(x, y, k):
    inside = 0
    for a in x:
        for i, b in enumerate(y):
            radius = sorted(math.dist(b, c) for j, c in enumerate(y) if j != i)[k - 1]
            if math.dist(a, b) <= radius:
                inside += 1
                break
    return inside / len(x)


class TestPrecisionRecall:
    def test_by_hand(self):
        column = lambda *values: torch.tensor(values, dtype=torch.float64)[:, None]
        real = column(0.0, 1.0, 10.0, 11.0)  # balls of radius 1: [-1, 2] and [9, 12]
        made = column(0.5, 1.5, 2.0, 2.5)  # of radii 1, and three times 0.5: [-0.5, 3]
        assert metrics.precision_recall(made, real, k=1) == (0.75, 0.5)
        # One mode lost: all that is made is real, half of what is real is made.
        lost = column(0.1, 0.4, 0.6, 0.9, 1.0)
        assert metrics.precision_recall(lost, real, k=1) == (1.0, 0.5)

    def test_equal_sets_are_perfect_and_distant_ones_are_not(self, generator):
        x = normal(generator, 20, 5)
        assert metrics.precision_recall(x, x) == (1.0, 1.0)
        assert metrics.precision_recall(x, x + 100) == (0.0, 0.0)

    @pytest.mark.parametrize("k", [1, 3])
    def test_it_is_a_slow_copy_of_itself(self, k, generator):
        x, y = normal(generator, 25, 3), 0.8 * normal(generator, 18, 3) + 0.5
        found = metrics.precision_recall(x, y, k)
        expected = slow_share(x.tolist(), y.tolist(), k), slow_share(y.tolist(), x.tolist(), k)
        assert found == pytest.approx(expected)
        assert found[0] != found[1]

    def test_the_neighbor_must_exist(self, generator):
        with pytest.raises(ValueError, match=r"k must be .* 4 and 9, got 4"):
            metrics.precision_recall(normal(generator, 4, 2), normal(generator, 9, 2), 4)


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
        assert (quality.precision, quality.recall) == metrics.precision_recall(x, y[:10])
        assert quality.frechet == metrics.frechet(x, y)
        units = range(10), [i % 10 for i in range(40)]
        assert (quality.kernel, quality.kernel_error) == metrics.kernel(x, y, units)
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
