"""The test bed: its data, what is painted of it, and smoke runs of what is trained on it."""

import base64
import hashlib
import io
import json
import math
import re
import tarfile
from pathlib import Path

import pytest
import torch

from common import assert_rounds_to, assert_within
from rwguidance.support.randomness import seeded
from rwguidance_testbed import data, flow, law, muon, runs, scenes, vae, words
from rwguidance_testbed.attention import CountedAttention
from rwguidance_testbed.data import ROLES, SIZE, Drawing, Drawings, deal, load_names, render
from rwguidance_testbed.scenes import COLORS, Scene, paint, sample

TRAIN = ("red apple", "blue heart", "sun", "pizza", "key", "car")
HELD_OUT = ("green apple", "blue book")
TONED = "1f44b-1f3fb"


def archive(folder, package, version, members):
    """A package as npm packs it, and the hash that is stated for it."""

    path = folder / f"{package.lstrip('@').replace('/', '-')}-{version}.tgz"
    with tarfile.open(path, "w:gz") as file:
        for name, content in members.items():
            raw = json.dumps(content).encode()
            info = tarfile.TarInfo(f"package/{name}")
            info.size = len(raw)
            file.addfile(info, io.BytesIO(raw))
    return "sha512-" + base64.b64encode(hashlib.sha512(path.read_bytes()).digest()).decode()


def svg(inside, size=32):
    return f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {size} {size}">{inside}</svg>'


def body(index, shade):
    """A shape of its own for every name, a color of its own for every style."""

    color = f"rgb({40 * index % 256},{25 * shade},{(90 * index + 60) % 256})"
    return f'<circle cx="8" cy="8" r="5" fill="{color}"/><rect width="{index + 2}" height="4"/>'


def icons(style, shade):
    slugs = ["red-apple", "blue-heart", "sun", "pizza", "key", "car", "green-apple", "blue-book"]
    if style == "fxemoji":
        slugs = [slug.replace("-", "") for slug in slugs]
    other_names = {"twemoji": ("pizza", "pizza-slice"), "emojione": ("sun", "sol")}
    was, name = other_names.get(style, ("", ""))
    slugs = [name if slug == was else slug for slug in slugs]
    table = {"mirrored": {"body": body(11, shade)}} if style == "noto-v1" else {}
    table |= {slug: {"body": body(i, shade)} for i, slug in enumerate(slugs)}
    table["hidden-thing"] = {"body": body(1, shade), "hidden": True}
    table["unheard-of"] = {"body": body(1, shade)}
    aliases = {}
    if style == "noto":
        table["automobile"] = table.pop("car")
        aliases = {"car": {"parent": "automobile"}, "sol": {"parent": "sun"}}
        aliases["mirrored"] = {"parent": "key", "hFlip": True}
        table["waving-hand-light"] = {"body": body(1, shade)}
    return {"icons": table, "aliases": aliases, "width": 16, "height": 16}


@pytest.fixture(scope="module")
def packages(tmp_path_factory):
    """A folder of archives and the table that belongs to it."""

    folder = tmp_path_factory.mktemp("packages")
    table = json.loads(json.dumps(data.sources()))
    table["rendered"] = "unknown"
    rows = [
        {"hexcode": f"{0x1F300 + i:X}-FE0F", "label": name.capitalize(), "tags": ["thing", name]}
        | {"group": 4, "subgroup": 42}
        for i, name in enumerate((*TRAIN, *HELD_OUT))
    ]
    rows.append({"hexcode": "1F1E6", "label": "regional indicator A", "tags": []})
    rows.append(rows[0] | {"hexcode": "1F5FF", "label": "hidden thing"})
    groups = {"groups": {"4": "food-drink"}, "subgroups": {"42": "food-fruit"}}
    members = {"en/data.json": rows, "meta/groups.json": groups}
    row = table["words"]
    row["integrity"] = archive(folder, row["package"], row["version"], members)
    codes = {f"{0x1F300 + i:x}": name.replace(" ", "-") for i, name in enumerate(TRAIN)}
    pizza = f"{0x1F300 + TRAIN.index('pizza'):x}"
    codes[TONED] = "waving-hand-light"
    for shade, row in enumerate(table["styles"]):
        chars = {"noto": codes, "twemoji": {pizza: "pizza-slice"}}.get(row["name"], {})
        members = {"icons.json": icons(row["name"], shade), "chars.json": chars}
        row["integrity"] = archive(folder, row["package"], row["version"], members)
    return folder, table


@pytest.fixture(scope="module")
def built(packages, tmp_path_factory):
    folder, table = packages
    out = tmp_path_factory.mktemp("drawings")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(data, "sources", lambda: table)
        with pytest.warns(UserWarning, match="the drawings have the hash"):
            data.build(out, folder)
    return out


@pytest.fixture(scope="module")
def drawings(built):
    return Drawings.load(built)


def plain(pixels=None):
    """One opaque square of one color, or what is given."""

    if pixels is None:
        pixels = torch.zeros(4, SIZE, SIZE, dtype=torch.uint8)
        pixels[0], pixels[3] = 255, 255
    return Drawings([Drawing("square", "noto", "x", "y", (), "generator")], pixels[None])


