"""Whatever a reward raises on an image costs the rows of that image, and no other."""

import errno
import json
import os
import re
import sys
from pathlib import Path

import pytest
import torch

from rewards.prompt_files import plan
from rewards.scoring import score
from scored_folders import (
    IMAGES,
    SEEN,
    Brightness,
    Redness,
    expected,
    killed_after,
    paint,
    read,
    write,
)

pytestmark = pytest.mark.usefixtures("registered")

OUT_OF_MEMORY = RuntimeError("CUDA out of memory. Tried to allocate 2.00 GiB")


class Raising(Redness):
    """Raises an error on images that are blue."""

    depends_on = ()

    def __init__(self, error):
        super().__init__()
        self.error = error

    def forward(self, images, prompts):
        SEEN.append(len(images))
        if bool((images[:, 2] > images[:, 0]).any()):
            raise self.error
        return super().forward(images, prompts)


class Hungry(Brightness):
    """Has memory for so many images at once."""

    depends_on = ()

    def __init__(self, most):
        super().__init__()
        self._most = most

    def forward(self, images, prompts):
        if len(images) > self._most:
            raise RuntimeError(str(OUT_OF_MEMORY))
        return super().forward(images, prompts)


@pytest.mark.parametrize("batch_size", [1, 2, 16])
@pytest.mark.parametrize(
    ("error", "reason"),
    [
        (RuntimeError("shapes\ndiffer"), "RuntimeError: shapes differ"),
        (OSError(errno.EIO, "bad block"), "OSError: [Errno 5] bad block"),
        (ValueError("no blue images"), "no blue images"),
        (KeyError("token"), "KeyError: 'token'"),
        (AssertionError(), "AssertionError:"),
        (ConnectionError("status 500"), "ConnectionError: status 500"),
        (TypeError("a tensor is none"), "TypeError: a tensor is none"),
    ],
    ids=lambda x: type(x).__name__,
)
@pytest.mark.parametrize("matrix", [True, False])
def test_an_error_is_the_reason_in_the_rows_of_its_image(folder, error, reason, batch_size, matrix):
    prompts = ["a", "abc"]
    lines = [f"{image},{prompt}" for image in IMAGES for prompt in prompts]
    file = (
        write("p.txt", "a\nabc") if matrix else write("p.csv", "\n".join(["image,prompt", *lines]))
    )
    job = plan(folder, file)
    reward = Raising(error)
    scores = score(job, {"red": reward, "bright": Brightness()}, "scores.csv", batch_size)
    assert [(f.image, f.reason) for f in scores.failures] == [
        ("z.webp", f"red failed: {reason}")
    ] * 2
    for row in read():
        assert float(row["bright"]) == pytest.approx(expected(folder, "brightness", row["image"]))
        if row["image"] != "z.webp":
            truth = expected(folder, "redness", row["image"], row["prompt"])
            assert (float(row["red"]), row["error"]) == (pytest.approx(truth), "")


def test_a_server_that_is_gone_for_a_whole_batch_ends_the_run_and_it_goes_on_later(folder):
    class Remote(Brightness):
        depends_on = ()
        _answers = 1

        def forward(self, images, prompts):
            self._answers -= 1
            if self._answers < 0:
                raise ConnectionError("not reached")
            return super().forward(images, prompts)

    with pytest.raises(ConnectionError, match="bright: ConnectionError: not reached"):
        score(plan(folder), {"bright": Remote()}, "scores.csv", batch_size=2)
    reward = Remote()
    reward._answers = 9
    scores = score(plan(folder), {"bright": reward}, "scores.csv", batch_size=2)
    assert (scores.failures, scores.scored) == ((), 3)


@pytest.mark.parametrize("most", [1, 2, 3])
def test_where_memory_runs_out_batches_get_smaller(folder, most):
    scores = score(plan(folder), {"bright": Hungry(most)}, "scores.csv")
    assert not scores.failures
    assert max(SEEN) <= most
    for row in read():
        assert float(row["bright"]) == pytest.approx(expected(folder, "brightness", row["image"]))


