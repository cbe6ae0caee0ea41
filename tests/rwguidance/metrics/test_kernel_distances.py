"""Energy and kernel distances against closed forms of normal laws, tilted ones among them."""

import itertools
import math

import pytest
import torch

from common import assert_within, randn
from rwguidance import metrics
from rwguidance.metrics import Sample, blocks, kernels

cdf = torch.distributions.Normal(0.0, 1.0).cdf


def mean_absolute(mean, std):
    """E |Z| of a normal law."""

    ratio = torch.tensor(mean / std, dtype=torch.float64)
    density = torch.exp(-ratio.square() / 2) / math.sqrt(2 * math.pi)
    return float(std * (2 * density + ratio * (2 * cdf(ratio) - 1)))


def energy(m, s):
    """The energy distance of N(0, 1) and N(m, s^2)."""

    between = mean_absolute(m, math.sqrt(1 + s * s))
    return 2 * between - mean_absolute(0.0, math.sqrt(2)) - mean_absolute(0.0, s * math.sqrt(2))


def cubic(m, s):
    """The distance of the same two by the cubic kernel, from their moments of order 3, 2 and 1."""

    second, third = m * m + s * s, m**3 + 3 * m * s * s
    return third**2 + 3 * (second - 1) ** 2 + 3 * m**2


def gaussian(m, s, width):
    """The distance of the same two by the Gaussian kernel."""

    mean = lambda gap, variance: (
        math.exp(-gap * gap / 2 / (width**2 + variance)) * width / math.sqrt(width**2 + variance)
    )
    return mean(0, 2) + mean(0, 2 * s * s) - 2 * mean(m, 1 + s * s)


CASES = {
    "energy": (metrics.energy_distance, energy(0.7, 1.3)),
    "cubic": (metrics.kernel_distance, cubic(0.7, 1.3)),
    "Gaussian": (
        lambda x, y: metrics.kernel_distance(x, y, metrics.gaussian_kernel(0.8)),
        gaussian(0.7, 1.3, 0.8),
    ),
}


@pytest.mark.parametrize("name", CASES)
@pytest.mark.parametrize(("n", "m"), [(30, 30), (12, 40)])
def test_it_is_unbiased_and_its_error_tells_its_spread(name, n, m, generator):
    metric, truth = CASES[name]
    runs, rows = 400, []
    normal = lambda count: torch.randn(count, 1, generator=generator, dtype=torch.float64)
    for _ in range(runs):
        figure = metric(normal(n), 0.7 + 1.3 * normal(m))
        rows.append((figure.value, figure.error**2))
    values, squared = torch.tensor(rows, dtype=torch.float64).T
    assert_within(values.mean(), truth, values.std() / math.sqrt(runs))
    assert 0.85 < float(squared.mean() / values.var()) < 1.6


def test_it_is_zero_on_average_for_one_law(generator):
    rows = []
    for _ in range(400):
        x, y = (torch.randn(n, 2, generator=generator, dtype=torch.float64) for n in (20, 35))
        figure = metrics.energy_distance(x, y)
        rows.append((figure.value, figure.error**2))
    values, squared = torch.tensor(rows, dtype=torch.float64).T
    assert_within(values.mean(), 0.0, values.std() / 20)
    assert 1.3 < float(squared.mean() / values.var()) < 2.8
    assert float((values < 0).double().mean()) > 0.3


def tilted(seed, prompts, draws, slope=0.6):
    """Draws of N(c, 1) for a center c of each prompt, tilted to N(c + slope, 1)."""

    center = 0.2 * randn(seed, prompts, 1, 1)
    noise = randn(seed + 1, prompts, draws, 1)
    groups = [i for i in range(prompts) for _ in range(draws)]
    # Up to a constant of each prompt, as log-weights are.
    log_w = slope * noise + randn(seed + 2, prompts, 1, 1)
    return center, Sample((center + noise).flatten(0, 1), log_w.flatten(), groups)


def draws_of(seed, center, n, shift):
    groups = [i for i in range(len(center)) for _ in range(n)]
    return Sample((center + shift + randn(seed, len(center), n, 1)).flatten(0, 1), None, groups)