def scene(**changes):
    values = {"drawing": 0, "background": (0.0, 0.0, 1.0), "scale": 0.5, "angle": 0.0}
    values |= {"place": (0.0, 0.0), "hue": 0.0, "caption": "square"}
    return Scene(**(values | changes))


class TestDrawings:
    def test_names_join_styles_that_spell_them_differently(self, drawings):
        found = {(entry.name, entry.style) for entry in drawings.entries}
        styles = [row["name"] for row in data.sources()["styles"]]
        assert found == {(name, style) for name in (*TRAIN, *HELD_OUT) for style in styles}

    def test_entries_say_what_the_words_say(self, drawings):
        assert drawings.entries[0].tags == ("thing", drawings.entries[0].name)
        assert {(e.group, e.kind) for e in drawings.entries} == {("food-drink", "food-fruit")}
        keys = [(entry.name, entry.style) for entry in drawings.entries]
        assert keys == sorted(keys)

    def test_each_entry_has_its_own_pixels(self, drawings, packages):
        for i, entry in enumerate(drawings.entries):
            index = (*TRAIN, *HELD_OUT).index(entry.name)
            shade = [row["name"] for row in data.sources()["styles"]].index(entry.style)
            assert torch.equal(drawings.pixels[i], render(svg(body(index, shade), 16)))

    def test_where_selects(self, drawings):
        part = drawings.where("judge", ["sun", "key"])
        assert {e.role for e in part.entries} == {"judge"}
        assert {e.name for e in part.entries} == {"sun", "key"}
        for encoded in (True, False):
            part = drawings.where("judge", encoded=encoded)
            assert {(e.role, e.encoded) for e in part.entries} == {("judge", encoded)}
        parts = [drawings.where(role) for role in ROLES]
        assert sum(map(len, parts)) == len(drawings)
        rows = torch.cat([p.pixels for p in parts]).flatten(1).unique(dim=0)
        assert len(rows) == len(drawings)

    def test_what_is_asked_wrongly_is_said(self, drawings, tmp_path):
        with pytest.raises(ValueError, match="role must be one of generator, proxy, judge, got"):
            drawings.where("painter")
        with pytest.raises(ValueError, match="there is no drawing"):
            drawings.where(names=["unheard of"])
        with pytest.raises(FileNotFoundError, match="build the drawings with"):
            Drawings.load(tmp_path)
        with pytest.raises(ValueError, match="pixels must be of type uint8"):
            Drawings(drawings.entries, drawings.pixels.float())

    def test_built_again_it_is_the_same(self, built, packages, tmp_path, monkeypatch):
        folder, table = packages
        first = data.fingerprint(Drawings.load(built))
        monkeypatch.setattr(data, "sources", lambda: table | {"rendered": first})
        assert data.fingerprint(data.build(tmp_path, folder)) == first

    def test_another_package_is_refused(self, packages):
        folder, table = packages
        row = table["styles"][0]
        with pytest.raises(ValueError, match="must have the hash sha512-other, got sha512-"):
            data.fetch(row["package"], row["version"], "sha512-other", folder)

    def test_without_npm_it_says_where_to_put_the_package(self, tmp_path, monkeypatch):
        monkeypatch.setenv("PATH", str(tmp_path))
        with pytest.raises(FileNotFoundError, match="put the archive there"):
            data.fetch("@iconify-json/noto", "1.2.9", "", tmp_path)


class TestRoles:
    STYLES = tuple(row["name"] for row in data.sources()["styles"])

    def test_they_are_dealt_by_name_and_nothing_else(self):
        expected = deal("red apple", self.STYLES)
        assert deal("red apple", self.STYLES[::-1]) == expected
        assert len({tuple(deal(f"thing {i}", self.STYLES).values()) for i in range(20)}) > 10

    def test_the_roles_of_a_name_do_not_change(self):
        assert "".join(deal("red apple", self.STYLES)[s][0] for s in self.STYLES) == "jjgggpgp"

        pinned = {
            "pizza": "ggppjgjp",
            "green apple": "gpggpjjg",
            "dog": "jgppggjp",
        }
        for name, roles in pinned.items():
            assert "".join(deal(name, self.STYLES)[s][0] for s in self.STYLES) == roles

    def test_what_no_prompt_asks_for_is_dealt_to_judge_and_proxies(self):
        moved = []
        for i in range(600):
            first = deal(f"thing {i}", self.STYLES)
            second = deal(f"thing {i}", self.STYLES, asked=False)
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
        single = [deal(f"thing {i}", ["noto"], asked=False)["noto"] for i in range(200)]
        assert 60 < sum(role == "judge" for role in single) < 140

    def test_drawings_keep_the_role_of_the_generators_where_prompts_ask(self, drawings):
        for entry in drawings.entries:
            first = deal(entry.name, self.STYLES)[entry.style]
            asked = entry.name in (*load_names()["train"], *load_names()["held_out"])
            assert entry.role == deal(entry.name, self.STYLES, asked)[entry.style]
            held_out = entry.name in load_names()["held_out"]
            assert entry.encoded == (first == "generator" and not held_out)
        assert {e.role for e in drawings.entries if e.name == "car"} == {"judge", "proxy"}
        assert "generator" in {e.role for e in drawings.entries if e.name == "sun"}
        assert any(e.encoded for e in drawings.entries if e.name == "car")
        assert not any(e.encoded for e in drawings.entries if e.name in HELD_OUT)

    def test_every_role_gets_its_share(self):
        for i in range(50):
            roles = deal(f"thing {i}", self.STYLES)
            assert roles["fluent"] == roles["fluent-flat"]
            hands = [role for style, role in roles.items() if style != "fluent-flat"]
            assert sorted(hands) == ["generator"] * 3 + ["judge"] * 2 + ["proxy"] * 2
            few = deal(f"thing {i}", ("noto", "noto-v1", "twemoji", "emojione"))
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
        notice = (data.Path(data.__file__).parent / "NOTICE").read_text(encoding="utf-8")
        for row in [*data.sources()["styles"], data.sources()["words"]]:
            assert row["credit"] in notice
            assert f"{row['package']} {row['version']}" in notice
            assert row["licence"] in notice


