"""The drawings: what is read from packages, who may see what, and how SVG becomes pixels."""

import math
import re
from pathlib import Path

import pytest
import torch
from emoji_packages import HELD_OUT, TRAIN, body, svg

import rwguidance_testbed
from common import assert_within
from rwguidance_testbed.data import (
    ROLES,
    SIZE,
    Drawings,
    assign_roles,
    command,
    load_names,
    sources,
)
from rwguidance_testbed.data.drawings import fingerprint
from rwguidance_testbed.data.packages import fetch
from rwguidance_testbed.data.rasterizing import rasterize
from rwguidance_testbed.scenes import COLORS


class TestDrawings:
    def test_names_join_styles_that_spell_them_differently(self, emoji_drawings):
        found = {(entry.name, entry.style) for entry in emoji_drawings.entries}
        styles = [row["name"] for row in sources()["styles"]]
        assert found == {(name, style) for name in (*TRAIN, *HELD_OUT) for style in styles}

    def test_entries_say_what_the_words_say(self, emoji_drawings):
        assert emoji_drawings.entries[0].tags == ("thing", emoji_drawings.entries[0].name)
        assert {(e.group, e.kind) for e in emoji_drawings.entries} == {("food-drink", "food-fruit")}
        keys = [(entry.name, entry.style) for entry in emoji_drawings.entries]
        assert keys == sorted(keys)

    def test_each_entry_has_its_own_pixels(self, emoji_drawings, emoji_packages):
        for i, entry in enumerate(emoji_drawings.entries):
            index = (*TRAIN, *HELD_OUT).index(entry.name)
            shade = [row["name"] for row in sources()["styles"]].index(entry.style)
            assert torch.equal(emoji_drawings.pixels[i], rasterize(svg(body(index, shade), 16)))

    def test_where_selects(self, emoji_drawings):
        part = emoji_drawings.where("judge", ["sun", "key"])
        assert {e.role for e in part.entries} == {"judge"}
        assert {e.name for e in part.entries} == {"sun", "key"}
        for encoded in (True, False):
            part = emoji_drawings.where("judge", encoded=encoded)
            assert {(e.role, e.encoded) for e in part.entries} == {("judge", encoded)}
        parts = [emoji_drawings.where(role) for role in ROLES]
        assert sum(map(len, parts)) == len(emoji_drawings)
        rows = torch.cat([p.pixels for p in parts]).flatten(1).unique(dim=0)
        assert len(rows) == len(emoji_drawings)

    def test_what_is_asked_wrongly_is_said(self, emoji_drawings, tmp_path):
        with pytest.raises(ValueError, match="role must be one of generator, proxy, judge, got"):
            emoji_drawings.where("painter")
        with pytest.raises(ValueError, match="there is no drawing"):
            emoji_drawings.where(names=["unheard of"])
        with pytest.raises(FileNotFoundError, match="build the drawings with"):
            Drawings.load(tmp_path)
        with pytest.raises(ValueError, match="pixels must be of type uint8"):
            Drawings(emoji_drawings.entries, emoji_drawings.pixels.float())

    def test_built_again_it_is_the_same(self, emoji_folder, emoji_packages, tmp_path, monkeypatch):
        folder, table = emoji_packages
        first = fingerprint(Drawings.load(emoji_folder))
        monkeypatch.setattr(command, "sources", lambda: table | {"rendered": first})
        assert fingerprint(command.build(tmp_path, folder)) == first

    def test_another_package_is_refused(self, emoji_packages):
        folder, table = emoji_packages
        row = table["styles"][0]
        with pytest.raises(ValueError, match="must have the hash sha512-other, got sha512-"):
            fetch(row["package"], row["version"], "sha512-other", folder)

    def test_without_npm_it_says_where_to_put_the_package(self, tmp_path, monkeypatch):
        monkeypatch.setenv("PATH", str(tmp_path))
        with pytest.raises(FileNotFoundError, match="put the archive there"):
            fetch("@iconify-json/noto", "1.2.9", "", tmp_path)


