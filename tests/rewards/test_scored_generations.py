"""Folders that `rwguidance generate` wrote, scored: prompts, kinds, and what is left out."""

import shutil

import PIL.Image
import pyarrow.parquet
import pytest

from pixel_law import QUIET
from pixel_law import run as generate
from rewards.prompt_files import default_prompts, find_images, plan
from rwguidance.generation import BestOfN
from rwguidance.generation.made import Made, read_made
from scored_folders import paint, read, score_

pytestmark = [pytest.mark.usefixtures("registered"), *QUIET]
PROMPTS = ["a cat", "two dogs, asleep"]


@pytest.fixture
def generated(tmp_path):
    """A folder with two pairs of pictures of each prompt, a table and a sheet."""

    made = generate(tmp_path / "out", BestOfN(4), PROMPTS, images=2)
    assert (tmp_path / "out" / "sheet.png").exists()
    return made


def test_every_picture_is_scored_for_its_prompt_and_no_sheet(generated, tmp_path, run):
    out = tmp_path / "out"
    code, printed, err = run(out, "--reward", "redness,brightness", "--out", "scores.csv")
    assert (code, err.strip()) == (0, "")
    rows = {out / row["image"]: row for row in read()}
    assert len(rows) == 8
    for pair in generated.rows:
        for file, kind in zip(pair.files, ("base", "aligned"), strict=True):
            row = rows[file]
            assert (row["prompt"], row["kind"], row["error"]) == (pair.prompt, kind, "")
            with PIL.Image.open(file) as image:
                red = image.convert("RGB").getpixel((0, 0))[0] / 255
            assert float(row["redness"]) == pytest.approx(red * len(pair.prompt), rel=1e-6)
    lines = [line.split() for line in printed.splitlines()]
    assert lines[0][:4] == ["reward", "kind", "rows", "images"]
    assert [line[:4] for line in lines[1:5]] == [
        [name, kind, "4", "4"] for name in ("redness", "brightness") for kind in ("base", "aligned")
    ]
    # Aligned to brightness.
    means = [float(line[4]) for line in lines[3:5]]
    base = [float(row["brightness"]) for row in rows.values() if row["kind"] == "base"]
    assert means[0] == pytest.approx(sum(base) / 4, rel=1e-3)
    assert means[0] < means[1]
    code, printed, _ = run(out, "--reward", "redness,brightness", "--out", "scores.csv")
    assert (code, "Nothing was left to score" in printed) == (0, True)
    code, *_ = run(out, "--reward", "redness", "--out", "scores.parquet", "--batch-size", "3")
    table = pyarrow.parquet.read_table("scores.parquet")
    assert table.column_names == ["image", "prompt", "kind", "redness", "error"]
    assert table["redness"].to_pylist() == [float(row["redness"]) for row in read()]


def test_pictures_that_lost_their_metadata_are_found_in_the_table(generated, tmp_path):
    base, aligned = generated.rows[3].files  # of the second prompt
    for file in (base, aligned):
        with PIL.Image.open(file) as image:
            plain = image.copy()
        plain.save(file)  # without texts
    expected = {str(file.relative_to(tmp_path / "out")): file for file in (base, aligned)}
    assert read_made(tmp_path / "out", expected) == {
        name: Made(PROMPTS[1], kind)
        for name, kind in zip(expected, ("base", "aligned"), strict=True)
    }
    (tmp_path / "out" / "results.csv").unlink()
    job = plan(tmp_path / "out", "generated")
    problems = {item.image: item.problem for item in job.items if item.problem}
    assert set(problems) == set(expected)
    assert "neither its metadata nor results.csv" in next(iter(problems.values()))
    scores = score_(job, "redness")
    assert [failure.image for failure in scores.failures] == sorted(expected)
    assert {row["kind"] for row in read() if row["error"]} == {""}


def test_what_an_earlier_run_or_a_killed_writer_left_is_left_out(generated, tmp_path):
    out = tmp_path / "out"
    generate(out, BestOfN(4), ["a cat"], images=2, seed=1, restart=True)
    job = plan(out, "generated")
    assert {item.prompts for item in job.items} == {("a cat",)}
    assert job.notes == ("4 of 8 images are of an earlier run: left out",)
    partial = out / "x" / "0000-base.png.0123abcd-0123abcd.partial"
    partial.mkdir(parents=True)
    shutil.copy(generated.rows[0].files[0], partial / "0000-base.png")
    shutil.copy(out / "sheet.png", out / "sheet-2.png")
    assert plan(out, "generated") == job
    assert len(find_images(out)) == 8


def test_a_folder_of_ones_own_keeps_its_sheets(folder):
    paint(folder / "sheet.png")
    (folder / "settings.json").write_text('{"seed": 1}')
    assert "sheet.png" in find_images(folder)
    assert default_prompts(folder, needed=True) == "sidecar"
    assert default_prompts(folder, needed=False) is None
    with pytest.raises(ValueError, match=r"none of the 6 images .* says in its metadata how"):
        plan(folder, "generated")


def test_another_source_of_prompts_can_be_named(generated, tmp_path, run):
    out = tmp_path / "out"
    (tmp_path / "p.txt").write_text("one\ntwo\n")
    assert run(out, "--reward", "redness", "--prompts", "p.txt")[0] == 0
    assert len(read()) == 16
    assert "kind" not in read()[0]
