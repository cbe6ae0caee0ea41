"""The image-text towers of the test bed: losses, false captions, formats, and smoke runs."""

import io
import itertools
import json
import math
import re
import types
from dataclasses import replace

import pytest
import torch
import torch.nn.functional as F

import rewards
from common import assert_within
from rwguidance.support.randomness import seeded
from rwguidance_testbed import data, encoders, towers, vae
from rwguidance_testbed.data import SIZE, Drawing, Drawings, load_names
from rwguidance_testbed.encoders import KINDS, Towers
from rwguidance_testbed.scenes import COLORS, Scene, render, sample_scenes
from rwguidance_testbed.tokenizer import tokenizer_corpus, train_tokenizer

NAMES = ("red apple", "pizza", "carrot", "lemon", "sun", "key", "green apple", "cow face")
FOOD = ("red apple", "pizza", "carrot", "lemon", "green apple")
SENTENCES = ["red apple", "a small sun on an orange background, noto style", "", "zürich 42!"]


@pytest.fixture(scope="module")
def drawings():
    """A square of a color and a size of its own for every name, a bar for every style."""

    entries, pixels = [], []
    for i, name in enumerate(NAMES):
        roles = data.assign_roles(name, [row["name"] for row in data.sources()["styles"]])
        for j, (style, role) in enumerate(roles.items()):
            kind = "food-fruit" if name in FOOD else "object-other"
            entries.append(Drawing(name, style, "x", kind, ("thing",), role))
            picture = torch.zeros(4, SIZE, SIZE, dtype=torch.uint8)
            picture[:, 5 : 25 + 6 * i, 5:75] = 255
            picture[:3, 5 : 25 + 6 * i, 5:75] = torch.tensor(
                [31 * i, 255 - 31 * i, 90 * i % 256], dtype=torch.uint8
            )[:, None, None]
            picture[:, 76:, : 8 + 8 * j] = 255
            pixels.append(picture)
    return Drawings(entries, torch.stack(pixels))


@pytest.fixture(scope="module")
def folder(drawings, tmp_path_factory):
    path = tmp_path_factory.mktemp("data")
    drawings.save(path)
    return path


@pytest.fixture(scope="module")
def tokenizer(drawings, tmp_path_factory):
    path = tmp_path_factory.mktemp("words")
    train_tokenizer(tokenizer_corpus(drawings), path)
    return path


def test_a_tokenizer_learned_again_is_the_same(drawings, tokenizer, tmp_path):
    corpus = tokenizer_corpus(drawings)
    train_tokenizer(corpus, tmp_path)
    for name in ("vocab.json", "merges.txt"):
        assert (tmp_path / name).read_bytes() == (tokenizer / name).read_bytes()


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
        found = towers.contrastive_loss(x, y, others, log_scale)
        assert float(found) == pytest.approx(sum(terms) / 3, rel=1e-6)

    def test_pictures_and_captions_must_be_aligned(self, generator):
        x = normal(generator, 6, 16)
        none = torch.empty(0, 16)
        scale = torch.tensor(3.0)
        assert towers.contrastive_loss(x, x, none, scale) < 0.01
        assert towers.contrastive_loss(x, x.roll(1, 0), none, scale) > 10

    def test_false_captions_count_for_pictures_alone(self, generator):
        x, y = normal(generator, 4, 8), normal(generator, 4, 8)
        scale = torch.tensor(2.0)
        without = towers.contrastive_loss(x, y, y[:0], scale)
        doubled = towers.contrastive_loss(x, y, y, scale)
        assert float(doubled - without) == pytest.approx(math.log(2) / 2, rel=1e-5)

    def test_the_factor_is_bounded_and_half_precision_is_widened(self, generator):
        x, y = normal(generator, 4, 8).bfloat16(), normal(generator, 4, 8).bfloat16()
        at = lambda s: towers.contrastive_loss(x, y, y[:0], torch.tensor(s))
        assert at(9.0) == at(math.log(100.0))
        assert at(4.0) != at(math.log(100.0))
        assert at(4.0).dtype == torch.float32
        exact = towers.contrastive_loss(x.double(), y.double(), y[:0].double(), torch.tensor(4.0))
        assert float(at(4.0)) == pytest.approx(float(exact), rel=1e-5)

    def test_smoothing_is_a_target_that_is_partly_uniform(self, generator):
        x, y, others = (normal(generator, n, 5) for n in (3, 3, 2))
        scale = torch.tensor(1.0)
        score = math.e * F.normalize(x, dim=-1) @ F.normalize(torch.cat((y, others)), dim=-1).T
        expected = 0.0
        for logits in (score, score[:, :3].T):
            target = 0.7 * torch.eye(3, logits.shape[1]) + 0.3 / logits.shape[1]
            expected -= (target * logits.log_softmax(1)).sum(1).mean() / 2
        found = towers.contrastive_loss(x, y, others, scale, 0.3)
        assert float(found) == pytest.approx(float(expected), rel=1e-5)


