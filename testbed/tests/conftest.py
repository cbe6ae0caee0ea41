"""Fixtures of every test, those of the library among them; helpers are in ../../tests/common.py."""

import importlib
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest
from emoji_packages import write_packages
from gaussian_teachers import (
    distill_drawings,
    distill_folder,
    distill_vae,
    exact,
    flow_student,
    teacher_flow,
    teacher_unet,
    turbo_student,
)
from squares import draw_squares

from common import generator, global_state_is_untouched
from rwguidance_testbed import flow, vae
from rwguidance_testbed.data import Drawings, command
from rwguidance_testbed.tokenizer import tokenizer_corpus, train_tokenizer

__all__ = [
    "distill_drawings",
    "distill_folder",
    "distill_vae",
    "exact",
    "flow_student",
    "generator",
    "global_state_is_untouched",
    "teacher_flow",
    "teacher_unet",
    "turbo_student",
]


@pytest.fixture(scope="session")
def emoji_packages(tmp_path_factory):
    """A folder of archives and the table that belongs to it."""

    folder = tmp_path_factory.mktemp("packages")
    return folder, write_packages(folder)


@pytest.fixture(scope="session")
def emoji_folder(emoji_packages, tmp_path_factory):
    """A folder with the drawings of these packages."""

    folder, table = emoji_packages
    out = tmp_path_factory.mktemp("drawings")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(command, "sources", lambda: table)
        with pytest.warns(UserWarning, match="the drawings have the hash"):
            command.build(out, folder)
    return out


@pytest.fixture(scope="session")
def emoji_drawings(emoji_folder):
    return Drawings.load(emoji_folder)


@pytest.fixture(scope="session")
def flow_pipe(emoji_drawings, tmp_path_factory):
    """A tiny flow, with a tokenizer learned from these drawings."""

    pytest.importorskip("diffusers")
    folder = tmp_path_factory.mktemp("tokenizer")
    tokenizer = train_tokenizer(tokenizer_corpus(emoji_drawings), folder)
    autoencoder = vae.new(smoke=True)
    autoencoder.register_to_config(scaling_factor=1.0, shift_factor=0.0)
    return flow.new(autoencoder.eval(), tokenizer, smoke=True)


@pytest.fixture(scope="session")
def squares():
    return draw_squares()


@pytest.fixture(scope="session")
def square_folder(squares, tmp_path_factory):
    """A folder with these drawings."""

    path = tmp_path_factory.mktemp("squares")
    squares.save(path)
    return path


@pytest.fixture(scope="session")
def square_tokenizer(squares, tmp_path_factory):
    """A folder with a tokenizer learned from these drawings."""

    path = tmp_path_factory.mktemp("square_tokenizer")
    train_tokenizer(tokenizer_corpus(squares), path)
    return path


@pytest.fixture(scope="session")
def bench():
    """The modules of ../benchmarks."""

    folder = Path(__file__).parents[1] / "benchmarks"
    names = [path.stem for path in folder.glob("*.py")]
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(folder)
        yield SimpleNamespace(**{name: importlib.import_module(name) for name in names})
    for name in names:
        sys.modules.pop(name, None)
