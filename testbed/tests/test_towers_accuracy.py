"""How often towers find what a picture shows."""

import math

import torch

from common import assert_within
from rwguidance_testbed.data import Drawings
from rwguidance_testbed.encoders import Towers
from rwguidance_testbed.scenes import COLORS
from rwguidance_testbed.towers import measure, top_one_accuracy


class TestTopOneAccuracy:
    def test_chance_and_certainty(self, generator):
        scores = torch.randn(4000, 30, generator=generator)
        right = torch.randint(30, (4000,), generator=generator)
        found = top_one_accuracy(scores, right, 10, generator)
        assert_within(found, 0.1, math.sqrt(0.09 / 4000))
        scores.scatter_(1, right[:, None], 9.0)
        assert top_one_accuracy(scores, right, 30, generator) == 1.0
        assert top_one_accuracy(torch.zeros(5, 30), right[:5], 30, generator) == 0.0

    def test_the_others_are_drawn_from_all_but_the_right_one(self, generator):
        # One candidate beats the right one, so it is first unless that one is drawn.
        scores = torch.zeros(4000, 20)
        scores[:, 3], scores[:, 7] = 1.0, 2.0
        right = torch.full((4000,), 3)
        found = top_one_accuracy(scores, right, 6, generator)
        assert_within(found, 1 - 5 / 19, math.sqrt(5 / 19 * 14 / 19 / 4000))


class Colors(Towers):
    """Knows the color of the last pixel and the words of a caption, nothing else."""

    log_scale = torch.zeros(())

    def __init__(self):
        super().__init__(None)

    dimension = len(COLORS)

    def tokens(self, captions):
        raise NotImplementedError

    def embed_tokens(self, tokens):
        raise NotImplementedError

    def embed_pictures(self, pictures, patches=None):
        colors = torch.tensor(list(COLORS.values())) / 255
        distance = (pictures[:, :, -1, -1][:, None] - colors).abs().sum(-1)
        return (distance < 0.02).float() + 1e-3

    def embed_captions(self, captions):
        return torch.tensor([[float(f" {c} " in text) for c in COLORS] for text in captions]) + 1e-3

    def write(self, folder):
        raise NotImplementedError


def test_backgrounds_are_found_by_who_sees_them(squares):
    empty = Drawings(squares.entries, torch.zeros_like(squares.pixels))
    found = measure(Colors(), empty, "judge", 100)
    assert found["background"] == 1.0
    assert found["style"] < 0.4
    assert found["name_of_other_drawings"] == 0.0
