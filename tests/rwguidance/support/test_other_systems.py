"""What other systems refuse or lack: locks, files that are open, folders, names, homes, letters."""

import io
import multiprocessing
import os
import sys
import unicodedata
from pathlib import Path

import pytest
import torch
from PIL import Image

from other_systems import Colliding, homeless, windows
from rewards.prompt_files import Prompt, _resolve
from rwguidance import Bank
from rwguidance.app.cli import main
from rwguidance.generation.folder import Folder
from rwguidance.store import Store
from rwguidance.support import files
from rwguidance.support.files import expanded, flush, open_regular, replacing
from rwguidance.support.locks import locked, remove_released

ROOT = Path(__file__).resolve().parents[3]

needs_linux = pytest.mark.skipif(sys.platform != "linux", reason="Linux alone plays Windows")
ALIKE = ["A cat", "a cat", "A CAT", "caf\u00e9", "cafe\u0301", "con", "nul", "a.", "a ", "a:b"]
"""Prompts whose names would be one file on some system, or none."""


@pytest.fixture
def windows_here(tmp_path, monkeypatch):
    monkeypatch.setattr(files, "_MOMENT", 0.05)
    with windows(tmp_path):
        yield tmp_path


@needs_linux
class TestWindows:
    def test_a_lock_is_of_one_holder_who_is_named(self, windows_here):
        with locked(windows_here / "a"):
            message = f"a is in use by process {os.getpid()}: wait"
            with pytest.raises(ValueError, match=message), locked(windows_here / "a"):
                pass
        assert not list((windows_here / "a").iterdir())
        with locked(windows_here / "a"):
            pass

    def test_a_lock_of_the_dead_is_free(self, tmp_path):
        held = tmp_path / "held"
        if not (child := os.fork()):
            with windows(tmp_path), locked(tmp_path):
                held.touch()
                os._exit(9)
        assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 9
        assert held.exists()
        assert (tmp_path / ".lock").read_text() == str(child)
        with windows(tmp_path):
            remove_released(tmp_path)
            assert not (tmp_path / ".lock").exists()
            with locked(tmp_path):
                pass

    def test_a_holder_that_lives_in_another_process_keeps_its_lock(self, tmp_path):
        (begun, begin), (end, ending) = os.pipe(), os.pipe()
        if not (child := os.fork()):
            with windows(tmp_path), locked(tmp_path):
                os.write(begin, b"1")
                os.read(end, 1)
                os._exit(0)
        os.read(begun, 1)
        with windows(tmp_path):
            remove_released(tmp_path)
            with pytest.raises(ValueError, match=f"process {child}"), locked(tmp_path):
                pass
        os.write(ending, b"1")
        os.waitpid(child, 0)

    def test_a_file_that_is_open_elsewhere_stays_and_the_error_says_what_to_do(self, windows_here):
        path = windows_here / "results.csv"
        path.write_bytes(b"old")
        with (
            path.open("rb"),
            pytest.raises(PermissionError, match=r"close it if .*results\.csv") as caught,
            replacing(path) as partial,
        ):
            partial.write_bytes(b"new")
        assert caught.value.filename == str(path)
        assert [found.name for found in windows_here.iterdir()] == ["results.csv"]
        assert path.read_bytes() == b"old"

    def test_a_file_that_is_closed_in_a_moment_is_waited_for(self, windows_here, monkeypatch):
        path = windows_here / "file"
        path.write_bytes(b"old")
        reader = path.open("rb")
        monkeypatch.setattr(files, "_MOMENT", 10.0)
        monkeypatch.setattr(files.time, "sleep", lambda seconds: reader.close())
        with replacing(path, durable=True) as partial:
            partial.write_bytes(b"new")
        assert path.read_bytes() == b"new"

    def test_folders_are_not_flushed_and_files_are(self, windows_here):
        flush(windows_here)
        (windows_here / "file").write_bytes(b"x")
        flush(windows_here / "file")
        with pytest.raises(FileNotFoundError):
            flush(windows_here / "nowhere")

    def test_what_is_no_file_is_still_refused(self, windows_here):
        (windows_here / "folder").mkdir()
        with pytest.raises(OSError, match="folder"):
            open_regular(windows_here / "folder")

    def test_a_store_is_found_again_and_is_not_taken_for_an_old_one(self, windows_here):
        store = Store(windows_here / "store")
        drawer = store.of({"prompt": "a", "seed": 0})
        drawer.append("x_0", 0, torch.arange(3.0))
        again = Store(windows_here / "store").of({"prompt": "a", "seed": 0})
        assert again.read("x_0").tolist() == [0, 1, 2]
        assert [found.origin["prompt"] for found in store.drawers(seed=0)] == ["a"]

    def test_a_bank_that_is_open_cannot_be_replaced_and_stays(self, windows_here):
        path = windows_here / "bank.safetensors"
        Bank(torch.zeros(2, 3)).save(path)
        with path.open("rb"), pytest.raises(PermissionError, match="close it if"):
            Bank(torch.ones(2, 3)).save(path)
        assert Bank.load(path).x_0.sum() == 0

    def test_columns_and_folders_of_prompts_that_are_alike_are_apart(self, windows_here):
        folder, drawer = Folder(windows_here, {}), Store(windows_here / "store").of({"seed": 0})
        for prompt in ALIKE:
            for path in folder.files(prompt, 0):
                path.parent.mkdir(parents=True, exist_ok=True)
                path.write_bytes(b"x")
            drawer.append(f"rewards/{prompt}", 0, torch.zeros(2))
        assert len({column.folder for column in drawer.columns()}) == len(ALIKE)

    def test_what_is_played_refuses_what_windows_refuses(self, windows_here):
        for name in ("con", "nul.txt", "a.", "a ", "a:b"):
            with pytest.raises(OSError, match="Invalid"):
                (windows_here / name).write_bytes(b"")
        (windows_here / "Cafe\u0301").mkdir()
        with pytest.raises(Colliding):
            (windows_here / "caf\u00e9").mkdir()
        (windows_here / "text").write_text("a\n\u00e9")
        assert (windows_here / "text").read_bytes() == b"a\r\n\xe9"


