"""Preference data and own draws, prepared: nothing lost, nothing silent, the same after a kill."""

import csv
import hashlib
import io
import json
import os
import re
import struct
import tarfile
import zlib
from types import SimpleNamespace

import pyarrow
import pytest
import torch
from PIL import Image
from pyarrow import parquet
from typer.testing import CliRunner

from children import in_child
from path_model import PathModel
from preference_files import (
    CAPTIONS,
    Light,
    Model,
    encoded,
    folder,
    job,
    pick_a_pic,
    web_dataset,
)
from processes_of_a_run import launch
from rwguidance.app.cli import app
from rwguidance.preparation import (
    Prepared,
    Source,
    find_sources,
    layout_of,
    own_layout,
    prepare_draws,
    prepare_pairs,
    split_of,
)
from rwguidance.preparation.encoding import Encoder
from rwguidance.preparation.layouts import Dirty
from rwguidance.preparation.pictures import read_picture
from rwguidance.preparation.row_log import Row

SIZE = (16, 16)


def skipped(out):
    with (out / "skipped.csv").open(newline="") as file:
        return [(row["file"], row["row"], row["reason"]) for row in csv.DictReader(file)]


def all_pairs(data):
    return [pair for split in ("train", "validation") for pair in data.pairs(split)]


def content(out):
    files = sorted(path for path in out.rglob("*") if path.is_file() and path.name != ".lock")
    return {p.relative_to(out): hashlib.sha256(p.read_bytes()).hexdigest() for p in files}


class TestLayouts:
    def test_pairs_say_who_is_preferred(self, tmp_path):
        rows, problems = pick_a_pic(tmp_path / "a.parquet")
        data = prepare_pairs(job(tmp_path / "out"), [tmp_path / "a.parquet"], SIZE)
        good = [row for i, row in enumerate(rows) if i not in problems]
        found = {round(float(pair.x_0[0].mean()) * 255): pair for pair in all_pairs(data)}
        assert len(found) == len(good)
        for row in good:
            first = rows.index(row) * 10
            pair = found[first]
            assert pair.prompt == row["caption"]
            assert pair.preference == row["label_0"]
            levels = torch.tensor([first, first + 5]) / 255
            assert torch.allclose(pair.x_0.mean((1, 2, 3)), levels, atol=1e-6)
            assert torch.allclose(pair.rewards["light"].float(), levels, atol=1e-6)

    def test_rows_that_cannot_be_used_are_named(self, tmp_path):
        _, problems = pick_a_pic(tmp_path / "a.parquet")
        problems_of_archive = web_dataset(tmp_path / "a.tar")
        problems_of_folder = folder(tmp_path / "folder")
        (tmp_path / "broken.parquet").write_bytes(b"PAR1 no")
        (tmp_path / "else.jsonl").write_text('{"a": 1}\n')
        data = prepare_pairs(job(tmp_path / "out"), [tmp_path], SIZE)
        found = skipped(tmp_path / "out")
        for name, expected in (
            ("a.parquet", problems),
            ("a.tar", problems_of_archive),
            ("folder/hpd.json", problems_of_folder),
            ("folder/reward.csv", {5: "no rank"}),
            ("broken.parquet", {"": "cannot be read"}),
            ("else.jsonl", {"": "must have the columns of one of these layouts"}),
        ):
            said = {row: text for file, row, text in found if file == str(tmp_path / name)}
            assert sorted(said) == sorted(map(str, expected))
            for row, text in expected.items():
                assert text in said[str(row)]
        assert sum(data.left_out.values()) == len(found)

    def test_rankings_are_all_their_pairs(self, tmp_path):
        folder(tmp_path / "in")
        data = prepare_pairs(job(tmp_path / "out"), [tmp_path / "in" / "reward.csv"], SIZE)
        level = lambda x: round(float(x.mean()) * 255 / 60)
        found = {
            (level(pair.x_0[0]), level(pair.x_0[1])): pair.preference for pair in all_pairs(data)
        }
        ranks = (1, 2, 2, 3)
        expected = {
            (i, j): 0.5 if ranks[i] == ranks[j] else 1.0 for i in range(4) for j in range(i + 1, 4)
        }
        assert found == expected

    def test_lists_of_several_pictures(self, tmp_path):
        folder(tmp_path)
        read = layout_of(["prompt", "image_path", "rank"]).read
        row = read({"prompt": "p", "image_path": ["a", "b", "c"], "rank": [2, 0, 1]})
        assert (row.pictures, row.ranks) == (("a", "b", "c"), (2.0, 0.0, 1.0))
        read = layout_of(["prompt", "image_path", "human_preference"]).read
        row = read({"prompt": "p", "image_path": ["a", "b"], "human_preference": [0, 1]})
        assert (row.pictures, row.ranks) == (("a", "b"), (0.0, -1.0))  # the second is the best
        row = layout_of(["prompt", "path1", "path2"]).read(
            {"prompt": "p", "path1": "a", "path2": "b"}
        )
        assert row.ranks[0] < row.ranks[1]

    @pytest.mark.parametrize(("label", "expected"), [(1, 1.0), (0, 0.0), (0.5, 0.5)])
    def test_columns_of_ones_own(self, tmp_path, label, expected):
        (tmp_path / "a.png").write_bytes(encoded(50))
        (tmp_path / "b.png").write_bytes(encoded(150))
        row = {"left": "a.png", "right": "b.png", "text": "a cat", "choice": label}
        (tmp_path / "a.jsonl").write_text(json.dumps(row) + "\n")
        names = {"first": "left", "second": "right", "caption": "text", "preference": "choice"}
        data = prepare_pairs(job(tmp_path / "out"), [tmp_path / "a.jsonl"], SIZE, names)
        (pair,) = all_pairs(data)
        assert pair.preference == expected
        assert pair.x_0[0].mean() < pair.x_0[1].mean()


