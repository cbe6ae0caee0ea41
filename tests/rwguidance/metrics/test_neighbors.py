"""Precision, recall and their curve: by hand, against slow copies, and laws that are known."""

import math

import pytest
import torch

from common import assert_within, randn
from rwguidance import metrics
from rwguidance.metrics import Sample, blocks, precision_recall, precision_recall_curve
from rwguidance.metrics.neighbors import _curve
from rwguidance.metrics.targets import _means

cdf = torch.distributions.Normal(0.0, 1.0).cdf


def shares(x, y, k=3):
    found = precision_recall(x, y, k)
    return found.precision.value, found.recall.value


def slow_share(x, y, k):
    inside = 0
    for a in x:
        for i, b in enumerate(y):
            radius = sorted(math.dist(b, c) for j, c in enumerate(y) if j != i)[k - 1]
            if math.dist(a, b) <= radius:
                inside += 1
                break
    return inside / len(x)


def column(*values):
    return torch.tensor(values, dtype=torch.float64)[:, None]


def near_ties(seed, n):
    """Points of a grid whose distances differ by 1e-8, which single precision cannot tell."""

    return randn(seed, n, 2).round() + 1e-8 * randn(seed + 1, n, 2)


class TestPrecisionRecall:
    def test_by_hand(self):
        real = column(0.0, 1.0, 10.0, 11.0)  # balls of radius 1: [-1, 2] and [9, 12]
        made = column(0.5, 1.5, 2.0, 2.5)  # of radii 1, and three times 0.5: [-0.5, 3]
        assert shares(made, real, k=1) == (0.75, 0.5)
        # One mode lost: all that is made is real, half of what is real is made.
        lost = column(0.1, 0.4, 0.6, 0.9, 1.0)
        assert shares(lost, real, k=1) == (1.0, 0.5)

    def test_equal_sets_are_perfect_and_distant_ones_are_not(self):
        x = randn(0, 20, 5)
        assert shares(x, x) == (1.0, 1.0)
        assert shares(x, x + 100) == (0.0, 0.0)

    def test_nested_supports(self, generator):
        x, y = (torch.rand(600, 2, generator=generator, dtype=torch.float64) for _ in "ab")
        found = precision_recall(0.5 * x + 0.25, y)  # a quarter of the area, in the middle
        assert found.precision.value > 0.95
        # Balls at the border reach out by the distance of neighbors, about a twentieth of the side.
        assert 0.25 <= found.recall.value < 0.4

    @pytest.mark.parametrize("k", [1, 3])
    def test_it_is_a_slow_copy_of_itself(self, k, monkeypatch):
        monkeypatch.setattr(blocks, "BLOCK", 7)
        x, y = randn(0, 25, 3), 0.8 * randn(1, 18, 3) + 0.5
        expected = slow_share(x.tolist(), y.tolist(), k), slow_share(y.tolist(), x.tolist(), k)
        assert shares(x, y, k) == pytest.approx(expected)
        assert expected[0] != expected[1]

    def test_neighbors_are_told_apart_in_double_precision(self):
        x, y = near_ties(0, 25), near_ties(2, 18)
        expected = slow_share(x.tolist(), y.tolist(), 1), slow_share(y.tolist(), x.tolist(), 1)
        assert shares(x, y, 1) == pytest.approx(expected)
        assert 0 < expected[0] < 1

    def test_its_error_is_the_jackknife_over_prompts(self):
        groups = [i % 6 for i in range(30)]
        x, y = randn(0, 30, 2), 0.9 * randn(1, 30, 2) + 0.6
        sets = [Sample(z, None, groups) for z in (x, y)]
        found = precision_recall(*sets, k=2)
        keep = lambda z, u: [
            row for row, group in zip(z.tolist(), groups, strict=True) if group != u
        ]
        for figure, a, b in ((found.precision, x, y), (found.recall, y, x)):
            without = [slow_share(keep(a, u), keep(b, u), 2) for u in range(6)]
            mean = sum(without) / 6
            expected = math.sqrt(5 / 6 * sum((one - mean) ** 2 for one in without))
            assert figure.error == pytest.approx(expected)
            assert figure.units == 6
        # Fewer blocks than prompts, each with two of them.
        assert precision_recall(*sets, k=2, blocks=3).precision.error > 0

    def test_the_error_tells_the_spread(self, generator):
        rows = []
        for _ in range(60):
            x, y = (torch.randn(100, 2, generator=generator, dtype=torch.float64) for _ in "ab")
            figure = precision_recall(1.5 * x + 1, y).precision
            rows.append((figure.value, figure.error**2))
        values, squared = torch.tensor(rows, dtype=torch.float64).T
        # Of a statistic that is not smooth, to a factor of two.
        assert 0.5 < float(squared.mean() / values.var()) < 2

    def test_prompts_count_alike(self):
        real = column(0.0, 0.1, 0.2, 0.3)
        made = Sample(column(0.0, 0.1, 0.2, 9.0), None, "aaab")
        assert precision_recall(made, Sample(real, None, "aaab"), 1).precision.value == 0.5

    @pytest.mark.parametrize("swapped", [False, True])
    def test_without_a_block_that_has_nearly_all_there_are_no_balls_and_no_errors(self, swapped):
        many, few = (
            Sample(randn(0, 9, 1), None, "aaabbbccc"),
            Sample(randn(1, 6, 1), None, "aaaabc"),
        )
        figures = lambda k: precision_recall(*((few, many) if swapped else (many, few)), k)
        inside_few, inside_many = (1, 0) if swapped else (0, 1)
        for k, known in ((1, True), (2, False)):  # without a, few are two
            found = figures(k).precision, figures(k).recall
            assert math.isfinite(found[inside_few].error) == known
            assert math.isfinite(found[inside_many].error)

    def test_units_are_the_prompts_of_both_sets_or_all_rows(self):
        x, y = randn(0, 7, 2), randn(1, 8, 2)
        by_prompt = precision_recall(Sample(x, None, "aabbccd"), Sample(y, None, "aabbeeff"), 2)
        other = precision_recall(Sample(y, None, "aabbeeff"), Sample(x, None, "aabbccd"), 2)
        for found in (by_prompt, other):
            assert (found.precision.units, found.recall.units) == (6, 6)
        assert other.precision == by_prompt.recall
        assert other.recall == by_prompt.precision
        by_row = precision_recall(x, y, 2)
        assert (by_row.precision.units, by_row.recall.units) == (15, 15)

    def test_what_cannot_be_is_refused(self):
        x, y = randn(0, 4, 2), randn(1, 9, 2)
        with pytest.raises(ValueError, match=r"k must be .* 4 and 9, got 4"):
            precision_recall(x, y, 4)
        with pytest.raises(ValueError, match=r"k must be .* 4 and 9, got 0"):
            precision_recall(x, y, 0)
        with pytest.raises(ValueError, match=r"y must have no log_weights; take y.resampled"):
            precision_recall(x, Sample(y, randn(2, 9)))
        with pytest.raises(
            ValueError, match="y must have features of the dimension of x, 2, got 1"
        ):
            precision_recall(x, y[:, :1])
        assert math.isnan(precision_recall(x, y, 3).precision.error or math.nan)


