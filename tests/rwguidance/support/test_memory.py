"""Errors of memory keep their type and words, and end with what would help."""

import re

import pytest
import torch

from common import randn
from rwguidance import Bank, ImportanceSampling, RectifiedSchedule, Tilt
from rwguidance.estimators import importance
from rwguidance.support import memory
from rwguidance.toy import Empirical

ERRORS = [
    torch.cuda.OutOfMemoryError("no phrase that one could know"),
    RuntimeError("CUDA out of memory. Tried to allocate 2.00 GiB"),
    RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried to allocate 8 bytes"),
    RuntimeError("DefaultCPUAllocator: not enough memory: you tried to allocate 8 bytes."),
    RuntimeError("CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling cublasCreate(handle)"),
    MemoryError(),
]


@pytest.mark.parametrize("error", ERRORS, ids=str)
def test_errors_of_memory_end_with_the_advice(error):
    said = str(error)
    with pytest.raises(type(error)) as caught, memory.advice("Eat less."):
        raise error
    assert caught.value is error
    assert str(error) == f"{said}\nEat less."


@pytest.mark.parametrize("error", [RuntimeError("shapes differ"), ValueError("out of memory")])
def test_other_errors_pass(error):
    said = str(error)
    with pytest.raises(type(error)) as caught, memory.advice("Eat less."):
        raise error
    assert caught.value is error
    assert str(error) == said


def test_what_is_large_is_refused_by_the_real_allocator():
    with pytest.raises(RuntimeError, match="Eat less"), memory.advice("Eat less."):
        torch.empty(2**60, dtype=torch.uint8)


def fail(*arguments):
    raise torch.cuda.OutOfMemoryError("CUDA out of memory.")


def test_scoring_a_bank_names_its_batch_size():
    with pytest.raises(
        torch.cuda.OutOfMemoryError, match=r"with 3 draws at once: lower batch_size$"
    ):
        Bank(randn(0, 8, 2)).scored(Tilt(fail, 1.0), batch_size=3)


def test_importance_sampling_names_bank_and_batch(monkeypatch):
    bank = Bank(randn(0, 8, 2), rewards=randn(1, 8))
    estimator = ImportanceSampling(bank, Tilt(fail, 1.0))
    model = Empirical(bank.x_0).model(RectifiedSchedule())
    monkeypatch.setattr(importance, "_weighted", fail)
    knobs = re.escape(
        "had 3 samples and 8 draws: use a smaller bank, bank.to(dtype=torch.bfloat16)"
    )
    with pytest.raises(torch.cuda.OutOfMemoryError, match=f"{knobs}, or a smaller batch$"):
        estimator(model, randn(2, 3, 2), 0.5)
