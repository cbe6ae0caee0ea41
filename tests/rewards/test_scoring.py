"""Scoring a folder: values, what may break, and what is held in memory."""

import csv
import gc
import inspect
import itertools
import math
import sys
import time
import weakref
from pathlib import Path

import PIL.Image
import pyarrow.parquet
import pytest
import torch

import rewards.scoring.batches
from rewards.images import from_pil
from rewards.prompt_files import Item, Job, plan
from rewards.scoring import Best, check_output, journal_path, score
from rewards.scoring.summaries import Tally
from scored_folders import (
    IMAGES,
    JOBS,
    SEEN,
    Brightness,
    Moody,
    Redness,
    expected,
    paint,
    read,
    score_,
    write,
)

pytestmark = pytest.mark.usefixtures("registered")


def test_scoring_builds_no_graph(folder):
    graphs = []

    class Watched(Brightness):
        depends_on = ()

        def forward(self, images, prompts):
            graphs.append(torch.is_grad_enabled())
            return super().forward(images, prompts)

    score(plan(folder), {"brightness": Watched()}, "scores.csv")
    assert graphs == [False]


@pytest.mark.parametrize("batch_size", [1, 3, 16])
def test_every_row_holds_the_rewards_of_its_image_and_prompt(folder, batch_size):
    prompts = ["a", "abc"]
    pairs = [(image, "x" * (i + 1)) for i, image in enumerate(reversed(IMAGES))]
    pairs += [("2.PNG", "y" * 7), ("2.PNG", "z" * 9)]
    with open("pairs.csv", "w", encoding="utf-8", newline="") as file:
        csv.writer(file).writerows([("image", "prompt"), *pairs])
    write("prompts.txt", "\n".join(prompts))
    for file, rows in [
        ("prompts.txt", list(itertools.product(IMAGES, prompts))),
        ("pairs.csv", sorted(pairs, key=lambda pair: IMAGES.index(pair[0]))),
    ]:
        job = plan(folder, file)
        scores = score_(job, "redness", "brightness", batch_size=batch_size, restart=True)
        table = read()
        assert [(row["image"], row["prompt"]) for row in table] == rows
        assert list(table[0]) == ["image", "prompt", "redness", "brightness", "error"]
        for row in table:
            for name in ("redness", "brightness"):
                truth = expected(folder, name, row["image"], row["prompt"])
                assert float(row[name]) == pytest.approx(truth, abs=1e-7)
        assert (scores.rows, scores.scored, scores.failures) == (len(rows), 5, ())
        assert not journal_path("scores.csv").exists()


def test_float32_is_written_with_the_digits_that_count(folder):
    score_(plan(folder), "brightness")
    value = read()[1]["brightness"]
    assert len(value) <= 10
    with PIL.Image.open(folder / "2.PNG") as image:
        assert torch.tensor(float(value)) == from_pil(image).mean((1, 2)).mean()


def test_images_alone_have_no_prompt(folder):
    score_(plan(folder), "brightness")
    assert {row["prompt"] for row in read()} == {""}
    with pytest.raises(ValueError, match="redness needs prompts, and the job has none"):
        score_(plan(folder), "redness", restart=True)


def test_parquet_holds_what_csv_holds(folder):
    job = plan(folder, write("p.txt", "a\nzero"))
    for out in ("scores.csv", "scores.parquet"):
        score_(job, "picky", "brightness", out=out)
    table = pyarrow.parquet.read_table("scores.parquet")
    assert table.column_names == ["image", "prompt", "picky", "brightness", "error"]
    assert [str(field.type) for field in table.schema] == [
        *("string", "string", "double", "double", "string")
    ]
    as_text = lambda value: "" if value is None else str(value)
    rows = [{key: as_text(value) for key, value in row.items()} for row in table.to_pylist()]
    assert rows == read()
    assert any(row["picky"] == "" for row in rows)


