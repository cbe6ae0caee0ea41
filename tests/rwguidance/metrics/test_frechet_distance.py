"""The Frechet distance against normal laws with known moments, streamed and merged."""

import math
import pickle

import pytest
import scipy.linalg
import torch

from common import assert_rounds_to, assert_within, randn
from rwguidance.metrics import Moments, Sample, frechet_distance


def with_moments(x, mean, covariance):
    """The sample moved and stretched so that its moments are exactly these."""

    centered = x - x.mean(0)
    own = torch.linalg.cholesky(centered.T @ centered / (len(x) - 1))
    white = torch.linalg.solve_triangular(own, centered.T, upper=False).T
    return white @ torch.linalg.cholesky(covariance).T + mean


def distance(x, y):
    return frechet_distance(x, y).value


def test_it_is_that_of_normal_laws_that_commute():
    a, b = (torch.tensor(v, dtype=torch.float64) for v in ([1.0, 4.0, 9.0], [4.0, 0.25, 1.0]))
    mean = torch.tensor([1.0, 0.0, -2.0], dtype=torch.float64)
    x = with_moments(randn(0, 40, 3), torch.zeros(3), a.diag())
    y = with_moments(randn(1, 25, 3), mean, b.diag())
    expected = 5.0 + float((a.sqrt() - b.sqrt()).square().sum())
    assert distance(x, y) == pytest.approx(expected, rel=1e-12)


def test_it_is_that_of_normal_laws_that_do_not():
    a, b = (m @ m.T + 0.1 * torch.eye(4) for m in (randn(0, 4, 4), randn(1, 4, 4)))
    mean = randn(2, 4)
    x = with_moments(randn(3, 30, 4), mean, a)
    y = with_moments(randn(4, 30, 4), torch.zeros(4), b)
    root = torch.from_numpy(scipy.linalg.sqrtm((a @ b).numpy()).real)
    expected = float(mean.square().sum() + (a + b - 2 * root).trace())
    assert distance(x, y) == pytest.approx(expected, rel=1e-9)


def test_few_rows_of_many_dimensions_are_no_special_case():
    x, y = randn(0, 5, 32), randn(1, 7, 32)
    turn = torch.linalg.qr(randn(2, 32, 32)).Q
    moved = 3.0 * turn[0]
    assert distance(x, x) == pytest.approx(0.0, abs=1e-12)
    assert distance(x, x + moved) == pytest.approx(9.0, rel=1e-12)
    assert distance(x, y) == pytest.approx(distance(y, x), rel=1e-12)
    assert distance(x @ turn, y @ turn) == pytest.approx(distance(x, y))
    # Covariances in two orthogonal planes: nothing to gain by the root.
    x[:, 8:], y[:, :8] = 0, 0
    trace = float(x.var(0).sum() + y.var(0).sum())
    gap = float((x.mean(0) - y.mean(0)).square().sum())
    assert distance(x, y) == pytest.approx(trace + gap, rel=1e-12)


def test_single_precision_is_widened():
    x, y = randn(0, 50, 6).float(), 0.3 + randn(1, 50, 6).float()
    large = lambda z: 1000 + z
    assert distance(large(x), large(y)) == pytest.approx(
        distance(large(x.double()), large(y.double())), rel=1e-3
    )
    assert distance(x, y) == pytest.approx(distance(x.double(), y.double()))
    # Far from the origin, moments are still taken about the mean.
    assert distance(1e6 + x.double(), 1e6 + y.double()) == pytest.approx(distance(x, y), rel=1e-6)


def naive_moments(sample):
    w = sample.shares
    mean = w @ sample.features
    centered = sample.features - mean
    return mean, (w[:, None] * centered).T @ centered / (1 - w.square().sum())


GROUPS = [f"prompt {i % 7}" for i in range(90)]


@pytest.mark.parametrize("groups", [None, GROUPS])
@pytest.mark.parametrize("weighted", [False, True])
def test_moments_are_the_weighted_ones_in_whatever_parts_they_come(groups, weighted):
    x, log_w = 5 + randn(0, 90, 2), 3 * randn(1, 90) if weighted else None
    if weighted:
        log_w[3] = -math.inf
        log_w[14] = log_w[14] + 10
    expected = naive_moments(Sample(x, log_w, groups))
    workers = [Moments(), Moments()]
    for i in range(0, 90, 6):  # a part may hold nothing but rows of zero weight
        part = slice(i, i + 6)
        workers[i // 6 % 2].update(
            x[part], log_w[part] if weighted else None, groups[part] if groups else None
        )
    total = pickle.loads(pickle.dumps(workers[1]))
    total.merge(workers[0])
    total.merge(Moments())
    # Where one row has most of the weight, one minus the squares of weights rounds far more.
    rest = 1 - float(Sample(x, log_w, groups).shares.square().sum())
    for one, two in zip(total.compute(), expected, strict=True):
        assert_rounds_to(one, two, 90, float(two.abs().max()) / rest)
    target = Sample(randn(2, 60, 2), None, groups and groups[:60])
    merged, whole = (frechet_distance(z, target) for z in (total, Sample(x, log_w, groups)))
    assert (merged.value, merged.error) == pytest.approx((whole.value, whole.error))
    assert (merged.units, merged.ess) == pytest.approx((whole.units, whole.ess), nan_ok=True)
    # What is kept does not grow with the rows.
    assert max(len(piece.factor) for piece in total._pieces.values()) <= 4


