"""The folder of pictures: what is recognized, made again, or refused."""

import hashlib
import json
from contextlib import nullcontext
from dataclasses import dataclass
from typing import Any

import pytest

from pixel_law import QUIET, Brightness, Law, assert_same_pictures, pixels, run
from rwguidance.generation import BestOfN, Importance
from rwguidance.generation.folder import Folder, claimed
from rwguidance.support.fingerprint import NotKept
from rwguidance.support.processes import ALONE

pytestmark = QUIET


def test_a_finished_run_makes_nothing_again(tmp_path):
    first = run(tmp_path, images=2)
    law, reward = Law(), Brightness()
    again = run(tmp_path, images=2, backbone=law, reward=reward)
    assert (again.made, law.calls, reward._seen) == (0, 0, 0)
    assert again.rows == first.rows
    more = run(tmp_path, images=3, prompts=["ab", "abcdef", "new"])
    assert more.made == 5
    assert more.rows[:2] == first.rows[:2]


def test_a_damaged_picture_is_made_again(tmp_path):
    first = run(tmp_path, images=2)
    path = first.rows[1].files[1]
    path.write_bytes(path.read_bytes()[:60])
    again = run(tmp_path, images=2)
    assert again.made == 1
    assert_same_pictures(again.rows[1], first.rows[1])


def test_pictures_in_the_wrong_place_are_made_again(tmp_path):
    first = run(tmp_path, images=2)
    base, aligned = first.rows[0].files
    kept = base.read_bytes(), aligned.read_bytes()
    base.write_bytes(kept[1])
    aligned.write_bytes(kept[0])
    one, other = first.rows[1].files[0], first.rows[3].files[0]  # of another prompt
    one.write_bytes(other.read_bytes())
    again = run(tmp_path, images=2)
    assert again.made == 2
    assert (base.read_bytes(), aligned.read_bytes()) == kept


def test_pictures_of_other_settings_are_not_mixed(tmp_path):
    first = run(tmp_path)
    with pytest.raises(ValueError, match="other settings: method differ; write elsewhere"):
        run(tmp_path, Importance(bank=32, beta=4.0))
    with pytest.raises(ValueError, match="other settings: reward key differ"):
        run(tmp_path, reward=Brightness(factor=2.0))
    with pytest.raises(ValueError, match="seed"):
        run(tmp_path, seed=4)
    again = run(tmp_path, Importance(bank=32, beta=4.0), restart=True)
    assert again.made == 2
    assert again.rows[0].rewards[1] != first.rows[0].rewards[1]


def test_settings_that_made_no_picture_do_not_bind_the_folder(tmp_path):
    bad = lambda images, prompts: images.mean((1, 2, 3)) > 0
    assert run(tmp_path, reward=Brightness(bad, factor=2.0)).failed
    assert run(tmp_path).made == 2


def test_pictures_of_another_plain_function_are_made_again(tmp_path):
    options = {"prompts": ["ab"], "method": BestOfN(2)}
    with pytest.warns(NotKept):
        run(tmp_path, reward=lambda images, prompts: images.mean((1, 2, 3)), **options)
    with pytest.warns(NotKept):
        again = run(tmp_path, reward=lambda images, prompts: 1 - images.mean((1, 2, 3)), **options)
    assert again.made == 1
    assert again.rows[0].rewards[0] == pytest.approx(
        1 - pixels(again.rows[0])[0].mean() / 255, abs=0.01
    )


@dataclass(frozen=True)
class Best(BestOfN):
    name = "best"

    choose: Any = None


def test_pictures_of_a_method_that_does_not_say_what_it_depends_on_are_made_again(tmp_path):
    options = {"prompts": ["ab"], "method": Best(2, choose=lambda values: max(values))}
    for _ in range(2):
        with pytest.warns(
            NotKept, match="kept for another run: the function .* cannot say"
        ) as said:
            assert run(tmp_path, **options).made == 1
        assert len(said) == 1
    with pytest.raises(ValueError, match="other settings: method differ"):
        run(tmp_path, prompts=["ab"], method=Best(2))


def test_unwritable_prompts_and_long_ones_have_folders(tmp_path):
    prompts = ["../../etc", "日本語", "a" * 300, "A cat!", "a cat", "x/y\\z:?"]
    made = run(tmp_path, prompts=prompts)
    folders = {row.files[0].parent for row in made.rows}
    assert len(folders) == 6
    assert all(folder.parent == tmp_path for folder in folders)


def test_a_folder_is_named_by_forty_letters_of_its_prompt_and_sixteen_digits(tmp_path):
    prompts = ["A cat! " * 10, "日本語"]
    made = run(tmp_path, prompts=prompts)
    names = [row.files[0].parent.name for row in made.rows]
    digests = [hashlib.sha256(prompt.encode()).hexdigest()[:16] for prompt in prompts]
    assert names == [f"{'a-cat-' * 6}a-ca-{digests[0]}", digests[1]]


@pytest.mark.parametrize("names", [None, (), ("a",), ("b",), ("a", "b")])
def test_a_run_has_begun_if_one_of_its_files_is_there(tmp_path, names):
    plan, begun_by = tmp_path / "plan.json", () if names is None else ("a", "b")
    claim = lambda settings: claimed(plan, settings, "out holds", ALONE, begun_by)
    with claim({"x": 1, "y": (2,)}):
        assert json.loads(plan.read_text()) == {"x": 1, "y": [2]}
    for name in names or ():
        (tmp_path / name).touch()
    begun = names is None or names
    message = "^out holds another x: use another folder, or the same settings$"
    refused = pytest.raises(ValueError, match=message) if begun else nullcontext()
    with refused, claim({"x": 2, "y": [2]}):
        pass
    assert json.loads(plan.read_text())["x"] == (1 if begun else 2)


def test_a_batch_is_absent_if_one_of_its_files_is(tmp_path):
    folder = Folder(tmp_path, {"undescribed": []})
    files = [path for number in (0, 1) for path in folder.files("ab", number)]
    assert len(set(files)) == 4
    assert folder.absent("ab", [0, 1])
    for path in files:
        path.parent.mkdir(exist_ok=True)
        path.touch()
    assert not folder.absent("ab", [0, 1])
    assert folder.absent("ab", [1, 2])
    assert folder.absent("abc", [0])
    for path in files:
        path.unlink()
        assert folder.absent("ab", [0, 1])
        path.touch()
    assert Folder(tmp_path, {"undescribed": ["a reason"]}).absent("ab", [0, 1])