class TestAlignmentHead:
    def test_pictures_are_compared_in_a_projection(self, generator):
        with seeded(0):
            head = towers.AlignmentHead(6)
        x, y = normal(generator, 5, 6), normal(generator, 5, 6)
        weight = head.project.weight.detach()
        assert weight.shape == (3, 6)
        scale = head.log_scale.detach()
        expected = float(towers.contrastive_loss(x @ weight.T, y @ weight.T, x[:0, :3], scale))
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
        found = towers.preference_loss(first, second, y, label, torch.tensor(2.0))
        assert float(found) == pytest.approx(float(expected), rel=1e-5)

    def test_it_says_what_pick_score_says(self, generator, folder, tokenizer, tmp_path):
        pick = encoders.new("pick", tokenizer, smoke=True)
        pick.write(tmp_path)
        reward = rewards.load("pickscore", tmp_path)
        pictures = torch.rand(2, 3, 64, 64, generator=generator)
        pictures = (255 * pictures).round() / 255
        with torch.no_grad():
            odds = reward.prefer(pictures, "red apple")
            first, second = encoders.read("pick", tmp_path).embed_pictures(pictures).split(1)
            y = encoders.read("pick", tmp_path).embed_captions(["red apple"])
            loss = towers.preference_loss(
                first, second, y, torch.ones(1), reward.logit_scale.log_scale
            )
        assert float(loss) == pytest.approx(-math.log(float(odds.flatten()[0])), rel=1e-4)


def scene(caption, **changes):
    values = {"drawing": 0, "background": COLORS["red"], "scale": 0.8, "angle": 0.0}
    values |= {"place": (0.0, 0.0), "hue": 0.0, "caption": caption}
    return Scene(**(values | changes))


class TestHardNegative:
    entry = Drawing("red apple", "noto", "x", "food-fruit", (), "judge")
    relatives = types.MappingProxyType({"food-fruit": ["lemon", "pear", "red apple"]})

    def found(self, caption, generator, entry=entry, relatives=relatives):
        return {
            towers.hard_negative(scene(caption), entry, relatives, generator) for _ in range(2000)
        }

    def test_every_respect_that_is_named_is_changed_and_no_other(self, generator):
        style = next(row["words"] for row in data.sources()["styles"] if row["name"] == "noto")
        styles = {row["words"] for row in data.sources()["styles"]} - {style}
        caption = f"a small red apple on an orange background, {style} style, fruit"
        rest = f", {style} style, fruit"
        expected = {f"a small {n} on an orange background{rest}" for n in ("lemon", "pear")}
        expected |= {f"a large red apple on an orange background{rest}"}
        expected |= {
            f"a small red apple on a {color} background{rest}" for color in set(COLORS) - {"orange"}
        }
        expected |= {f"a small red apple on an orange background, {s} style, fruit" for s in styles}
        assert self.found(caption, generator) == expected

    def test_respects_are_equally_likely(self, generator):
        caption = "red apple on a blue background"
        count = 4000
        false = [
            towers.hard_negative(scene(caption), self.entry, self.relatives, generator)
            for _ in range(count)
        ]
        share = sum("red apple" in text for text in false) / count
        assert_within(share, 0.5, math.sqrt(0.25 / count))

    def test_words_of_names_are_not_mistaken(self, generator):
        entry = Drawing("small airplane", "noto", "x", "transport-air", (), "judge")
        relatives = {"transport-air": ["small airplane", "rocket"]}
        assert self.found("small airplane", generator, entry, relatives) == {"rocket"}
        large = self.found("large small airplane", generator, entry, relatives)
        assert large == {"large rocket", "small small airplane"}

    def test_kinds_and_lonely_names(self, generator):
        found = self.found("fruit", generator)
        assert "insect" in found
        assert "fruit" not in found
        alone = {"food-fruit": ["red apple"]}
        assert self.found("red apple", generator, relatives=alone) == {"thing"}

    def test_names_are_compared_as_captions_spell_them(self, generator):
        entry = Drawing("woman\u2019s hat", "noto", "x", "clothing", (), "judge")
        relatives = {"clothing": ["woman\u2019s hat", "man\u2019s shoe"]}
        assert self.found("woman's hat", generator, entry, relatives) == {"man's shoe"}