@pytest.mark.parametrize("pooled", [False, True])
@pytest.mark.parametrize("metric", [metrics.energy_distance, metrics.kernel_distance])
def test_a_tilted_set_is_the_shifted_law_and_not_the_law_it_came_from(metric, pooled):
    center, target = tilted(0, 60, 80)
    same, far = (metric(draws_of(9, center, 40, s), target, pooled=pooled) for s in (0.6, 0.0))
    assert_within(same.value, 0.0, same.error)
    assert far.value > 5 * far.error
    # ESS of a normal tilt is n exp(-slope^2).
    assert same.ess == pytest.approx(80 * math.exp(-0.36), rel=0.1)
    assert same.units == 60
    # Of two weighted sets it is that of the poorer one.
    poorer = Sample(target.features, 2 * target.log_weights, target.groups)
    assert metric(target, poorer, pooled=pooled).ess == metric(poorer, target, pooled=pooled).ess
    assert metric(target, poorer, pooled=pooled).ess == pytest.approx(float(poorer.ess().median()))


def test_a_tilted_set_without_groups():
    noise = randn(3, 2000, 1)
    target = Sample(noise, 0.6 * noise[:, 0])
    same, far = (metrics.energy_distance(randn(4, 800, 1) + s, target) for s in (0.6, 0.0))
    assert_within(same.value, 0.0, same.error)
    assert_within(far.value, energy(0.6, 1.0), far.error)
    assert same.units == 2800


def test_rows_make_no_pair_with_themselves_however_few_draws_count(generator):
    """With pairs of rows and themselves the distance would be too small by 2 E|X - X'| / ESS."""

    found = []
    for _ in range(300):
        noise = torch.randn(30, 1, generator=generator, dtype=torch.float64)
        x = 0.6 + torch.randn(30, 1, generator=generator, dtype=torch.float64)
        found.append(metrics.energy_distance(x, Sample(noise, 0.6 * noise[:, 0])).value)
    values = torch.tensor(found, dtype=torch.float64)
    naive = -2 / math.sqrt(math.pi) / (30 * math.exp(-0.36)) - 2 / math.sqrt(math.pi) / 30
    # What is left is the bias of a ratio, below a tenth of that.
    assert abs(float(values.mean())) < abs(naive) / 10 + 5 * float(values.std()) / math.sqrt(300)


def test_weights_that_are_counts_are_copies_of_rows_in_the_mean_between_sets():
    x, y = randn(0, 6, 2), randn(1, 5, 2)
    counts = torch.tensor([1.0, 2.0, 3.0, 1.0, 1.0], dtype=torch.float64)
    copies = y.repeat_interleave(counts.long(), 0)
    apart = lambda a, b: float(torch.cdist(a, b).mean())
    own = torch.cdist(y, y) * counts[:, None] * counts
    pairs = counts.sum() ** 2 - counts.square().sum()
    expected = 2 * apart(x, copies) - float(own.sum() / pairs)
    expected -= float(torch.cdist(x, x).sum()) / 30
    found = metrics.energy_distance(x, Sample(y, counts.log() + 700))
    assert found.value == pytest.approx(expected)


def test_rows_of_zero_weight_are_not_there():
    x, y, log_w = randn(0, 8, 2), randn(1, 9, 2), randn(2, 9)
    log_w[4] = -math.inf
    keep = [i for i in range(9) if i != 4]
    found = metrics.energy_distance(x, Sample(y, log_w))
    expected = metrics.energy_distance(x, Sample(y[keep], log_w[keep]))
    assert found.value == pytest.approx(expected.value)