def test_an_unweighted_set_has_the_textbook_covariance():
    moments = Moments()
    x = randn(0, 30, 4)
    moments.update(x)
    assert_rounds_to(moments.compute()[1], torch.cov(x.T), 30)


def test_a_tilted_set_is_the_shifted_law():
    noise = randn(0, 4000, 3)
    target = Sample(noise, 0.6 * noise[:, 0])
    shift = torch.tensor([0.6, 0.0, 0.0])
    same, far = (frechet_distance(randn(1, 4000, 3) + s, target) for s in (shift, 0 * shift))
    # For one law it is positive, of the order of its error.
    assert 0 <= same.value < 5 * same.error
    assert_within(far.value, 0.36, far.error)
    assert same.ess == pytest.approx(4000 * math.exp(-0.36), rel=0.05)


def test_effective_draws_are_the_median_over_groups_of_the_poorer_set():
    rich, poor = "aabbbbbbbbcccc", "aaabbc"  # 2, 8 and 4 rows of a group, and 3, 2 and 1
    sets = [Sample(randn(i, len(g), 2), torch.zeros(len(g)), g) for i, g in enumerate((rich, poor))]
    assert frechet_distance(sets[0], sets[0]).ess == pytest.approx(4.0)
    assert frechet_distance(*sets).ess == pytest.approx(2.0)
    assert frechet_distance(*reversed(sets)).ess == pytest.approx(2.0)
    uneven = Sample(randn(2, 10, 2), torch.zeros(10), "abbbcccccc")
    assert frechet_distance(uneven, uneven).ess == pytest.approx(3.0)  # and not the mean of 10/3


def test_the_error_over_prompts_tells_the_spread(generator):
    """The jackknife, of prompts that differ far more than the pictures of one."""

    runs, rows = 70, []
    groups = [i for i in range(24) for _ in range(3)]
    for _ in range(runs):
        normal = lambda *shape: torch.randn(*shape, generator=generator, dtype=torch.float64)
        x, y = (c + normal(24, 1, 1) + 0.2 * normal(24, 3, 1) for c in (1.5, 0.0))
        sets = [Sample(z.flatten(0, 1), None, groups) for z in (x, y)]
        figure = frechet_distance(*sets, blocks=24)
        assert figure.units == 24
        rows.append((figure.value, figure.error**2))
    values, squared = torch.tensor(rows, dtype=torch.float64).T
    assert 0.7 < float(squared.mean() / values.var()) < 1.5


def test_the_error_covers_the_truth(generator):
    covered = []
    for _ in range(200):
        x, y = (torch.randn(200, 1, generator=generator, dtype=torch.float64) for _ in "ab")
        figure = frechet_distance(x + 1, 1.5 * y, blocks=12)
        covered.append(abs(figure.value - 1.25) < 2.2 * figure.error)
    assert_within(sum(covered) / 200, 0.95, math.sqrt(0.95 * 0.05 / 200), z=3.5)


def test_bad_sets_are_refused():
    x = randn(0, 5, 3)
    with pytest.raises(ValueError, match="x must have two rows of positive weight at least"):
        frechet_distance(x[:1], x)
    with pytest.raises(ValueError, match="y must have features of the dimension of x, 3, got 2"):
        frechet_distance(x, x[:, :2])
    with pytest.raises(ValueError, match="x and y must both have groups, or neither"):
        frechet_distance(Sample(x, None, "aabbc"), x)
    with pytest.raises(ValueError, match="x must hold rows, got none"):
        frechet_distance(Moments(), x)
    with pytest.raises(ValueError, match="blocks must be at least 2, got 1"):
        frechet_distance(x, x, 1)
    with pytest.raises(ValueError, match="other must have 20 blocks, got 3"):
        Moments().merge(Moments(3))
    moments = Moments()
    moments.update(x, torch.tensor([0.0, 0.0, -math.inf, 0.0, 0.0]), "aabcc")
    with pytest.raises(ValueError, match="log_weights of y must not all be -inf, as in 'b'"):
        frechet_distance(Sample(x, None, "aabcc"), moments)
    with pytest.raises(ValueError, match="moments must have two rows"):
        Moments().compute()
    # Rows that are too few for the jackknife have no error.
    assert math.isnan(frechet_distance(x[:2], x).error)
