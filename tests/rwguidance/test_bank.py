"""Bank: grouping, scoring, and files that are whole or absent."""

import pytest
import safetensors.torch
import torch
from hypothesis import given
from hypothesis import strategies as st

from common import assert_rounds_to, randn, seeds
from rwguidance import Bank, Tilt


@given(st.lists(st.sampled_from(["b", "a", 3, ("x", 1)]), min_size=1, max_size=30), seeds)
def test_conditions_are_grouped_stably(labels, seed):
    n = len(labels)
    x_0, rewards, log_q = randn(seed, n, 2), randn(seed + 1, n), randn(seed + 2, n)
    bank = Bank(x_0, labels, rewards, log_importance=log_q)
    assert list(bank.rows) == list(dict.fromkeys(labels))
    for key, rows in bank.rows.items():
        members = [i for i in range(n) if labels[i] == key]
        assert torch.equal(bank.x_0[rows], x_0[members])
        assert torch.equal(bank.rewards[rows], rewards[members])
        assert torch.equal(bank.log_importance[rows], log_q[members])
        assert bank.condition[rows] == (key,) * len(members)
    assert len(bank) == n == sum(rows.stop - rows.start for rows in bank.rows.values())


def test_one_bank_may_serve_every_condition():
    bank = Bank(randn(0, 4, 2, 3))
    assert bank.condition is None
    assert bank.rows == {None: slice(0, 4)}


def test_labels_may_be_a_tensor():
    bank = Bank(torch.arange(4.0)[:, None], torch.tensor([7, 3, 7, 3]))
    assert bank.condition == (7, 7, 3, 3)
    assert bank.x_0.flatten().tolist() == [0, 2, 1, 3]


def test_the_input_is_not_changed():
    x_0, labels, rewards = randn(0, 4, 2), ["b", "a", "b", "a"], randn(1, 4)
    Bank(x_0, labels, rewards)
    assert torch.equal(x_0, randn(0, 4, 2))
    assert torch.equal(rewards, randn(1, 4))
    assert labels == ["b", "a", "b", "a"]


def letters(x, condition):
    return x.flatten(1).sum(1) + torch.tensor([len(c) for c in condition]).to(x)


@pytest.mark.parametrize("tilt", [Tilt(letters, 0.3), Tilt([letters, letters], [0.3, 2.0])])
def test_scoring_in_batches_equals_scoring_at_once(tilt):
    bank = Bank(randn(0, 10, 2), ["a", "abc"] * 5)
    at_once = bank.scored(tilt, batch_size=10)
    assert torch.equal(at_once.rewards, tilt.score(bank.x_0, bank.condition))
    for size in (1, 3, 64):
        assert_rounds_to(bank.scored(tilt, size).rewards, at_once.rewards, terms=3)
    assert bank.rewards is None
    assert torch.equal(at_once.x_0, bank.x_0)
    assert at_once.condition == bank.condition


def test_the_decoder_of_a_bank_serves_tilts_without_one():
    reward = lambda x, condition: x[:, 0]
    bank = Bank(randn(0, 3, 2), decode=lambda x: 2 * x)
    assert torch.equal(bank.scored(Tilt(reward, 1.0)).rewards, 2 * bank.x_0[:, 0])
    assert torch.equal(bank.scored(Tilt(reward, 1.0, lambda x: -x)).rewards, -bank.x_0[:, 0])


def test_scoring_records_no_gradients_and_decodes_batch_by_batch():
    sizes = []

    def decode(x):
        assert not torch.is_grad_enabled()
        sizes.append(len(x))
        return 2 * x

    x_0 = randn(0, 10, 2).requires_grad_()
    scored = Bank(x_0).scored(Tilt(lambda x, condition: x[:, 0], 1.0, decode), 4)
    assert sizes == [4, 4, 2]
    assert not scored.rewards.requires_grad
    assert torch.equal(scored.rewards, 2 * x_0.detach()[:, 0])


def test_progress_is_shown_when_asked_for(capsys):
    Bank(randn(0, 10, 2)).scored(Tilt(lambda x, c: x[:, 0], 1.0), 4, progress=True)
    assert "scoring the bank" in capsys.readouterr().out


def test_casting_keeps_the_precision_of_rewards():
    bank = Bank(randn(0, 4, 2), list("abab"), randn(1, 4), log_importance=randn(2, 4))
    bank = bank.to(dtype=torch.bfloat16)
    assert bank.x_0.dtype == torch.bfloat16
    assert bank.rewards.dtype == bank.log_importance.dtype == torch.float64
    assert list(bank.rows) == ["a", "b"]


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("condition", [None, ["ü", "", "ü", ""], [3, -1, 3, -1]])
@pytest.mark.parametrize("rewards", [None, (4,), (4, 2)])
def test_a_file_holds_the_bank_bit_for_bit(tmp_path, dtype, condition, rewards):
    rewards = None if rewards is None else randn(1, *rewards)
    log_q = None if rewards is None else randn(2, 4).float()
    bank = Bank(randn(0, 4, 3, 2).to(dtype), condition, rewards, log_importance=log_q)
    path = tmp_path / "bank.safetensors"
    bank.save(path)
    loaded = Bank.load(path)
    assert loaded.x_0.dtype == dtype
    assert torch.equal(loaded.x_0, bank.x_0)
    assert loaded.condition == bank.condition
    assert loaded.rows == bank.rows
    assert (loaded.rewards is None) == (rewards is None)
    assert rewards is None or torch.equal(loaded.rewards, bank.rewards)
    assert (loaded.log_importance is None) == (log_q is None)
    assert log_q is None or torch.equal(loaded.log_importance, bank.log_importance)
    assert [p.name for p in tmp_path.iterdir()] == ["bank.safetensors"]


