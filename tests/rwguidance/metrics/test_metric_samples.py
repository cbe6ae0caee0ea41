"""Sets of features: their weights and groups, and what is refused before any work."""

import math
import pickle

import pytest
import torch

from common import assert_rounds_to, assert_within, randn
from rwguidance import metrics
from rwguidance.metrics import Accumulator, Moments, Sample

GROUPS = ["a", "b", "a", "b", "b"]


def test_weights_are_normalized_within_a_group_and_groups_count_alike():
    log_w = randn(0, 5)
    shares = Sample(randn(1, 5, 2), log_w, GROUPS).shares
    assert float(shares[[0, 2]].sum()) == pytest.approx(0.5)
    assert float(shares[3] / shares[1]) == pytest.approx(math.exp(log_w[3] - log_w[1]))
    assert Sample(randn(1, 5, 2), groups=GROUPS).shares.tolist() == pytest.approx(
        [1 / 4, 1 / 6, 1 / 4, 1 / 6, 1 / 6]
    )
    # A constant of a group is no matter, however large.
    moved = log_w + torch.tensor([5e3, -2e4, 5e3, -2e4, -2e4], dtype=torch.float64)
    again = Sample(randn(1, 5, 2), moved, GROUPS).shares
    torch.testing.assert_close(again, shares, rtol=1e-9, atol=0)


def test_the_effective_number_of_draws_is_that_of_each_group():
    log_w = torch.tensor([0.0, 0.0, -math.inf, 0.0, 0.0])
    assert Sample(randn(0, 5, 2), log_w, GROUPS).ess().tolist() == pytest.approx([1.0, 3.0])
    assert Sample(randn(0, 5, 2)).ess().tolist() == pytest.approx([5.0])


def test_a_sample_keeps_no_graph():
    features, log_w = randn(0, 5, 2).requires_grad_(), randn(1, 5).requires_grad_()
    sample = Sample(features, log_w)
    assert not sample.features.requires_grad
    assert not sample.shares.requires_grad


def test_numbers_are_features_of_one_dimension():
    assert Sample(randn(0, 4)).features.shape == (4, 1)
    assert Sample(torch.ones(4, dtype=torch.bfloat16)).features.dtype == torch.float32


def test_groups_may_be_a_tensor():
    x = Sample(randn(0, 4), groups=torch.tensor([7, 8, 7, 8]))
    assert x.names == (7, 8)
    assert x.rows[8].tolist() == [1, 3]
    assert x.of(8).features.flatten().tolist() == x.features[[1, 3], 0].tolist()