def test_with_groups_it_is_the_mean_of_their_distances_and_pairs_on_them():
    groups = list("ababcabc")
    x, y = Sample(randn(0, 8, 2), None, groups), Sample(randn(1, 8, 2), randn(2, 8), groups[::-1])
    found = metrics.kernel_distance(x, y)
    assert list(found.by_group) == ["a", "b", "c"]
    a = x.of("a"), y.of("a")
    # Groups of two or three rows have a value, though no error.
    k = metrics.polynomial_kernel()
    cross = (k(a[0].features, a[1].features) * a[0].shares[:, None] * a[1].shares).sum()
    within = []
    for z in a:
        w = z.shares[:, None] * z.shares
        w = w - w.diag().diag()
        within.append((k(z.features, z.features) * w).sum() / w.sum())
    assert found.by_group["a"] == pytest.approx(float(within[0] + within[1] - 2 * cross))
    assert found.value == pytest.approx(sum(found.by_group.values()) / 3)
    assert found.error == pytest.approx(
        float(torch.tensor(list(found.by_group.values())).std()) / math.sqrt(3)
    )


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
    """The jackknife, one unit left out at a time."""

    without = lambda z, unit: [row for row in z if row[0] != unit]
    units = sorted({unit for unit, _ in (*x, *y)})
    found = [slow_kernel(without(x, u), without(y, u)) for u in units]
    mean = sum(found) / len(found)
    return math.sqrt((len(found) - 1) / len(found) * sum((f - mean) ** 2 for f in found))