def test_one_image_with_many_prompts_is_scored_in_smaller_parts(tmp_path):
    class HungryForPairs(Redness):
        depends_on = ()

        def forward(self, images, prompts):
            SEEN.append(len(images))
            if len(images) > 3:
                raise RuntimeError(str(OUT_OF_MEMORY))
            return super().forward(images, prompts)

    paint(tmp_path / "one" / "1.png")
    paint(tmp_path / "one" / "2.png")
    lines = ["image,prompt", *(f"1.png,{'a' * i}" for i in range(1, 14)), "2.png,b"]
    job = plan("one", write("p.csv", "\n".join(lines)))
    scores = score(job, {"red": HungryForPairs()}, "scores.csv")
    assert not scores.failures
    assert [float(row["red"]) for row in read()] == [*range(1, 14), 1]


def test_an_image_that_is_too_large_for_memory_says_what_would_help(folder):
    scores = score(plan(folder), {"bright": Hungry(0)}, "scores.csv")
    assert len(scores.failures) == 5
    assert re.search(
        r"^bright failed: RuntimeError: CUDA out of memory.* bright had 1 images of up to 4 x 4 "
        r"pixels at once: lower batch_size \(--batch-size\), make the images smaller",
        scores.failures[0].reason,
    )


def test_memory_of_what_failed_is_free_when_less_is_tried(folder):
    class Watched(Hungry):
        depends_on = ()
        held = 0

        def forward(self, images, prompts):
            self.held += sys.exc_info()[1] is not None
            return super().forward(images, prompts)

    reward = Watched(1)
    score(plan(folder), {"bright": reward}, "scores.csv")
    assert reward.held == 0, "an error that is being handled keeps the tensors of its frames"


@pytest.mark.parametrize("values", [None, [0.0] * 5, torch.zeros(5, 0), torch.tensor(0.0)])
def test_a_reward_that_returns_something_else_is_wrong_for_every_image(folder, values):
    class Wrong(Brightness):
        depends_on = ()

        def __call__(self, images, prompts=None):
            return values

    with pytest.raises(
        TypeError, match=r"wrong must return one value per image, shape \(5,\), got"
    ):
        score(plan(folder), {"wrong": Wrong()}, "scores.csv")


def test_an_image_that_is_too_long_for_jpeg_costs_its_own_row(tmp_path, run):
    paint(tmp_path / "x" / "a.png", (66000, 2))
    paint(tmp_path / "x" / "b.png")
    code, _, err = run("x", "--reward", "jpeg")
    assert code == 2
    assert "skipped: a.png, row 1: jpeg failed: " in err
    assert [row["jpeg"] != "" for row in read()] == [False, True]


# --- the disk ---


def test_a_full_disk_is_one_line_and_the_same_command_goes_on(folder, run, monkeypatch):
    command = (folder, "--reward", "brightness", "--batch-size", "2")
    assert run(*command, "--out", "whole.csv")[0] == 0
    fsync, calls = os.fsync, []

    def full(descriptor):
        calls.append(descriptor)
        if len(calls) == 3:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        fsync(descriptor)

    with monkeypatch.context() as patch:
        patch.setattr(os, "fsync", full)
        code, _, err = run(*command)
    assert code == 1
    assert err == ("error: [Errno 28] No space left on device: 'scores.csv.partial.jsonl'\n")
    assert run(*command)[0] == 0
    assert read_text("scores.csv") == read_text("whole.csv")


# --- the same command again ---


def test_a_finished_command_is_finished(folder, run):
    for out in ("scores.csv", "scores.parquet"):
        write("p.txt", "a\nbcd")
        command = (folder, "--reward", "redness,brightness", "--prompts", "p.txt", "--out", out)
        code, first, _ = run(*command)
        assert code == 0
        before = Path(out).read_bytes()
        SEEN.clear()
        code, again, err = run(*command)
        assert (code, err, SEEN) == (0, "", [])
        assert again == first.replace(
            f"{out}: 10",
            f"Nothing was left to score: this is the result of an earlier run.\n{out}: 10",
        )
        assert Path(out).read_bytes() == before


