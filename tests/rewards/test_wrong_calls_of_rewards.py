"""Wrong calls of rewards: one clear error at once, which names the argument."""

import pytest
import torch

import rewards
from common import needs_testbed
from rewards import JPEG, LowerConfidenceBound, RemoteReward, WeightedSum, serve
from rewards.constraints import constrained_tilt
from rewards.prompt_files import plan
from rewards.scoring import score
from rwguidance import Bank
from scored_folders import Brightness, Moody

pytestmark = pytest.mark.usefixtures("registered")

URL = "http://127.0.0.1:1/"
TWO = torch.full((2, 3, 8, 8), 0.5)
BANK = Bank(torch.zeros(2, 1), rewards=torch.tensor([0.0, 1.0]))

WRONG = {
    "quality as a word": (lambda: JPEG(quality="high"), TypeError, "quality must be an integer"),
    "quality None": (lambda: JPEG(quality=None), TypeError, "quality must be an integer, got None"),
    "quality 90.5": (lambda: JPEG(quality=90.5), TypeError, "quality must be an integer"),
    "quality 96": (lambda: JPEG(quality=96), ValueError, "quality must .*95.*got 96"),
    "a flag as a word": (
        lambda: JPEG(incompressible="no"),
        TypeError,
        "incompressible must be True or False, got str 'no'",
    ),
    "timeout as a word": (
        lambda: RemoteReward(URL, timeout="1"),
        TypeError,
        "timeout must be",
    ),
    "timeout None": (
        lambda: RemoteReward(URL, timeout=None),
        TypeError,
        "timeout must be",
    ),
    "timeout nan": (lambda: RemoteReward(URL, timeout=float("nan")), ValueError, "timeout must"),
    "timeout 0": (lambda: RemoteReward(URL, timeout=0), ValueError, "timeout must .*got 0"),
    "retries 1.5": (
        lambda: RemoteReward(URL, retries=1.5),
        TypeError,
        "retries must be an i",
    ),
    "retries -1": (lambda: RemoteReward(URL, retries=-1), ValueError, "retries must .*got -1"),
    "batch_size 0": (
        lambda: RemoteReward(URL, batch_size=0),
        ValueError,
        "batch_size must",
    ),
    "batch_size True": (
        lambda: RemoteReward(URL, batch_size=True),
        TypeError,
        "batch_size must",
    ),
    "a flag as 1": (
        lambda: RemoteReward(URL, needs_prompt=1),
        TypeError,
        "needs_prompt must",
    ),
    "url None": (lambda: RemoteReward(None), TypeError, "url must be an address.*got None"),
    "url 5": (lambda: RemoteReward(5), TypeError, "url must be an address.*got int 5"),
    "token 5": (lambda: RemoteReward(URL, token=5), TypeError, "token must be a string"),
    "variable 5": (
        lambda: RemoteReward(URL, token_variable=5),
        TypeError,
        "token_variable must",
    ),
    "range None": (
        lambda: RemoteReward(URL, typical_range=None),
        ValueError,
        "typical_range must be .low, high.*got None",
    ),
    "range of words": (
        lambda: RemoteReward(URL, typical_range=("a", "b")),
        ValueError,
        "typical_range must be .low, high",
    ),
    "serve None": (lambda: serve(None), TypeError, "reward must be a Reward, got None"),
    "serve a class": (
        lambda: serve(JPEG),
        TypeError,
        "reward must .* class JPEG",
    ),
    "port as a word": (
        lambda: serve(Brightness(), port="80"),
        TypeError,
        "port must be",
    ),
    "port 70000": (lambda: serve(Brightness(), port=70_000), ValueError, "port must .*got 70000"),
    "host 5": (lambda: serve(Brightness(), host=5), TypeError, "host must be .*got int 5"),
    "cache_size None": (lambda: Moody(None), TypeError, "cache_size must be an integer, got None"),
    "cache_size -1": (lambda: Moody(-1), ValueError, "cache_size must .*got -1"),
    "kappa as a word": (
        lambda: LowerConfidenceBound([Brightness(), Brightness()], "1"),
        TypeError,
        "kappa must be a number, got str '1'",
    ),
    "weights True": (
        lambda: WeightedSum([Brightness()], [True]),
        TypeError,
        r"weights\[0\] must be a number, got bool True",
    ),
    "levels None": (
        lambda: constrained_tilt([lambda x, c: x[:, 0]], [None], BANK, lambda x, c: x[:, 0]),
        TypeError,
        "must be",
    ),
    "a set of prompts": (lambda: Moody()(TWO, {"a", "b"}), TypeError, "prompts must have an order"),
    "a dict of prompts": (
        lambda: Moody()(TWO, {"a": 1, "b": 2}),
        TypeError,
        "prompts must hold",
    ),
    "a matrix of a set": (
        lambda: Moody().score_matrix(TWO, {"a", "b"}),
        TypeError,
        "prompts must have an order",
    ),
    "a set of images": (lambda: Brightness()(set(TWO)), TypeError, "images must be .*got set"),
    "a dict of images": (lambda: Brightness()({0: TWO[0]}), TypeError, "images must be .*got dict"),
    "no rewards of a bank": (
        lambda: Bank(torch.zeros(2, 1), rewards=torch.zeros(2, 0)),
        ValueError,
        r"shape \(2,\), got \(2, 0\)",
    ),
}


@pytest.mark.parametrize("name", WRONG)
def test_a_wrong_call_is_one_clear_error(name):
    call, kind, message = WRONG[name]
    with pytest.raises(kind, match=message):
        call()


@pytest.mark.parametrize("batch_size", [None, "2", 1.5, True, 0])
def test_a_wrong_batch_size_is_refused_before_anything_is_scored(folder, batch_size):
    with pytest.raises((TypeError, ValueError), match="batch_size must"):
        score(plan(folder), {"bright": Brightness()}, "scores.csv", batch_size)


def test_numbers_of_numpy_and_tensors_are_numbers():
    assert JPEG(quality=torch.tensor(50)).quality == 50
    assert RemoteReward(URL, timeout=torch.tensor(2.5), retries=3).timeout == 2.5


# --- what a reward is called ---


@pytest.mark.parametrize(
    ("reward", "shown"),
    [
        (JPEG(quality=50), "JPEG('jpeg', incompressible=False, quality=50, device=None)"),
        (
            RemoteReward("http://127.0.0.1:1/score"),
            "RemoteReward('remote', http://127.0.0.1:1/score, needs_prompt=True, device=None)",
        ),
        (Moody(), "Moody('moody', device=cpu)"),
        (
            WeightedSum([JPEG(), Moody()], [2, 0.5]),
            "WeightedSum('2*jpeg + 0.5*moody', device=cpu)",
        ),
        (
            LowerConfidenceBound([Moody(), JPEG()], 1),
            "LowerConfidenceBound('lcb(moody, jpeg; kappa=1)', device=cpu)",
        ),
    ],
    ids=lambda x: type(x).__name__,
)
def test_a_reward_says_what_it_is_in_one_line(reward, shown):
    assert repr(reward) == shown


@pytest.mark.parametrize("name", ["jpeg", pytest.param("emoji-pick", marks=needs_testbed)])
def test_a_reward_with_a_network_has_one_line(name):
    text = repr(rewards.load(name))
    assert name in text
    assert "\n" not in text