class TestSources:
    def test_reading_begins_anywhere(self, tmp_path):
        pick_a_pic(tmp_path / "a.parquet")
        web_dataset(tmp_path / "a.tar")
        folder(tmp_path / "folder")
        table = parquet.read_table(tmp_path / "a.parquet")
        with pyarrow.ipc.new_stream(tmp_path / "a.arrow", table.schema) as file:
            file.write_table(table, max_chunksize=7)
        assert list(Source(tmp_path / "a.arrow").rows()) == table.to_pylist()
        lines = "".join(f'{{"a": {i}}}\n' for i in range(5))
        (tmp_path / "a.jsonl").write_text(lines)
        for source in find_sources([tmp_path]):
            rows = list(source.rows())
            assert source.count() == len(rows) > 4
            for start in range(len(rows) + 2):
                assert list(source.rows(start)) == rows[start:]

    def test_of_many_rows_none_is_lost_and_none_comes_twice(self, tmp_path):
        table = pyarrow.table({"number": list(range(150))})  # which are read 64 at a time
        parquet.write_table(table, tmp_path / "a.parquet", row_group_size=140)
        with pyarrow.ipc.new_stream(tmp_path / "a.arrow", table.schema) as file:
            file.write_table(table, max_chunksize=140)
        for source in find_sources([tmp_path]):
            for start in (0, 1, 63, 64, 65, 139, 140, 141, 150):
                found = [row["number"] for row in source.rows(start)]
                assert found == list(range(start, 150))

    def test_the_key_is_of_the_content(self, tmp_path):
        a, b = Source(tmp_path / "a.csv"), Source(tmp_path / "b.csv")
        a.path.write_text("x\n1\n")
        b.path.write_text("x\n1\n")
        assert a.key == b.key == "30a78d532276fbc3e0d7277c"  # as it always was
        b.path.write_text("x\n2\n")
        assert a.key != b.key

    def test_the_key_is_of_the_first_and_the_last_mebibyte(self, tmp_path):
        content = bytearray(3 * 2**20)
        source = Source(tmp_path / "a.csv")

        def key(place=0, byte=0):
            changed = content.copy()
            changed[place] = byte
            source.path.write_bytes(changed)
            return source.key

        ends = [0, 2**20 - 1, 2**20, 2**21 - 1, 2**21, 3 * 2**20 - 1]
        assert [key(place, 1) != key() for place in ends] == [True, True, False, False, True, True]

    def test_other_pictures_than_these_are_not_decoded(self, tmp_path):
        for kind in ("TIFF", "GIF", "BMP"):
            file = io.BytesIO()
            Image.new("RGB", (4, 4)).save(file, kind)
            (tmp_path / "a.png").write_bytes(file.getvalue())
            (tmp_path / "b.png").write_bytes(encoded(1))
            row = {"prompt": "p", "path1": "b.png", "path2": "a.png"}
            (tmp_path / "a.jsonl").write_text(json.dumps(row) + "\n")
            with pytest.raises(ValueError, match="a row or prompt that can be used"):
                prepare_pairs(job(tmp_path / kind), [tmp_path / "a.jsonl"], SIZE)
            assert "none of JPEG, PNG, WEBP" in skipped(tmp_path / kind)[0][2]

    def test_a_picture_covers_its_size_and_is_cut_around_its_middle(self, tmp_path):
        image = Image.new("RGB", (12, 4), (255, 0, 0))  # red, green, blue, from the left
        image.paste((0, 255, 0), (4, 0, 8, 4))
        image.paste((0, 0, 255), (8, 0, 12, 4))
        image.save(tmp_path / "a.png")
        read = lambda *size: read_picture("a.png", tmp_path / "a.jsonl", size)
        assert read(4, 12).dtype == torch.float32
        assert read(4, 12).argmax(0).tolist() == [[0] * 4 + [1] * 4 + [2] * 4] * 4
        assert read(4, 12).amax(0).eq(1).all()
        assert read(4, 4).argmax(0).tolist() == [[1] * 4] * 4
        assert read(2, 6).argmax(0).tolist() == [[0, 0, 1, 1, 2, 2]] * 2
        assert read(6, 2).argmax(0).tolist() == [[1] * 2] * 6
        assert read(4, 8).argmax(0).tolist() == [[0] * 2 + [1] * 4 + [2] * 2] * 4

    def test_a_picture_is_its_bytes_or_else_at_its_path(self, tmp_path):
        (tmp_path / "a.png").write_bytes(encoded(50))
        read = lambda picture: read_picture(picture, tmp_path / "a.parquet", SIZE)
        level = lambda picture: round(float(read(picture).mean()) * 255)
        own = encoded(150)
        assert level({"bytes": own, "path": "a.png"}) == level({"bytes": own}) == level(own) == 150
        assert level({"bytes": None, "path": "a.png"}) == level({"path": "a.png"}) == 50
        assert level("a.png") == 50
        for nothing in ({}, {"bytes": None, "path": None}):
            with pytest.raises(Dirty, match="a picture must be bytes or a path, got NoneType"):
                read(nothing)

    @pytest.mark.parametrize(
        ("width", "message"),
        [(2**13, "a picture cannot be decoded"), (2**13 + 1, "has more than 67,108,864 pixels")],
    )
    def test_pixels_are_counted_before_any_is_decoded(self, tmp_path, width, message):
        def chunk(kind, content):
            data = kind + content
            return struct.pack(">I", len(content)) + data + struct.pack(">I", zlib.crc32(data))

        header = struct.pack(">IIBBBBB", width, 2**13, 1, 0, 0, 0, 0)  # of two colors
        claims = b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", b"")
        with pytest.raises(Dirty, match=message):
            read_picture(claims, tmp_path / "a.parquet", SIZE)

    def test_links_out_of_the_folder_are_refused(self, tmp_path):
        (tmp_path / "in").mkdir()
        (tmp_path / "secret.png").write_bytes(encoded(1))
        (tmp_path / "in" / "a.png").symlink_to(tmp_path / "secret.png")
        row = {"prompt": "p", "path1": "a.png", "path2": "a.png"}
        (tmp_path / "in" / "a.jsonl").write_text(json.dumps(row) + "\n")
        with pytest.raises(ValueError, match="a row or prompt that can be used"):
            prepare_pairs(job(tmp_path / "out"), [tmp_path / "in"], SIZE)
        assert "must lie in the folder" in skipped(tmp_path / "out")[0][2]

    @pytest.mark.parametrize(
        ("given", "error", "message"),
        [
            ([], ValueError, "found none"),
            (["nowhere"], FileNotFoundError, "no file or folder nowhere"),
            ([__file__], ValueError, "data must end in .parquet"),
            ([3], TypeError, "data must be a path"),
        ],
    )
    def test_wrong_paths(self, given, error, message):
        with pytest.raises(error, match=message):
            find_sources(given)


