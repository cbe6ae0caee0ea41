"""The losses of towers, against slow copies and closed forms."""

import math

import pytest
import torch
import torch.nn.functional as F

import rewards
from rwguidance.support.randomness import seeded
from rwguidance_testbed import encoders
from rwguidance_testbed.towers.losses import AlignmentHead, contrastive_loss, preference_loss


def normal(generator, *shape):
    return torch.randn(*shape, generator=generator)


class TestContrastive:
    def test_it_is_two_cross_entropies(self, generator):
        x, y, others = (normal(generator, n, 5).double() for n in (3, 3, 2))
        log_scale = torch.tensor(1.3, dtype=torch.float64)
        score = lambda a, b: math.exp(1.3) * float(a @ b / a.norm() / b.norm())
        log_sum = lambda values: math.log(sum(math.exp(v) for v in values))
        terms = []
        for i in range(3):
            own = score(x[i], y[i])
            forward = log_sum([score(x[i], c) for c in (*y, *others)])
            backward = log_sum([score(p, y[i]) for p in x])
            terms.append((forward - own + backward - own) / 2)
        found = contrastive_loss(x, y, others, log_scale)
        assert float(found) == pytest.approx(sum(terms) / 3, rel=1e-6)

    def test_pictures_and_captions_must_be_aligned(self, generator):
        x = normal(generator, 6, 16)
        none = torch.empty(0, 16)
        scale = torch.tensor(3.0)
        assert contrastive_loss(x, x, none, scale) < 0.01
        assert contrastive_loss(x, x.roll(1, 0), none, scale) > 10

    def test_false_captions_count_for_pictures_alone(self, generator):
        x, y = normal(generator, 4, 8), normal(generator, 4, 8)
        scale = torch.tensor(2.0)
        without = contrastive_loss(x, y, y[:0], scale)
        doubled = contrastive_loss(x, y, y, scale)
        assert float(doubled - without) == pytest.approx(math.log(2) / 2, rel=1e-5)

    def test_the_factor_is_bounded_and_half_precision_is_widened(self, generator):
        x, y = normal(generator, 4, 8).bfloat16(), normal(generator, 4, 8).bfloat16()
        at = lambda s: contrastive_loss(x, y, y[:0], torch.tensor(s))
        assert at(9.0) == at(math.log(100.0))
        assert at(4.0) != at(math.log(100.0))
        assert at(4.0).dtype == torch.float32
        exact = contrastive_loss(x.double(), y.double(), y[:0].double(), torch.tensor(4.0))
        assert float(at(4.0)) == pytest.approx(float(exact), rel=1e-5)

    def test_smoothing_is_a_target_that_is_partly_uniform(self, generator):
        x, y, others = (normal(generator, n, 5) for n in (3, 3, 2))
        scale = torch.tensor(1.0)
        score = math.e * F.normalize(x, dim=-1) @ F.normalize(torch.cat((y, others)), dim=-1).T
        expected = 0.0
        for logits in (score, score[:, :3].T):
            target = 0.7 * torch.eye(3, logits.shape[1]) + 0.3 / logits.shape[1]
            expected -= (target * logits.log_softmax(1)).sum(1).mean() / 2
        found = contrastive_loss(x, y, others, scale, 0.3)
        assert float(found) == pytest.approx(float(expected), rel=1e-5)


class TestAlignmentHead:
    def test_pictures_are_compared_in_a_projection(self, generator):
        with seeded(0):
            head = AlignmentHead(6)
        x, y = normal(generator, 5, 6), normal(generator, 5, 6)
        weight = head.project.weight.detach()
        assert weight.shape == (3, 6)
        scale = head.log_scale.detach()
        expected = float(contrastive_loss(x @ weight.T, y @ weight.T, x[:0, :3], scale))
        found = lambda one, other: float(head(one, other).detach())
        assert found(x.bfloat16(), y.bfloat16()) == pytest.approx(expected, rel=0.03)
        assert found(x, y) == pytest.approx(expected, rel=1e-5)
        blind = torch.linalg.svd(weight).Vh[3:]
        assert found(x + 9 * blind.sum(0), y) == pytest.approx(expected, rel=1e-4)


class TestPreference:
    def test_it_is_that_of_bradley_and_terry(self, generator):
        first, second, y = (normal(generator, 4, 5) for _ in range(3))
        label = torch.tensor([1.0, 0.0, 0.5, 1.0])
        cosine = lambda a: F.cosine_similarity(a.double(), y.double())
        odds = (math.exp(2.0) * (cosine(first) - cosine(second))).sigmoid()
        expected = -(label * odds.log() + (1 - label) * (1 - odds).log()).mean()
        found = preference_loss(first, second, y, label, torch.tensor(2.0))
        assert float(found) == pytest.approx(float(expected), rel=1e-5)

    def test_it_says_what_pick_score_says(self, generator, square_tokenizer, tmp_path):
        pick = encoders.new("pick", square_tokenizer, smoke=True)
        pick.write(tmp_path)
        reward = rewards.load("pickscore", tmp_path)
        pictures = torch.rand(2, 3, 64, 64, generator=generator)
        pictures = (255 * pictures).round() / 255
        with torch.no_grad():
            odds = reward.prefer(pictures, "red apple")
            first, second = encoders.read("pick", tmp_path).embed_pictures(pictures).split(1)
            y = encoders.read("pick", tmp_path).embed_captions(["red apple"])
            loss = preference_loss(first, second, y, torch.ones(1), reward.logit_scale.log_scale)
        assert float(loss) == pytest.approx(-math.log(float(odds.flatten()[0])), rel=1e-4)