def exact(ratios, shift):
    """The precision of N(shift, 1) against N(0, 1): lambda p < q beyond an edge."""

    edge = ratios.log() / shift + shift / 2
    return ratios * (1 - cdf(edge)) + cdf(edge - shift)


RATIOS = torch.tensor([0.2, 0.5, 1.0, 2.0, 5.0], dtype=torch.float64)


class TestCurve:
    @pytest.mark.parametrize("shift", [1.0, 2.5])
    def test_of_two_normal_laws_it_is_a_little_above_the_truth(self, shift):
        found = precision_recall_curve(randn(0, 2000, 1) + shift, randn(1, 2000, 1), RATIOS)
        gap, truth = found.precision - exact(RATIOS, shift), exact(RATIOS, shift)
        assert bool((gap > -5 * found.error - 1e-9).all())
        assert bool((gap < 5 * found.error + 0.03 * truth).all())
        assert found.recall.tolist() == pytest.approx((found.precision / RATIOS).tolist())
        bound = RATIOS.clamp(max=1)
        assert found.divergence.tolist() == pytest.approx((bound - found.precision).tolist())
        assert found.units == 4000

    def test_of_discrete_laws_it_is_the_truth(self):
        """Three points far apart, with k small enough that neighbors are copies of the point."""

        p, q = (torch.tensor(v, dtype=torch.float64) for v in ([0.5, 0.3, 0.2], [0.2, 0.2, 0.6]))
        places = torch.tensor([0.0, 10.0, 30.0], dtype=torch.float64)
        draw = lambda law, seed: places[
            torch.multinomial(law, 3000, True, generator=torch.Generator().manual_seed(seed))
        ]
        jitter = lambda seed: 0.01 * randn(seed, 3000)
        found = precision_recall_curve(
            draw(q, 0) + jitter(2), draw(p, 1) + jitter(3), RATIOS, k=101
        )
        truth = torch.minimum(RATIOS[:, None] * p, q).sum(1)
        assert_within(found.precision, truth, found.error + 1e-12)

    def test_a_tilted_set_is_the_shifted_law_and_trades_precision_for_recall(self):
        noise = randn(0, 3000, 1)
        target = Sample(noise, noise[:, 0])
        same, far = (
            precision_recall_curve(randn(1, 3000, 1) + s, target, RATIOS) for s in (1.0, 0.0)
        )
        assert float(same.divergence.abs().max()) < 0.1
        truth = exact(RATIOS, 1.0)
        gap = far.precision - truth
        # Half of the nats are lost on weights: errors are larger, and the guess is worse.
        assert bool((gap > -5 * far.error).all())
        assert bool((gap < 5 * far.error + 0.05 * truth).all())
        assert float(far.divergence[2]) > 0.25
        assert same.ess == pytest.approx(3000 * math.exp(-1), rel=0.15)
        # The other way round, precision and recall swap places.
        back = precision_recall_curve(target, randn(1, 3000, 1), 1 / RATIOS)
        assert back.recall.tolist() == pytest.approx(far.precision.tolist(), abs=0.05)

    def test_the_error_covers_the_value_of_its_bound(self, generator):
        """A mode of the method alone, which every guess finds, so that the bound is tight."""

        covered = []
        lost, made = 0.2, 0.3  # shares of target and method that lie elsewhere
        for _ in range(200):
            uniform = lambda: torch.rand(300, generator=generator, dtype=torch.float64)
            y = uniform() + 10 * (uniform() < lost)
            x = uniform() + 20 * (uniform() < made)
            found = precision_recall_curve(x, y, [10.0], k=21)
            # Where both are, ten times the density of the target is more than the method's.
            covered.append(abs(float(found.precision[0]) - 0.7) < 1.96 * float(found.error[0]))
        assert_within(sum(covered) / 200, 0.95, math.sqrt(0.95 * 0.05 / 200), z=3.5)

    @pytest.mark.parametrize("grouped", [False, True])
    def test_the_error_is_the_jackknife_over_units_given_the_guess(self, grouped):
        ratios, n, m = torch.tensor([0.25, 3.0], dtype=torch.float64), 9, 7
        names = ("aabbbccdd", "dcbabca") if grouped else (None, None)
        x, y = Sample(randn(0, n, 1), randn(1, n), names[0]), Sample(randn(2, m, 1), None, names[1])
        inside = randn(3, 2, n) > 0, randn(4, 2, m) > 0
        found = _curve(ratios, *inside, x, y)

        def value(left):
            keep = lambda sample, first: torch.tensor(
                [u not in left for u in sample.groups or range(first, first + len(sample))]
            )
            q, p = x.shares * keep(x, 0), y.shares * keep(y, n)
            return ratios * (inside[1] * p).sum(1) / p.sum() + (~inside[0] * q).sum(1) / q.sum()

        units = "abcd" if grouped else range(n + m)
        without = torch.stack([value({unit}) for unit in units])
        spread = (without - without.mean(0)).square().sum(0)
        expected = ((len(units) - 1) / len(units) * spread).sqrt()
        torch.testing.assert_close(found.error, expected)
        torch.testing.assert_close(found.precision, value(()))
        assert found.units == len(units)

    def test_groups_are_the_units(self):
        groups = [i % 40 for i in range(800)]
        center = 2 * randn(0, 40, 1)[groups]
        x, y = center + 0.1 * randn(1, 800, 1), center + 0.1 * randn(2, 800, 1)
        by_prompt = precision_recall_curve(Sample(x, None, groups), Sample(y, None, groups), RATIOS)
        by_row = precision_recall_curve(x, y, RATIOS)
        assert by_prompt.units == 40
        assert by_row.units == 1600
        # Neighbors of a fold are of other prompts: what holds for these need not hold here.
        assert float(by_prompt.error[2]) < 0.2
        assert by_prompt.trade_offs.tolist() == RATIOS.tolist()

    def test_blocks_change_nothing_however_near_a_tie(self, monkeypatch):
        x, y = near_ties(0, 60), near_ties(2, 50)
        whole = precision_recall_curve(x, y, k=1)
        monkeypatch.setattr(blocks, "BLOCK", 7)
        parts = precision_recall_curve(x, y, k=1)
        assert parts.precision.tolist() == pytest.approx(whole.precision.tolist())
        for name in ("trade_offs", "precision", "recall", "divergence", "error"):
            assert getattr(whole, name).dtype == torch.float64, name

    def test_a_closer_method_is_better_at_every_trade_off(self):
        y = randn(0, 1500, 2)
        near, far = (precision_recall_curve(randn(1, 1500, 2) + s, y) for s in (0.5, 2.0))
        assert len(near.trade_offs) == 33
        assert float(near.trade_offs[16]) == pytest.approx(1.0)
        middle = slice(8, 25)
        assert bool((near.precision - far.precision > 0.05)[middle].all())

    def test_what_cannot_be_is_refused(self):
        x = randn(0, 8, 2)
        with pytest.raises(ValueError, match="two rows at least in each half of the units"):
            precision_recall_curve(x[:1], x)
        # of 8 and 7 rows, one half has 8, and the other one 7
        with pytest.raises(ValueError, match=r"k must lie in \[1, 7\], got 8"):
            precision_recall_curve(x, x[:7], k=8)
        for wrong in ([0.0], [1.0, -1.0], [1.0, math.inf], [], [[1.0]]):
            with pytest.raises(ValueError, match="trade_offs must be positive and finite"):
                precision_recall_curve(x, x, wrong)
        with pytest.raises(TypeError, match="trade_offs must be positive numbers, got str"):
            precision_recall_curve(x, x, "all")


