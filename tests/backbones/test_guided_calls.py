"""Guidance belongs to one pipeline and one call, and copies are whole."""

import copy
import pickle
import threading
import warnings
from contextlib import nullcontext

import pytest
import torch

import backbones
from backbones import guide
from backbones.guided_steps import _strings
from pipeline_cases import QUIET
from rwguidance import Bank, ImportanceSampling, Tilt, UnreliableEstimate
from rwguidance.estimators.base import ConditionalExpectation, Estimate

pytestmark = QUIET

FAMILIES = ("sdxl", "sd3", "flux")


DRAWS = torch.randn(8, 4, 8, 8, generator=torch.Generator().manual_seed(0))


class Told(ConditionalExpectation):
    """No shift; keeps the conditions that it is told."""

    def __init__(self):
        super().__init__()
        self.told = []

    def forward(self, model, x_t, t, condition=None):
        self.told.append(None if condition is None else tuple(condition))
        shift = torch.zeros_like(x_t)
        return Estimate(model(x_t, t, condition), shift.flatten(1).sum(1), shift)


def call(pipe, **keywords):
    settings = {
        "prompt": "a cat",
        "num_inference_steps": 3,
        "height": 16,
        "width": 16,
        "guidance_scale": 0.0,
        "output_type": "latent",
        "generator": torch.Generator().manual_seed(1),
    }
    pipe.set_progress_bar_config(disable=True)
    return pipe(**{**settings, **keywords}).images


def interrupt(pipe, i, t, keywords):
    pipe._interrupt = True
    return keywords


def fail(pipe, i, t, keywords):
    raise RuntimeError("stopped")


@pytest.fixture(params=FAMILIES)
def pair(request):
    told = Told()
    return guide(backbones.tiny(request.param), told), told


class TestCallsEnd:
    @pytest.mark.parametrize("stop", [interrupt, fail])
    def test_a_stopped_call_is_forgotten(self, pair, stop):
        guided, told = pair
        with pytest.raises(RuntimeError, match="stopped") if stop is fail else nullcontext():
            call(guided, prompt="a dog", callback_on_step_end=stop)
        assert set(told.told) == {("a dog",)}
        assert guided.scheduler._guidance.call.prompts is None
        told.told.clear()
        # Another pipeline that was lent the scheduler knows no prompts, nor the size of tokens.
        other = type(guided)._unguided.from_pipe(guided)
        flux = "Flux" in type(guided).__name__
        with pytest.raises(ValueError, match="height and width") if flux else nullcontext():
            call(other, prompt="a cat")
        assert set(told.told) == (set() if flux else {None})
        told.told.clear()
        call(guided, prompt="a fox")
        assert set(told.told) == {("a fox",)}

    def test_embeddings_after_prompts_are_not_taken_for_those(self):
        told = Told()
        guided = guide(backbones.tiny("sd3"), told)
        call(guided, prompt="a dog")
        told.told.clear()
        with torch.no_grad():
            text, _, pooled, _ = guided.encode_prompt(
                "a cat", None, None, do_classifier_free_guidance=False
            )
        call(guided, prompt=None, prompt_embeds=text, pooled_prompt_embeds=pooled)
        assert set(told.told) == {None}

    def test_a_call_within_a_call_has_facts_of_its_own(self, pair):
        guided, told = pair

        def another(pipe, i, t, keywords):
            if i == 1:
                return keywords
            step, timesteps = pipe.scheduler._step_index, pipe.scheduler.timesteps
            sigmas = getattr(pipe.scheduler, "sigmas", None)
            call(guided, prompt="inside", num_inference_steps=1)
            pipe.scheduler._step_index, pipe.scheduler.timesteps = step, timesteps
            pipe.scheduler.sigmas = sigmas
            return keywords

        call(guided, prompt="outside", num_inference_steps=2, callback_on_step_end=another)
        assert told.told == [("outside",), ("inside",), ("outside",)]

    def test_the_plain_pipeline_stays_plain(self):
        told = Told()
        pipe = backbones.tiny("sd3")
        before = call(pipe)
        guide(pipe, told)
        assert (
            type(pipe).__call__ is type(pipe)._unguided.__call__
            if hasattr(type(pipe), "_unguided")
            else True
        )
        assert torch.equal(call(pipe), before)
        assert told.told == []


@pytest.mark.parametrize(
    ("given", "known"),
    [
        ("a cat", ("a cat",)),
        (["a cat", "a dog"], ("a cat", "a dog")),
        (("a cat",), ("a cat",)),
        (["a cat", 3], None),  # classes and words: a pipeline of another kind
        ([3, "a cat"], None),
        (["a cat", None], None),
        ([], None),
        (None, None),
        (torch.zeros(2), None),
        ({"a cat": 1}, None),
    ],
)
def test_prompts_are_known_if_all_are_text(given, known):
    assert _strings(given) == known