class TestGoingOn:
    def work(self, root, **settings):
        prepare_pairs(job(root / "out", **settings), [root / "a.parquet", root / "a.tar"], SIZE)

    def test_after_a_kill_anywhere_the_data_is_the_same(self, tmp_path):
        whole = tmp_path / "whole"
        whole.mkdir()
        pick_a_pic(whole / "a.parquet")
        web_dataset(whole / "a.tar")
        self.work(whole)
        expected = all_pairs(Prepared(whole / "out"))
        for k in range(1, 26, 4):
            root = tmp_path / str(k)
            root.mkdir()
            for name in ("a.parquet", "a.tar"):
                (root / name).write_bytes((whole / name).read_bytes())
            assert in_child(lambda root=root, k=k: self.killed(root, k)) == 9
            self.work(root)
            found = all_pairs(Prepared(root / "out"))
            assert len(found) == len(expected)
            for a, b in zip(found, expected, strict=True):
                assert a[1:3] == b[1:3]
                assert torch.equal(a.x_0, b.x_0)
                assert torch.equal(a.rewards["light"], b.rewards["light"])
            assert [row[1:] for row in skipped(root / "out")] == [
                row[1:] for row in skipped(whole / "out")
            ]

    def killed(self, root, k):
        """Works until the k-th file would be put in its place, or has been."""

        replace, seen = os.replace, []

        def count(*paths):
            seen.append(paths)
            if len(seen) == k:
                if k % 2:
                    replace(*paths)
                os._exit(9)
            replace(*paths)

        os.replace = count
        self.work(root)

    def test_a_torn_line_is_written_anew(self, tmp_path):
        pick_a_pic(tmp_path / "a.parquet")
        web_dataset(tmp_path / "a.tar")
        self.work(tmp_path)
        expected = all_pairs(Prepared(tmp_path / "out"))
        for log in (tmp_path / "out" / "rows").iterdir():
            log.write_bytes(log.read_bytes()[:-70])
        self.work(tmp_path)
        found = all_pairs(Prepared(tmp_path / "out"))
        assert [pair[1:3] for pair in found] == [pair[1:3] for pair in expected]

    @pytest.mark.parametrize(
        ("gaps", "row"), [((9, 11), 3), ((11, 5), 0), ((5,), 0), ((6,), 3), ((), 7)]
    )
    def test_it_goes_on_at_the_first_batch_of_which_something_is_missing(self, gaps, row):
        class Column:
            def __init__(self, gap):
                self.gap = gap

            def missing(self, rows):
                return [range(self.gap, rows.stop)] if self.gap < rows.stop else []

        known = [Row("a cat", (1.0, 2.0))] * 3 + [Row(problem="no picture")]
        known += [Row("a cat", (1.0, 2.0))] * 3  # pictures 6 to 11 are of the rows 4 to 6
        encoder = Encoder(None, {}, (1, 1), None, 3)
        shelf = SimpleNamespace(columns=[Column(gap) for gap in gaps])
        assert encoder._first_missing(known, shelf) == row

    def test_a_new_reward_and_a_new_file_encode_nothing_twice(self, tmp_path):
        pick_a_pic(tmp_path / "a.parquet")
        web_dataset(tmp_path / "a.tar")
        model = Model()
        files = [tmp_path / "a.parquet"]
        prepare_pairs(job(tmp_path / "out", backbone=model), files, SIZE)
        before = model.calls
        two = {"light": Light(), "dark": Dark()}
        data = prepare_pairs(job(tmp_path / "out", backbone=model, rewards=two), files, SIZE)
        assert model.calls == before
        for pair in all_pairs(data):
            assert torch.allclose(pair.rewards["dark"], -pair.rewards["light"])
        more = [*files, tmp_path / "a.tar"]
        grown = prepare_pairs(job(tmp_path / "out", backbone=model), more, SIZE)
        assert before < model.calls < 2 * before
        assert len(all_pairs(grown)) == len(all_pairs(data)) + 3

    def test_it_is_told_how_far_it_is(self, tmp_path):
        told = []
        options = {"report": lambda *one: told.append(one), "batch_size": 7}
        pick_a_pic(tmp_path / "a.parquet", n=17, dirty=False)
        prepare_pairs(job(tmp_path / "out", **options), [tmp_path / "a.parquet"], SIZE)
        assert [one for one in told if one[0] != "prompts"] == [
            ("a.parquet", done, 17) for done in (0, 7, 14, 17)
        ]
        told.clear()
        prepare_draws(job(tmp_path / "draws", **options), list(CAPTIONS), draws=2)
        assert [one for one in told if one[0] == "prompts"] == [
            ("prompts", done, 4) for done in (1, 2, 3, 4, 4)
        ]

    def test_another_setting_is_refused_by_name(self, tmp_path):
        pick_a_pic(tmp_path / "a.parquet")
        out, files = tmp_path / "out", [tmp_path / "a.parquet"]
        prepare_pairs(job(out), files, SIZE)
        for settings, size, name in (
            ({"validation": 0.5}, SIZE, "validation"),
            ({"seed": 1}, SIZE, "seed"),
            ({"backbone": Model((1, 2, 2))}, SIZE, "model"),
            ({}, (8, 8), "size"),
        ):
            with pytest.raises(ValueError, match=f"holds data of another {name}"):
                prepare_pairs(job(out, **settings), files, size)

    def test_a_reward_that_fails_leaves_nan(self, tmp_path):
        pick_a_pic(tmp_path / "a.parquet", dirty=False)
        rewards = {"moody": Moody()}
        data = prepare_pairs(job(tmp_path / "out", rewards=rewards), [tmp_path / "a.parquet"], SIZE)
        for pair in all_pairs(data):
            dark = pair.x_0.mean((1, 2, 3)) < 0.2
            assert torch.equal(pair.rewards["moody"].isnan(), dark)


