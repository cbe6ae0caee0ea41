r"""Conformance checks for plug-ins: one line of a test proves that a class keeps the contract.

.. code-block:: python

    check_schedule(MySchedule())
    check_model(MyModel(), x_0, condition=prompts)
    check_generator(MyGenerator(), prompts)
    check_estimator(MyEstimator(), model, x_t)
    check_reward(MyReward(), images, condition=prompts, differentiable=True)

Each returns nothing, or raises AssertionError saying what is wrong and what was expected. They
check the contract, not the quality: shapes, dtypes, times, independence of the samples in a batch,
randomness, mutation, and the identities that hold exactly.

Results that should agree are compared up to :math:`\sqrt{\varepsilon}` of the dtype of the states,
relative to the largest entry. That leaves room for kernels that round differently for another
batch size; a broken contract is off by orders of magnitude more.
"""

from .estimators import check_estimator
from .generators import check_generator
from .models import check_model
from .rewards import check_reward
from .schedules import check_schedule

__all__ = ["check_estimator", "check_generator", "check_model", "check_reward", "check_schedule"]