@pytest.mark.parametrize("pooled", [False, True])
@pytest.mark.parametrize("grouped", [False, True])
def test_pairs_of_a_reference_with_itself_are_computed_once(pooled, grouped):
    names = lambda n, order: [order[i % 3] for i in range(n)] if grouped else None
    y = Sample(randn(1, 15, 2), randn(2, 15), names(15, "abc"))
    sets = [Sample(randn(n, n, 2) + 1, None, names(n, "cab")) for n in (6, 9)]
    seen = []

    def kernel(a, b):
        seen.append((len(a), len(b)))
        return metrics.polynomial_kernel()(a, b)

    reference = kernels.Reference(y, kernel, pooled=pooled)
    kept = [reference.distance(x) for x in sets]
    parts = 3 if grouped and not pooled else 1
    assert seen.count((15 // parts, 15 // parts)) == parts
    for x, figure in zip(sets, kept, strict=True):
        assert figure == metrics.kernel_distance(x, y, pooled=pooled)


@pytest.mark.parametrize(("n", "m", "d"), [(6, 6, 2), (4, 7, 3), (3, 3, 1)])
def test_without_groups_it_is_a_slow_copy_of_itself(n, m, d):
    x, y = randn(0, n, d), 0.5 + randn(1, m, d)
    number = lambda z, first: list(enumerate(z.tolist(), first))
    found = metrics.kernel_distance(x, y)
    assert found.value == pytest.approx(slow_kernel(number(x, 0), number(y, n)), rel=1e-10)
    assert found.error == pytest.approx(slow_error(number(x, 0), number(y, n)), rel=1e-9)


def test_pairs_of_one_group_do_not_count_in_the_pooled_law(monkeypatch):
    monkeypatch.setattr(blocks, "BLOCK", 3)
    x, y = randn(0, 6, 2), 0.5 + randn(1, 9, 2)
    groups = [0, 1, 2, 0, 1, 2], [0, 1, 2] * 3
    rows = [list(zip(u, z.tolist(), strict=True)) for u, z in zip(groups, (x, y), strict=True)]
    sets = (Sample(z, None, u) for z, u in zip((x, y), groups, strict=True))
    found = metrics.kernel_distance(*sets, pooled=True)
    assert found.value == pytest.approx(slow_kernel(*rows), rel=1e-10)
    # With three groups, leaving one out leaves one pair of groups.
    assert found.error == pytest.approx(slow_error(*rows), rel=1e-9)


def test_pooled_sets_of_the_same_prompts_have_no_bias(generator):
    runs, rows = 300, []
    normal = lambda *shape: torch.randn(*shape, generator=generator, dtype=torch.float64)
    for _ in range(runs):
        caption = 2 * normal(20, 1)
        near = lambda copies, c=caption: c.repeat(copies, 1) + 0.3 * normal(20 * copies, 1)
        x, y = near(1), near(2)
        groups = range(20), [i % 20 for i in range(40)]
        sets = [Sample(z, None, u) for z, u in zip((x, y), groups, strict=True)]
        figure = metrics.kernel_distance(*sets, pooled=True)
        rows.append((figure.value, figure.error**2, metrics.kernel_distance(x, y).value))
    values, squared, naive = torch.tensor(rows, dtype=torch.float64).T
    assert_within(values.mean(), 0.0, values.std() / math.sqrt(runs))
    assert float(squared.mean() / values.var()) > 0.85
    assert naive.mean() < -5 * naive.std() / math.sqrt(runs)


def test_blocks_change_nothing(monkeypatch):
    x, y = randn(0, 11, 2), Sample(randn(1, 13, 2), randn(2, 13))
    before = metrics.energy_distance(x, y), metrics.pairwise_distance(y)
    monkeypatch.setattr(blocks, "BLOCK", 4)
    after = metrics.energy_distance(x, y), metrics.pairwise_distance(y)
    for one, two in zip(before, after, strict=True):
        assert (one.value, one.error) == pytest.approx((two.value, two.error))


def test_the_error_over_prompts_covers_the_truth(generator):
    """200 times: the interval of Student's law for 20 prompts covers as often as it says."""

    truth, covered = energy(0.5, 1.0), []
    for _ in range(200):
        normal = lambda n: torch.randn(20 * n, 1, generator=generator, dtype=torch.float64)
        groups = lambda n: [i for i in range(20) for _ in range(n)]
        x, y = Sample(0.5 + normal(6), None, groups(6)), Sample(normal(9), None, groups(9))
        figure = metrics.energy_distance(x, y)
        covered.append(abs(figure.value - truth) < 2.093 * figure.error)
    assert_within(sum(covered) / 200, 0.95, math.sqrt(0.95 * 0.05 / 200), z=3.5)


def test_the_mean_distance_within_a_prompt():
    x = Sample(torch.tensor([[0.0, 0.0], [3.0, 4.0], [1.0, 1.0], [1.0, 1.0]]), None, "aabb")
    found = metrics.pairwise_distance(x)
    assert found.by_group == {"a": 5.0, "b": 0.0}
    assert found.value == 2.5
    # Of a normal law in one dimension, 2 / sqrt(pi), tilted or not.
    noise = randn(0, 1500, 1)
    for sample in (noise, Sample(noise, 0.5 * noise[:, 0])):
        figure = metrics.pairwise_distance(sample)
        assert_within(figure.value, 2 / math.sqrt(math.pi), figure.error)
        assert figure.error < 0.05
    signs = metrics.pairwise_distance(noise, lambda a, b: (a * b.T < 0).double())
    assert_within(signs.value, 0.5, max(signs.error, 1e-3))


def test_kernels_are_the_formulas():
    a, b = randn(0, 3, 5), randn(1, 4, 5)
    for i, j in itertools.product(range(3), range(4)):
        product, gap = float(a[i] @ b[j]), float((a[i] - b[j]).norm())
        assert float(metrics.polynomial_kernel(2)(a, b)[i, j]) == pytest.approx(
            (product / 5 + 1) ** 2
        )
        assert float(metrics.gaussian_kernel(2.0)(a, b)[i, j]) == pytest.approx(
            math.exp(-(gap**2) / 8)
        )
        assert float(metrics.euclidean(a, b)[i, j]) == pytest.approx(gap)
    assert float(metrics.euclidean(a, a).diag().abs().max()) == 0


def test_wrong_kernels_are_refused():
    x = randn(0, 4, 2)
    with pytest.raises(ValueError, match=r"one number per pair, shape \(4, 4\), got \(4,\)"):
        metrics.kernel_distance(x, x, lambda a, b: a[:, 0])
    with pytest.raises(TypeError, match="kernel must be a function"):
        metrics.kernel_distance(x, x, "rbf")
    with pytest.raises(TypeError, match="distance must be a function"):
        metrics.pairwise_distance(x, None)
    with pytest.raises(TypeError, match="kernel must be a function of two sets"):
        metrics.kernel_distance(x, x, torch.nn.PairwiseDistance)  # without its call
    with pytest.raises(TypeError, match="distance must be a function of two sets"):
        metrics.pairwise_distance(x, torch.nn.PairwiseDistance)
    with pytest.raises(TypeError, match="pooled must be True or False"):
        metrics.energy_distance(x, x, pooled=1)
    with pytest.raises(ValueError, match="degree must be at least 1"):
        metrics.polynomial_kernel(0)
    with pytest.raises(ValueError, match="bandwidth must be positive"):
        metrics.gaussian_kernel(0)