class TestDistinct:
    def test_chains_of_near_rows_are_one_picture(self, monkeypatch):
        values = column(0.0, 1.0, 2.0, 5.0, 5.5, 9.0)
        for block in (1024, 2):
            monkeypatch.setattr(blocks, "BLOCK", block)
            count = lambda t: metrics.distinct(values[[3, 0, 5, 2, 4, 1]], t).value
            assert [count(t) for t in (0.0, 0.5, 0.9, 1.0, 3.0, 3.5)] == [6, 5, 5, 3, 2, 1]

    def test_copies_are_one_picture_and_prompts_are_averaged(self):
        x = Sample(randn(0, 3, 4)[[0, 0, 1, 1, 2, 0, 1, 2]], None, "aaaabbbb")
        found = metrics.distinct(x, 0)
        assert found.by_group == {"a": 2.0, "b": 3.0}
        assert (found.value, found.error, found.units) == (2.5, 0.5, 2)
        assert math.isnan(metrics.distinct(x.features, 0).error)

    def test_it_agrees_with_a_search_of_the_graph(self, monkeypatch):
        monkeypatch.setattr(blocks, "BLOCK", 9)
        x = randn(1, 60, 2)
        near = torch.cdist(x, x) <= 0.3
        seen, parts = set(), 0
        for start in range(60):
            parts += start not in seen
            reach = [start]
            while reach:
                i = reach.pop()
                if i not in seen:
                    seen.add(i)
                    reach += near[i].nonzero().flatten().tolist()
        assert metrics.distinct(x, 0.3).value == parts
        assert 5 < parts < 55

    def test_what_cannot_be_is_refused(self):
        with pytest.raises(ValueError, match="threshold must be at least 0, got -1"):
            metrics.distinct(randn(0, 3, 2), -1)
        with pytest.raises(ValueError, match="x must have no log_weights"):
            metrics.distinct(Sample(randn(0, 3, 2), randn(1, 3)), 0.1)
        with pytest.raises(TypeError, match="distance must be a function of two sets"):
            metrics.distinct(randn(0, 3, 2), 0.1, torch.nn.PairwiseDistance)  # without its call


