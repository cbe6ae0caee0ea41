"""Interrupted runs of scoring: what the journal keeps, and what it refuses to continue."""

import itertools
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import PIL.Image
import pytest
import torch

import rewards
import rewards.scoring.run
from rewards.prompt_files import plan
from rewards.scoring import journal_path, score
from rewards.scoring.batches import in_batches
from rwguidance.support.fingerprint import NotKept
from scored_folders import (
    IMAGES,
    JOBS,
    SEEN,
    Brightness,
    Killed,
    Moody,
    Redness,
    killed_after,
    paint,
    read,
    score_,
    write,
)

pytestmark = pytest.mark.usefixtures("registered")


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
        patch.setattr(rewards.scoring.run, "write_table", lambda *_: (_ for _ in ()).throw(Killed))
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
    revive = killed_after(monkeypatch, 2, KeyboardInterrupt)
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
    with pytest.raises(
        FileExistsError, match=r"scores\.csv exists, and it is not known.* --restart"
    ):
        score_(plan(folder), "brightness")
    assert Path("scores.csv").read_text() == "precious"
    assert score_(plan(folder), "brightness", restart=True).rows == 5


@pytest.mark.parametrize("damage", ["garbage", "twice", "missing row", "too many", "value"])
def test_a_journal_that_is_damaged_in_the_middle_is_refused(folder, monkeypatch, damage):
    job = plan(folder)
    with monkeypatch.context() as patch:
        patch.setattr(rewards.scoring.run, "write_table", lambda *_: (_ for _ in ()).throw(Killed))
        with pytest.raises(Killed):
            score_(job, "brightness", batch_size=2)
    journal = journal_path("scores.csv")
    header, *lines = journal.read_text().splitlines()
    if damage == "garbage":
        lines[1] = "{"
    elif damage == "twice":
        lines[0] = lines[1]
    elif damage == "missing row":
        record = json.loads(lines[1])
        lines[1] = json.dumps({**record, "rows": record["rows"][1:]})
    elif damage == "value":
        record = json.loads(lines[0])
        record["rows"][0][0] += 0.125
        lines[0] = json.dumps(record)
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


def test_progress_counts_images_and_what_failed_of_earlier_runs_too(folder, monkeypatch):
    job = plan(folder, write("p.txt", "ok\nfine"))
    seen = []
    progress = lambda done, failed: seen.append((done, failed))
    score_(job, "picky", "brightness", out="whole.csv", batch_size=2, progress=progress)
    assert seen == [(0, 0), (2, 0), (4, 2), (5, 2)]  # of images, and of rows: two of 10.png
    last = len(SEEN) - 1
    SEEN.clear()
    revive = killed_after(monkeypatch, last)
    with pytest.raises(Killed):
        score_(job, "picky", "brightness", batch_size=2)
    revive()
    seen.clear()
    score_(job, "picky", "brightness", batch_size=2, progress=progress)
    assert seen == [(4, 2), (5, 2)]


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


class Unsaid(Brightness):
    pass


def test_a_reward_that_does_not_say_what_it_depends_on_begins_again(folder, monkeypatch):
    job = plan(folder)
    unfinished(job, monkeypatch)
    again = lambda: score(job, {"brightness": Unsaid()}, "scores.csv", 2)
    SEEN.clear()
    with pytest.warns(NotKept, match="begins again: .*Unsaid does not say"):
        assert again().scored == len(job.items)
    with pytest.warns(NotKept, match="repeated begins again"):
        assert again().scored == len(job.items)
    assert sum(SEEN) == 2 * len(job.items)
    with pytest.raises(FileExistsError, match="weights and options differ"):
        score_(job, "brightness", batch_size=2)


def test_the_command_says_once_that_nothing_is_kept(folder, run, monkeypatch):
    monkeypatch.setattr(rewards.console, "load", lambda name, *_: Unsaid())
    command = (folder, "--reward", "brightness", "--batch-size", "1")
    revive = killed_after(monkeypatch, 1, KeyboardInterrupt)
    code, _, err = run(*command)
    revive()
    assert code == 130
    assert err.count("note: a run that is interrupted or repeated begins again: ") == 1
    assert "interrupted: the same command begins again" in err


@pytest.mark.skipif(not hasattr(os, "O_NOFOLLOW"), reason="links are followed on this system")
def test_a_journal_that_is_a_link_or_a_pipe_changes_no_other_file(folder, tmp_path):
    other, journal = tmp_path / "other", journal_path("scores.csv")
    other.write_text("of somebody")
    journal.symlink_to(other)
    for restart in (False, True):
        with pytest.raises(OSError, match=r"scores\.csv\.partial\.jsonl"):
            score_(plan(folder), "brightness", restart=restart)
    assert other.read_text() == "of somebody"
    journal.unlink()
    for pipe in (journal, Path("scores.csv")):
        os.mkfifo(pipe)
        with pytest.raises(OSError, match=rf"{pipe.name} must be a regular file, got a pipe"):
            score_(plan(folder), "brightness")
        pipe.unlink()
