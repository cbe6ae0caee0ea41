"""Scoring a folder: what goes with what, what may break, and what an interruption leaves."""

import csv
import gc
import itertools
import json
import math
import os
import re
import signal
import subprocess
import sys
import time
import weakref
from pathlib import Path

import PIL.Image
import pyarrow.parquet
import pytest
import torch
from typer.testing import CliRunner

import rewards
import rewards.registry
import rewards.scoring
from rewards.images import from_pil
from rewards.prompt_files import Item, Job, find_images, plan, read_prompts
from rewards.scoring import Best, journal_path, score
from rewards.scoring.batches import in_batches
from rewards.scoring.summaries import Tally
from rewards.towers import EmbeddingReward
from rwguidance.app.cli import app, main

FACTS = {
    "differentiable": True,
    "code_license": "MIT",
    "weights_license": "none",
    "formula": "simple",
    "typical_range": (0.0, 1.0),
    "citation": "none",
}
SEEN = []
"""For each call of the reward "brightness", the number of images."""


class Brightness(rewards.Reward):
    spec = rewards.RewardSpec(name="brightness", title="Brightness", needs_prompt=False, **FACTS)

    def preprocess(self, images):
        return images.mean((2, 3))

    def forward(self, images, prompts):
        SEEN.append(len(images))
        return images.mean(1)


class Redness(rewards.Reward):
    """The mean of the red channel, once per letter of the prompt."""

    spec = rewards.RewardSpec(name="redness", title="Redness", needs_prompt=True, **FACTS)

    def forward(self, images, prompts):
        assert len(images) == len(prompts)
        letters = torch.tensor([len(prompt) for prompt in prompts], dtype=torch.float64)
        return images[:, 0].double().mean((1, 2)) * letters


class Picky(Redness):
    """Cannot say anything of a "riddle", refuses gray images, and is of infinite mind on "zero"."""

    spec = rewards.RewardSpec(name="picky", title="Picky", needs_prompt=True, **FACTS)

    def forward(self, images, prompts):
        if any(bool((image == image[:1]).all()) for image in images):
            raise ValueError("no gray images,\nplease")
        values = super().forward(images, prompts)
        values[[prompt == "riddle" for prompt in prompts]] = math.nan
        values[[prompt == "zero" for prompt in prompts]] = -math.inf
        return values


class Moody(EmbeddingReward):
    """Embeds prompts differently in company, as kernels do in the last digit."""

    spec = rewards.RewardSpec(name="moody", title="Moody", needs_prompt=True, **FACTS)

    def __init__(self, cache_size=100):
        super().__init__(torch.tensor(0.0), cache_size)

    def embed_images(self, images):
        return images.mean((2, 3))

    def embed_prompts(self, prompts):
        lengths = torch.tensor([float(len(prompt)) for prompt in prompts])
        return torch.stack([lengths, lengths.sum().expand(len(prompts)), lengths + 1], 1)

    def value(self, cosine):
        return cosine


KINDS = {kind.spec.name: kind for kind in (Brightness, Redness, Picky, Moody)}


@pytest.fixture(autouse=True)
def registered(monkeypatch, tmp_path):
    registry = rewards.registry._registry
    monkeypatch.setattr(registry, "_values", {**registry._values, **KINDS})
    monkeypatch.chdir(tmp_path)
    SEEN.clear()


def paint(path, size=(4, 4), color=(255, 0, 0), mode="RGB"):
    path.parent.mkdir(parents=True, exist_ok=True)
    PIL.Image.new("RGB", size, color).convert(mode).save(path)


@pytest.fixture
def folder(tmp_path):
    """Five images of several sizes and modes, in natural order, and things that are no images."""

    root = tmp_path / "images"
    paint(root / "1.png", (4, 4), (255, 0, 0))
    paint(root / "2.PNG", (6, 5), (128, 64, 0), "RGBA")
    paint(root / "10.png", (6, 5), (51, 51, 51), "L")
    paint(root / "größe [b]" / "é.gif", (3, 9), (0, 255, 0), "P")
    paint(root / "z.webp", (4, 4), (0, 0, 255))
    paint(root / ".hidden.png")
    paint(root / ".cache" / "1.png")
    (root / "notes.md").write_text("nothing")
    return root