class TestRendering:
    def test_a_drawing_is_cut_to_its_square(self):
        pixels = render(svg('<rect x="4" y="8" width="8" height="4" fill="#ff8000"/>'))
        assert pixels.shape == (4, SIZE, SIZE)
        assert pixels[:, SIZE // 2, SIZE // 2].tolist() == [255, 128, 0, 255]
        filled = (pixels[3] > 127).nonzero()
        assert filled.min(0).values.tolist() == [SIZE // 4, 0]
        assert filled.max(0).values.tolist() == [3 * SIZE // 4 - 1, SIZE - 1]

    def test_colors_are_multiplied_by_alpha(self):
        pixels = render(svg('<rect width="32" height="32" fill="#f00" opacity="0.5"/>'))
        assert pixels[:, 5, 5].tolist() == [128, 0, 0, 128]

    def test_no_color_is_stronger_than_its_alpha(self):
        stripes = "".join(f'<rect x="{x}" width="1" height="32"/>' for x in range(0, 32, 4))
        pixels = render(svg(f'<g fill="#fff">{stripes}</g><circle r="9" cx="9" cy="16"/>'))
        assert bool((pixels[:3] <= pixels[3:]).all())

    def test_an_empty_drawing_is_refused(self):
        with pytest.raises(ValueError, match="the drawing is empty"):
            render(svg(""))


class TestScenes:
    def test_a_square_in_the_middle(self):
        picture = paint(plain(), [scene()])[0]
        assert picture.shape == (3, 64, 64)
        expected = torch.zeros(3, 64, 64)
        expected[2] = 1
        expected[0, 16:48, 16:48], expected[2, 16:48, 16:48] = 1, 0
        assert (picture - expected).abs().max() <= 0.5  # one pixel at the border is mixed
        assert (picture - expected)[:, 17:47, 17:47].abs().max() < 1e-6
        assert float((picture - expected).abs().mean()) < 0.02

    @pytest.mark.parametrize("place", [(1.0, 0.0), (-1.0, 0.0), (0.0, 1.0), (0.5, -0.5)])
    def test_the_place_is_right_and_down(self, place):
        red = paint(plain(), [scene(place=place, scale=0.5)])[0, 0]
        rows, columns = torch.meshgrid(torch.arange(64.0), torch.arange(64.0), indexing="ij")
        center = ((red * columns).sum() / red.sum(), (red * rows).sum() / red.sum())
        assert torch.allclose(torch.stack(center), 31.5 + 16 * torch.tensor(place), atol=0.3)

    def test_scale_is_the_share_of_the_side(self):
        for scale in (0.5, 0.75, 0.97):
            red = paint(plain(), [scene(scale=scale)])[0, 0]
            assert float(red.sum()) == pytest.approx((64 * scale) ** 2, rel=0.03)

    def test_the_angle_is_clockwise(self):
        pixels = torch.zeros(4, SIZE, SIZE, dtype=torch.uint8)
        pixels[:, : SIZE // 4], pixels[3] = 255, 255  # white at the top
        picture = paint(plain(pixels), [scene(angle=90.0, scale=0.9)])[0, 0]
        assert float(picture[32, 58]) > 0.99
        assert float(picture[32, 6]) < 0.01

    def test_the_background_shows_where_nothing_is_drawn(self):
        half = torch.zeros(4, SIZE, SIZE, dtype=torch.uint8)
        half[0], half[3] = 128, 128
        picture = paint(plain(half), [scene(background=(0.2, 0.4, 0.6))])[0]
        assert torch.allclose(picture[:, 0, 0], torch.tensor([0.2, 0.4, 0.6]))
        share = 128 / 255
        expected = torch.tensor([share, 0.0, 0.0]) + (1 - share) * torch.tensor([0.2, 0.4, 0.6])
        assert torch.allclose(picture[:, 32, 32], expected, atol=1e-5)

    def test_hue_turns_red_to_green_and_leaves_gray(self):
        assert paint(plain(), [scene(hue=120.0)])[0, :, 32, 32].tolist() == pytest.approx(
            [0, 1, 0], abs=1e-5
        )
        gray = torch.full((4, SIZE, SIZE), 255, dtype=torch.uint8)
        gray[:3] = 100
        middle = paint(plain(gray), [scene(hue=-40.0)])[0, :, 32, 32]
        assert torch.allclose(middle, torch.full((3,), 100 / 255), atol=1e-5)

    def test_captions_tell_the_truth(self, drawings, generator):
        styles = {row["words"]: row["name"] for row in data.sources()["styles"]}
        for item in sample(drawings, 2000, generator):
            entry = drawings.entries[item.drawing]
            caption = re.fullmatch(
                r"(?:an? )?(?:(small|large) )?(.+?)(?: on an? (\w+) background)?"
                r"(?:, ([\w ]+) style)?(?:, (.+))?",
                item.caption,
            )
            size, name, color, style, tag = caption.groups()
            assert name in (entry.name, "fruit")
            low, high = {None: (0.7, 0.95), "small": (0.5, 0.65), "large": (0.88, 0.97)}[size]
            assert low <= item.scale <= high
            if color:
                assert item.background == tuple(c / 255 for c in COLORS[color])
            assert style is None or styles[style] == entry.style
            assert tag is None or tag in entry.tags
            assert abs(item.angle) <= 12
            assert abs(item.hue) <= 15
            assert max(map(abs, item.place)) <= 1
            assert "a apple" not in item.caption
            assert "a orange" not in item.caption

    def test_how_often_captions_name_what(self, drawings, generator):
        count = 4000
        captions = [item.caption for item in sample(drawings, count, generator)]
        shares = {"background": 0.4, " style": 0.4, "small ": 0.1, "large ": 0.1, "fruit": 0.06}
        for word, share in shares.items():
            found = sum(word in caption for caption in captions) / count
            assert_within(found, share, math.sqrt(share * (1 - share) / count))

    def test_what_is_open_varies(self, drawings, generator):
        items = sample(drawings, 2000, generator)
        for values in (
            [item.angle / 12 for item in items],
            [item.hue / 15 for item in items],
            [item.place[0] for item in items],
            [item.place[1] for item in items],
        ):
            sorted_ = torch.tensor(values, dtype=torch.float64).sort().values
            uniform = (2 * torch.arange(2000, dtype=torch.float64) + 1) / 2000 - 1
            assert float((sorted_ - uniform).abs().max()) < 2 * 1.95 / math.sqrt(2000) * 1.5
        assert len({item.drawing for item in items}) == len(drawings)

    def test_the_generator_decides(self, drawings):
        fresh = lambda seed: torch.Generator().manual_seed(seed)
        assert sample(drawings, 5, fresh(3)) == sample(drawings, 5, fresh(3))
        pictures, captions = scenes.draw(drawings, 5, fresh(3))
        assert captions == [item.caption for item in sample(drawings, 5, fresh(3))]
        assert torch.equal(pictures, paint(drawings, sample(drawings, 5, fresh(3))))


class TestLaw:
    def test_scenes_of_one_caption(self, drawings, generator):
        found = scenes.given(drawings, "sun on a red background", 40, generator)
        bare = {item.caption.removeprefix("a ") for item in found}
        assert bare == {"sun on a red background"}
        assert {item.background for item in found} == {tuple(c / 255 for c in COLORS["red"])}
        used = {item.drawing for item in found}
        assert used == {i for i, entry in enumerate(drawings.entries) if entry.name == "sun"}

    def test_a_kind_is_drawn_in_many_ways(self, drawings, generator):
        found = scenes.given(drawings, "a fruit", 40, generator)
        assert len({drawings.entries[item.drawing].name for item in found}) > 4

    @pytest.mark.parametrize("seed", range(4))
    def test_a_rare_caption_is_found_though_one_scene_is_wanted(self, drawings, seed):
        # Once in about 2,300 scenes of this drawing.
        entry = next(entry for entry in drawings.entries if entry.name == "sun")
        style = {row["name"]: row["words"] for row in data.sources()["styles"]}[entry.style]
        one = drawings.where(names=["sun"])
        caption = f"a small sun on a pink background, {style} style"
        found = scenes.given(one, caption, 1, torch.Generator().manual_seed(seed))
        assert found[0].caption == caption or f"a {found[0].caption}" == caption

    @pytest.mark.parametrize("caption", ["xylophone", "sun and key"])
    def test_what_no_scene_has_is_said(self, drawings, generator, caption):
        with pytest.raises(ValueError, match="no scene of these drawings has the caption"):
            scenes.given(drawings, caption, 1, generator)

    @pytest.mark.parametrize(("count", "scales"), [(40, [1.0] * 8), (200, [3.0, 1.0, 1.0, 0.5])])
    def test_the_effective_dimension(self, generator, count, scales):
        scale = torch.tensor(scales, dtype=torch.float64)
        found = [
            law.effective_dimension(
                5 + scale * torch.randn(count, len(scale), generator=generator, dtype=scale.dtype)
            )
            for _ in range(200)
        ]
        truth = scale.square().sum() ** 2 / (scale**4).sum()
        found = torch.tensor(found, dtype=torch.float64)
        # A ratio of unbiased estimates is biased by a little, relatively by about 1 / count.
        assert_within(found.mean(), truth, found.std() / math.sqrt(200) + 0.01 * truth)


class TestRuns:
    def train(self, path, steps, restore):
        generator = torch.Generator().manual_seed(1)
        with seeded(0):
            layer = torch.nn.Linear(3, 1)
        optimizer = torch.optim.AdamW(layer.parameters())
        run = runs.Run(path, {"layer": layer}, optimizer, generator)
        assert run.restore() == restore
        loss = lambda: layer(torch.randn(4, 3, generator=generator)).square().mean()
        rate = lambda step: runs.learning_rate(step, 8, 0.1, 2)
        run.train(steps, 4, rate, loss, printed=3)
        return layer.weight.detach(), run

    def test_an_interrupted_run_ends_where_another_does(self, tmp_path):
        whole, _ = self.train(tmp_path / "whole", 8, restore=False)
        self.train(tmp_path / "parts", 5, restore=False)
        parts, run = self.train(tmp_path / "parts", 8, restore=True)
        assert torch.equal(whole, parts)
        assert (run.step, run.seen) == (8, 32)
        assert run.seconds > 0

    def test_lines_give_the_mean_of_the_losses_since_the_last_one(self, tmp_path, capsys):
        with seeded(0):
            layer = torch.nn.Linear(1, 1)
        optimizer = torch.optim.SGD(layer.parameters(), lr=0.0)
        run = runs.Run(tmp_path / "run", {"layer": layer}, optimizer, torch.Generator())
        losses = iter([1.0, 2.0, 6.0, 5.0])
        steps: list[int] = []
        loss = lambda: next(losses) + 0.0 * layer.weight.sum()
        run.train(4, 2, lambda step: 0.0, loss, steps.append, printed=3)
        lines = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
        found = [(line["step"], line["loss"], line["seen"]) for line in lines]
        assert found == [(3, 3.0, 6), (4, 5.0, 8)]
        assert steps == [1, 2, 3, 4]

    def test_averages_move_towards_weights_slower_and_slower(self):
        average, weight = torch.tensor([2.0]), torch.tensor([4.0])
        runs.move_averages([average], [weight], 0)  # a tenth remains
        assert float(average) == pytest.approx(0.1 * 2 + 0.9 * 4)
        average = torch.tensor([2.0])
        runs.move_averages([average], [weight], 100_000, 0.9)
        assert float(average) == pytest.approx(0.9 * 2 + 0.1 * 4)
        assert float(weight) == 4.0

    def test_the_learning_rate(self):
        rates = [runs.learning_rate(step, 100, 2.0, 10) for step in range(101)]
        assert rates[0] == pytest.approx(0.2)
        assert rates[9:71] == pytest.approx([2.0] * 62)
        assert rates[85] == pytest.approx(2 * (0.01 + 0.99 / 2))
        assert rates[100] == pytest.approx(0.02)
        assert rates == sorted(rates[:10]) + sorted(rates[10:], reverse=True)


class TestMuon:
    @pytest.mark.parametrize("shape", [(3, 16, 40), (2, 40, 16)])
    def test_matrices_are_nearly_orthogonal_and_keep_their_axes(self, generator, shape):
        matrices = torch.randn(*shape, generator=generator) * 1e-6
        found = muon.orthogonal(matrices).float()
        u, _, vh = torch.linalg.svd(matrices, full_matrices=False)
        inside = u.mT @ found @ vh.mT
        values = inside.diagonal(dim1=1, dim2=2)
        assert 0.5 < float(values.min()) <= float(values.max()) < 1.4
        assert float((inside - torch.diag_embed(values)).abs().max()) < 0.1

    def steps(self, optimizer, weight, count=4):
        draws = torch.Generator().manual_seed(3)
        for _ in range(count):
            weight.grad = torch.randn(weight.shape, generator=draws)
            optimizer.step()
        return weight.detach()

    def test_what_is_no_matrix_is_moved_by_adam(self, generator):
        start = torch.randn(5, 4, generator=generator)
        ours, theirs = (torch.nn.Parameter(start.clone()) for _ in range(2))
        rows = [{"params": [ours], "matrices": False}]
        settings = {"lr": 0.1, "weight_decay": 0.3, "betas": (0.8, 0.9)}
        found = self.steps(muon.Muon(rows, **settings), ours)
        expected = self.steps(torch.optim.AdamW([theirs], **settings), theirs)
        assert torch.allclose(found, expected, atol=1e-5)

    def test_matrices_follow_their_momentum(self, generator):
        start = torch.randn(6, 9, generator=generator)
        weight = torch.nn.Parameter(start.clone())
        rows = [{"params": [weight], "matrices": True}]
        optimizer = muon.Muon(rows, lr=0.1, momentum=0.7, weight_decay=0.2)
        found = self.steps(optimizer, weight, count=2)
        draws = torch.Generator().manual_seed(3)
        expected, momentum = start, torch.zeros(6, 9)
        for _ in range(2):
            gradient = torch.randn(6, 9, generator=draws)
            momentum = 0.7 * momentum + 0.3 * gradient
            step = muon.orthogonal((0.3 * gradient + 0.7 * momentum)[None])[0].float()
            expected = expected * (1 - 0.1 * 0.2) - 0.1 * 0.2 * 3 * step
        assert torch.allclose(found, expected, atol=1e-3)

    def test_only_weights_of_linear_layers_in_blocks_are_matrices(self, pipe):
        matrices, others = muon.groups(parts_of(pipe))
        names = {p: name for part in parts_of(pipe) for name, p in part.named_parameters()}
        assert len(matrices["params"]) + len(others["params"]) == len(names)
        found = {names[p] for p in matrices["params"]}
        assert {name for name in found if name.startswith("transformer_blocks.")}
        assert not {name for name in found if "embed" in name or "bias" in name}
        assert {names[p] for p in others["params"]} >= {"proj_out.weight", "pos_embed.proj.weight"}


@pytest.fixture(scope="module")
def tokenizer(drawings, tmp_path_factory):
    return words.save_tokenizer(words.texts(drawings), tmp_path_factory.mktemp("tokenizer"))


class TestTokenizer:
    def test_words_of_captions_are_tokens(self, tokenizer):
        names = load_names()
        for name in [*names["train"], *names["held_out"], *COLORS]:
            tokens = tokenizer.convert_ids_to_tokens(tokenizer(name).input_ids)
            assert tokens[0] == "<|startoftext|>"
            assert tokens[-1] == "<|endoftext|>"
            assert [t.removesuffix("</w>") for t in tokens[1:-1]] == re.findall(
                r"[a-z]+|\d|-", name
            )

    def test_every_text_has_tokens(self, tokenizer):
        for text in ("xylophone", "zürich 42!", "日本"):
            ids = tokenizer(text).input_ids
            assert tokenizer.eos_token_id not in ids[:-1]
            decoded = tokenizer.decode(ids, skip_special_tokens=True)
            assert decoded.replace(" ", "") == text.replace(" ", "")

    def test_prompts_have_one_length(self, tokenizer):
        ids = words.tokens_of(tokenizer, ["", "red " * 40])
        assert ids.shape == (2, words.LENGTH)
        assert ids[0].tolist() == [tokenizer.bos_token_id] + 15 * [tokenizer.eos_token_id]
        assert ids[1, -1] == tokenizer.eos_token_id


@pytest.fixture(scope="module")
def pipe(tokenizer):
    autoencoder = vae.new(smoke=True)
    autoencoder.register_to_config(scaling_factor=1.0, shift_factor=0.0)
    return flow.new(autoencoder.eval(), tokenizer, smoke=True)


def parts_of(pipe):
    return [pipe.transformer, pipe.text_encoder, pipe.text_encoder_2]


class Spy(torch.nn.Module):
    """A transformer that returns its input and remembers what it was asked."""

    def __init__(self):
        super().__init__()
        self.attn_processors = {}

    def forward(self, **inputs):
        self.seen = inputs
        return (inputs["hidden_states"],)


class TestFlow:
    def inputs(self, pipe, zeros, generator):
        normal = lambda *shape: torch.randn(*shape, generator=generator)
        text = torch.cat((normal(3, 5, 64), torch.zeros(3, zeros, 64)), dim=1)
        shared = {
            "pooled_projections": normal(3, 64),
            "timestep": torch.tensor([1.0, 500.0, 900.0]),
        }
        return {"hidden_states": normal(3, 8, 8, 8), **shared}, text

    @pytest.mark.parametrize("zeros", [1, 7, 256])
    def test_one_token_counts_as_many(self, pipe, zeros, generator):
        from diffusers.models.attention_processor import JointAttnProcessor2_0

        inputs, text = self.inputs(pipe, zeros, generator)
        transformer = pipe.transformer
        with torch.no_grad():
            transformer.set_attn_processor(JointAttnProcessor2_0())
            expected = transformer(**inputs, encoder_hidden_states=text).sample
            count = None if zeros == 1 else torch.tensor(3 * [math.log(zeros)])
            transformer.set_attn_processor(CountedAttention(count))
            found = transformer(**inputs, encoder_hidden_states=text[:, :6]).sample
        assert torch.allclose(found, expected, atol=2e-5)

    def test_the_loss_is_of_noise_minus_data_on_straight_lines(self, pipe, tokenizer, generator):
        spy = Spy()
        latents = torch.randn(400, 8, 8, 8, generator=generator)
        tokens = words.tokens_of(tokenizer, ["red apple"]).expand(400, -1)
        with torch.no_grad():
            draws = torch.Generator().manual_seed(7)
            loss = flow.loss_of([spy, *parts_of(pipe)[1:]], latents, tokens, draws)
        t = spy.seen["timestep"][:, None, None, None] / 1000
        noise = (spy.seen["hidden_states"] - (1 - t) * latents) / t
        error = spy.seen["hidden_states"] - (noise - latents)
        assert float(loss) == pytest.approx(float(error.square().mean()), rel=1e-3)
        flat = noise.flatten().double()
        assert_within(flat.mean(), 0, 1 / math.sqrt(flat.numel()))
        assert_within(flat.square().mean(), 1, math.sqrt(2 / flat.numel()))
        odds = t.flatten().double().logit()
        assert_within(odds.mean(), 0, 1 / 20)
        assert_within(odds.square().mean(), 1, math.sqrt(2) / 20)

    def test_prompts_are_encoded_as_the_pipeline_does(self, pipe, tokenizer, generator):
        spy = Spy()
        prompts = ["red apple", "a key on a blue background"]
        with torch.no_grad():
            text, _, pooled, _ = pipe.encode_prompt(
                prompts, None, None, do_classifier_free_guidance=False, max_sequence_length=1
            )
            latents = torch.zeros(2, 8, 8, 8)
            tokens = words.tokens_of(tokenizer, prompts)
            flow.loss_of([spy, *parts_of(pipe)[1:]], latents, tokens, generator)
        assert_rounds_to(spy.seen["encoder_hidden_states"], text, terms=1024)
        assert_rounds_to(spy.seen["pooled_projections"], pooled, terms=1024)

    def test_counts_reach_the_attention(self, pipe, tokenizer, generator):
        processor = CountedAttention()
        pipe.transformer.set_attn_processor(processor)
        tokens = words.tokens_of(tokenizer, ["red apple"]).expand(500, -1)
        with torch.no_grad():
            flow.loss_of(parts_of(pipe), torch.zeros(500, 8, 8, 8), tokens, generator)
        share = processor.log_count / math.log(256)
        assert_within(share.mean(), 0.5, math.sqrt(1 / 12 / 500))
        assert 0 <= float(share.min()) < 0.02
        assert 0.98 < float(share.max()) < 1

    def test_one_caption_in_ten_is_left_out(self, generator):
        tokens, empty = torch.ones(4000, 3), torch.zeros(1, 3)
        found = flow.leave_out(tokens, empty, generator)
        assert bool((found == found[:, :1]).all())
        assert_within(1 - found[:, 0].mean(), 0.1, math.sqrt(0.1 * 0.9 / 4000))

    def test_latents_are_used_again_until_they_are_replaced(self, pipe, drawings):
        pool = flow.Latents(
            drawings, pipe.vae, pipe.tokenizer, 10, torch.Generator().manual_seed(0)
        )
        before = pool.latents.clone()
        pool.renew(3)
        pool.renew(4)
        same = (pool.latents == before).flatten(1).all(1)
        assert same.tolist() == [False] * 7 + [True] * 3
        pool.renew(4)
        assert pool.oldest == 1
        latents, tokens = pool.batch(500, torch.Generator().manual_seed(0))
        assert (latents.shape, tokens.shape) == ((500, 8, 8, 8), (500, words.LENGTH))
        assert len(latents.flatten(1).unique(dim=0)) == 10

    def test_sixty_prompts_of_learned_names(self):
        prompts = flow.check_prompts()
        assert len(set(prompts)) == len(prompts) >= 59
        assert {re.split(" on an? ", p)[0] for p in prompts} <= set(load_names()["train"])
        assert not any(" a orange" in p for p in prompts)


@pytest.fixture(scope="module")
def trained(built, tmp_path_factory):
    """Smoke runs of everything, one after the other."""

    out = tmp_path_factory.mktemp("trained")
    vae.train(built, out / "vae", steps=2, batch=4, smoke=True)
    settings = {"batch": 4, "kept": 8, "every": 2, "smoke": True}
    flow.train(built, out / "vae", out / "flow", steps=2, **settings)
    return out


class TestTraining:
    def test_the_autoencoder_is_read_by_its_class(self, trained, drawings):
        import diffusers

        autoencoder = diffusers.AutoencoderKL.from_pretrained(trained / "vae")
        state = torch.load(trained / "vae.state", weights_only=True)
        for name, value in autoencoder.state_dict().items():
            assert torch.equal(value.half(), state["modules"]["vae"][name].half())
        figures = json.loads((trained / "vae" / "figures.json").read_text())
        assert (figures["steps"], figures["pictures_seen"]) == (2, 8)

    def test_latents_are_standardized(self, tmp_path, drawings, generator):
        import diffusers

        autoencoder = vae.new(smoke=True).eval()
        pictures, _ = scenes.draw(drawings, 64, generator)
        vae.export(autoencoder, pictures, tmp_path)
        read = diffusers.AutoencoderKL.from_pretrained(tmp_path).float()
        latents = vae.encode(read, pictures)
        assert float(latents.mean()) == pytest.approx(0, abs=0.01)
        assert float(latents.std()) == pytest.approx(1, abs=0.01)

    def test_the_quality_is_that_of_the_pictures(self):
        class Off(torch.nn.Module):
            def encode(self, x):
                law = type("Law", (), {"mode": lambda self: x})()
                return type("Output", (), {"latent_dist": law})()

            def decode(self, z):
                return type("Output", (), {"sample": z + 0.2})()

        pictures = torch.full((3, 3, 64, 64), 0.5)
        assert vae.psnr(Off(), pictures) == pytest.approx(20.0, abs=1e-4)

    def test_the_pipeline_is_read_by_its_class_and_draws(self, trained):
        import diffusers

        with seeded(0):
            autoencoder = diffusers.AutoencoderKL.from_pretrained(trained / "vae")
        pipe = flow.read(trained / "flow", autoencoder)
        state = torch.load(trained / "flow.state", weights_only=True)["modules"]
        for name in ("transformer", "text_encoder", "text_encoder_2"):
            for key, value in getattr(pipe, name).state_dict().items():
                average = state[f"average_{name}"].get(key)
                assert average is None or torch.equal(value, average.half().float())
        assert not torch.equal(
            state["transformer"]["proj_out.weight"],
            state["average_transformer"]["proj_out.weight"],
        )
        assert (trained / "sheets" / "flow-00000008.png").stat().st_size > 1000
        pipe.set_progress_bar_config(disable=True)
        draws = torch.Generator().manual_seed(0)
        images = pipe(
            "red apple", height=64, width=64, num_inference_steps=2, generator=draws
        ).images
        assert images[0].size == (64, 64)

    def test_averages_follow_the_weights(self, trained, built):
        settings = {"batch": 4, "kept": 8, "every": 2, "smoke": True}
        flow.train(built, trained / "vae", trained / "first", steps=1, **settings)
        state = torch.load(trained / "first.state", weights_only=True)["modules"]
        with seeded(0):
            autoencoder = vae.new(smoke=True)
        tokenizer = flow.read(trained / "first", autoencoder).tokenizer
        first = flow.new(autoencoder, tokenizer, smoke=True).transformer.state_dict()
        for name in ("proj_out.weight", "context_embedder.weight"):
            now = state["transformer"][name]
            expected = torch.lerp(first[name], now, 9 / 11)
            assert torch.allclose(state["average_transformer"][name], expected, atol=1e-7)
            assert not torch.allclose(first[name], now)

    def test_a_run_goes_on_and_starts_from_what_was_written(self, trained, built, capsys):
        settings = {"batch": 4, "kept": 8, "every": 3, "smoke": True}
        folders = (built, trained / "vae")
        flow.train(*folders, trained / "flow", steps=3, **settings)
        assert "going on at step 2" in capsys.readouterr().out
        (trained / "flow" / "figures.json").unlink()
        flow.train(*folders, trained / "flow", steps=1, **settings)
        first = json.loads((trained / "flow" / "figures.json").read_text())
        assert (first["steps"], first["pictures_seen"]) == (3, 12)
        capsys.readouterr()
        flow.train(*folders, trained / "second", steps=1, start=trained / "flow", **settings)
        assert "going on" not in capsys.readouterr().out
        second = json.loads((trained / "second" / "figures.json").read_text())
        assert (second["steps"], second["pictures_seen"]) == (1, 16)
        state = torch.load(trained / "second.state", weights_only=True)["modules"]
        with seeded(0):
            autoencoder = vae.new(smoke=True)
        start = flow.read(trained / "flow", autoencoder).transformer.state_dict()
        for name, value in start.items():
            moved = (state["transformer"][name] - value).abs().max()
            assert 0 <= float(moved) < 1e-3, name


class TestWhatIsShipped:
    WEIGHTS = Path(flow.__file__).parent / "weights"

    def test_it_says_nothing_of_where_it_was_made(self):
        texts = [*self.WEIGHTS.rglob("*.json"), *self.WEIGHTS.rglob("*.md")]
        assert len(texts) > 8
        for path in texts:
            assert not re.search(r'"/\w', path.read_text(encoding="utf-8")), path

    def test_the_flow_draws_what_it_is_asked_for_through_the_adapter_too(self):
        import diffusers

        import backbones
        from rwguidance import sample as run

        with seeded(0):
            autoencoder = diffusers.AutoencoderKL.from_pretrained(self.WEIGHTS / "emoji-vae")
        pipe = flow.read(self.WEIGHTS / "emoji-flow", autoencoder)
        pipe.set_progress_bar_config(disable=True)
        prompts = [f"red apple on a {color} background" for color in ("black", "white")]
        size = {"height": 64, "width": 64, "max_sequence_length": 1}
        backbone = backbones.from_pipeline(pipe, **size)
        generator = lambda: torch.Generator().manual_seed(0)
        plain = pipe(
            prompts, num_inference_steps=4, guidance_scale=0.0, generator=generator(),
            output_type="pt", **size,
        ).images  # fmt: skip
        with torch.no_grad():
            noise = backbone.draw_noise(2, generator())
            x_0 = run(
                backbone, backbone.sampler, noise, backbone.times(4), backbone.condition(prompts)
            )
            images = backbone.decode(x_0)
        torch.testing.assert_close(images, plain, rtol=0, atol=1e-4)
        dark, light = images[:, :, :6, :].mean((1, 2, 3)).tolist()
        assert dark < 0.3 < 0.7 < light
        red, green, _ = images[:, :, 24:44, 20:44].mean((0, 2, 3)).tolist()
        assert red > 1.5 * green