class TestPictureBuffer:
    def buffer(self, drawings, step=0, seed=3):
        return towers.PictureBuffer(towers._own(drawings, "judge"), 40, 4, seed, step)

    def same(self, one, other):
        return torch.equal(one.pictures, other.pictures) and (
            (one.captions, one.others, one.names) == (other.captions, other.others, other.names)
        )

    def test_what_it_holds_depends_on_the_step_alone(self, drawings):
        one = self.buffer(drawings)
        for step in range(13):
            one.advance(step)
        other = self.buffer(drawings, step=13)
        assert all(itertools.starmap(self.same, zip(one.chunks, other.chunks, strict=True)))
        first = self.buffer(drawings)
        assert not any(itertools.starmap(self.same, zip(one.chunks, first.chunks, strict=True)))
        assert not self.same(
            self.buffer(drawings, seed=4).chunks[0], self.buffer(drawings).chunks[0]
        )

    def test_a_step_replaces_the_oldest(self, drawings):
        buffer = self.buffer(drawings)
        before = list(buffer.chunks)
        buffer.advance(0)
        buffer.advance(1)
        assert [a is b for a, b in zip(buffer.chunks, before, strict=True)] == 2 * [False] + 8 * [
            True
        ]

    def test_names_differ_and_rows_belong_together(self, drawings, generator):
        buffer = self.buffer(drawings)
        rows = [
            (captions, other, pictures.numpy().tobytes())
            for chunk in buffer.chunks
            for captions, other, pictures in zip(
                chunk.captions, chunk.others, chunk.pictures, strict=True
            )
        ]
        for _ in range(20):
            batch = buffer.batch(4, generator)
            assert batch.pictures.shape == (4, 2, 3, 64, 64)
            assert len(set(batch.names)) == 4
            for i, name in enumerate(batch.names):
                captions, other = batch.captions[i], batch.others[i]
                assert all(name in caption or "fruit" in caption for caption in captions)
                assert (captions, other, batch.pictures[i].numpy().tobytes()) in rows
                assert other != captions[0]

    def test_pairs_are_of_one_name_in_two_styles(self, drawings):
        part = towers._own(drawings, "judge")[1]
        partners = towers._partners(part)
        for entry, others in zip(part.entries, partners, strict=True):
            found = {(part.entries[j].name, part.entries[j].style) for j in others}
            assert found == {
                (entry.name, e.style)
                for e in part.entries
                if e.name == entry.name and e.style != entry.style
            }
        assert all(partners)
        alone = Drawings(part.entries[:1], part.pixels[:1])
        assert towers._partners(alone) == [[0]]

    def test_pictures_are_what_captions_say(self, drawings, monkeypatch):
        kept = lambda x, generator: x
        monkeypatch.setattr(towers, "jitter_colors", kept)
        monkeypatch.setattr(towers, "blur", kept)
        monkeypatch.setattr(towers, "_hue", lambda scene, entry, uniform: scene.hue)
        part = towers._own(drawings, "judge")[1]
        chunk = towers.PictureBuffer([part], 16, 16, 3).chunks[0]
        scenes = sample_scenes(part, 16, torch.Generator().manual_seed(3_000_009))
        assert [first for first, _ in chunk.captions] == [s.caption for s in scenes]
        assert chunk.names == [part.entries[s.drawing].name for s in scenes]
        found, wanted = chunk.pictures[:, 0].float() / 255, render(part, scenes)
        off = lambda x: (found - x).abs().amax((1, 2, 3)) * 255
        straight, mirrored = off(wanted), off(wanted.flip(3))
        assert torch.minimum(straight, mirrored).max() <= 0.502
        assert 2 < int((mirrored < 1).sum()) < 14  # half of them

    def test_second_pictures_are_of_the_same_name_in_another_style(self, drawings, monkeypatch):
        painted = []
        spy = lambda part, scenes: painted.append((part.entries, scenes)) or render(part, scenes)
        monkeypatch.setattr(towers, "render", spy)
        part = towers._own(drawings, "judge")[1]
        chunk = towers.PictureBuffer([part], 40, 40, 3).chunks[0]
        entries, scenes = painted[0]
        words = {row["name"]: row["words"] for row in data.sources()["styles"]}
        assert [scene.drawing for scene in scenes] == list(range(80))
        for i, (name, captions) in enumerate(zip(chunk.names, chunk.captions, strict=True)):
            first, second = entries[i], entries[40 + i]
            assert first.name == second.name == name
            assert first.style != second.style
            assert captions == (scenes[i].caption, scenes[40 + i].caption)
            for entry, caption in zip((first, second), captions, strict=True):
                said = re.search(", (.*) style", caption)
                assert said is None or said[1] == words[entry.style]
        named = sum(" style" in caption for _, caption in chunk.captions)
        assert 5 < named < 30
        assert len({scene.background for scene in scenes}) > 40

    def test_names_with_sides_are_not_mirrored(self, drawings, monkeypatch):
        monkeypatch.setattr(towers, "jitter_colors", lambda x, generator: x)
        monkeypatch.setattr(towers, "blur", lambda x, generator: x)
        monkeypatch.setattr(towers, "_hue", lambda scene, entry, uniform: scene.hue)
        part = towers._own(drawings, "judge")[0]
        entries = [replace(e, name=f"{e.name} facing left") for e in part.entries]
        part = Drawings(entries, part.pixels)
        chunk = towers.PictureBuffer([part], 16, 16, 3).chunks[0]
        wanted = render(part, sample_scenes(part, 16, torch.Generator().manual_seed(3_000_009)))
        assert (chunk.pictures[:, 0].float() / 255 - wanted).abs().max() <= 0.502 / 255

    def test_some_pictures_come_out_of_the_autoencoder(self, drawings):
        class Gray:
            config = None

            def encode(self, x):
                mode = types.SimpleNamespace(mode=lambda: x)
                return types.SimpleNamespace(latent_dist=mode)

            def decode(self, x):
                assert -1 <= float(x.min()) < -0.5 < 0.5 < float(x.max()) <= 1
                return types.SimpleNamespace(sample=torch.full_like(x, 0.25))

        parts = towers._own(drawings, "judge")
        pictures = towers.PictureBuffer(parts, 16, 16, 3, vae=Gray()).chunks[0].pictures
        through = (pictures == round(0.625 * 255)).flatten(2).all(2)
        assert through.T.flatten().tolist() == 4 * ([True] + 7 * [False])

    def test_too_large_a_batch_is_refused(self, drawings, generator):
        with pytest.raises(ValueError, match=r"at most twice the number of names .* 8, got 18"):
            self.buffer(drawings).batch(9, generator)

    def test_no_two_roles_share_a_drawing(self, drawings):
        rows = lambda part: {row.numpy().tobytes() for row in part.pixels.flatten(1)}
        judge, pick, hps = (
            set.union(*map(rows, towers._own(drawings, kind))) for kind in ("judge", "pick", "hps")
        )
        generator = rows(drawings.where("generator"))
        assert pick == hps
        assert not judge & pick
        assert not (judge | pick) & generator
        assert len(judge | pick | generator) == len(drawings)

    def test_half_the_pairs_are_of_names_that_prompts_have_and_none_of_flags(self, drawings):
        groups = ("objects", "flags", "objects")
        more = [
            Drawing(name, "noto", group, "object-other", (), "judge")
            for name, group in zip(("gavel", "flag: peru", "red apple"), groups, strict=True)
        ]
        pixels = torch.zeros(3, 4, SIZE, SIZE, dtype=torch.uint8)
        every = Drawings([*drawings.entries, *more], torch.cat((drawings.pixels, pixels)))
        asked, things = towers._own(every, "judge")
        names = lambda part: {entry.name for entry in part.entries}
        assert names(asked) == set(NAMES)
        assert names(things) == {*NAMES, "gavel"}
        assert {e.role for e in (*asked.entries, *things.entries)} == {"judge"}