IMAGES = ["1.png", "2.PNG", "10.png", "größe [b]/é.gif", "z.webp"]


def write(name, text, encoding="utf-8"):
    Path(name).write_bytes(text.encode(encoding))
    return Path(name)


def read(path="scores.csv"):
    with open(path, encoding="utf-8", newline="") as file:
        return list(csv.DictReader(file))


def score_(job, *names, out="scores.csv", **options):
    return score(job, {name: KINDS[name]() for name in names}, out, **options)


@pytest.fixture
def run(monkeypatch, capsys):
    def run(*arguments):
        monkeypatch.setattr(sys, "argv", ["rwguidance", "score", *map(str, arguments)])
        monkeypatch.setenv("COLUMNS", "100")
        with pytest.raises(SystemExit) as stop:
            main()
        return stop.value.code or 0, *capsys.readouterr()

    return run


# --- images and prompts ---


def test_images_are_found_below_and_sorted_by_number(folder):
    assert find_images(folder) == IMAGES


def test_a_folder_without_images_is_refused(tmp_path):
    with pytest.raises(ValueError, match=r"no image \(\.png, .*\) in .* or below"):
        plan(tmp_path)
    with pytest.raises(FileNotFoundError, match="no folder of images at"):
        plan(tmp_path / "absent")


PAIRS_CSV = (
    'file_name,seed,prompt\nz.webp,1,"a, b"\n\n1.png,2, cat \n./z.webp,3,"two\nlines"\nz.webp,4,'
)
PAIRS_JSONL = (
    '{"image": "z.webp", "prompt": "a, b"}\n\n{"prompt": " cat", "image": "1.png", "seed": 1}\r\n'
    '{"image": "z.webp", "prompt": "two\\nlines"}\n{"image": "z.webp", "prompt": ""}'
)


@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig"])
@pytest.mark.parametrize(("name", "text"), [("p.csv", PAIRS_CSV), ("p.JSONL", PAIRS_JSONL)])
def test_a_file_that_names_images_makes_pairs(folder, name, text, encoding):
    job = plan(folder, write(name, text, encoding))
    assert [item[:2] for item in job.items] == [
        ("1.png", ("cat",)),
        ("z.webp", ("a, b", "two\nlines", "")),
    ]
    assert (len(job), job.matrix, job.prompted) == (4, False, True)
    assert list(job.notes) == [
        f"3 of 5 images are not in {name}: left out",
        "1 of 4 rows have an empty prompt",
    ]


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("p.txt", "\ufeffa cat\r\n\r\n  an émeu \n"),
        ("p.csv", "seed,Prompt\n1,a cat\n\n2,an émeu\n"),
        ("p.jsonl", '{"prompt": "a cat"}\n{"prompt": "an émeu"}\n'),
    ],
)
def test_prompts_alone_meet_every_image(folder, name, text):
    job = plan(folder, write(name, text))
    assert [item.image for item in job.items] == IMAGES
    assert {item.prompts for item in job.items} == {("a cat", "an émeu")}
    assert (len(job), job.matrix) == (10, True)


def test_with_pairs_the_images_in_order_take_one_prompt_each(folder):
    file = write("p.txt", "a\nb\na\nc\nd\n")
    job = plan(folder, file, pairs=True)
    assert [item[:2] for item in job.items] == list(
        zip(IMAGES, [("a",), ("b",), ("a",), ("c",), ("d",)], strict=True)
    )
    with pytest.raises(ValueError, match=r"p\.txt, line 3: the same prompt as in line 1; with pai"):
        plan(folder, file)
    with pytest.raises(ValueError, match=r"as many prompts as images, got 2 prompts .* 5 images"):
        plan(folder, write("p.txt", "a\nb\n"), pairs=True)
    with pytest.raises(ValueError, match="pairs needs a file of prompts, got none"):
        plan(folder, pairs=True)


