"""What is looked at during a training: means of what is known, and a sentence."""

import math
from types import SimpleNamespace

import pytest
import torch

from rwguidance.trainer import validation
from rwguidance.trainer.validation import FIGURES, PROMPTS, Validation, said


def test_names_and_number_of_what_is_looked_at():
    assert FIGURES == ("validation loss", "validation cosine", "validation length")
    assert PROMPTS == 16


@pytest.mark.parametrize("takes_strength", [True, False])
def test_losses_are_added_and_levels_averaged_where_they_are_known(monkeypatch, takes_strength):
    asked, levels = [], [(0.5, 2.0), (math.nan, 1.0), (0.75, math.nan), (0.25, 6.0)]
    measured = lambda value: SimpleNamespace(value=value)
    found = [SimpleNamespace(cosine=measured(a), length=measured(b)) for a, b in levels]
    agreements = lambda *given, **options: asked.append((given, options)) or {0.5: found}
    monkeypatch.setattr(validation, "agreements", agreements)

    def objective(network, generator):
        asked.append((network, float(torch.rand((), generator=generator))))
        return {"one": torch.tensor(1.5), "other": torch.tensor(0.25)}

    network = SimpleNamespace(strength=takes_strength, at=lambda nats: ("at", nats))
    held_out = SimpleNamespace(tilts={0.5: "tilt"}, seed=3)
    look = Validation(objective, held_out)
    assert look(network) == dict(zip(FIGURES, (1.75, 0.5, 3.0), strict=True))
    (seen, number), (given, options) = asked
    assert seen == (("at", 0.5) if takes_strength else network)
    assert (given, options) == ((network, held_out), {"shuffles": 0})
    assert look(network) == look(network)
    assert asked[2][1] == number  # the same states every time
    found.clear()
    loss, *rest = look(network).values()
    assert loss == 1.75
    assert all(map(math.isnan, rest))


def test_a_sentence_says_what_is_known():
    figures = dict(zip(FIGURES, (0.123456, 0.987, 1.004), strict=True))
    text = "step 1,200: loss 0.1235 on unseen prompts"
    assert said(1200, figures) == f"{text}, cosine 0.99 with their exact shift, length 1.00"
    assert said(1200, {**figures, FIGURES[1]: math.nan}) == text
