"""Files of data that hang, have no end, or cannot be read are refused, and end nothing else."""

import csv
import math
import os
import struct

import pyarrow
import pytest
from pyarrow import ipc

from preference_files import CAPTIONS, Model, job, pick_a_pic
from rwguidance.preparation import find_sources, prepare_pairs
from rwguidance.preparation.sources import Source

SIZE = (16, 16)


def reasons(out):
    with (out / "skipped.csv").open(newline="", encoding="utf-8") as file:
        return {os.path.basename(row["file"]): row["reason"] for row in csv.DictReader(file)}


def test_what_is_no_file_is_refused_before_it_is_waited_for(tmp_path):
    os.mkfifo(tmp_path / "pipe.jsonl")
    (tmp_path / "link.csv").symlink_to(tmp_path / "pipe.jsonl")
    (tmp_path / "zeros.json").symlink_to("/dev/zero")
    for name, found in (("pipe.jsonl", "pipe"), ("link.csv", "pipe"), ("zeros.json", "device")):
        with pytest.raises(OSError, match=rf"{name} must be a regular file, got a {found}"):
            find_sources([tmp_path / name])
        for read in (Source.columns, Source.count, lambda source: source.key):
            with pytest.raises(ValueError, match=rf"{name} must be a regular file"):
                read(Source(tmp_path / name))
    for device in ("/dev/zero", "/dev/null"):
        with pytest.raises(OSError, match="must be a regular file, got a device"):
            find_sources([device])


@pytest.mark.parametrize("ending", [".parquet", ".arrow", ".tar", ".jsonl", ".json", ".csv"])
def test_pipes_of_every_format_are_refused(tmp_path, ending):
    os.mkfifo(tmp_path / f"pipe{ending}")
    source = Source(tmp_path / f"pipe{ending}")
    for read in (Source.columns, Source.count, lambda source: next(source.rows())):
        with pytest.raises(ValueError, match="must be a regular file, got a pipe"):
            read(source)


def test_what_a_folder_has_that_cannot_be_read_is_left_out_by_name(tmp_path):
    data = tmp_path / "data"
    data.mkdir()
    pick_a_pic(tmp_path / "elsewhere.parquet", dirty=False)
    (data / "link.parquet").symlink_to(tmp_path / "elsewhere.parquet")
    (data / "lost.parquet").symlink_to(tmp_path / "nothing")
    (data / "part.parquet").mkdir()
    os.mkfifo(data / "part.parquet" / "pipe.jsonl")
    (data / os.fsdecode(b"\xff.csv")).write_text("a,b\n1,2\n")
    prepared = prepare_pairs(job(tmp_path / "out"), [data], SIZE)
    assert prepared.prompts == sorted(CAPTIONS)
    found = reasons(tmp_path / "out")
    assert set(found) == {"lost.parquet", "pipe.jsonl", "\\udcff.csv"}
    assert "must be a regular file, got a pipe" in found["pipe.jsonl"]
    assert "No such file" in found["lost.parquet"]
    assert prepared.left_out.total() == 3


def test_places_that_lead_out_of_an_arrow_file_are_refused(tmp_path):
    file = tmp_path / "a.arrow"
    table = pyarrow.table({"jpg_0": [b"x" * 1001, b"y" * 2003]})
    with ipc.new_stream(str(file), table.schema) as writer:
        writer.write_table(table)
    assert [len(row["jpg_0"]) for row in Source(file).rows()] == [1001, 2003]
    content = file.read_bytes()
    places = struct.pack("<3i", 0, 1001, 3004)
    assert content.count(places) == 1
    file.write_bytes(content.replace(places, struct.pack("<3i", 0, 2**30, 3004)))
    with pytest.raises(ValueError, match=r"a\.arrow cannot be read: .*out of bounds"):
        list(Source(file).rows())


@pytest.mark.parametrize("ending", [".jsonl", ".csv", ".json"])
def test_a_text_without_end_takes_no_memory(tmp_path, ending):
    file = tmp_path / f"long{ending}"
    file.write_bytes(b'{"prompt": "a"}\n')
    os.truncate(file, 40 * 2**30)  # zeros that take no place
    expected = "must have at most 1,073,741,824 bytes"
    if ending != ".json":
        expected = "a line must have fewer than 16,777,216 characters"
    with pytest.raises(ValueError, match=rf"long{ending}.* {expected}"):
        Source(file).count()


def test_a_list_of_what_was_left_out_is_not_waited_for(tmp_path):
    pick_a_pic(tmp_path / "a.parquet")
    prepared = prepare_pairs(job(tmp_path / "out"), [tmp_path / "a.parquet"], SIZE)
    assert prepared.left_out["no caption"] == 2
    (tmp_path / "out" / "skipped.csv").unlink()
    os.mkfifo(tmp_path / "out" / "skipped.csv")
    with pytest.raises(OSError, match=r"no file .*skipped\.csv"):
        _ = prepared.left_out


def test_what_fails_where_it_is_written_is_no_fault_of_the_data(tmp_path):
    pick_a_pic(tmp_path / "a.parquet")
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "rows").write_text("in the place of a folder, as root may write to any")
    with pytest.raises(OSError, match="rows"):
        prepare_pairs(job(tmp_path / "out"), [tmp_path / "a.parquet"], SIZE)


class OneHole(Model):
    depends_on = ("shape",)

    def encode(self, images):
        latents = super().encode(images)
        latents[0, 0, 0, 0] = math.nan
        return latents


def test_a_file_with_one_latent_that_is_not_finite_is_left_out(tmp_path):
    file = tmp_path / "a.parquet"
    pick_a_pic(file)
    with pytest.raises(ValueError, match=r"a\.parquet: latents are not finite in torch.float32"):
        prepare_pairs(job(tmp_path / "out", backbone=OneHole()), [file], SIZE)
