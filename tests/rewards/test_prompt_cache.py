"""Threads may share a reward: embeddings are those of one thread, whenever they change over."""

import copy
import pickle
import time
from collections import OrderedDict
from concurrent.futures import ThreadPoolExecutor

import pytest
import torch

from rewards.prompt_cache import PromptCache
from scored_folders import Moody


class Slow(OrderedDict):
    """Threads change over at every access, as they may at any time."""

    def __contains__(self, key):
        found = super().__contains__(key)
        time.sleep(1e-6)
        return found

    def __setitem__(self, key, value):
        super().__setitem__(key, value)
        time.sleep(1e-6)


class Lengths(Moody):
    def embed_prompts(self, prompts):
        return torch.stack([torch.arange(3.0) + len(prompt) for prompt in prompts])


@pytest.mark.parametrize("size", [0, 3, 100])
def test_threads_that_share_a_reward_get_the_embeddings_of_one(size):
    reward = Lengths(size)
    prompts = lambda k: ["x" * (1 + (k + j) % 7) for j in range(4)]
    truth = [reward.encode_prompts(prompts(k)) for k in range(7)]
    reward.forget_prompts()
    reward._cache._entries = Slow()

    def ask(i):
        for k in range(i, i + 20):
            assert torch.equal(reward.encode_prompts(prompts(k)), truth[k % 7])

    with ThreadPoolExecutor(8) as pool:
        list(pool.map(ask, range(8)))
    assert len(reward._cache) == min(size, 7)


def test_every_prompt_is_embedded_once_and_no_more_than_256_together():
    class Counted(Lengths):
        def embed_prompts(self, prompts):
            embedded.append(list(prompts))
            return super().embed_prompts(prompts)

    embedded, prompts = [], [f"{i}" for i in range(600)]
    Counted(cache_size=0).encode_prompts([*prompts[:3], *prompts, *prompts[:3]])
    assert embedded == [prompts[:256], prompts[256:512], prompts[512:]]


def test_what_is_embedded_while_the_reward_moves_is_not_kept():
    class Moved(Lengths):
        def embed_prompts(self, prompts):
            self.double()  # as another thread may do
            return super().embed_prompts(prompts)

    reward = Moved()
    reward.encode_prompts(["a"])
    assert not reward._cache


@pytest.mark.parametrize("copied", [copy.deepcopy, lambda x: pickle.loads(pickle.dumps(x))])
def test_a_copy_has_a_cache_of_its_own(copied):
    reward = Moody()
    reward.encode_prompts(["a"])
    twin = copied(reward)
    twin.encode_prompts(["b"])
    assert (list(reward._cache), list(twin._cache)) == (["a"], ["b"])


def test_the_cache_keeps_what_was_used_last():
    cache = PromptCache()
    one = torch.ones(1)
    cache.keep({"a": one, "b": one}, 2)
    cache.keep({**cache.find(["a"]), "c": one}, 2)
    assert list(cache) == ["a", "c"]
    assert set(cache.find(["a", "b", "c"])) == {"a", "c"}
