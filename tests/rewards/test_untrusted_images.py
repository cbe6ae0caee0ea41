"""Images of strangers: listed decoders, bounded pixels, no waiting, and forms with one meaning."""

import os
import struct
import tracemalloc
import zlib
from pathlib import Path

import numpy as np
import PIL.Image
import pytest
import torch

import rewards
from rewards.images import group_by_size
from rewards.scoring import plan
from rewards.scoring.batches import NotRotated
from rwguidance.support.image_files import FORMATS, MAX_PIXELS, TooLarge, opened
from scored_folders import Brightness, read, score_, write

pytestmark = pytest.mark.usefixtures("registered")


def chunk(kind, data):
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))


def bomb(path, side):
    """A black PNG of side x side pixels, in a thousandth of its bytes."""

    press = zlib.compressobj(9)
    rows = [press.compress(b"\0" * (3 * side + 1)) for _ in range(side)]
    header = struct.pack(">IIBBBBB", side, side, 8, 2, 0, 0, 0)
    data = chunk(b"IDAT", b"".join([*rows, press.flush()]))
    path.parent.mkdir(exist_ok=True)
    path.write_bytes(b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + data + chunk(b"IEND", b""))


def test_no_interpreter_is_started_for_a_file_that_is_named_as_a_picture(tmp_path, monkeypatch):
    (tmp_path / "bin").mkdir()
    fake = tmp_path / "bin" / "gs"
    fake.write_text(f"#!/bin/sh\ntouch {tmp_path}/called\nexit 1\n")
    fake.chmod(0o755)
    monkeypatch.setenv("PATH", f"{fake.parent}{os.pathsep}{os.environ['PATH']}")
    (tmp_path / "images").mkdir()
    script = b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 10 10\n%%EndComments\nshowpage\n"
    (tmp_path / "images" / "a.png").write_bytes(script)
    score_(plan("images"), "brightness")
    assert read()[0]["error"] == "not an image of a known format"
    assert not (tmp_path / "called").exists()
    assert not {"EPS", "PSD", "PDF", "FPX", "WMF"} & set(FORMATS)


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="there are no pipes")
def test_a_pipe_is_not_waited_for(tmp_path):
    (tmp_path / "images").mkdir()
    os.mkfifo(tmp_path / "images" / "a.png")
    os.symlink("/dev/zero", tmp_path / "images" / "b.png")
    PIL.Image.new("RGB", (8, 8)).save(tmp_path / "images" / "c.png")
    score_(plan("images"), "brightness")
    errors = [row["error"] for row in read()]
    assert "must be a regular file, got a pipe" in errors[0]
    assert "must be a regular file, got a device" in errors[1]
    assert errors[2] == ""


def test_a_batch_of_large_pictures_is_reduced_one_by_one(tmp_path, monkeypatch):
    side = 1500
    for i in range(6):
        bomb(tmp_path / "images" / f"{i}.png", side)
    seen = []
    preprocess = Brightness.preprocess
    spy = lambda self, images: seen.append(len(images)) or preprocess(self, images)
    monkeypatch.setattr(Brightness, "preprocess", spy)
    score_(plan("images", max_pixels=2 * side**2), "brightness", out="two.csv")
    score_(plan("images"), "brightness")
    assert seen == [2, 2, 2, 6], "so many images lie beside each other"
    assert Path("two.csv").read_bytes() == Path("scores.csv").read_bytes()

    monkeypatch.setattr("rewards.images._AT_ONCE", side**2)
    seen.clear()
    score_(plan("images"), "brightness", restart=True)
    assert seen == [1] * 6, "as floating-point numbers"


def test_a_larger_picture_than_allowed_is_not_decoded(tmp_path):
    bomb(tmp_path / "images" / "0.png", 5000)
    bomb(tmp_path / "images" / "1.png", 10)
    tracemalloc.start()
    score_(plan("images", max_pixels=1_000_000), "brightness")
    assert tracemalloc.get_traced_memory()[1] < 2e7
    tracemalloc.stop()
    assert read()[0]["error"] == (
        "a picture may have 1,000,000 pixels, got 5000 x 5000; allow more with max_pixels "
        "(--max-pixels), or make it smaller"
    )
    assert read()[1]["error"] == ""