def test_texts_beside_images(folder):
    for image, text in zip(IMAGES[:3], ["\ufeffa cat \n", "\n", "a dog"], strict=True):
        (folder / image).with_suffix(".txt").write_text(text, encoding="utf-8")
    items = plan(folder, "sidecar").items
    assert [(item.prompts, item.problem) for item in items] == [
        (("a cat",), ""),
        (("",), "no prompt: 2.txt is empty"),
        (("a dog",), ""),
        (("",), "no prompt: größe [b]/é.txt is absent"),
        (("",), "no prompt: z.txt is absent"),
    ]
    (folder / "z.txt").write_text("one\n\nanother")
    with pytest.raises(ValueError, match=r"z\.txt, line 3: a text beside an image holds one pro"):
        plan(folder, "sidecar")


def test_without_any_text_beside_images_the_user_is_told(folder):
    with pytest.raises(ValueError, match=r"none of the 5 images .* has a text .* as 1\.txt; name"):
        plan(folder, "sidecar")


@pytest.mark.parametrize(
    ("name", "text", "message"),
    [
        ("p.csv", "image,prompt\n1.png,a,b\n", r"p\.csv, line 2: expected 2 cells .* got 3; quote"),
        ("p.csv", "image,prompt\n1.png\n", r"line 2: expected 2 cells \(image, prompt\), got 1"),
        ("p.csv", 'image,prompt\n1.png,"a\n', r"p\.csv, line 2: unexpected end of data"),
        ("p.csv", "image,text\n1.png,a\n", "line 1: expected the column 'prompt', got 'image', 't"),
        ("p.csv", "prompt,prompt\na,b\n", "line 1: the column 'prompt' comes twice"),
        ("p.csv", "image,file,prompt\na,b,c\n", "'image' and 'file' could both name the image"),
        ("p.csv", "image,prompt\n1.png,a\n,b\n", "line 3: 'image' is empty"),
        (
            "p.csv",
            "image,prompt\n1.png,a\n\n1.png,a\n",
            "line 4: the same image and prompt as in l",
        ),
        ("p.csv", "image,prompt\n1.png,a\n./1.png,a\n", "line 3: the same image and prompt as in "),
        ("p.csv", "image,prompt\n../1.png,a\n", r"line 2: the image '../1\.png' is not in the fo"),
        ("p.csv", "image,prompt\n/etc/1.png,a\n", "line 2: the image '/etc/1.png' is not in the"),
        ("p.csv", "image,prompt\nx/1.png,a\n", r"none of the 1 images .* such as 'x/1\.png' of l"),
        ("p.csv", "image,prompt\n", r"p\.csv holds no prompt"),
        ("p.txt", " \n\n", r"p\.txt holds no prompt"),
        (
            "p.jsonl",
            '{"prompt": "a"}\n{"prompt": \n',
            r"p\.jsonl, line 2: not JSON, Expecting value",
        ),
        ("p.jsonl", '["a"]', r'line 1: expected an object like \{"prompt": "a cat"\}, got \["a"\]'),
        ("p.jsonl", '{"prompt": 3}', "line 1: 'prompt' must be a string, got 3"),
        (
            "p.jsonl",
            '{"prompt": "a", "image": "1.png"}\n\n{"prompt": "b"}',
            "line 3: names no image, but line 1 the image by 'image'",
        ),
        ("p.tsv", "prompt\n", r"must be in a file \.csv, \.jsonl, \.txt, got p\.tsv"),
    ],
)
def test_malformed_and_ambiguous_prompts_are_refused_by_line(folder, name, text, message):
    file = write(name, text)
    with pytest.raises(ValueError, match=message):
        plan(folder, file)


def test_prompts_that_are_not_utf8_or_absent(folder):
    with pytest.raises(ValueError, match=r"p\.txt, line 2: not UTF-8"):
        read_prompts(write("p.txt", "a cat\nun émeu\n", "latin-1"))
    with pytest.raises(FileNotFoundError, match=r"no file of prompts at absent\.csv"):
        plan(folder, "absent.csv")


def test_names_are_found_in_every_spelling(folder):
    decomposed = "gro\u0308ße [b]\\e\u0301.gif"
    absolute = (folder / "1.png").resolve()
    job = plan(folder, write("p.csv", f"path,prompt\n{decomposed},a\n{absolute},b\n"))
    assert [item[:2] for item in job.items] == [("1.png", ("b",)), ("größe [b]/é.gif", ("a",))]


# --- values ---