class TestJitterColors:
    def square(self, count, left=(0.9, 0.3, 0.0), right=(0.2, 0.5, 0.6)):
        """Two halves, the last row half transparent."""

        pixels = torch.zeros(count, 4, 40, 40)
        pixels[:, :3, 10:30, 10:20] = torch.tensor(left)[:, None, None]
        pixels[:, :3, 10:30, 20:30] = torch.tensor(right)[:, None, None]
        pixels[:, 3, 10:30, 10:30] = 1.0
        pixels[:, :, 30] = 0.5 * pixels[:, :, 29]
        return pixels

    def test_drawings_stay_drawings(self, generator):
        found = towers.jitter_colors(self.square(500), generator)
        color, alpha = found[:, :3], found[:, 3:]
        assert (color >= 0).all()
        assert (color <= alpha).all()
        assert (alpha <= 1).all()
        assert torch.allclose(color[:, :, 30], 0.5 * color[:, :, 29], atol=1e-6)
        assert (color[:, :, :10] == 0).all()

    def test_one_in_five_has_a_black_outline(self, generator):
        pixels = self.square(4000)
        found = towers.jitter_colors(pixels, generator)
        wider = found[:, 3, 8, 20] == 1
        assert_within(wider.float().mean(), 0.2, math.sqrt(0.16 / 4000))
        assert (found[wider][:, :3, 8:10] == 0).all()
        assert (found[:, 3, 7] == 0).all()
        assert torch.equal(found[~wider][:, 3], pixels[~wider][:, 3])

    def test_one_in_ten_is_gray_and_colors_vary_about_what_they_were(self, generator):
        color = (0.5, 0.4, 0.3)
        found = towers.jitter_colors(self.square(4000, color, color), generator)[:, :3, 20, 15]
        red = (found[:, 0] - found[:, 2]) / 0.2
        assert_within((red.abs() < 1e-5).float().mean(), 0.1, math.sqrt(0.09 / 4000))
        assert_within(red.mean(), 0.9, red.std() / math.sqrt(4000))
        assert 1.9 < float(red.max()) < 2.1  # saturation up to 1.5, contrast up to 1.4

    def test_light_and_contrast_vary_about_what_they_were(self, generator):
        pixels = self.square(4000, 3 * (0.3,), 3 * (0.5,))
        found = towers.jitter_colors(pixels, generator)[:, 0, 20]
        light, contrast = (found[:, 15] + found[:, 25]) / 0.8, (found[:, 25] - found[:, 15]) / 0.2
        for values, low, high in ((light, 0.8, 1.2), (contrast, 0.6, 1.4)):
            error = (high - low) / math.sqrt(12 * 4000)
            assert_within(values.mean(), 1.0, error)
            assert low - 1e-5 < float(values.min()) < low + 0.01
            assert high - 0.01 < float(values.max()) < high + 1e-5


class TestBlur:
    def test_it_spreads_a_point_over_at_most_five_pixels(self, generator):
        point = torch.zeros(2000, 1, 15, 15)
        point[:, :, 7, 7] = 1
        found = towers.blur(point, generator)
        assert_within(found.sum((1, 2, 3)), torch.ones(2000), 1e-6)
        assert (found[:, :, 5:10, 5:10].sum((1, 2, 3)) - 1).abs().max() < 1e-5
        center = found[:, 0, 7, 7]
        assert float(center.max()) > 0.97
        assert 0.11 < float(center.min()) < 0.115
        wide = (found[:, 0, 5, 5] > 0).float().mean()
        assert_within(wide, 1 / 3, math.sqrt(2 / 9 / 2000))
        # Until the mean over 3 x 3 pixels is reached, the center falls linearly to 1 / 9.
        assert_within((center > 5 / 9).float().mean(), 1 / 3, math.sqrt(2 / 9 / 2000))


class TestHue:
    def test_it_is_turned_for_one_in_five_whose_name_has_no_color(self):
        pizza = Drawing("pizza", "noto", "x", "food-prepared", (), "judge")
        apple = Drawing("red apple", "noto", "x", "food-fruit", (), "judge")
        at = lambda entry, u: towers._hue(scene("x", hue=7.0), entry, u)
        assert at(pizza, 0.21) == at(apple, 0.05) == 7.0
        assert at(pizza, 0.0) == pytest.approx(-83.0)
        assert at(pizza, 0.1) == pytest.approx(7.0)
        assert at(pizza, 0.2) == pytest.approx(97.0)


