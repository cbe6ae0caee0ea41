"""Failures: the item is named, the rest goes on, and the same call makes it again."""

import errno
import os
import warnings

import pytest
import torch

from pixel_law import QUIET, Brightness, Law, run, table
from rwguidance.generation import BestOfN, Importance, Network, Store
from rwguidance.generation.failures import reason, summarize
from rwguidance.support.locks import locked
from square_generator import Squares

pytestmark = QUIET

PLAIN = Network(torch.nn.Identity(), scale=0.0)


def failing(error, when):
    def bad(images, prompts):
        if when(images, prompts):
            raise error

    return Brightness(bad)


@pytest.mark.parametrize(
    "error", [RuntimeError("the server is down"), OSError(5, "unreachable"), KeyError("x")]
)
def test_a_reward_that_raises_on_one_picture_costs_its_reward_alone(tmp_path, error):
    whole = run(tmp_path / "whole", PLAIN, ["ab"], images=4)
    dark = min(row.rewards[0] for row in whole.rows) / 100 + 1e-9
    reward = failing(error, lambda images, _: bool((images.mean((1, 2, 3)) < dark).any()))
    made = run(tmp_path / "b", PLAIN, ["ab"], images=4, reward=reward)
    lost = [row for row in made.rows if row.error]
    assert len(lost) == 1
    assert type(error).__name__ in lost[0].error
    assert lost[0].rewards == (None, None)
    again = run(tmp_path / "b", PLAIN, ["ab"], images=4)
    assert again.made == 1
    assert [row.rewards for row in again.rows] == [row.rewards for row in whole.rows]


def test_a_model_that_raises_on_one_prompt_costs_that_prompt(tmp_path):
    class Picky(Law):
        depends_on = Law.depends_on

        def condition(self, prompts):
            if prompts[0] == "ab":
                raise RuntimeError("no such token")
            return super().condition(prompts)

    made = run(tmp_path, PLAIN, backbone=Picky(), images=3, batch_size=2)
    assert [row.prompt for row in made.rows] == ["abcdef"] * 3
    assert made.failed["ab"].splitlines()[0].startswith("RuntimeError: no such token")
    assert "no such token" in table(made.table)[-1]["error"]


def test_one_pixel_that_is_no_number_is_a_failure_of_the_model(tmp_path):
    class Torn(Squares):
        depends_on = ()

        def generate(self, noise, condition):
            pictures = super().generate(noise, condition).clone()
            pictures[0, 0, 0, -1] = torch.nan
            return pictures

    made = run(tmp_path, BestOfN(2), ["ab"], Torn(), images=2)
    assert made.failed["ab"].startswith("the model drew NaN or inf for 'ab' in torch.float64")


def test_a_batch_that_fails_leaves_the_other_batches(tmp_path):
    class Flaky(Law):
        depends_on = Law.depends_on
        incidental = (*Law.incidental, "decoded")
        decoded = 0

        def decode(self, latents):
            self.decoded += 1
            if self.decoded == 3:  # base and aligned pictures of one batch came before
                raise RuntimeError("out of memory")
            return super().decode(latents)

    options = {"prompts": ["ab"], "images": 5, "batch_size": 2}
    made = run(tmp_path / "a", PLAIN, backbone=(law := Flaky()), **options)
    assert [row.number for row in made.rows] == [0, 1, 4]
    assert made.failed == {"ab": "images 2, 3: RuntimeError: out of memory"}
    again = run(tmp_path / "a", PLAIN, backbone=law, **options)
    assert (again.made, again.failed) == (2, {})
    whole = run(tmp_path / "b", PLAIN, **options)
    assert [row.rewards for row in again.rows] == [row.rewards for row in whole.rows]


def test_a_bank_that_fails_is_not_made_again_for_every_batch(tmp_path):
    law = Law()
    options = {"images": 6, "batch_size": 2, "prompts": ["ab"]}
    reward = failing(RuntimeError("down"), lambda images, _: len(images) == 1)  # the fifth draw
    made = run(tmp_path, Importance(bank=5, beta=5.0), reward=reward, backbone=law, **options)
    assert made.failed == {"ab": "RuntimeError: down"}
    assert law.calls == (3 + 3) * 12, "the bank once, and three batches of base pictures"