def test_a_picture_may_have_as_many_pixels_as_are_allowed(tmp_path):
    bomb(tmp_path / "images" / "a.png", 10)
    with opened(tmp_path / "images" / "a.png", max_pixels=100) as picture:
        assert picture.size == (10, 10)
    few = opened(tmp_path / "images" / "a.png", max_pixels=99)
    with pytest.raises(TooLarge, match="99 pixels"), few:
        pass
    assert 12 * MAX_PIXELS <= 2**30 < 12 * (MAX_PIXELS + 1)


def test_a_header_that_claims_a_terapixel_is_refused(tmp_path):
    header = struct.pack(">IIBBBBB", 2**20, 2**20, 8, 2, 0, 0, 0)
    (tmp_path / "a.png").write_bytes(
        b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", b"")
    )
    with pytest.raises(TooLarge), opened(tmp_path / "a.png"):
        pass


def test_a_stated_rotation_is_said_once_and_applied_where_asked(tmp_path):
    (tmp_path / "images").mkdir()
    exif = PIL.Image.Exif()
    exif[0x0112] = 6
    for i in range(3):
        PIL.Image.new("RGB", (8, 4)).save(tmp_path / "images" / f"{i}.png", exif=exif)
    with pytest.warns(NotRotated, match="--exif") as told:
        score_(plan("images"), "brightness")
    assert len(told) == 1
    sizes = []

    class Size(Brightness):
        depends_on = ()

        def preprocess(self, images):
            sizes.append(tuple(images.shape[-2:]))
            return super().preprocess(images)

    rewards.scoring.score(plan("images", exif=True), {"size": Size()}, "turned.csv")
    assert sizes == [(8, 4)]


def test_formulas_are_texts_unless_they_are_to_be_escaped(folder):
    job = plan(folder, write("p.txt", "=1+1\n@a\na=b"))
    score_(job, "redness")
    assert [row["prompt"] for row in read()][:3] == ["=1+1", "@a", "a=b"]
    score_(job, "redness", escape_formulas=True, out="safe.csv")
    assert [row["prompt"] for row in read("safe.csv")][:3] == ["'=1+1", "'@a", "a=b"]
    assert [row["redness"] for row in read("safe.csv")] == [row["redness"] for row in read()]


def test_arrays_and_paths_are_images_where_the_meaning_is_plain(tmp_path):
    levels = np.random.default_rng(0).integers(0, 256, (6, 5, 3), np.uint8)
    PIL.Image.fromarray(levels).save(tmp_path / "a.png")
    expected = torch.from_numpy(levels).permute(2, 0, 1).float() / 255
    for image in (levels, tmp_path / "a.png", [levels], [tmp_path / "a.png"], levels[None]):
        assert torch.equal(group_by_size(image).tensors[0][0], expected)
    gray = group_by_size(levels[..., 0]).tensors[0][0]
    assert torch.equal(gray, expected[:1].expand(3, 6, 5))
    with pytest.raises(TypeError, match=r"float64 of shape .* torch\.from_numpy\(array\)\.permute"):
        group_by_size([levels / 255])


def test_values_that_leave_the_range_by_rounding_are_moved_to_its_ends():
    images = torch.full((1, 3, 2, 2), 0.5)
    images[0, 0, 0] = torch.tensor([1.00004, -0.00003])
    tensor = group_by_size(images).tensors[0]
    assert (float(tensor.min()), float(tensor.max())) == (0.0, 1.0)
    assert torch.equal(tensor[0, 1:], images[0, 1:])
    with pytest.raises(ValueError, match="must lie in"):
        group_by_size(images + 0.001)


def test_lists_in_parts_come_back_in_their_order(monkeypatch):
    monkeypatch.setattr("rewards.images._AT_ONCE", 40)
    sizes = [(4, 4), (3, 5), (4, 4), (9, 9), (3, 5), (4, 4)]
    images = [torch.full((3, *size), i / 10) for i, size in enumerate(sizes)]
    images[2][0, 0, 0] = torch.nan
    values = Brightness()(images)
    expected = torch.tensor([0.0, 0.1, torch.nan, 0.3, 0.4, 0.5])
    torch.testing.assert_close(values, expected, equal_nan=True)