@pytest.mark.parametrize(
    ("values", "error", "message"),
    [
        (torch.zeros(3), ValueError, r"log_importance must .*\(4,\).* got .*\(3,\)"),
        (torch.zeros(4, 1), ValueError, r"got .*\(4, 1\)"),
        (torch.zeros(4, dtype=torch.int64), TypeError, "log_importance must be a floating-point"),
        ([0.0] * 4, TypeError, "log_importance must be a floating-point"),
        (torch.tensor([0, torch.inf, 0, torch.nan]), ValueError, "log_importance must be finite"),
    ],
)
def test_log_importances_are_finite_numbers_one_per_draw(values, error, message):
    with pytest.raises(error, match=message):
        Bank(randn(0, 4, 2), log_importance=values)


def test_what_cannot_use_importances_refuses_them():
    Bank(randn(0, 4, 2)).check_of_model("x")
    with pytest.raises(ValueError, match="an objective needs draws of the model itself, without"):
        Bank(randn(0, 4, 2), log_importance=torch.zeros(4)).check_of_model("an objective")


def test_a_bank_of_strided_draws_is_saved(tmp_path):
    draws = randn(0, 3, 4).T
    assert not draws.is_contiguous()
    Bank(draws).save(tmp_path / "bank")
    assert torch.equal(Bank.load(tmp_path / "bank").x_0, draws)


def test_a_failed_write_leaves_the_old_file_and_no_other(tmp_path, monkeypatch):
    path = tmp_path / "bank.safetensors"
    Bank(randn(0, 4, 2)).save(path)
    before = path.read_bytes()

    def full_disk(tensors, filename, metadata=None):
        filename.write_bytes(b"half a file")
        raise OSError("no space left on device")

    monkeypatch.setattr(safetensors.torch, "save_file", full_disk)
    with pytest.raises(OSError, match="no space left"):
        Bank(randn(1, 4, 2)).save(path)
    assert path.read_bytes() == before
    assert [p.name for p in tmp_path.iterdir()] == ["bank.safetensors"]


def test_a_refused_save_writes_nothing(tmp_path):
    with pytest.raises(TypeError, match="must be strings or integers, got tuple"):
        Bank(randn(0, 2, 2), [("a", 1), ("b", 2)]).save(tmp_path / "bank")
    assert not list(tmp_path.iterdir())


def test_what_is_not_a_bank_is_not_loaded(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"no bank at .*absent"):
        Bank.load(tmp_path / "absent")
    with pytest.raises(FileNotFoundError, match=r"no directory .*absent to save a bank in"):
        Bank(randn(0, 2, 2)).save(tmp_path / "absent" / "bank")
    other = tmp_path / "other.safetensors"
    safetensors.torch.save_file({"weight": torch.zeros(2)}, other)
    with pytest.raises(
        ValueError, match=r"a safetensors file but not a bank, it holds \['weight'\]"
    ):
        Bank.load(other)
    safetensors.torch.save_file({f"part {i}": torch.zeros(2) for i in range(10)}, other)
    with pytest.raises(ValueError, match=r"it holds \['part 0', .*'part 7'\]"):
        Bank.load(other)


@pytest.mark.parametrize("name", ["x_0", "rewards", "log_importance"])
def test_numbers_of_8_bits_without_scales_are_refused_by_the_file(tmp_path, name):
    tensors = {
        "x_0": torch.zeros(3, 2),
        "rewards": torch.zeros(3),
        "log_importance": torch.zeros(3),
    }
    tensors[name] = tensors[name].to(torch.float8_e4m3fn)
    file = tmp_path / "bank.safetensors"
    safetensors.torch.save_file(tensors, file, {"condition": "null"})
    with pytest.raises(ValueError, match=rf"bank\.safetensors .*{name} must be .*float8"):
        Bank.load(file)


def test_a_bank_is_read_on_the_device_that_is_asked_for(tmp_path):
    bank, path = Bank(randn(0, 3, 2)), tmp_path / "bank.safetensors"
    bank.save(path)
    for options in ({}, {"device": None}, {"device": "cpu"}, {"device": torch.device("cpu")}):
        assert torch.equal(Bank.load(path, **options).x_0, bank.x_0)
    with pytest.raises(ValueError, match="device meta"):  # which files cannot be read on
        Bank.load(path, device="meta")