def expected(folder, name, image, prompt=""):
    with PIL.Image.open(folder / image) as opened:
        pixels = from_pil(opened)
    return float(pixels.mean()) if name == "brightness" else float(pixels[0].mean()) * len(prompt)


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
        summary = tally.summary()
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
    scores = score_(plan(folder, write("p.txt", "a\nab")), "redness", "brightness")
    red, redder = (b for b in scores.best if b.reward == "redness")
    assert red == Best("redness", "a", "1.png", 1.0, 5)
    assert redder == Best("redness", "ab", "1.png", 2.0, 5)
    (bright,) = (b for b in scores.best if b.reward == "brightness")
    assert (bright.prompt, bright.images) == (None, 5), "no prompt, no difference"


# --- what breaks ---


@pytest.fixture
def broken(folder):
    """Four files among the images that cannot be scored."""

    (folder / "3.png").write_text("I am a text")
    photo = folder / "4.jpg"
    PIL.Image.effect_noise((64, 64), 50).save(photo)
    photo.write_bytes(photo.read_bytes()[:900])
    (folder / "5.png").write_bytes(b"")
    PIL.Image.new("I;16", (4, 4)).save(folder / "6.png")
    return folder


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
        def forward(self, images, prompts):
            return images

    with pytest.raises(TypeError, match=r"flat must return one .* shape \(5,\), got \(5, 3\)"):
        score(plan(folder), {"flat": Flat()}, "scores.csv")


# --- interruptions ---


class Killed(BaseException):
    """As a signal, it passes every except clause."""


def killed_after(monkeypatch, calls):
    """Makes the reward "brightness" die in the call after `calls`."""

    forward = Brightness.forward

    def forward_or_die(self, images, prompts):
        if len(SEEN) == calls:
            raise Killed
        return forward(self, images, prompts)

    monkeypatch.setattr(Brightness, "forward", forward_or_die)
    return lambda: monkeypatch.setattr(Brightness, "forward", forward)


JOBS = {
    "matrix": ("p.txt", "a\nbcd\nef"),
    "pairs": (
        "p.csv",
        "image,prompt\n"
        + "".join(
            f"{image},{prompt}\n"
            for i, image in enumerate(IMAGES)
            for prompt in ("a", "bcd", "ef", "g" * i)[i % 2 :]
        ),
    ),
}


@pytest.mark.parametrize("suffix", [".csv", ".parquet"])
@pytest.mark.parametrize("kind", JOBS)
def test_a_run_killed_at_any_byte_of_the_journal_ends_with_the_same_file(
    broken, monkeypatch, kind, suffix
):
    job = plan(broken, write(*JOBS[kind]))
    names = ("brightness", "moody", "redness")
    whole = score_(job, *names, out=f"whole{suffix}", batch_size=2)
    images = sum(SEEN)
    out = Path(f"scores{suffix}")
    journal = journal_path(out)
    with monkeypatch.context() as patch:  # die with the last batch in the journal
        patch.setattr(rewards.scoring.run, "_write", lambda *_: (_ for _ in ()).throw(Killed))
        with pytest.raises(Killed):
            score_(job, *names, out=out, batch_size=2)
    lines = journal.read_bytes().splitlines(keepends=True)
    full = b"".join(lines)
    ends = list(itertools.accumulate(map(len, lines)))
    cuts = {0, 5, *ends, *(end - 1 for end in ends), *(end + 7 for end in ends[:-1])}
    for cut in sorted(cuts):
        journal.write_bytes(full[:cut])
        out.unlink(missing_ok=True)
        SEEN.clear()
        scores = score_(job, *names, out=out, batch_size=2)
        assert out.read_bytes() == Path(f"whole{suffix}").read_bytes()
        assert not journal.exists()
        kept = max(sum(end <= cut for end in ends) - 1, 0)  # finished batches
        batches = in_batches(job, 2)
        assert scores.scored == sum(map(len, batches[kept:]))
        assert sum(SEEN) == images - sum(
            item.image in IMAGES for batch in batches[:kept] for item in batch
        )
        assert scores.summaries == whole.summaries
        assert scores.failures == whole.failures


