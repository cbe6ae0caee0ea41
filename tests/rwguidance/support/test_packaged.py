"""Files inside installed packages: found without an import, and whole or not at all."""

import json
import sys

import pytest

from rwguidance.support import packaged
from rwguidance.support.packaged import digests, in_package, package_folder, write_hashes


@pytest.fixture
def model(tmp_path, monkeypatch):
    """A folder of an installed package `flowers`, with hashes, which must not be imported."""

    root = tmp_path / "site" / "flowers" / "weights"
    (root / "rose" / "part").mkdir(parents=True)
    (root.parent / "__init__.py").write_text("raise RuntimeError('imported')")
    (root / "rose" / "config.json").write_text("{}")
    (root / "rose" / "part" / "weights.bin").write_bytes(bytes(range(256)))
    write_hashes(root)
    monkeypatch.syspath_prepend(tmp_path / "site")
    yield root / "rose"
    packaged._checked.cache_clear()


ROSE = "package://flowers/weights/rose"


def test_it_is_found_and_compared_once(model, monkeypatch):
    assert in_package(ROSE)
    assert not in_package("hf://flowers/rose")
    assert package_folder(ROSE) == model
    monkeypatch.setattr(packaged, "_digest", None)
    assert package_folder(ROSE) == model
    assert "flowers" not in sys.modules


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (None, "is missing"),
        (bytes(range(255)), "is changed or cut short, at 255 bytes"),
        (bytes(range(255)) + b"\0", "is changed or cut short, at 256 bytes"),
        (b"", "is changed or cut short, at 0 bytes"),
    ],
)
def test_a_file_that_is_not_as_it_was(model, content, said):
    file = model / "part" / "weights.bin"
    whole = file.read_bytes()
    file.unlink() if content is None else file.write_bytes(content)
    for _ in range(2):  # what failed is compared again
        with pytest.raises(ValueError, match=rf"rose is not as it was .*: part/w\S+ {said};"):
            package_folder(ROSE)
    file.write_bytes(whole)
    assert package_folder(ROSE) == model


def test_all_that_is_wrong_is_named_and_what_is_more_does_not_matter(model):
    (model / "more.txt").write_text("")
    (model / "config.json").write_text("{ }")
    (model / "part" / "weights.bin").unlink()
    with pytest.raises(ValueError, match=r"config\.json is .* 3 bytes; part/weights\.bin is"):
        package_folder(ROSE)
    (model / "config.json").write_text("{}")
    (model / "part" / "weights.bin").write_bytes(bytes(range(256)))
    assert package_folder(ROSE) == model


@pytest.mark.parametrize("inside", ["weights/tulip", "", "weights/../../flowers/weights/rose"])
def test_folders_that_are_not_there(model, inside):
    with pytest.raises(FileNotFoundError, match=r"does not come with this version of flowers"):
        package_folder(f"package://flowers/{inside}")
    with pytest.raises(FileNotFoundError, match=r"'weights/tulip' .* which has rose$"):
        package_folder("package://flowers/weights/tulip")


@pytest.mark.parametrize("package", ["tulips_of_nobody", "not a name", "../x", ""])
def test_packages_that_are_not_installed(package):
    with pytest.raises(ImportError, match=r"is not installed"):
        package_folder(f"package://{package}/weights")


def test_a_folder_without_hashes_of_its_own(model):
    (model.parent / "tulip").mkdir()
    with pytest.raises(ValueError, match=r"hashes\.json has no hashes of 'tulip'"):
        package_folder("package://flowers/weights/tulip")
    (model.parent / "hashes.json").unlink()
    assert package_folder("package://flowers/weights/tulip") == model.parent / "tulip"


def test_hashes_that_cannot_be_read(model):
    (model.parent / "hashes.json").write_text("version https://git-lfs.github.com/spec/v1")
    with pytest.raises(ValueError, match=r"hashes\.json cannot be read .*install flowers again"):
        package_folder(ROSE)
    (model.parent / "hashes.json").write_text("[]")
    with pytest.raises(ValueError, match=r"hashes\.json has no hashes of 'rose'"):
        package_folder(ROSE)


def test_the_hash_is_that_of_sha_256(tmp_path):
    (tmp_path / "part").mkdir()
    (tmp_path / "part" / "abc").write_bytes(b"abc")
    expected = "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad"
    assert digests(tmp_path) == {"part/abc": expected}
    assert write_hashes(tmp_path) == {"part": {"abc": expected}}
    assert json.loads((tmp_path / "hashes.json").read_text()) == {"part": {"abc": expected}}