class TestDeform:
    def test_light_varies_about_what_it_was(self, generator):
        pictures = torch.full((2000, 3, 8, 8), 0.4)
        ratio = towers.deform(pictures, generator) / 0.4
        ratio = ratio.flatten(1)
        assert torch.allclose(ratio, ratio[:, :1].expand_as(ratio), atol=1e-5)
        assert_within(ratio[:, 0].mean(), 1.0, 0.15 / math.sqrt(3 * 2000))
        assert 0.145 < float((ratio - 1).abs().max()) < 0.151

    def test_shapes_vary_and_areas_do_not(self, generator):
        row = torch.linspace(-1, 1, 64)
        disk = (row[:, None].square() + row.square() < 0.3).float()
        pictures = disk.expand(500, 3, 64, 64)
        found = towers.deform(pictures, generator).mean(1)
        weight = found / found.sum((1, 2), keepdim=True)
        wide, high = ((weight.sum(d) * row.square()).sum(1) for d in (1, 2))
        log_ratio = (wide / high).log()
        assert_within(log_ratio.mean(), 0.0, log_ratio.std() / math.sqrt(500))
        assert 0.3 < float(log_ratio.std()) < 0.8
        area = found.sum((1, 2)) / found.amax((1, 2)) / disk.sum()
        assert_within(area.mean(), 1.0, 0.01)
        assert float(found.min()) == 0.0

    def test_lines_are_bent(self, generator, monkeypatch):
        pictures = torch.linspace(0, 1, 64).expand(200, 3, 64, 64)

        def curvature():
            found = towers.deform(pictures, generator)[:, 0, 16:48, 16:48]
            return found.diff(n=2, dim=1).abs().sum(1).amax(1)

        bent = curvature()
        monkeypatch.setattr(towers, "_BEND", 0.0)
        assert float(bent.median()) > 10 * float(curvature().median())

    def test_a_picture_stays_one(self, generator):
        pictures = torch.rand(50, 3, 64, 64, generator=generator)
        found = towers.deform(pictures, generator)
        assert found.shape == pictures.shape
        assert 0 <= float(found.min()) <= float(found.max()) <= 1


class TestCutout:
    def test_holes_are_squares_of_the_mean_color(self, generator):
        pictures = torch.rand(3000, 3, 64, 64, generator=generator)
        found = towers.cutout(pictures, generator)
        hole = (found != pictures).all(1)
        mean = pictures.mean((2, 3), keepdim=True).expand_as(pictures)
        assert torch.equal(found, torch.where(hole[:, None], mean, pictures))
        rows, columns = hole.any(2), hole.any(1)
        assert torch.equal(hole, rows[:, :, None] & columns[:, None, :])
        assert int(rows.sum(1).max()) in (18, 19, 20)
        # A side of s covers on average s (1 - s / 4) of [0, 1], for it is cut at the border.
        share = rows.float().mean(1)
        assert_within(share.mean(), 0.15 - 0.03 / 4, share.std() / math.sqrt(3000))
        first = rows.float().argmax(1)[rows.any(1)].float()
        assert float(first.std()) > 15


class TestTopOneAccuracy:
    def test_chance_and_certainty(self, generator):
        scores = normal(generator, 4000, 30)
        right = torch.randint(30, (4000,), generator=generator)
        found = towers.top_one_accuracy(scores, right, 10, generator)
        assert_within(found, 0.1, math.sqrt(0.09 / 4000))
        scores.scatter_(1, right[:, None], 9.0)
        assert towers.top_one_accuracy(scores, right, 30, generator) == 1.0
        assert towers.top_one_accuracy(torch.zeros(5, 30), right[:5], 30, generator) == 0.0

    def test_the_others_are_drawn_from_all_but_the_right_one(self, generator):
        # One candidate beats the right one, so it is first unless that one is drawn.
        scores = torch.zeros(4000, 20)
        scores[:, 3], scores[:, 7] = 1.0, 2.0
        right = torch.full((4000,), 3)
        found = towers.top_one_accuracy(scores, right, 6, generator)
        assert_within(found, 1 - 5 / 19, math.sqrt(5 / 19 * 14 / 19 / 4000))


@pytest.fixture(scope="module")
def pictures():
    draws = torch.Generator().manual_seed(0)
    return torch.randint(256, (4, 3, 64, 64), generator=draws).float() / 255


@pytest.fixture(scope="module")
def saved(tokenizer, tmp_path_factory):
    """Towers of every kind with the log of their scale changed, and where they were written."""

    found = {}
    for i, kind in enumerate(KINDS):
        model = encoders.new(kind, tokenizer, smoke=True, seed=i)
        with torch.no_grad():
            model.log_scale.fill_(2.0)
        folder = tmp_path_factory.mktemp(kind)
        model.write(folder)
        found[kind] = (model.eval(), folder)
    return found