def test_without_pyarrow_parquet_names_the_install_line(folder, monkeypatch):
    monkeypatch.setitem(sys.modules, "pyarrow.parquet", None)
    with pytest.raises(ImportError, match=r"needs pyarrow: pip install 'rwguidance\[rewards\]'"):
        score_(plan(folder), "brightness", out="scores.parquet")
    assert SEEN == []


def test_the_standard_error_counts_images_and_not_rows(folder):
    values = [expected(folder, "brightness", image) for image in IMAGES]
    mean = sum(values) / 5
    error = math.sqrt(sum((v - mean) ** 2 for v in values) / 4 / 5)
    for prompts in (None, write("p.txt", "a\nab\nabc")):  # the same number once or three times
        job = plan(folder, prompts)
        (summary,) = score_(job, "brightness", restart=True).summaries
        assert (summary.rows, summary.images) == (len(job), 5)
        assert summary.mean == pytest.approx(mean, rel=1e-6)
        assert summary.standard_error == pytest.approx(error, rel=1e-6)
        assert (summary.low, summary.high) == pytest.approx((min(values), max(values)))


def test_the_standard_error_of_uneven_rows_covers_the_truth(tmp_path, generator):
    n, counts = 400, torch.randint(1, 4, (400,), generator=generator).tolist()
    job = plan_of(tmp_path, counts)
    z = []
    for _ in range(200):
        tally = Tally("redness", job, Redness())
        shared = torch.randn(n, generator=generator)
        for i, count in enumerate(counts):
            for noise in torch.randn(count, generator=generator).tolist():
                tally.add(i, "a", float(shared[i]) + noise)
        summary = tally.summaries()[0]
        assert summary.mean == pytest.approx(summary.mean)
        z.append(summary.mean / summary.standard_error)
    spread = torch.tensor(z).square().mean()  # 1, with a standard error of sqrt(2 / 200)
    assert abs(float(spread) - 1) < 5 * math.sqrt(2 / 200)


def plan_of(root, counts):
    items = [Item(f"{i}.png", ("a",) * count) for i, count in enumerate(counts)]
    return Job(root, tuple(items), False, True)


def test_one_image_has_no_standard_error(tmp_path):
    paint(tmp_path / "one" / "1.png")
    (summary,) = score_(plan("one"), "brightness").summaries
    assert math.isnan(summary.standard_error)
    assert summary.mean == pytest.approx(1 / 3)


def test_the_best_image_of_each_prompt(folder):
    paint(folder / "zz.png", color=(255, 0, 0))  # as red as the first, which stays the best
    scores = score_(plan(folder, write("p.txt", "a\nab")), "redness", "brightness")
    red, redder = (b for b in scores.best if b.reward == "redness")
    assert red == Best("redness", "a", "1.png", 1.0, 6)
    assert redder == Best("redness", "ab", "1.png", 2.0, 6)
    (bright,) = (b for b in scores.best if b.reward == "brightness")
    assert (bright.prompt, bright.images) == (None, 6), "no prompt, no difference"


def test_prompts_of_a_matrix_are_embedded_once_if_the_cache_holds_them(folder):
    embedded = []

    class Counted(Moody):
        depends_on = ()

        def embed_prompts(self, prompts):
            embedded.append(list(prompts))
            return super().embed_prompts(prompts)

    job = plan(folder, write("p.txt", "a\nab"))
    score(job, {"moody": Counted(cache_size=2)}, "scores.csv", batch_size=2)
    assert embedded == [["a", "ab"]]


# --- what breaks ---