class Dark(Light):
    depends_on = ()

    def forward(self, images, prompts):
        return -super().forward(images, prompts)


class Moody(Light):
    depends_on = ()

    def forward(self, images, prompts):
        if bool((images.mean((1, 2, 3)) < 0.2).any()):
            raise RuntimeError("too dark")
        return super().forward(images, prompts)


class TestPrompts:
    def test_a_split_is_by_wording_and_by_seed(self):
        prompts = [f"a picture of {i}" for i in range(400)]
        sides = [split_of(prompt, 0, 0.25) for prompt in prompts]
        share = sides.count("validation") / 400
        assert abs(share - 0.25) < 4 * (0.25 * 0.75 / 400) ** 0.5
        assert sides == [split_of(f"A Picture, of {i}!", 0, 0.25) for i in range(400)]
        assert sides != [split_of(prompt, 1, 0.25) for prompt in prompts]
        assert {split_of(prompt, 0, 0.0) for prompt in prompts} == {"train"}

    def test_pairs_are_of_the_prompts_of_their_split(self, tmp_path):
        pick_a_pic(tmp_path / "a.parquet", dirty=False)
        data = prepare_pairs(job(tmp_path / "out"), [tmp_path / "a.parquet"], SIZE)
        assert data.prompts == sorted(CAPTIONS)
        assert sorted(data.split("train") + data.split("validation")) == data.prompts
        for name in ("train", "validation"):
            assert {pair.prompt for pair in data.pairs(name)} == set(data.split(name))

    def test_embeddings_are_those_of_the_model(self, tmp_path):
        pick_a_pic(tmp_path / "a.parquet", dirty=False)
        data = prepare_pairs(job(tmp_path / "out"), [tmp_path / "a.parquet"], SIZE)
        wanted = ["a key", "a red cat", "a key"]
        expected = Model().condition(wanted).embeddings["code"]
        assert torch.equal(data.embeddings(wanted)["code"], expected)
        with pytest.raises(ValueError, match="got 'a mouse'"):
            data.embeddings(["a mouse"])

    def test_prompts_are_encoded_once_in_batches(self, tmp_path):
        model, prompts, told = PathModel(), [f"a {i}" for i in range(8)], []
        made = job(tmp_path, backbone=model, report=lambda *stage: told.append(stage))
        drawer = made.store.of({"it": "is"})
        assert made.embed(prompts, drawer) == ["pooled", "text"]
        batches = [tuple(prompts[start : start + 3]) for start in (0, 3, 6)]
        assert model.encoded == [("a 0",), *batches]
        assert told == [("prompts", n, 8) for n in (3, 6, 8)]
        text = model.condition(prompts).embeddings["text"]
        assert drawer.column("embeddings/text").read(range(8)).equal(text)
        model.encoded.clear()
        made.embed(prompts, drawer)
        assert model.encoded == [("a 0",)]


