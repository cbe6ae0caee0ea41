"""The method of a run that was not told one."""

import pytest

from pixel_law import QUIET, run
from rwguidance.generation import Pool, Resample
from rwguidance.generation.choice import AUTO, chosen
from rwguidance.generation.methods import METHODS
from rwguidance.generation.settings import build

pytestmark = QUIET


@pytest.mark.parametrize(("images", "kind"), [(1, Resample), (3, Resample), (4, Pool), (99, Pool)])
def test_pictures_that_share_a_bank_are_pooled(tmp_path, images, kind):
    found, settings, why = chosen(images)
    assert found is kind
    assert f"method {kind.name}: " in why
    assert "--method chooses another" in why
    method = build(found, {**settings, "bank": 8, "kl": 0.5})
    assert method.pictures == min(images, 16)
    if images < 10:
        assert len(run(tmp_path, method, ["ab"], images=images).rows) == images


def test_no_method_has_the_name_of_the_choice():
    assert AUTO not in METHODS