def test_images_of_another_drive_are_not_in_the_folder(tmp_path, monkeypatch):
    def refuse(path, start):
        raise ValueError("path is on mount 'D:', start on mount 'C:'")

    monkeypatch.setattr(os.path, "relpath", refuse)
    for name in ("/elsewhere/a.png", "/a.png"):
        with pytest.raises(ValueError, match=r"p\.csv, line 3: the image .* is not in the folder"):
            _resolve(tmp_path, {}, Path("p.csv"), Prompt(3, name, ""))


@pytest.mark.parametrize("form", ["NFC", "NFD"])
def test_names_match_in_either_composition(tmp_path, form):
    stored = unicodedata.normalize(form, "caf\u00e9.png")
    known = {unicodedata.normalize("NFC", stored): stored, stored: stored}
    for other in ("NFC", "NFD"):
        name = unicodedata.normalize(other, stored)
        assert _resolve(tmp_path, known, Path("p.csv"), Prompt(2, name, "")) == stored
    prompt = Prompt(2, "a\\b.png", "")
    assert _resolve(tmp_path, {"a/b.png": "a/b.png"}, Path("p.csv"), prompt) == "a/b.png"


class TestNoHome:
    def test_a_path_below_it_is_refused_with_what_to_do(self):
        with homeless():
            with pytest.raises(
                ValueError, match="~/x is in the home folder, and there is none: give"
            ):
                expanded("~/x")
            assert expanded("x/~/y") == Path("x/~/y")

    def test_the_name_of_nobody_is_a_name(self):
        assert expanded("~nobody-of-that-name/x") == Path("~nobody-of-that-name/x")

    def test_a_store_is_to_be_named(self):
        with homeless(), pytest.raises(ValueError, match="--cache"):
            Store.default()

    def test_the_command_says_it_in_a_line(self, monkeypatch, capsys):
        monkeypatch.setattr(sys, "argv", ["rwguidance", "demo", "--out", "~/demo"])
        with homeless(), pytest.raises(SystemExit) as stop:
            main()
        assert stop.value.code == 1
        assert capsys.readouterr().err.startswith("error: ~/demo is in the home folder")