class TestRoles:
    STYLES = tuple(row["name"] for row in sources()["styles"])

    def test_they_are_dealt_by_name_and_nothing_else(self):
        expected = assign_roles("red apple", self.STYLES)
        assert assign_roles("red apple", self.STYLES[::-1]) == expected
        assert (
            len({tuple(assign_roles(f"thing {i}", self.STYLES).values()) for i in range(20)}) > 10
        )

    def test_the_roles_of_a_name_do_not_change(self):
        assert (
            "".join(assign_roles("red apple", self.STYLES)[s][0] for s in self.STYLES) == "jjgggpgp"
        )

        pinned = {
            "pizza": "ggppjgjp",
            "green apple": "gpggpjjg",
            "dog": "jgppggjp",
        }
        for name, roles in pinned.items():
            assert "".join(assign_roles(name, self.STYLES)[s][0] for s in self.STYLES) == roles

    def test_what_no_prompt_asks_for_is_dealt_to_judge_and_proxies(self):
        moved = []
        for i in range(600):
            first = assign_roles(f"thing {i}", self.STYLES)
            second = assign_roles(f"thing {i}", self.STYLES, asked=False)
            assert second["fluent"] == second["fluent-flat"]
            for style in self.STYLES:
                if first[style] != "generator":
                    assert second[style] == first[style]
                elif style != "fluent-flat":
                    moved.append(second[style])
        assert set(moved) == {"judge", "proxy"}
        assert len(moved) == 1800
        share = sum(role == "judge" for role in moved) / len(moved)
        assert_within(share, 0.5, math.sqrt(0.25 / len(moved)))
        single = [assign_roles(f"thing {i}", ["noto"], asked=False)["noto"] for i in range(200)]
        assert 60 < sum(role == "judge" for role in single) < 140

    def test_drawings_keep_the_role_of_the_generators_where_prompts_ask(self, emoji_drawings):
        for entry in emoji_drawings.entries:
            first = assign_roles(entry.name, self.STYLES)[entry.style]
            asked = entry.name in (*load_names()["train"], *load_names()["held_out"])
            assert entry.role == assign_roles(entry.name, self.STYLES, asked)[entry.style]
            held_out = entry.name in load_names()["held_out"]
            assert entry.encoded == (first == "generator" and not held_out)
        assert {e.role for e in emoji_drawings.entries if e.name == "car"} == {"judge", "proxy"}
        assert "generator" in {e.role for e in emoji_drawings.entries if e.name == "sun"}
        assert any(e.encoded for e in emoji_drawings.entries if e.name == "car")
        assert not any(e.encoded for e in emoji_drawings.entries if e.name in HELD_OUT)

    def test_every_role_gets_its_share(self):
        for i in range(50):
            roles = assign_roles(f"thing {i}", self.STYLES)
            assert roles["fluent"] == roles["fluent-flat"]
            hands = [role for style, role in roles.items() if style != "fluent-flat"]
            assert sorted(hands) == ["generator"] * 3 + ["judge"] * 2 + ["proxy"] * 2
            few = assign_roles(f"thing {i}", ("noto", "noto-v1", "twemoji", "emojione"))
            assert sorted(few.values()) == ["generator"] * 2 + ["judge", "proxy"]


class TestNames:
    def test_held_out_names_are_new_sentences_of_known_words(self):
        names = load_names()
        split = lambda name: set(re.findall(r"\w+", name))
        known = set(COLORS).union(*map(split, names["train"]))
        assert not set(names["train"]) & set(names["held_out"])
        assert len(set(names["train"])) == len(names["train"]) > 150
        for name in names["held_out"]:
            assert split(name) <= known, name

    def test_the_notice_credits_every_style(self):
        notice = Path(rwguidance_testbed.__file__).with_name("NOTICE").read_text(encoding="utf-8")
        for row in [*sources()["styles"], sources()["words"]]:
            assert row["credit"] in notice
            assert f"{row['package']} {row['version']}" in notice
            assert row["license"] in notice


class TestRendering:
    def test_a_drawing_is_cut_to_its_square(self):
        pixels = rasterize(svg('<rect x="4" y="8" width="8" height="4" fill="#ff8000"/>'))
        assert pixels.shape == (4, SIZE, SIZE)
        assert pixels[:, SIZE // 2, SIZE // 2].tolist() == [255, 128, 0, 255]
        filled = (pixels[3] > 127).nonzero()
        assert filled.min(0).values.tolist() == [SIZE // 4, 0]
        assert filled.max(0).values.tolist() == [3 * SIZE // 4 - 1, SIZE - 1]

    def test_colors_are_multiplied_by_alpha(self):
        pixels = rasterize(svg('<rect width="32" height="32" fill="#f00" opacity="0.5"/>'))
        assert pixels[:, 5, 5].tolist() == [128, 0, 0, 128]

    def test_no_color_is_stronger_than_its_alpha(self):
        stripes = "".join(f'<rect x="{x}" width="1" height="32"/>' for x in range(0, 32, 4))
        pixels = rasterize(svg(f'<g fill="#fff">{stripes}</g><circle r="9" cx="9" cy="16"/>'))
        assert bool((pixels[:3] <= pixels[3:]).all())

    def test_an_empty_drawing_is_refused(self):
        with pytest.raises(ValueError, match="the drawing is empty"):
            rasterize(svg(""))