class TestWarnings:
    @pytest.fixture
    def doubtful(self):
        pipe = backbones.tiny("sdxl")
        draws = torch.randn(32, 4, 8, 12, generator=torch.Generator().manual_seed(0))
        bank = Bank(draws, ["a cat"] * 32, torch.linspace(0, 30, 32))
        return guide(pipe, ImportanceSampling(bank, Tilt(lambda x, c: x, 1.0)))

    @pytest.mark.parametrize("keywords", [{}, {"denoising_end": 0.8}])
    def test_once_per_call_also_if_it_ends_early(self, doubtful, keywords):
        for _ in range(2):
            with warnings.catch_warnings(record=True) as caught:
                warnings.simplefilter("always")
                call(doubtful, height=16, width=24, num_inference_steps=10, **keywords)
            names = [warning.category.__name__ for warning in caught]
            assert names.count("UnreliableEstimate") == 1

    def test_none_of_a_call_that_failed(self, doubtful):
        with warnings.catch_warnings():
            warnings.simplefilter("error", UnreliableEstimate)
            with pytest.raises(RuntimeError, match="stopped"):
                call(doubtful, height=16, width=24, callback_on_step_end=fail)


class TestCopies:
    @pytest.mark.parametrize("key", FAMILIES)
    def test_a_deep_copy_uses_its_own_encoders(self, key):
        pipe = backbones.tiny(key)
        guided = guide(pipe, Told())

        def without_text(copied):
            for name in ("text_encoder", "text_encoder_2", "text_encoder_3"):
                for parameter in getattr(getattr(copied, name, None), "parameters", tuple)():
                    parameter.data.zero_()
            return copied

        plain = call(without_text(copy.deepcopy(pipe)))
        copied = call(without_text(copy.deepcopy(guided)))  # the shift is zero
        torch.testing.assert_close(copied, plain, rtol=1e-5, atol=1e-5)
        assert not torch.allclose(call(pipe), plain, rtol=1e-3, atol=1e-3)

    def test_copies_do_not_tell_each_other(self, pair):
        guided, told = pair
        copied = copy.deepcopy(guided)
        assert copied.scheduler._guidance is not guided.scheduler._guidance
        assert copied.scheduler._guidance.estimator is told
        call(guided, prompt="a dog")
        call(copied, prompt="a cat")
        assert told.told == [("a dog",)] * 3 + [("a cat",)] * 3

    def test_two_threads_with_a_copy_each(self):
        first = Told()
        guided = guide(backbones.tiny("sd3"), first)
        copies = [guide(copy.deepcopy(guided), Told()) for _ in range(2)]
        prompts = ["a dog", "a cat"]
        threads = [
            threading.Thread(target=call, args=(pipe,), kwargs={"prompt": prompt})
            for pipe, prompt in zip(copies, prompts, strict=True)
        ]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        for pipe, prompt in zip(copies, prompts, strict=True):
            assert set(pipe.scheduler._guidance.estimator.told) == {(prompt,)}
        assert first.told == []

    @pytest.mark.parametrize("what", ["pipeline", "scheduler"])
    def test_pickling_says_to_guide_in_the_process(self, what):
        pipe = backbones.tiny("sd3")
        guided = guide(pipe, Told())
        thing = guided if what == "pipeline" else guided.scheduler
        with pytest.raises(TypeError, match="send the plain pipeline to the other"):
            pickle.dumps(thing)
        plain = guide(guided, None)
        thing = plain if what == "pipeline" else plain.scheduler
        again = pickle.loads(pickle.dumps(thing))
        assert type(again) is type(pipe if what == "pipeline" else pipe.scheduler)


class TestOrigins:
    @pytest.mark.parametrize(
        ("origin", "keywords", "message"),
        [
            ({"guidance_scale": 4.5}, {}, r"guidance_scale must be .* 4\.5, got 0\.0"),
            ({"guidance scale": 4.5}, {}, r"guidance_scale must be .* 4\.5, got 0\.0"),
            (
                {"negative_prompt": "blurry"},
                {"negative_prompt": "dark"},
                "negative_prompt must be .* 'blurry', got 'dark'",
            ),
        ],
    )
    def test_a_bank_of_another_law_is_refused_before_the_network(self, origin, keywords, message):
        pipe = backbones.tiny("sd3")
        called = []
        pipe.transformer.register_forward_pre_hook(lambda *_: called.append(1))
        bank = Bank(DRAWS, ["a cat"] * 8, torch.zeros(8), origin)
        guided = guide(pipe, ImportanceSampling(bank, Tilt(lambda x, c: x, 1.0)))
        with pytest.raises(ValueError, match=message):
            call(guided, **keywords)
        assert not called

    @pytest.mark.filterwarnings("ignore::rwguidance.UnreliableEstimate")
    def test_what_fits_or_is_not_stated_passes(self):
        pipe = backbones.tiny("sdxl")
        origin = {"guidance_scale": 0.0, "negative_prompt": "blurry", "sampler": "DDIM"}
        bank = Bank(DRAWS, ["a cat"] * 8, torch.zeros(8), origin)
        guided = guide(pipe, ImportanceSampling(bank, Tilt(lambda x, c: x, 1.0)))
        call(guided)