def test_a_cache_that_is_too_small_does_not_show_either(folder, monkeypatch):
    job = plan(folder, write(*JOBS["matrix"]))
    with_cache = lambda: {"moody": Moody(cache_size=2), "brightness": Brightness()}
    score(job, with_cache(), "whole.csv", batch_size=2)
    SEEN.clear()
    revive = killed_after(monkeypatch, 1)
    with pytest.raises(Killed):
        score(job, with_cache(), "scores.csv", batch_size=2)
    revive()
    score(job, with_cache(), "scores.csv", batch_size=2)
    assert Path("scores.csv").read_bytes() == Path("whole.csv").read_bytes()


def test_ctrl_c_says_how_to_go_on(folder, run, monkeypatch):
    command = (folder, "--reward", "brightness", "--batch-size", "2")
    assert run(*command, "--out", "whole.csv")[0] == 0
    SEEN.clear()
    monkeypatch.setitem(globals(), "Killed", KeyboardInterrupt)
    revive = killed_after(monkeypatch, 2)
    code, _, err = run(*command)
    assert code == 130
    assert "interrupted: the same command goes on where this one stopped" in err
    assert not Path("scores.csv").exists()
    revive()
    SEEN.clear()
    code, out, _ = run(*command)
    assert (code, SEEN) == (0, [1])
    assert "scores.csv: 5 rows\n" in out
    assert Path("scores.csv").read_bytes() == Path("whole.csv").read_bytes()


def unfinished(job, monkeypatch, **options):
    SEEN.clear()
    revive = killed_after(monkeypatch, 1)
    with pytest.raises(Killed):
        score_(job, "brightness", **{"batch_size": 2, **options})
    revive()
    assert len(journal_path("scores.csv").read_bytes().splitlines()) == 2


@pytest.mark.parametrize(
    ("change", "named"),
    [
        ("prompts", "images and prompts"),
        ("image", "images and prompts"),
        ("rewards", "rewards"),
        ("batch size", "batch size"),
        ("options", "weights and options"),
        ("weights", "weights and options"),
        ("version", "rwguidance"),
        ("folder", "folder"),
    ],
)
def test_the_journal_of_another_job_is_refused(folder, monkeypatch, change, named):
    job = plan(folder, write("p.txt", "a\nb"))
    unfinished(job, monkeypatch)
    journal = journal_path("scores.csv")
    before = journal.read_bytes()
    reward = Brightness()
    rewards_, batch_size = {"brightness": reward}, 2
    if change == "prompts":
        job = plan(folder, write("p.txt", "a\nc"))
    elif change == "image":
        paint(folder / "z.webp", (5, 5))
    elif change == "rewards":
        rewards_ = {"redness": Redness(), "brightness": reward}
    elif change == "batch size":
        batch_size = 3
    elif change == "options":
        reward.quality = 95
    elif change == "weights":
        reward.register_buffer("weight", torch.ones(3))
    elif change == "version":
        monkeypatch.setattr("rwguidance.__version__", "99")
    elif change == "folder":
        folder.rename("moved")
        job = plan("moved", "p.txt")
    SEEN.clear()
    with pytest.raises(
        ValueError, match=rf"another, unfinished job: its {named}.* \(on.*--restart"
    ):
        score(job, rewards_, "scores.csv", batch_size)
    assert (SEEN, journal.read_bytes()) == ([], before)
    score(job, rewards_, "scores.csv", batch_size, restart=True)
    assert len(read()) == 10
    assert not journal.exists()


def test_a_result_is_not_replaced_unasked(folder):
    write("scores.csv", "precious")
    with pytest.raises(FileExistsError, match=r"scores\.csv exists: .* --restart"):
        score_(plan(folder), "brightness")
    assert Path("scores.csv").read_text() == "precious"
    assert score_(plan(folder), "brightness", restart=True).rows == 5