def test_resampled_rows_are_drawn_by_their_weights(generator):
    log_w = torch.tensor([0.0, math.log(3.0), -math.inf], dtype=torch.float64)
    x = Sample(torch.arange(3.0).repeat(2000), log_w.repeat(2000), [i // 3 for i in range(6000)])
    drawn = x.resampled(1, generator)
    assert drawn.log_weights is None
    assert drawn.names == x.names
    found = (drawn.features == 1).double().mean()
    assert_within(found, 0.75, math.sqrt(0.75 * 0.25 / 2000))
    assert float(drawn.features.max()) == 1
    both = x.resampled(2, generator)
    assert len(both) == 4000
    assert float(both.features.sum()) == 2000
    with pytest.raises(ValueError, match="n must be at most 2, the rows of group 0 with weight"):
        x.resampled(3, generator)


BAD = [
    ((torch.zeros(3, 2, 2),), ValueError, r"features must have shape \(N, D\) or \(N,\)"),
    ((torch.zeros(0, 2),), ValueError, r"with a row at least, got \(0, 2\)"),
    ((torch.zeros(3, 2).long(),), TypeError, "features must be a floating-point tensor"),
    (([[1.0, 2.0]],), TypeError, "features must be a floating-point tensor"),
    ((torch.tensor([0.0, math.nan, 1.0]),), ValueError, "features must be finite, .* item 1"),
    ((torch.tensor([[0.0], [math.inf]]),), ValueError, "features must be finite"),
    ((torch.zeros(3, 2), torch.zeros(2)), ValueError, r"log_weights must have shape \(3,\), got"),
    (
        (torch.zeros(2), torch.tensor([0.0, math.nan])),
        ValueError,
        "log_weights must be finite or -i",
    ),
    (
        (torch.zeros(2), torch.tensor([0.0, math.inf])),
        ValueError,
        "log_weights must be finite or -i",
    ),
    (
        (torch.zeros(2), torch.tensor([-math.inf] * 2)),
        ValueError,
        "log_weights must not all be -inf",
    ),
    (
        (torch.zeros(3), torch.tensor([0.0, -math.inf, 0.0]), "aba"),
        ValueError,
        "log_weights must not all be -inf, as they are in group 'b'",
    ),
    ((torch.zeros(3), None, "ab"), ValueError, "groups must hold one group per row, 3, got 2"),
]


@pytest.mark.parametrize(("arguments", "error", "message"), BAD)
def test_bad_sets_are_refused(arguments, error, message):
    with pytest.raises(error, match=message):
        Sample(*arguments)
    if "all be" not in message:  # the rest of a group may still come
        for accumulator in (Moments(), Accumulator(metrics.pairwise_distance)):
            with pytest.raises(error, match=message):
                accumulator.update(*arguments)


def of(*groups, dimension=2):
    return Sample(randn(0, len(groups), dimension), None, groups)


TWO = [metrics.energy_distance, metrics.kernel_distance, metrics.precision_recall_curve]


@pytest.mark.parametrize("metric", TWO)
def test_sets_that_do_not_fit_are_refused(metric):
    x = of(*"aabb")
    with pytest.raises(ValueError, match="y must have features of the dimension of x, 2, got 3"):
        metric(x, of(*"aabb", dimension=3))
    with pytest.raises(ValueError, match="must have the same groups, y lacks the group 'b'"):
        metric(x, of(*"aaaa"))
    with pytest.raises(ValueError, match="must have the same groups, x lacks the group 'c'"):
        metric(x, of(*"aabbcc"))
    with pytest.raises(ValueError, match="must have the same groups, "):
        metric(x, Sample(randn(0, 4, 2)))
    with pytest.raises(TypeError, match="x must be a Sample or a tensor of features, got list"):
        metric([1.0], x)
    with pytest.raises(ValueError, match="y must be finite"):
        metric(randn(0, 4, 2), torch.full((4, 2), math.nan))


def test_a_pair_takes_two_rows():
    with pytest.raises(
        ValueError, match=r"y must have two rows .* each of its groups, got 1 in 'b'"
    ):
        metrics.energy_distance(of(*"aabb"), of(*"aab"))
    log_w = torch.tensor([0.0, 0.0, 0.0, -math.inf])
    with pytest.raises(
        ValueError, match=r"x must have two rows of positive weight .* got 1 in 'b'"
    ):
        metrics.pairwise_distance(Sample(randn(0, 4, 2), log_w, "aabb"))
    with pytest.raises(ValueError, match=r"x must have two rows of positive weight at least$"):
        metrics.pairwise_distance(randn(0, 1, 2))
    with pytest.raises(
        ValueError, match="x must have three rows of positive weight at least, got 2"
    ):
        metrics.kernel_distance(randn(0, 2, 2), randn(0, 4, 2))
    with pytest.raises(ValueError, match="x must have three groups at least, got 2"):
        metrics.kernel_distance(of(*"aabb"), of(*"aabb"), pooled=True)


def parts(seed):
    """Rows of six groups, weighted, in three parts that split every group."""

    features, log_w = randn(seed, 60, 3).float(), randn(seed + 1, 60)
    groups = [f"prompt {i % 6}" for i in range(60)]
    cut = [slice(0, 13), slice(13, 40), slice(40, 60)]
    return features, log_w, groups, cut


OTHER = Sample(randn(9, 48, 3), randn(8, 48), [f"prompt {i % 6}" for i in range(48)])


def to_target(x):
    return metrics.energy_distance(x, OTHER)


def spread(x):
    return metrics.pairwise_distance(x)


def curve(x):
    return metrics.precision_recall_curve(x, OTHER, k=3)


def both(x):
    return metrics.precision_recall(Sample(x.features), Sample(OTHER.features))


@pytest.mark.parametrize("metric", [to_target, spread, curve, both])
def test_parts_of_processes_give_what_one_pass_gives(metric):
    features, log_w, groups, cut = parts(0)
    whole = metric(Sample(features, log_w, groups))
    workers = [Accumulator(metric) for _ in range(2)]
    for i, part in enumerate(cut):
        workers[i % 2].update(features[part], log_w[part], groups[part])
    total = pickle.loads(pickle.dumps(workers[1]))
    total.merge(workers[0])
    assert len(total) == 60
    found = total.compute()
    for name in ("value", "error", "ess", "precision", "recall", "by_group"):
        one, two = (getattr(result, name, None) for result in (found, whole))
        if isinstance(one, metrics.Figure):
            assert (one.value, one.error) == pytest.approx((two.value, two.error))
        elif isinstance(one, torch.Tensor):
            assert_rounds_to(one, two, 60)
        elif one is not None:
            assert one == pytest.approx(two)


def test_one_part_is_the_whole():
    features, log_w, groups, _ = parts(0)
    seen = []
    accumulator = Accumulator(seen.append)
    accumulator.update(features, log_w, groups)
    accumulator.compute()
    assert torch.equal(seen[0].features, features)
    assert torch.equal(seen[0].log_weights, log_w)
    assert list(seen[0].groups) == list(groups)


def test_parts_must_fit_each_other():
    x = randn(0, 4, 2)
    for accumulator in (Accumulator(spread), Moments()):
        accumulator.update(x, groups="aabb")
        with pytest.raises(ValueError, match="features must have 2 dimensions, got 3"):
            accumulator.update(randn(0, 4, 3), groups="aabb")
        with pytest.raises(ValueError, match="groups must be given with all rows or with none"):
            accumulator.update(x)
        with pytest.raises(TypeError, match="other must be"):
            accumulator.merge(x)
    full = Accumulator(spread)
    full.update(x, torch.zeros(4))
    with pytest.raises(ValueError, match="log_weights must be given with all rows or with none"):
        full.update(x)
    with pytest.raises(ValueError, match="must be given rows before"):
        Accumulator(spread).compute()
