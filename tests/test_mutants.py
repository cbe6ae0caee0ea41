"""Every mutant of tests/mutants.py dies: the tests notice a wrong formula."""

import pytest

from mutants import MUTANTS, kill


@pytest.mark.slow
@pytest.mark.parametrize("mutant", MUTANTS, ids=lambda mutant: mutant.what)
def test_some_test_notices(mutant):
    dead, _, first = kill(mutant)
    assert dead, f"survived: {first}"