def test_what_failed_is_tried_again_and_nothing_else(folder):
    job = plan(folder, write("p.txt", "a\nbcd"))
    names = {"red": Raising(RuntimeError("a bad day")), "bright": Brightness()}
    first = score(job, names, "scores.csv", batch_size=2)
    assert len(first.failures) == 2
    SEEN.clear()
    again = score(job, names, "scores.csv", batch_size=2)
    assert (again.scored, again.failures) == (1, first.failures), "the batch of z.webp"
    assert 5 not in SEEN
    names["red"].forward = lambda images, prompts: Redness.forward(names["red"], images, prompts)
    healed = score(job, names, "scores.csv", batch_size=2)
    assert (healed.scored, healed.failures) == (1, ())
    whole = score(job, {"red": Redness(), "bright": Brightness()}, "whole.csv", batch_size=2)
    assert read_text("scores.csv") == read_text("whole.csv")
    assert healed.summaries == whole.summaries
    assert healed.best == whole.best


def test_a_batch_is_tried_again_for_one_of_its_images(folder):
    job = plan(folder, write("p.txt", "a"))
    rewards = {"red": Raising(RuntimeError("a bad day")), "bright": Brightness()}
    for _ in range(2):
        scores = score(job, rewards, "scores.csv", batch_size=5)
        assert (scores.scored, len(scores.failures)) == (5, 1)


def test_a_second_try_that_is_killed_goes_on(folder, monkeypatch):
    job = plan(folder)
    rewards = {"red": Hungry(0), "bright": Brightness()}
    score(job, rewards, "scores.csv", batch_size=2)
    rewards["red"]._most = 9
    before = read_text("scores.csv")
    SEEN.clear()
    revive = killed_after(monkeypatch, 3, KeyboardInterrupt)
    with pytest.raises(KeyboardInterrupt):
        score(job, rewards, "scores.csv", batch_size=2)
    revive()
    assert read_text("scores.csv") == before, "the result stays until there is a better one"
    assert not score(job, rewards, "scores.csv", batch_size=2).failures


@pytest.mark.parametrize(
    ("change", "named"),
    [
        ("prompts", "images and prompts"),
        ("image", "images and prompts"),
        ("rewards", "rewards"),
        ("batch size", "batch size"),
        ("weights", "weights and options"),
        ("table", "it is not known what it was made from"),
    ],
)
def test_the_result_of_another_job_is_refused(folder, change, named):
    job = plan(folder, write("p.txt", "a\nb"))
    reward = Brightness()
    score(job, {"bright": reward}, "scores.csv", batch_size=2)
    names, batch_size = {"bright": reward}, 2
    if change == "prompts":
        job = plan(folder, write("p.txt", "a\nc"))
    elif change == "image":
        paint(folder / "z.webp", (5, 5))
    elif change == "rewards":
        names["red"] = Redness()
    elif change == "batch size":
        batch_size = 3
    elif change == "weights":
        reward.register_buffer("weight", torch.ones(1))
    else:
        write("scores.csv", read_text("scores.csv").replace("0.3", "0.4"))
    before = read_text("scores.csv")
    with pytest.raises(FileExistsError, match=rf"scores\.csv exists, .*{named}.*--restart"):
        score(job, names, "scores.csv", batch_size=batch_size)
    assert read_text("scores.csv") == before
    assert score(job, names, "scores.csv", batch_size=batch_size, restart=True).scored == 5


def read_text(path):
    with open(path, encoding="utf-8") as file:
        return file.read()


@pytest.mark.parametrize("record", ["", "[1]", "[" * 100_000, json.dumps({"table": 3})])
def test_a_damaged_record_is_none(folder, record):
    score(plan(folder), {"bright": Brightness()}, "scores.csv")
    write("scores.csv.record.json", record)
    with pytest.raises(FileExistsError, match="it is not known what it was made from"):
        score(plan(folder), {"bright": Brightness()}, "scores.csv")
