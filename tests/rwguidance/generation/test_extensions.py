"""What only some backbones do: recommend steps, and take negative prompts."""

import pytest

from pixel_law import QUIET, Law, run

pytestmark = QUIET


def test_a_backbone_that_recommends_no_steps_must_be_told(tmp_path):
    class Undecided(Law):
        depends_on = Law.depends_on

        def times(self, steps):
            return super().times(steps)

    with pytest.raises(ValueError, match="steps must be given, as Undecided recommends"):
        run(tmp_path, backbone=Undecided())
    assert run(tmp_path, backbone=Undecided(), steps=3).made == 2


def test_a_negative_prompt_reaches_a_backbone_that_takes_one_and_no_other(tmp_path):
    class Led(Law):
        depends_on = Law.depends_on

        incidental = (*Law.incidental, "negative")
        negative = None

        def condition(self, prompts, negative_prompts=None):
            self.negative = negative_prompts
            return super().condition(prompts)

    run(tmp_path / "a", backbone=(led := Led()), negative_prompt="blurry")
    assert led.negative == "blurry"
    run(tmp_path / "b", backbone=led)
    assert led.negative is None
    with pytest.raises(TypeError, match="which Law does not, got 'blurry'"):
        run(tmp_path / "c", negative_prompt="blurry")