class TestDraws:
    def test_draws_are_scored_and_kept(self, tmp_path):
        two = {"light": Light(), "dark": Dark()}
        data = prepare_draws(job(tmp_path / "out", rewards=two), CAPTIONS, draws=7)
        bank = data.bank("a key")
        assert bank.x_0.shape == (7, 1, 4, 4)
        light = Light()(Model().decode(bank.x_0), [])
        assert torch.allclose(bank.rewards, light)
        assert torch.allclose(data.bank("a key", "dark").rewards, -light)
        again = prepare_draws(job(tmp_path / "out", rewards=two), CAPTIONS, draws=7)
        assert torch.equal(again.bank("a key").x_0, bank.x_0)
        assert not torch.equal(again.bank("a red cat").x_0, bank.x_0)

    def test_a_prompt_that_fails_leaves_the_others(self, tmp_path):
        class Picky(Light):
            depends_on = ()

            def forward(self, images, prompts):
                if "a key" in prompts:
                    raise RuntimeError("no keys")
                return super().forward(images, prompts)

        data = prepare_draws(job(tmp_path / "out", rewards={"picky": Picky()}), CAPTIONS, draws=3)
        assert data.prompts == sorted(set(CAPTIONS) - {"a key"})
        assert [row[0] for row in skipped(tmp_path / "out")] == ["a key"]