class TestFormats:
    @pytest.mark.parametrize("kind", KINDS)
    def test_what_is_read_is_what_was_written_in_half_precision(self, saved, kind, pictures):
        model, folder = saved[kind]
        again = encoders.read(kind, folder)
        before, after = model.state_dict(), again.state_dict()
        assert set(before) == set(after)
        for name, value in before.items():
            assert value.dtype == after[name].dtype
            assert torch.equal(
                after[name], value.half().float() if value.is_floating_point() else value
            )
        with torch.no_grad():
            assert torch.allclose(
                again.eval()(pictures, SENTENCES), model(pictures, SENTENCES), atol=2e-3
            )
        again.write(folder)
        assert torch.equal(encoders.read(kind, folder).log_scale, again.log_scale)

    @pytest.mark.parametrize("kind", ["pick", "hps"])
    def test_patches_that_are_left_out_are_not_seen(self, saved, kind, pictures, generator):
        model, _ = saved[kind]
        every = torch.arange(64).expand(4, -1)
        chosen = torch.rand(4, 64, generator=generator).argsort(1)[:, :20]
        other = pictures.clone()
        for row, patches in enumerate(chosen.tolist()):
            for patch in set(range(64)) - set(patches):
                top, left = divmod(patch, 8)
                other[row, :, 8 * top : 8 * top + 8, 8 * left : 8 * left + 8] = 0.5
        with torch.no_grad():
            whole, part = model.embed_pictures(pictures), model.embed_pictures(pictures, chosen)
            assert torch.allclose(model.embed_pictures(pictures, every), whole, atol=1e-5)
            assert torch.allclose(model.embed_pictures(other, chosen), part, atol=1e-6)
            assert not torch.allclose(model.embed_pictures(other, chosen.flip(0)), part, atol=1e-3)
            assert torch.equal(model.embed_pictures(pictures), whole)

    def test_an_hps_starts_with_the_image_tower_of_a_pick(self, saved, tokenizer, pictures):
        pick, _ = saved["pick"]
        hps = encoders.new("hps", tokenizer, smoke=True, seed=8).eval()
        with torch.no_grad():
            before = hps.embed_pictures(pictures)
            encoders.copy_image_tower(hps, pick)
            found, wanted = hps.embed_pictures(pictures), pick.embed_pictures(pictures)
        assert torch.allclose(found, wanted, atol=1e-5)
        assert not torch.allclose(before, wanted, atol=0.1)

    def test_transformers_and_pick_score_agree(self, saved, pictures):
        import transformers

        _, folder = saved["pick"]
        ours = encoders.read("pick", folder).eval()
        with torch.random.fork_rng(devices=[]):
            plain = transformers.CLIPModel.from_pretrained(folder).float().eval()
        processor = transformers.CLIPImageProcessor.from_pretrained(folder)
        tokenizer = transformers.CLIPTokenizer.from_pretrained(folder)
        inputs = tokenizer(SENTENCES, padding=True, truncation=True, return_tensors="pt")
        pixels = processor(
            [(255 * p).round().byte().permute(1, 2, 0).numpy() for p in pictures],
            return_tensors="pt",
        )
        with torch.no_grad():
            expected = plain(**inputs, **pixels).logits_per_image
            cosines = ours(pictures, SENTENCES)
            found = rewards.load("pickscore", folder)(pictures, SENTENCES)
        assert torch.allclose(found, expected.diagonal(), atol=1e-4)
        assert torch.allclose(math.exp(2.0) * cosines, expected.diagonal(), atol=1e-4)
        assert float(expected.std()) > 0.1

    def test_open_clip_and_hpsv2_agree(self, saved, pictures):
        import open_clip

        _, folder = saved["hps"]
        ours = encoders.read("hps", folder).eval()
        architecture = json.loads((folder / "architecture.json").read_text())
        with torch.random.fork_rng(devices=[]):
            plain = open_clip.CLIP(**architecture).eval()
        file = folder / "HPS_v2_compressed.pt"
        plain.load_state_dict(torch.load(file, weights_only=True)["state_dict"])
        tokens = open_clip.SimpleTokenizer(context_length=24)(SENTENCES)
        mean, std = (
            torch.tensor(v)[:, None, None]
            for v in (open_clip.OPENAI_DATASET_MEAN, open_clip.OPENAI_DATASET_STD)
        )
        reward = rewards.load("hpsv2", folder, architecture=architecture)
        with torch.no_grad():
            x = plain.encode_image((pictures - mean) / std, normalize=True)
            y = plain.encode_text(tokens, normalize=True)
            expected = (x * y).sum(-1)
            found = reward(pictures, SENTENCES)
            assert torch.allclose(ours(pictures, SENTENCES), expected, atol=1e-5)
        assert torch.allclose(found, expected, atol=1e-5)
        assert float(reward.logit_scale.log_scale) == 2.0
        assert float(expected.std()) > 0.01

    @pytest.mark.parametrize("kind", KINDS)
    def test_every_prompt_fits_or_is_cut(self, saved, kind):
        model, _ = saved[kind]
        with torch.no_grad():
            long = model.embed_captions(["red apple " * 40, "red apple"])
            assert long.isfinite().all()
            assert not torch.allclose(long[0], long[1])
            alone = model.embed_captions(["red apple"])
        assert torch.allclose(long[1], alone[0], atol=1e-5)


@pytest.fixture(scope="module")
def folders(folder, tmp_path_factory):
    """Of the drawings, and of an autoencoder."""

    path = tmp_path_factory.mktemp("vae")
    vae.new(smoke=True).save_pretrained(path)
    return {"data": folder, "vae": path}


def settings(**changes):
    return {"batch": 8, "kept": 32, "smoke": True} | changes


@pytest.fixture(scope="module")
def trained(folders, tmp_path_factory):
    """A smoke run of every kind."""

    out = tmp_path_factory.mktemp("trained")
    for kind in KINDS:
        towers.train(kind, out=out / kind, steps=4, **folders, **settings())
    return out


