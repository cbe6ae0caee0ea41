"""Objects from a user's file are imported when asked for, and known by the file's digest."""

import hashlib
import sys

import pytest

from rwguidance.support.user_code import UserCodeError, load_object, user_digest

SOURCE = """
from dataclasses import dataclass
from collections import OrderedDict

def score(x, condition=None):
    return x.flatten(1).sum(1)

@dataclass
class Scorer:
    factor: float = 2.0

    def __call__(self, x, condition=None):
        return self.factor * score(x)

instance = Scorer(3.0)
foreign = OrderedDict()
"""


@pytest.fixture
def file(tmp_path):
    path = tmp_path / "mine.py"
    path.write_text(SOURCE)
    return path


def test_functions_classes_and_objects_of_a_file_are_known_by_its_digest(file):
    digest = hashlib.sha256(SOURCE.encode()).hexdigest()
    score, scorer = (load_object(f"{file}:{name}") for name in ("score", "Scorer"))
    instance = load_object(f"{file}:instance")
    assert type(instance) is scorer  # one module, however often it is asked
    for value in (score, scorer, scorer(5.0), instance):
        assert user_digest(value) == digest
    assert user_digest(load_object(f"{file}:foreign")) == f"{digest} foreign"
    assert user_digest(len) is None
    assert user_digest(3.0) is None


def test_a_changed_file_is_another_one(file):
    first = load_object(f"{file}:score")
    file.write_text(SOURCE.replace("sum", "mean"))
    second = load_object(f"{file}:score")
    assert user_digest(first) != user_digest(second)
    assert first is not second


def test_the_same_content_elsewhere_has_the_same_digest(file, tmp_path):
    (tmp_path / "b").mkdir()
    other = tmp_path / "b" / "other.py"
    other.write_text(SOURCE)
    one, two = load_object(f"{file}:score"), load_object(f"{other}:score")
    assert one is not two
    assert user_digest(one) == user_digest(two)


def test_the_folder_is_not_imported_from(file):
    before = list(sys.path)
    load_object(f"{file}:score")
    assert sys.path == before
    assert "mine" not in sys.modules


@pytest.mark.parametrize(
    ("place", "message"),
    [
        ("score", "FILE.py:NAME"),
        ("mine.py", "FILE.py:NAME"),
        ("mine.txt:score", "FILE.py:NAME"),
        ("mine.py:a b", "FILE.py:NAME"),
        ("absent.py:score", "cannot be read"),
        ("mine.py:scores", "no 'scores', it has .*Scorer.*score"),
        ("broken.py:score", "broken.py cannot be imported: SyntaxError"),
        ("raises.py:score", "raises.py cannot be imported: ZeroDivisionError"),
        ("exits.py:score", "exits.py cannot be imported: SystemExit: 3"),
    ],
)
def test_there_is_one_clear_error(file, monkeypatch, place, message):
    monkeypatch.chdir(file.parent)
    (file.parent / "broken.py").write_text("def score(:")
    (file.parent / "raises.py").write_text("1 / 0")
    (file.parent / "exits.py").write_text("import sys; sys.exit(3)")
    modules = set(sys.modules)
    with pytest.raises(UserCodeError, match=message):
        load_object(place)
    # A file that fails leaves nothing behind.
    assert set(sys.modules) == modules or place.startswith("mine.py")