class TestWrongUse:
    def test_folders_that_are_not_prepared(self, tmp_path):
        with pytest.raises(ValueError, match="folder must hold prepared"):
            Prepared(tmp_path)
        (tmp_path / "prepared.json").write_text("[]")
        with pytest.raises(ValueError, match="damaged"):
            Prepared(tmp_path)

    def test_what_was_prepared_is_not_what_was_changed(self, tmp_path):
        prepare_draws(job(tmp_path), CAPTIONS, draws=2)
        file = tmp_path / "prepared.json"
        whole = json.loads(file.read_text())
        changes = [{key: None} for key in whole if key != "sha256"]
        for change in [*changes, {"draws": 1}, {"seed": 7}, {"more": 1}]:
            file.write_text(json.dumps({**whole, **change}))
            with pytest.raises(ValueError, match=r"damaged .*prepared\.json"):
                Prepared(tmp_path)
        for key in whole.keys() - {"sha256"}:
            file.write_text(json.dumps({k: v for k, v in whole.items() if k != key}))
            with pytest.raises(ValueError, match=r"damaged .*prepared\.json"):
                Prepared(tmp_path)
        file.write_text(json.dumps({k: v for k, v in whole.items() if k != "sha256"}))
        assert Prepared(tmp_path).counts["draws"] == 2 * len(CAPTIONS)

    def test_a_sample_that_costs_memory_or_depth_costs_itself(self, tmp_path):
        web_dataset(tmp_path / "a.tar")
        with tarfile.open(tmp_path / "a.tar", "a") as archive:
            text = b"[" * 100_000
            member = tarfile.TarInfo("deep.json")
            member.size = len(text)
            archive.addfile(member, io.BytesIO(text))
            sparse = tarfile.TarInfo("sparse.0.png")  # 40 GB of zeros, in no bytes of the file
            sparse.type = tarfile.GNUTYPE_SPARSE
            header = bytearray(sparse.tobuf(tarfile.GNU_FORMAT))
            header[386:410] = b"%011o\0%011o\0" % (0, 0)
            header[483:495] = b"\x80" + (40 * 2**30).to_bytes(11, "big")
            header[148:156] = b"        "
            header[148:156] = b"%06o\0 " % sum(header)
            archive.fileobj.seek(archive.offset)
            archive.fileobj.write(header)
            archive.offset += 512
        rows = list(Source(tmp_path / "a.tar").rows())
        assert rows[-2:] == [{}, {}]
        assert len(rows) == 6 + 2

    def test_pairs_are_no_draws_and_draws_no_pairs(self, tmp_path):
        pick_a_pic(tmp_path / "a.parquet")
        pairs = prepare_pairs(job(tmp_path / "pairs"), [tmp_path / "a.parquet"], SIZE)
        draws = prepare_draws(job(tmp_path / "draws"), CAPTIONS, draws=2)
        with pytest.raises(ValueError, match="bank must come from draws"):
            pairs.bank("a key")
        with pytest.raises(ValueError, match="pairs must come from preference data"):
            draws.pairs()
        with pytest.raises(ValueError, match="name must be train or validation, got 'test'"):
            pairs.pairs("test")

    def test_keys_are_found_and_neither_given_nor_shown(self, tmp_path):
        made = job(tmp_path)
        assert not re.search(r"\b(key|reward_keys|feature_keys)=", repr(made))
        for name in ("key", "reward_keys", "feature_keys"):
            with pytest.raises(TypeError, match=f"unexpected keyword argument '{name}'"):
                job(tmp_path, **{name: getattr(made, name)})

    def test_what_says_not_what_it_is_cannot_be_kept(self, tmp_path):
        with pytest.raises(TypeError, match=r"depends_on|fingerprint"):
            job(tmp_path, rewards={"mine": lambda images, prompts: images.mean((1, 2, 3))})

    @pytest.mark.parametrize(
        "names", [{}, {"first": "a", "second": "b", "caption": "c"}, {"else": "a"}]
    )
    def test_columns_are_named_whole(self, names):
        with pytest.raises(ValueError, match="columns must name first, second, caption, prefer"):
            own_layout(names)