class TestTraining:
    @pytest.mark.parametrize("kind", KINDS)
    def test_a_smoke_run_writes_figures_and_a_card(self, trained, kind):
        figures = json.loads((trained / kind / "figures.json").read_text())
        shares = {"name_of_other_drawings", "name_held_out_from_generators", "background", "style"}
        assert all(0 <= figures[key] <= 1 for key in shares)
        card = (trained / kind / "README.md").read_text()
        assert f"rwguidance_testbed.towers {kind} --steps 4" in card
        state = torch.load(trained / f"{kind}.state", weights_only=True)["modules"]["average"]
        for name, value in encoders.read(kind, trained / kind).state_dict().items():
            wanted = state[name]
            assert torch.equal(
                value, wanted.half().float() if value.is_floating_point() else wanted
            )

    def test_a_false_caption_is_held_against_its_own_picture_alone(
        self, folders, tmp_path, monkeypatch
    ):
        counts, whole = [], towers.contrastive_loss

        def spy(pictures, captions, others, *rest):
            counts.append((len(pictures), len(captions), len(others)))
            return whole(pictures, captions, others, *rest)

        monkeypatch.setattr(towers, "contrastive_loss", spy)
        towers.train("judge", out=tmp_path / "judge", steps=1, **folders, **settings())
        # First pictures, second ones, of whose names the false captions may be true, and hands.
        assert counts == [(4, 4, 4), (4, 4, 0), (4, 4, 0)]

    @pytest.mark.parametrize("kind", ["judge", "pick"])
    def test_an_interrupted_run_ends_where_another_does(
        self, trained, folders, kind, capsys, monkeypatch
    ):
        out = trained / f"{kind}-parts"
        rate, patches = towers.learning_rate, towers._patches
        # As those of four steps.
        monkeypatch.setattr(towers, "learning_rate", lambda step, _, *rest: rate(step, 4, *rest))
        monkeypatch.setattr(towers, "_patches", lambda count, run, _: patches(count, run, 4))
        towers.train(kind, out=out, steps=2, **folders, **settings())
        towers.train(kind, out=out, steps=4, **folders, **settings())
        assert "going on at step 2" in capsys.readouterr().out
        whole, parts = (
            torch.load(trained / f"{name}.state", weights_only=True)
            for name in (kind, f"{kind}-parts")
        )
        assert whole["step"] == parts["step"] == 4
        for part in ("towers", "head", "average"):
            for name, value in whole["modules"][part].items():
                assert torch.equal(value, parts["modules"][part][name]), name

    @pytest.mark.slow
    def test_the_judge_learns(self, folders, tmp_path, capsys):
        out = tmp_path / "judge"
        towers.train("judge", out=out, steps=600, peak=3e-3, **folders, **settings(kept=64))
        lines = re.findall('{"step.*}', capsys.readouterr().out)
        losses = [json.loads(line)["loss"] for line in lines]
        assert losses[-1] < losses[0] - 0.15, losses
        figures = json.loads((tmp_path / "judge" / "figures.json").read_text())
        judge = encoders.read("judge", tmp_path / "judge").eval()
        assert figures["steps"] == 600
        found = towers.measure(judge, Drawings.load(folders["data"]), "judge", 200)
        # Eight channels learn little; by chance it would be 1 / 8, with this standard error.
        error = math.sqrt(1 / 8 * 7 / 8 / 200)
        assert found["name_of_own_drawings"] > 1 / 8 + 3 * error
        assert found["name_of_other_drawings"] > 1 / 8 + 3 * error

    def test_what_is_asked_wrongly_is_said(self, folder, tmp_path):
        with pytest.raises(ValueError, match="kind must be one of judge, pick, hps, got 'clip'"):
            towers.train("clip", folder)
        with pytest.raises(ValueError, match="start must be a folder of towers"):
            towers.train("pick", folder, pairs=tmp_path / "pairs.parquet")
        for options in ({"kind": "pick"}, {"kind": "hps", "start": tmp_path}):
            with pytest.raises(ValueError, match='vision must be given with kind "hps"'):
                towers.train(data=folder, vision=tmp_path, **options)

    def test_an_hps_learns_on_from_the_image_tower_of_a_pick(self, trained, folders, tmp_path):
        start = {"vision": trained / "pick", "peak": 0.0}
        towers.train("hps", out=tmp_path / "hps", steps=1, **start, **folders, **settings())
        hps, pick = (
            encoders.read(kind, path).eval()
            for kind, path in (("hps", tmp_path / "hps"), ("pick", trained / "pick"))
        )
        pictures = torch.linspace(0, 1, 3 * 64 * 64).reshape(1, 3, 64, 64)
        with torch.no_grad():
            found, wanted = hps.embed_pictures(pictures), pick.embed_pictures(pictures)
        assert torch.allclose(found, wanted, atol=1e-2)
        assert float(wanted.abs().max()) > 0.1

    def test_what_is_written_is_a_mean_over_steps(self, folders, tmp_path, monkeypatch):
        seen = []
        save = towers.Run.train

        def spy(run, steps, batch, rate, loss, after):
            weight = run.modules["towers"].scale
            note = lambda step: (seen.append(float(weight.detach())), after(step))
            save(run, steps, batch, rate, loss, note)

        monkeypatch.setattr(towers.Run, "train", spy)
        start = math.log(1 / 0.07)
        towers.train("judge", out=tmp_path / "judge", steps=3, **folders, **settings())
        for step, value in enumerate(seen, 1):
            start += (1 - (1 + step) / (10 + step)) * (value - start)
        found = torch.load(tmp_path / "judge.state", weights_only=True)["modules"]["average"]
        assert float(found["scale"]) == pytest.approx(start, rel=1e-6)
        assert start != pytest.approx(seen[-1], rel=1e-4)

    def test_half_of_the_patches_are_seen_until_the_last_fifth(self):
        run = types.SimpleNamespace(step=0, generator=torch.Generator().manual_seed(0))
        first = towers._patches(50, run, 100)
        assert first.shape == (50, 32)
        assert all(len(set(row)) == 32 for row in first.tolist())
        assert set(first.flatten().tolist()) == set(range(64))
        run.step = 79
        assert towers._patches(50, run, 100) is not None
        run.step = 80
        assert towers._patches(50, run, 100) is None


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


class Bright(Colors):
    """Prefers bright pictures."""

    def embed_pictures(self, pictures, patches=None):
        return torch.stack([pictures.mean((1, 2, 3)), torch.full((len(pictures),), 0.3)], 1)

    def embed_captions(self, captions):
        return torch.tensor([[1.0, 0.0]]).expand(len(captions), -1)