def test_broken_images_are_reported_and_stop_nothing(broken):
    job = plan(
        broken,
        write(
            "p.csv",
            "image,prompt\n"
            + "".join(
                f"{n},ab\n" for n in [*IMAGES, "3.png", "4.jpg", "5.png", "6.png", "gone.png"]
            ),
        ),
    )
    scores = score_(job, "redness", "brightness", batch_size=3)
    rows = {row["image"]: row for row in read()}
    assert len(rows) == scores.rows == 10
    errors = {image: row["error"] for image, row in rows.items() if row["error"]}
    assert errors["3.png"] == errors["5.png"] == "not an image of a known format"
    assert "truncated" in errors["4.jpg"]
    assert "8-bit modes" in errors["6.png"]
    assert errors["gone.png"] == "no such file, named in line 11"
    assert len(errors) == 5
    for image, row in rows.items():
        assert (row["redness"] == row["brightness"] == "") == (image in errors)
        if image in IMAGES:
            truth = expected(broken, "redness", image, "ab")
            assert float(row["redness"]) == pytest.approx(truth)
    assert [failure.image for failure in scores.failures] == [
        *("3.png", "4.jpg", "5.png", "6.png", "gone.png")
    ]
    assert scores.summaries[0].rows == 5


def test_values_that_are_not_finite_are_reported_with_row_and_prompt(folder, run):
    (folder / "10.png").unlink()
    write("p.txt", "ok\nriddle\nzero")
    code, out, err = run(folder, "--reward", "picky,brightness", "--prompts", "p.txt")
    assert code == 2
    assert "skipped: 2.PNG, row 5, prompt 'riddle': picky is nan" in err
    assert "skipped: 2.PNG, row 6, prompt 'zero': picky is -inf" in err
    assert "scores.csv: 12 rows, 8 skipped (see the column error)" in out
    for row in read():
        fine = row["prompt"] == "ok"
        assert (row["picky"] != "", row["error"] == "") == (fine, fine)
        assert float(row["brightness"]) > 0, "the other reward has its value"


def test_an_image_that_a_reward_refuses_fails_alone(folder):
    scores = score_(plan(folder, write("p.txt", "ok\nfine")), "picky", "brightness")
    assert {(f.image, f.reason) for f in scores.failures} == {
        ("10.png", "picky failed: no gray images, please")
    }
    assert len(scores.failures) == 2
    for row in read():
        assert (row["picky"] == "") == (row["image"] == "10.png")
        assert row["brightness"] != ""


def test_a_reward_of_the_wrong_shape_is_an_error(folder):
    class Flat(Brightness):
        depends_on = ()

        def forward(self, images, prompts):
            return images

    with pytest.raises(TypeError, match=r"flat must return one .* shape \(5,\), got \(5, 3\)"):
        score(plan(folder), {"flat": Flat()}, "scores.csv")


# --- memory ---


def test_at_most_two_batches_of_images_are_held(tmp_path, monkeypatch):
    for i in range(40):
        paint(tmp_path / "many" / f"{i}.png")
    held = []
    most = 0
    decode = rewards.scoring.batches._decode

    def counted(job, item):
        image = decode(job, item)
        held.append(weakref.ref(image))
        return image

    def look(self, images, prompts):
        nonlocal most
        time.sleep(0.01)  # lets the decoders run ahead as far as they may
        gc.collect()
        most = max(most, sum(image() is not None for image in held))
        return images.mean(1)

    monkeypatch.setattr(rewards.scoring.batches, "_decode", counted)
    monkeypatch.setattr(Brightness, "forward", look)
    score_(plan("many"), "brightness", batch_size=4)
    assert 4 < most <= 8


def test_an_image_is_decoded_once_for_all_prompts_and_rewards(folder, monkeypatch):
    opened = []
    decode = rewards.scoring.batches._decode
    spy = lambda job, item: opened.append(Path(item.image).name) or decode(job, item)
    monkeypatch.setattr(rewards.scoring.batches, "_decode", spy)
    job = plan(folder, write(*JOBS["pairs"]))
    score_(job, "brightness", "redness", "moody", batch_size=2)
    assert sorted(opened) == sorted(Path(image).name for image in IMAGES)
    assert sum(SEEN) == len(IMAGES), "what needs no prompt sees an image once"


def test_what_is_checked_before_has_the_defaults_of_the_work():
    work, check = (inspect.signature(function).parameters for function in (score, check_output))
    for name in ("batch_size", "restart"):
        assert check[name].default == work[name].default