def filled(folder):
    """Fills a column, in a process that has imported everything anew."""

    column = Store(folder).of({"seed": 0}).column("x_0")
    column.fill(4, lambda rows: torch.tensor([float(i) for i in rows]), 2)


def test_processes_that_are_spawned_share_a_store(tmp_path):
    process = multiprocessing.get_context("spawn").Process(target=filled, args=(tmp_path,))
    process.start()
    filled(tmp_path)
    process.join()
    assert process.exitcode == 0
    assert Store(tmp_path).of({"seed": 0}).read("x_0").tolist() == [0, 1, 2, 3]


OWN = """
from evaluations import Flat
from pixel_law import Brightness, Law

law, bright, flat = Law(), Brightness(), Flat()
"""
MODEL = [*("--backbone", "own.py:law", "--reward", "own.py:bright"), "--cache", "cache"]
COMMANDS = {
    "help": ["--help"],
    "rewards": ["rewards"],
    "a reward": ["rewards", "pickscore"],
    "backbones": ["backbones"],
    "prompts": ["prompts"],
    "a set": ["prompts", "p.csv"],
    "toy": ["toy", "--batch", "8", "--bank", "64", "--training-steps", "0"],
    "score": ["score", "images", "--reward", "jpeg", "--prompts", "p.csv", "--restart"],
    "scored": ["score", "images", "--reward", "jpeg", "--prompts", "p.csv"],
    "generate": ["generate", *MODEL, "--prompt", "\u732b", "--method", "best-of-n"],
    "evaluate": ["evaluate", *MODEL, "--prompts", "p.csv", "--method", "best-of-n:n=2",
                 "--images", "2", "--strengths", "1", "--target-draws", "4",
                 "--embedding", "own.py:flat"],
    "prepare": ["prepare", "--help"],
    "train": ["train", "--help"],
}  # fmt: skip


@pytest.mark.parametrize(
    ("encoding", "commands"),
    [
        *(pytest.param(name, COMMANDS, id=name) for name in ("cp1252", "cp437", "ascii")),
        pytest.param(
            "ascii", {"demo": ["demo", "--digits", "--quick"]}, id="demo", marks=pytest.mark.slow
        ),
    ],
)
def test_every_command_prints_on_a_console_of_few_letters(
    tmp_path, monkeypatch, encoding, commands
):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "images").mkdir()
    Image.new("RGB", (16, 16)).save(tmp_path / "images" / "\u732b.png")
    (tmp_path / "own.py").write_text(OWN)
    (tmp_path / "p.csv").write_text("prompt\n\u732b \u00e9 \u2013 \U0001f984\n", encoding="utf-8")
    for name, arguments in commands.items():
        streams = [io.TextIOWrapper(io.BytesIO(), encoding=encoding) for _ in range(2)]
        monkeypatch.setattr(sys, "argv", ["rwguidance", *arguments])
        monkeypatch.setattr(sys, "stdout", streams[0])
        monkeypatch.setattr(sys, "stderr", streams[1])
        code = 0
        try:
            main()
        except SystemExit as stop:
            code = stop.code or 0
        for stream in streams:
            stream.flush()
        shown, said = (stream.buffer.getvalue().decode(encoding, "replace") for stream in streams)
        assert code == 0, f"{name}: {said}"
        assert shown, name


def test_texts_are_written_as_bytes_and_homes_found_in_one_place():
    # A text would get other line ends on Windows, and so another digest.
    for package in ("rwguidance", "rewards", "backbones", "testbed/rwguidance_testbed"):
        for path in (ROOT / package).rglob("*.py"):
            for line in path.read_text(encoding="utf-8").splitlines():
                assert ".write_text(" not in line or "_RESET" in line, f"{path}: {line}"
                assert ".read_text()" not in line, f"{path}: {line}"
                assert ".expanduser()" not in line or path.name == "files.py", f"{path}: {line}"