@pytest.mark.slow
def test_two_processes_make_what_one_makes(tmp_path):
    pick_a_pic(tmp_path / "a.parquet")
    web_dataset(tmp_path / "a.tar")
    program = tmp_path / "work.py"
    program.write_text(
        "import sys\n"
        "from pathlib import Path\n"
        "from preference_files import job\n"
        "from rwguidance.preparation import prepare_pairs\n"
        "from rwguidance.support.processes import joined\n"
        "root = Path(sys.argv[1])\n"
        "with joined() as processes:\n"
        "    files = [root / 'a.parquet', root / 'a.tar']\n"
        "    prepare_pairs(job(root / 'two', processes=processes), files, (16, 16))\n"
    )
    launch(2, program, tmp_path)
    one = prepare_pairs(job(tmp_path / "one"), [tmp_path / "a.parquet", tmp_path / "a.tar"], SIZE)
    two = Prepared(tmp_path / "two")
    for a, b in zip(all_pairs(one), all_pairs(two), strict=True):
        assert a[1:3] == b[1:3]
        assert torch.equal(a.x_0, b.x_0)


class TestCommand:
    @pytest.fixture
    def own(self, tmp_path, monkeypatch):
        """Files of a user: a model, a reward, and data, in the folder of the command."""

        monkeypatch.chdir(tmp_path)
        (tmp_path / "mine.py").write_text(
            "from preference_files import Light, Model\n\nmodel = Model()\nlight = Light()\n"
        )
        pick_a_pic(tmp_path / "a.parquet")
        return tmp_path

    def run(self, *arguments):
        given = ["prepare", "--backbone", "mine.py:model", "--out", "out", *arguments]
        return CliRunner().invoke(app, given)

    def test_data_is_prepared_and_what_is_left_out_is_said(self, own):
        found = self.run("--data", "a.parquet", "--reward", "mine.py:light", "--size", "16")
        assert found.exit_code == 2, found.output
        assert "17 rows, 18 pictures" in found.output
        assert "left out: 2 times: no caption" in found.output
        data = Prepared(own / "out")
        assert len(all_pairs(data)) == 9
        assert set(all_pairs(data)[0].rewards) == {"mine.py:light"}

    def test_draws_are_prepared(self, own):
        (own / "p.txt").write_text("a cat\na dog\n")
        found = self.run("--prompts", "p.txt", "--draws", "3", "--reward", "mine.py:light")
        assert found.exit_code == 0, found.output
        assert "6 draws" in found.output
        assert len(Prepared(own / "out").bank("a cat")) == 3

    @pytest.mark.parametrize(
        ("arguments", "message"),
        [
            ([], "give --data, or --prompts"),
            (["--data", "a.parquet"], "give --size"),
            (["--data", "b.parquet", "--size", "16"], "no file or folder b.parquet"),
            (["--data", "a.parquet", "--columns", "first=a"], "columns must name first"),
            (["--data", "a.parquet", "--columns", "first"], "columns must be KEY=NAME"),
            (["--data", "a.parquet", "--columns", "a=b,c="], "columns must be KEY=NAME"),
        ],
    )
    def test_wrong_calls_are_one_line(self, own, arguments, message):
        found = self.run(*arguments)
        assert isinstance(found.exception, ValueError | FileNotFoundError)
        assert message in str(found.exception)
        assert not (own / "out").exists()