def rewards(values, groups, log_w=None):
    return Sample(torch.tensor(values, dtype=torch.float64), log_w, groups)


class TestShareOfTarget:
    def test_by_hand(self):
        base = rewards([0.0, 2.0, 4.0], "aab")  # means 1 and 4
        method = rewards([5.0, 2.0], "ba")  # gains 1 and 1
        tilted = rewards(
            [0.0, 4.0, 5.0], "aab", torch.log(torch.tensor([1.0, 3.0, 2.0]))
        )  # 3 and 5
        found = metrics.share_of_target(method, base, tilted)
        assert found.value == pytest.approx(2 / 3)
        without = torch.tensor([1 / 1, 1 / 2], dtype=torch.float64)  # b alone, a alone
        assert found.error == pytest.approx(float(without.std()) / math.sqrt(2))
        assert found.units == 2
        assert found.ess == pytest.approx(1.0)  # the lower one of 1.6 and 1

    def test_means_are_those_of_groups_in_the_order_of_others(self):
        log_w = torch.log(torch.tensor([1.0, 3.0, 2.0, 1.0, 1.0]))
        x = rewards([0.0, 4.0, 5.0, 1.0, 2.0], "aabcc", log_w)
        means = _means(x, rewards([0.0] * 3, "cab"))
        assert means.tolist() == pytest.approx([1.5, 3.0, 5.0])

    def test_base_and_target_are_the_ends(self):
        groups = [i % 10 for i in range(200)]
        base, target = (
            Sample(randn(s, 200), w, groups) for s, w in ((0, None), (1, randn(1, 200)))
        )
        assert metrics.share_of_target(base, base, target).value == 0
        assert metrics.share_of_target(target, base, target).value == pytest.approx(1)
        assert metrics.share_of_target(target, base, target).error == pytest.approx(0, abs=1e-12)

    def test_the_error_covers_the_truth(self, generator):
        """Gains of 0.3, of a tilt that gains 0.5, on prompts that differ."""

        covered, groups = [], [i for i in range(40) for _ in range(30)]
        for _ in range(200):
            normal = lambda *s: torch.randn(*s, generator=generator, dtype=torch.float64)
            center = normal(40, 1)
            method, base = ((center + s + normal(40, 30)).flatten() for s in (0.3, 0.0))
            noise = normal(40, 30)
            tilted = Sample((center + noise).flatten(), 0.5 * noise.flatten(), groups)
            sets = Sample(method, None, groups), Sample(base, None, groups), tilted
            found = metrics.share_of_target(*sets)
            covered.append(abs(found.value - 0.6) < 2.02 * found.error)
        assert_within(sum(covered) / 200, 0.95, math.sqrt(0.95 * 0.05 / 200), z=3.5)

    def test_what_cannot_be_is_refused(self):
        good = rewards([1.0, 2.0], "ab")
        with pytest.raises(
            ValueError, match="method must be a Sample of one reward per row, with gr"
        ):
            metrics.share_of_target(Sample(randn(0, 2)), good, good)
        with pytest.raises(ValueError, match="tilted must be a Sample of one reward"):
            metrics.share_of_target(good, good, Sample(randn(0, 2, 2), None, "ab"))
        with pytest.raises(
            ValueError, match="base and method must have the same groups, base lacks"
        ):
            metrics.share_of_target(rewards([1.0, 2.0], "ac"), good, good)
        with pytest.raises(TypeError, match="base must be a Sample of rewards, got Tensor"):
            metrics.share_of_target(good, torch.zeros(2), good)
        assert math.isnan(metrics.share_of_target(good, good, good).value)