@pytest.mark.parametrize("damage", ["garbage", "order", "missing row", "too many"])
def test_a_journal_that_is_damaged_in_the_middle_is_refused(folder, monkeypatch, damage):
    job = plan(folder)
    with monkeypatch.context() as patch:
        patch.setattr(rewards.scoring.run, "_write", lambda *_: (_ for _ in ()).throw(Killed))
        with pytest.raises(Killed):
            score_(job, "brightness", batch_size=2)
    journal = journal_path("scores.csv")
    header, *lines = journal.read_text().splitlines()
    if damage == "garbage":
        lines[1] = "{"
    elif damage == "order":
        lines[0], lines[1] = lines[1], lines[0]
    elif damage == "missing row":
        record = json.loads(lines[1])
        lines[1] = json.dumps({**record, "rows": record["rows"][1:]})
    else:
        lines.append(lines[-1].replace('"batch":2', '"batch":3'))
    journal.write_text("\n".join([header, *lines]) + "\n")
    with pytest.raises(ValueError, match=r"damaged in the middle; .*--restart"):
        score_(job, "brightness", batch_size=2)
    journal.write_text("not a journal\n")
    with pytest.raises(ValueError, match="is not the journal of a run"):
        score_(job, "brightness", batch_size=2)


def test_a_second_run_at_the_same_time_is_refused(folder):
    job = plan(folder)

    def again(done, failed):
        with pytest.raises(ValueError, match="another run is writing"):
            score_(job, "brightness")

    assert score_(job, "brightness", progress=again).rows == 5


def test_a_real_run_survives_sigkill(tmp_path):
    root = tmp_path / "noise"
    root.mkdir()
    image = PIL.Image.merge("RGB", [PIL.Image.effect_noise((600, 600), 80) for _ in range(3)])
    image.save(root / "000.bmp")
    for i in range(1, 80):
        os.link(root / "000.bmp", root / f"{i:03}.bmp")
    command = [Path(sys.executable).with_name("rwguidance"), "score", "noise", "--reward", "jpeg"]
    command += ["--batch-size", "1"]
    journal = journal_path("scores.csv")
    env = {**os.environ, "OMP_NUM_THREADS": "1"}
    process = subprocess.Popen(command, env=env, stdout=subprocess.PIPE, stderr=subprocess.PIPE)
    deadline = time.monotonic() + 60
    while not journal.exists() or journal.read_bytes().count(b"\n") < 3:
        assert process.poll() is None, process.communicate()
        assert time.monotonic() < deadline
        time.sleep(0.002)
    process.send_signal(signal.SIGKILL)
    assert process.wait() == -signal.SIGKILL
    process.communicate()
    kept = journal.read_bytes().count(b"\n") - 1
    assert 2 <= kept < 80
    assert not Path("scores.csv").exists()
    job, jpeg = plan("noise"), {"jpeg": rewards.load("jpeg")}
    assert score(job, jpeg, "scores.csv", batch_size=1).scored == 80 - kept
    score(job, jpeg, "whole.csv", batch_size=1)
    assert Path("scores.csv").read_bytes() == Path("whole.csv").read_bytes()


# --- memory ---


def test_at_most_two_batches_of_images_are_held(tmp_path, monkeypatch):
    for i in range(40):
        paint(tmp_path / "many" / f"{i}.png")
    held = []
    most = 0
    decode = rewards.scoring.batches._decode

    def counted(path, problem):
        image = decode(path, problem)
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
    spy = lambda path, problem: opened.append(path.name) or decode(path, problem)
    monkeypatch.setattr(rewards.scoring.batches, "_decode", spy)
    job = plan(folder, write(*JOBS["pairs"]))
    score_(job, "brightness", "redness", "moody", batch_size=2)
    assert sorted(opened) == sorted(Path(image).name for image in IMAGES)
    assert sum(SEEN) == len(IMAGES), "what needs no prompt sees an image once"


# --- the command ---


def test_the_command_writes_a_table_and_a_summary(folder, run):
    write("p.txt", "a cat\n[red] " + "x" * 200)
    command = (folder, "--reward", "redness, brightness", "--prompts", "p.txt")
    code, out, err = run(*command, "--out", "new.parquet")
    assert (code, err.strip()) == (0, "")
    assert pyarrow.parquet.read_table("new.parquet").num_rows == 10
    lines = out.splitlines()
    assert max(map(len, map(str.rstrip, lines))) <= 100
    heading, redness, brightness = lines[:3]
    assert heading.split() == ["reward", "rows", "images", "mean", "SE", "min", "max", "usual"]
    assert redness.split()[:3] == ["redness", "10", "5"]
    assert brightness.split()[:3] == ["brightness", "10", "5"]
    assert "Best image of each prompt by redness" in out
    assert "[red] xxx" in out
    assert lines[-1] == "new.parquet: 10 rows"


