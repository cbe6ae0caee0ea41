"""How many different pictures a prompt has."""

import torch
from torch import Tensor

from ..statistics import mean_and_error
from ..support import checks
from .blocks import in_blocks
from .kernels import Kernel, euclidean
from .samples import Figure, SampleLike, as_sample

__all__ = ["distinct"]


def distinct(x: SampleLike, threshold: float, distance: Kernel = euclidean) -> Figure:
    """Returns the number of distinct rows of a group, averaged over groups.

    Rows that are at most `threshold` apart are the same, and so are those that a chain of such
    pairs links (single linkage). So the number does not depend on the order of the rows, but it
    grows with their number: compare sets that are equally large.

    Arguments:
        x: The set. Counting knows no weights: of a weighted set, take
            :meth:`rwguidance.metrics.Sample.resampled`.
        threshold: The largest distance of rows that are the same, not negative, in the unit of
            `distance`. Zero joins equal rows alone.
        distance: The distance, a function of two sets that returns one number per pair.

    Returns:
        The number; its error is over groups, and NaN without them.

    Raises:
        TypeError: If an argument is of another kind.
        ValueError: If the set is weighted, or the threshold negative.
    """

    x = as_sample("x", x)
    checks.number("threshold", threshold, 0)
    checks.function("distance", distance, "a function of two sets of features", classes=False)
    if x.log_weights is not None:
        raise ValueError("x must have no log_weights; take x.resampled(n, generator)")
    counts = {
        group: float(_components(x.features[rows], threshold, distance))
        for group, rows in x.rows.items()
    }
    mean, error = mean_and_error(list(counts.values()))
    return Figure(mean, error, len(counts), float("nan"), {} if x.groups is None else counts)


def _components(features: Tensor, threshold: float, distance: Kernel) -> int:
    """Returns the number of connected parts of the graph of near pairs, found block by block."""

    from scipy.sparse import coo_array
    from scipy.sparse.csgraph import connected_components

    n = len(features)
    everyone = torch.arange(n)
    # A row of the part that each row belongs to, as far as blocks were seen: these links stand for
    # all that were found, so that no more than the pairs of a block are kept.
    known = everyone
    for rows, columns, values in in_blocks(features, features, distance):
        i, j = (values <= threshold).nonzero(as_tuple=True)
        i, j = torch.cat((i + rows.start, everyone)), torch.cat((j + columns.start, known))
        ends = i.int().numpy(), j.int().numpy()  # what scipy 1.11 takes
        graph = coo_array((torch.ones(len(i)).numpy(), ends), shape=(n, n))
        labels = torch.from_numpy(connected_components(graph)[1]).long()
        first = torch.full((n,), n).scatter_reduce_(0, labels, everyone, "amin")
        known = first[labels]
    return len(known.unique())