def test_an_interruption_is_no_failure(tmp_path):
    with pytest.raises(KeyboardInterrupt):
        run(tmp_path, PLAIN, reward=failing(KeyboardInterrupt(), lambda *_: True))


def full(monkeypatch, where):
    """Fills the disk of the files whose path holds a word; returns what empties it."""

    replace = os.replace

    def refuse(source, target):
        if where in str(target):
            raise OSError(errno.ENOSPC, "No space left on device")
        replace(source, target)

    monkeypatch.setattr(os, "replace", refuse)
    return lambda: monkeypatch.setattr(os, "replace", replace)


def test_a_full_disk_costs_the_pictures_that_it_does_not_take(tmp_path, monkeypatch):
    whole = run(tmp_path / "whole", PLAIN, images=3)
    empty = full(monkeypatch, "0001-aligned")
    made = run(tmp_path / "out", PLAIN, images=3)
    assert list(made.failed) == ["ab", "abcdef"]
    for why in made.failed.values():
        assert why.startswith("image 1: OSError: [Errno 28] No space left on device")
    assert [row.number for row in made.rows] == [0, 2, 0, 2]
    empty()
    again = run(tmp_path / "out", PLAIN, images=3)
    assert (again.made, again.failed) == (2, {})
    for left, right in zip(whole.rows, again.rows, strict=True):
        for one, other in zip(left.files, right.files, strict=True):
            assert one.read_bytes() == other.read_bytes()


@pytest.mark.parametrize("name", ["results.csv", "sheet.png"])
def test_a_table_or_a_sheet_that_cannot_be_written_is_named(tmp_path, monkeypatch, name):
    full(monkeypatch, name)
    made = run(tmp_path, PLAIN)
    assert made.made == 2
    ((path, why),) = made.unwritten.items()
    assert path == tmp_path / name
    assert why.startswith("OSError: [Errno 28] No space left on device")


def test_a_full_cache_leaves_draws_in_memory_and_says_so_once(tmp_path, monkeypatch):
    method = Importance(bank=8, beta=5.0)
    whole = run(tmp_path / "whole", method)
    full(monkeypatch, "safetensors")
    store = Store(tmp_path / "store")
    with pytest.warns(RuntimeWarning) as caught:
        made = run(tmp_path / "out", method, store=store)
    assert {str(warning.message) for warning in caught if warning.category is RuntimeWarning} == {
        f"{store.root} cannot keep draws (No space left on device): they stay in memory, and a "
        "later run makes them again; choose another folder with Store(folder) (on the command "
        "line, --cache)"
    }
    assert [row.rewards for row in made.rows] == [row.rewards for row in whole.rows]


def test_a_cache_that_cannot_be_made_is_spared(tmp_path):
    (tmp_path / "file").touch()
    with pytest.warns(RuntimeWarning, match=r"cannot keep draws \((Not a directory|File exists)\)"):
        made = run(tmp_path / "a", BestOfN(2), store=Store(tmp_path / "file" / "store"))
    assert made.made == 2


def test_a_cache_that_works_says_nothing(tmp_path):
    with warnings.catch_warnings():
        warnings.simplefilter("error", RuntimeWarning)
        run(tmp_path / "a", BestOfN(2), store=Store(tmp_path / "store"))


def test_a_folder_in_use_is_refused_before_any_work(tmp_path):
    law = Law()
    with locked(tmp_path), pytest.raises(ValueError, match=f"in use by process {os.getpid()}"):
        run(tmp_path, PLAIN, backbone=law)
    assert law.calls == 0
    assert run(tmp_path, PLAIN).made == 2


def test_reasons_are_one_line_with_the_class_where_the_text_is_not_for_users():
    assert reason(ValueError("a\n  b")) == "a b"
    assert reason(RuntimeError("a\nb")) == "RuntimeError: a b"
    assert reason(AssertionError()) == "AssertionError"
    assert len(reason(ValueError("x" * 9000))) == 503
    assert summarize({3: "a", 1: "b", 2: "a"}, 3) == "image 1: b; images 2, 3: a"
    assert summarize({3: "a", 1: "a"}, 2) == "a"
    assert summarize({3: "a", 1: "a"}, 4) == "images 1, 3: a"