def test_the_list_of_best_images_is_cut(folder, run):
    write("p.txt", "\n".join(f"prompt {i}" for i in range(23)))
    out = run(folder, "--reward", "redness", "--prompts", "p.txt")[1]
    assert "prompt 19" in out
    assert "prompt 20" not in out
    assert "and 3 more prompts" in out


def test_texts_beside_images_are_the_default_if_prompts_are_needed(folder, run):
    for image in IMAGES[:4]:
        (folder / image).with_suffix(".txt").write_text("abc")
    code, _, err = run(folder, "--reward", "redness")
    assert code == 2
    assert "skipped: z.webp, row 5: no prompt: z.txt is absent" in err
    assert run(folder, "--reward", "brightness", "--restart")[0] == 0
    assert {row["prompt"] for row in read()} == {""}
    assert run(folder, "--reward", "brightness", "--prompts", "sidecar", "--restart")[0] == 2


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (
            ["--reward", "brightnes"],
            "no reward 'brightnes', there are .* did you mean 'brightness'",
        ),
        (["--reward", "brightness,"], "no reward ''"),
        (["--reward", "brightness,brightness"], "the column 'brightness' would come twice"),
        (["--reward", "redness", "--prompts", "p.txt", "--pairs"], "got 2 prompts .* 5 images"),
        (["--reward", "redness"], "has a text beside it"),
        (["--reward", "brightness", "--out", "scores.txt"], r"end in \.csv or \.parquet, got sco"),
        (
            ["--reward", "brightness", "--out", "no/scores.csv"],
            r"no folder no to write scores\.csv",
        ),
        (["--reward", "brightness", "--path", "x"], "path must be NAME=PATH, once per name.*'x'"),
        (["--reward", "brightness", "--path", "a=x"], "path names 'a', which is not among bright"),
        (["--reward", "brightness", "--path", "brightness=x"], "no file or directory with the rew"),
        (["--reward", "brightness", "--device", "abacus"], "device 'abacus' cannot be used: "),
        (["--reward", "redness", "--prompts", "p.csv", "--out", "p.csv"], "not be the file of pr"),
        (["--reward", "brightness", "--batch-size", "0"], "--batch-size"),
        ([], "Missing option '--reward'"),
    ],
)
def test_mistakes_exit_with_1_before_anything_is_scored(folder, run, arguments, message):
    write("p.txt", "a\nb")
    write("p.csv", "prompt\na\n")
    code, out, err = run(folder, *arguments)
    assert (code, out, SEEN) == (1, "", [])
    assert re.search(message, " ".join(err.split()))
    assert not list(Path().glob("*.partial*"))


def test_exit_codes_of_the_runner(broken):
    run = lambda *arguments: CliRunner().invoke(app, ["score", str(broken), *arguments]).exit_code
    assert run("--reward", "brightness") == 2
    assert run("--reward", "brightness") == 1, "the result exists"
    for name in ("3.png", "4.jpg", "5.png", "6.png"):
        (broken / name).unlink()
    assert run("--reward", "brightness", "--restart", "--dtype", "float64") == 0
    assert run("--dtype", "float64") == 1
    assert run("--help") == 0


def test_options_reach_the_constructor(folder, run):
    command = (folder, "--reward", "jpeg", "--prompts", "p.txt", "--out")
    write("p.txt", "a cat")
    assert run(*command, "a.csv")[0] == 0
    assert run(*command, "b.csv", "--option", "jpeg:quality=50")[0] == 0
    assert run(*command, "c.csv", "--option", "jpeg:incompressible=true")[0] == 0
    a, b, c = (
        [float(row["jpeg"]) for row in csv.DictReader(Path(f"{name}.csv").read_text().splitlines())]
        for name in "abc"
    )
    assert all(x < y for x, y in zip(a, b, strict=True))
    assert c == [-x for x in a]
    for wrong, message in (
        ("jpeg.quality=50", "option must be NAME:KEY=VALUE, got 'jpeg.quality=50'"),
        ("png:quality=50", "option names 'png', which is not among jpeg"),
        ("jpeg:size=3", "reward 'jpeg' takes"),
    ):
        code, _, err = run(*command, "d.csv", "--option", wrong)
        assert code == 1
        assert message in err
