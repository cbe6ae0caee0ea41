"""The buffer of painted pictures: what is in it at a step, and how pairs belong together."""

import itertools
import re
import types
from dataclasses import replace

import pytest
import torch
from squares import NAMES

from rwguidance_testbed.data import SIZE, Drawing, Drawings, load_names, sources
from rwguidance_testbed.scenes import render, sample_scenes
from rwguidance_testbed.towers.buffer import PictureBuffer, partners, training_drawings


def test_names_are_known():
    names = load_names()
    assert set(NAMES) <= {*names["train"], *names["held_out"]}


@pytest.fixture
def unaugmented(monkeypatch):
    """Pictures as their scenes say, but for mirroring."""

    module = "rwguidance_testbed.towers.buffer"
    for name in ("jitter_colors", "add_outlines", "blur"):
        monkeypatch.setattr(f"{module}.{name}", lambda x, generator: x)
    monkeypatch.setattr(f"{module}.jitter_hue", lambda scene, entry, uniform: scene.hue)


class TestPictureBuffer:
    def new(self, squares, step=0, seed=3):
        return PictureBuffer(training_drawings(squares, "judge"), 40, 4, seed, step)

    def same(self, one, other):
        texts = lambda batch: (batch.captions, batch.negatives, batch.names)
        return torch.equal(one.pictures, other.pictures) and texts(one) == texts(other)

    def test_what_it_holds_depends_on_the_step_alone(self, squares):
        one = self.new(squares)
        for step in range(13):
            one.advance(step)
        other = self.new(squares, step=13)
        assert all(itertools.starmap(self.same, zip(one.chunks, other.chunks, strict=True)))
        first = self.new(squares)
        assert not any(itertools.starmap(self.same, zip(one.chunks, first.chunks, strict=True)))
        assert not self.same(self.new(squares, seed=4).chunks[0], self.new(squares).chunks[0])

    def test_a_step_replaces_the_oldest(self, squares):
        buffer = self.new(squares)
        before = list(buffer.chunks)
        buffer.advance(0)
        buffer.advance(1)
        assert [a is b for a, b in zip(buffer.chunks, before, strict=True)] == 2 * [False] + 8 * [
            True
        ]

    def test_names_differ_and_rows_belong_together(self, squares, generator):
        buffer = self.new(squares)
        rows = [
            (captions, other, pictures.numpy().tobytes())
            for chunk in buffer.chunks
            for captions, other, pictures in zip(
                chunk.captions, chunk.negatives, chunk.pictures, strict=True
            )
        ]
        for _ in range(20):
            batch = buffer.batch(4, generator)
            assert batch.pictures.shape == (4, 2, 3, 64, 64)
            assert len(set(batch.names)) == 4
            for i, name in enumerate(batch.names):
                captions, other = batch.captions[i], batch.negatives[i]
                assert all(name in caption or "fruit" in caption for caption in captions)
                assert (captions, other, batch.pictures[i].numpy().tobytes()) in rows
                assert other != captions[0]

    def test_pairs_are_of_one_name_in_two_styles(self, squares):
        part = training_drawings(squares, "judge")[1]
        others_of = partners(part)
        for entry, others in zip(part.entries, others_of, strict=True):
            found = {(part.entries[j].name, part.entries[j].style) for j in others}
            assert found == {
                (entry.name, e.style)
                for e in part.entries
                if e.name == entry.name and e.style != entry.style
            }
        assert all(others_of)
        alone = Drawings(part.entries[:1], part.pixels[:1])
        assert partners(alone) == [[0]]

    def test_pictures_are_what_captions_say(self, squares, unaugmented):
        part = training_drawings(squares, "judge")[1]
        chunk = PictureBuffer([part], 16, 16, 3).chunks[0]
        scenes = sample_scenes(part, 16, torch.Generator().manual_seed(3_000_009))
        assert [first for first, _ in chunk.captions] == [s.caption for s in scenes]
        assert chunk.names == [part.entries[s.drawing].name for s in scenes]
        found, wanted = chunk.pictures[:, 0].float() / 255, render(part, scenes)
        off = lambda x: (found - x).abs().amax((1, 2, 3)) * 255
        straight, mirrored = off(wanted), off(wanted.flip(3))
        assert torch.minimum(straight, mirrored).max() <= 0.502
        assert 2 < int((mirrored < 1).sum()) < 14  # half of them

    def test_second_pictures_are_of_the_same_name_in_another_style(self, squares, monkeypatch):
        painted = []
        spy = lambda part, scenes: painted.append((part.entries, scenes)) or render(part, scenes)
        monkeypatch.setattr("rwguidance_testbed.towers.buffer.render", spy)
        part = training_drawings(squares, "judge")[1]
        chunk = PictureBuffer([part], 40, 40, 3).chunks[0]
        entries, scenes = painted[0]
        words = {row["name"]: row["words"] for row in sources()["styles"]}
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

    def test_names_with_sides_are_not_mirrored(self, squares, unaugmented):
        part = training_drawings(squares, "judge")[0]
        entries = [replace(e, name=f"{e.name} facing left") for e in part.entries]
        part = Drawings(entries, part.pixels)
        chunk = PictureBuffer([part], 16, 16, 3).chunks[0]
        wanted = render(part, sample_scenes(part, 16, torch.Generator().manual_seed(3_000_009)))
        assert (chunk.pictures[:, 0].float() / 255 - wanted).abs().max() <= 0.502 / 255

    def test_some_pictures_come_out_of_the_autoencoder(self, squares):
        class Gray:
            config = None

            def encode(self, x):
                mode = types.SimpleNamespace(mode=lambda: x)
                return types.SimpleNamespace(latent_dist=mode)

            def decode(self, x):
                assert -1 <= float(x.min()) < -0.5 < 0.5 < float(x.max()) <= 1
                return types.SimpleNamespace(sample=torch.full_like(x, 0.25))

        parts = training_drawings(squares, "judge")
        pictures = PictureBuffer(parts, 16, 16, 3, vae=Gray()).chunks[0].pictures
        through = (pictures == round(0.625 * 255)).flatten(2).all(2)
        assert through.T.flatten().tolist() == 4 * ([True] + 7 * [False])

    def test_too_large_a_batch_is_refused(self, squares, generator):
        with pytest.raises(ValueError, match=r"at most twice the number of names .* 8, got 18"):
            self.new(squares).batch(9, generator)

    def test_no_two_roles_share_a_drawing(self, squares):
        rows = lambda part: {row.numpy().tobytes() for row in part.pixels.flatten(1)}
        judge, pick, hps = (
            set.union(*map(rows, training_drawings(squares, kind)))
            for kind in ("judge", "pick", "hps")
        )
        generator = rows(squares.where("generator"))
        assert pick == hps
        assert not judge & pick
        assert not (judge | pick) & generator
        assert len(judge | pick | generator) == len(squares)

    def test_half_the_pairs_are_of_names_that_prompts_have_and_none_of_flags(self, squares):
        groups = ("objects", "flags", "objects")
        more = [
            Drawing(name, "noto", group, "object-other", (), "judge")
            for name, group in zip(("gavel", "flag: peru", "red apple"), groups, strict=True)
        ]
        pixels = torch.zeros(3, 4, SIZE, SIZE, dtype=torch.uint8)
        every = Drawings([*squares.entries, *more], torch.cat((squares.pixels, pixels)))
        asked, things = training_drawings(every, "judge")
        names = lambda part: {entry.name for entry in part.entries}
        assert names(asked) == set(NAMES)
        assert names(things) == {*NAMES, "gavel"}
        assert {e.role for e in (*asked.entries, *things.entries)} == {"judge"}