def test_backgrounds_are_found_by_who_sees_them(drawings):
    empty = Drawings(drawings.entries, torch.zeros_like(drawings.pixels))
    found = towers.measure(Colors(), empty, "judge", 100)
    assert found["background"] == 1.0
    assert found["style"] < 0.4
    assert found["name_of_other_drawings"] == 0.0


def encoded(picture):
    from PIL import Image

    file = io.BytesIO()
    Image.fromarray(picture.permute(1, 2, 0).numpy()).save(file, "PNG")
    return file.getvalue()


def write_pairs(path, count=64, **changes):
    """Dark and bright pictures, of which the bright are preferred."""

    import pyarrow as pa
    from pyarrow import parquet

    draws = torch.Generator().manual_seed(0)
    bright_first = torch.rand(count, generator=draws) < 0.5
    base = torch.randint(60, (count, 2, 3, 64, 64), generator=draws).byte()
    base[torch.arange(count), (~bright_first).long()] += 150
    columns = {
        "caption": [f"{NAMES[i % 6]} on a {list(COLORS)[i % 12]} background" for i in range(count)],
        "jpg_0": [encoded(pair[0]) for pair in base],
        "jpg_1": [encoded(pair[1]) for pair in base],
        "label_0": bright_first.float().tolist(),
        "label_1": (~bright_first).float().tolist(),
        "ranking_id": list(range(count)),
    }
    columns |= changes
    parquet.write_table(pa.table({k: v for k, v in columns.items() if v is not None}), path)
    return base


class TestPairs:
    def test_they_are_read_as_written(self, tmp_path):
        base = write_pairs(tmp_path / "pairs.parquet")
        pairs = towers.Pairs(tmp_path / "pairs.parquet")
        assert torch.equal(pairs.pictures, base)
        bright = pairs.pictures.float().flatten(2).mean(2)
        assert torch.equal(pairs.labels, (bright[:, 0] > bright[:, 1]).float())
        learned, checked = pairs.split(4)
        captions = lambda index: {pairs.captions[i] for i in index.tolist()}
        assert captions(learned).isdisjoint(captions(checked))
        assert (len(captions(learned)), len(captions(checked))) == (9, 3)
        assert len(learned) + len(checked) == len(pairs) == 64

    def test_what_is_wrong_is_said(self, tmp_path):
        path = tmp_path / "pairs.parquet"
        write_pairs(path, 4, label_1=None)
        with pytest.raises(ValueError, match=r"lacks \['label_1'\]"):
            towers.Pairs(path)
        write_pairs(path, 4, label_1=[1.0] * 4, label_0=[1.0] * 4)
        with pytest.raises(ValueError, match="must add to 1"):
            towers.Pairs(path)
        write_pairs(path, 4)
        with pytest.raises(ValueError, match=r"must have 32 x 32 pixels, got \(64, 64\)"):
            towers.Pairs(path, 32)

    def test_ties_do_not_count(self, tmp_path):
        path = tmp_path / "pairs.parquet"
        write_pairs(path)
        pairs = towers.Pairs(path)
        assert pairs.agreement(Bright(), torch.arange(64)) == 1.0
        pairs.labels[:16] = 1 - pairs.labels[:16]
        assert pairs.agreement(Bright(), torch.arange(64)) == 0.75
        pairs.labels[:16] = 0.5
        assert pairs.agreement(Bright(), torch.arange(64)) == 1.0

    def test_clean_agreement_is_with_the_utilities(self, tmp_path):
        path = tmp_path / "pairs.parquet"
        base = write_pairs(path)
        with pytest.raises(ValueError, match="columns utility_0 and utility_1"):
            towers.Pairs(path).agreement(Bright(), torch.arange(64), clean=True)
        light = base.float().flatten(2).mean(2)
        light[:16] = light[:16].flip(1)  # there the utility is against the labels
        light[16:24] = 0.0
        write_pairs(path, utility_0=light[:, 0].tolist(), utility_1=light[:, 1].tolist())
        pairs = towers.Pairs(path)
        assert pairs.agreement(Bright(), torch.arange(64)) == 1.0
        assert pairs.agreement(Bright(), torch.arange(64), clean=True) == pytest.approx(40 / 56)
        figures = towers._agreements(Bright(), pairs)
        # Of so few captions none is kept to check with.
        assert figures == {
            "agreement_on_pairs_learned": 1.0,
            "clean_agreement_on_pairs_learned": round(40 / 56, 4),
        }

    @pytest.mark.parametrize("kind", ["pick", "hps"])
    def test_preferences_are_learned(self, trained, folders, tmp_path, kind):
        write_pairs(tmp_path / "pairs.parquet")
        towers.train(
            kind,
            out=tmp_path / kind,
            steps=40,
            peak=3e-3,
            start=trained / kind,
            pairs=tmp_path / "pairs.parquet",
            **folders,
            **settings(),
        )
        figures = json.loads((tmp_path / kind / "figures.json").read_text())
        assert figures["agreement_on_pairs_learned"] > 0.9
        card = (tmp_path / kind / "README.md").read_text(encoding="utf-8")
        assert f"--start .../{kind} --pairs pairs.parquet" in " ".join(card.split()).replace(
            "\\ ", ""
        )
        before = encoders.read(kind, trained / kind)
        pairs = towers.Pairs(tmp_path / "pairs.parquet")
        assert pairs.agreement(before.eval(), torch.arange(64)) < 0.9


def test_names_are_known():
    names = load_names()
    assert set(NAMES) <= {*names["train"], *names["held_out"]}
