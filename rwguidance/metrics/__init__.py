"""Distances of feature sets, weighted or not, and their diversity, with standard errors.

Rows are features of pictures, such as embeddings (:mod:`rwguidance.evaluation.embeddings`). Draws
of a model with log-weights r / beta stand for the exactly tilted law.

.. code-block:: python

    from rwguidance import metrics

    target = metrics.Sample(features, log_weights=rewards / beta, groups=prompts)
    made = metrics.Sample(other_features, groups=other_prompts)
    figure = metrics.energy_distance(made, target)
    print(figure.value, figure.error, figure.ess)
"""

from .accumulators import Accumulator
from .diversity import distinct
from .frechet import Moments, frechet_distance
from .kernels import (
    energy_distance,
    euclidean,
    gaussian_kernel,
    kernel_distance,
    pairwise_distance,
    polynomial_kernel,
)
from .neighbors import (
    PrecisionRecall,
    PrecisionRecallCurve,
    precision_recall,
    precision_recall_curve,
)
from .samples import Figure, Sample
from .targets import share_of_target

__all__ = [
    "Accumulator",
    "Figure",
    "Moments",
    "PrecisionRecall",
    "PrecisionRecallCurve",
    "Sample",
    "distinct",
    "energy_distance",
    "euclidean",
    "frechet_distance",
    "gaussian_kernel",
    "kernel_distance",
    "pairwise_distance",
    "polynomial_kernel",
    "precision_recall",
    "precision_recall_curve",
    "share_of_target",
]
