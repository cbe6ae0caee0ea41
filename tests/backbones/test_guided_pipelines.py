"""A guided pipeline stays what it is: its kind, its class, its scheduler, its precision."""

import copy
import inspect

import diffusers
import pytest
import torch
from torch.testing import assert_close

import backbones
from backbones import guide
from guided_pipelines import Elsewhere, Network, Probe, importance, reward, run, run_case
from law_pipelines import tiny
from pipeline_cases import (
    PROMPTS,
    QUIET,
    SIZE,
    distance,
    offload_one_by_one,
    offload_whole_models,
)
from rwguidance import LearnedShift, PlugIn, Tilt, UnreliableEstimate

pytestmark = QUIET


# Other pipelines


def test_image_to_image():
    pipe = tiny("sdxl")
    components = {k: v for k, v in pipe.components.items() if k != "image_encoder"}
    components.pop("feature_extractor")
    other = diffusers.StableDiffusionXLImg2ImgPipeline(**components, add_watermarker=False)
    other.set_progress_bar_config(disable=True)
    image = torch.rand(1, 3, 16, 24, generator=torch.Generator().manual_seed(0))
    keywords = {"image": image, "strength": 0.5, "guidance_scale": 3.0}
    plain = run(other, 4, **keywords)
    probe = Probe(shift=0.5)
    assert distance(run(guide(other, probe), 4, **keywords), plain) > 1e-2
    assert [len(told[2]) for told in probe.told] == [3, 3]
    assert probe.told[0][1] < 0.6
    assert probe.told[0][2].embeddings["text"].shape[0] == 3
    learned = LearnedShift(Network(scalar=False))
    assert distance(run(guide(other, learned), 4, **keywords), plain) > 1e-2
    differentiated = guide(other, PlugIn(Tilt(reward, 0.5)))  # through the call, made again
    assert distance(run(differentiated, 4, **keywords), plain) > 1e-3


@pytest.mark.parametrize(
    ("name", "blocks"),
    [("sdxl", "StableDiffusionXLAutoBlocks"), ("sd3", "StableDiffusion3AutoBlocks")],
)
def test_modular_pipelines(name, blocks):
    if not hasattr(diffusers, blocks):
        pytest.skip("this version of diffusers has no such modular pipeline")
    pipe = tiny(name)
    modular = getattr(diffusers, blocks)().init_pipeline()
    names = set(modular.component_names)
    modular.register_components(**{k: v for k, v in pipe.components.items() if k in names and v})
    modular.set_progress_bar_config(disable=True)

    def latents(pipe):
        with torch.random.fork_rng(devices=[]):
            return pipe(
                prompt=PROMPTS,
                num_inference_steps=2,
                generator=torch.Generator().manual_seed(1),
                output="latents",
                output_type="latent",
                **SIZE,
            )

    plain = latents(modular)
    shape = (4 if name == "sdxl" else 16, 8, 12)
    estimator = importance(shape, PROMPTS)
    guided = guide(modular, estimator, condition=PROMPTS)
    assert isinstance(guided, type(modular))
    assert type(guided).__name__ == type(modular).__name__
    truth = latents(guided)
    assert distance(truth, plain) > 1e-2
    assert torch.equal(latents(modular), plain)
    assert torch.equal(latents(guide(guided, None)), plain)
    lent = copy.copy(modular)
    lent.update_components(scheduler=guided.scheduler)
    assert torch.equal(latents(lent), truth)
    with pytest.raises(ValueError, match="pass guide"):
        latents(guide(modular, estimator))
    with pytest.raises(TypeError, match="Modular"):
        latents(guide(modular, PlugIn(Tilt(reward, 0.5))))


@pytest.mark.parametrize("offload", [offload_one_by_one, offload_whole_models])
def test_an_offloaded_network_is_reached_again(offload):
    pipe = backbones.tiny("sdxl")
    guided = [guide(pipe, estimator) for estimator in (PlugIn(Tilt(reward, 0.5)), Elsewhere())]
    truth = [run_case("sdxl-cfg", one, 2) for one in guided]
    with torch.random.fork_rng(devices=[]):
        offload(pipe)
        assert_close([run_case("sdxl-cfg", one, 2) for one in guided], truth)


# The pipeline and its scheduler stay what they are


@pytest.mark.parametrize("name", ["sdxl", "sd3"])
def test_the_class_the_weights_and_the_given_pipeline(name):
    pipe = tiny(name)
    before, scheduler = dict(vars(pipe)), str(vars(pipe.scheduler))
    guided = guide(pipe, importance((4 if name == "sdxl" else 16, 8, 12)))
    run_case(name, guided, 2)
    assert isinstance(guided, type(pipe))
    assert type(guided).__name__ == type(pipe).__name__
    assert vars(pipe) == before
    assert str(vars(pipe.scheduler)) == scheduler
    assert all(
        value is guided.components[key]
        for key, value in pipe.components.items()
        if key != "scheduler"
    )
    cls = type(guided.scheduler)
    assert issubclass(cls, type(pipe.scheduler))
    assert (cls.__name__, cls.__module__) == (
        type(pipe.scheduler).__name__,
        type(pipe.scheduler).__module__,
    )
    assert type(guide(pipe, Probe()).scheduler) is cls, "one class for each scheduler class"
    assert guided.scheduler.config == pipe.scheduler.config
    assert guided.config == pipe.config
    assert inspect.signature(guided.scheduler.step) == inspect.signature(pipe.scheduler.step)
    plain = guide(guided, None)
    assert type(plain.scheduler) is type(pipe.scheduler)
    assert type(plain) is type(pipe)
    assert set(vars(plain)) == set(vars(guided))


def test_guiding_again_replaces():
    pipe = tiny("sdxl")
    first, second = Probe(shift=1.0), Probe(shift=0.5)
    truth = run_case("sdxl", guide(pipe, second), 2)
    again = guide(guide(pipe, first), second)
    assert torch.equal(run_case("sdxl", again, 2), truth)
    assert not first.told
    assert len(second.told) == 4
    assert type(again.scheduler).__mro__[1] is type(pipe.scheduler)


def test_saved_and_loaded_it_is_the_plain_pipeline(tmp_path):
    pipe = tiny("sd3")
    guided = guide(pipe, Probe(shift=1.0))
    truth = run_case("sd3", pipe, 2)
    assert distance(run_case("sd3", guided, 2), truth) > 1e-2
    guided.save_pretrained(tmp_path)
    loaded = type(pipe).from_pretrained(tmp_path, local_files_only=True)
    loaded.set_progress_bar_config(disable=True)
    assert type(loaded.scheduler) is type(pipe.scheduler)
    assert distance(run_case("sd3", loaded, 2), truth) <= 1e-5


def test_an_estimator_is_told_of_prompts_and_not_of_negative_ones():
    pipe, texts = tiny("flux"), []
    if "true_cfg_scale" not in inspect.signature(type(pipe).__call__).parameters:
        pytest.skip("this version of diffusers has no such option")
    for keywords in ({}, {"negative_prompt": ["fog"] * 3, "true_cfg_scale": 3.0}):
        probe = Probe()
        run_case("flux", guide(pipe, probe), 1, **keywords)
        condition = probe.told[0][2]
        assert list(condition) == PROMPTS
        texts.append(condition.stacked()["text"])
    assert_close(*texts)


def test_schedulers_can_be_copied_and_rebuilt():
    pipe, probe = tiny("sdxl"), Probe(shift=1.0)
    probe.register_buffer("bank", torch.zeros(3))
    probe.__deepcopy__ = lambda memo: pytest.fail("the bank was copied")
    guided = guide(pipe, probe)
    twin = copy.deepcopy(guided.scheduler)
    assert type(twin) is type(guided.scheduler)
    rebuilt = type(twin).from_config(twin.config)
    assert rebuilt.config == pipe.scheduler.config
    truth, plain = run_case("sdxl", guided, 2), run_case("sdxl", pipe, 2)
    guided.scheduler = twin
    assert torch.equal(run_case("sdxl", guided, 2), truth)
    assert list(probe.told[-1][2]) == PROMPTS, "a copy belongs to the same calls"
    guided.scheduler = rebuilt
    assert torch.equal(run_case("sdxl", guided, 2), plain)


@pytest.mark.parametrize("name", ["sdxl", "sd3"])
def test_half_precision(name):
    with torch.random.fork_rng(devices=[]):
        pipe = copy.deepcopy(tiny(name))
    pipe.set_progress_bar_config(disable=True)
    shape = (4 if name == "sdxl" else 16, 8, 12)
    part, key = ("unet", "sdxl-cfg") if name == "sdxl" else ("transformer", "sd3")
    for estimator in (importance(shape, PROMPTS), PlugIn(Tilt(reward, 0.5))):
        kwargs = {"window": (0.0, 0.99)}
        truth = run_case(key, guide(pipe.to(torch.float32), estimator, **kwargs), 2)
        wide = run_case(key, pipe, 2)
        pipe.to(torch.bfloat16)
        assert getattr(pipe, part).dtype == torch.bfloat16
        latents = run_case(key, guide(pipe, estimator, **kwargs), 2)
        rounding = distance(run_case(key, pipe, 2).float(), wide)
        assert latents.dtype == torch.bfloat16
        assert distance(latents.float(), truth) <= 3 * rounding + 0.05


def test_unreliable_guidance_warns_once_per_run():
    pipe = tiny("sdxl")
    guided = guide(pipe, importance((4, 8, 12), kernel=None))
    for _ in range(2):
        with pytest.warns(UnreliableEstimate, match=r"meaningless at t=.*, t=") as record:
            run_case("sdxl", guided, 4)
        assert sum(issubclass(one.category, UnreliableEstimate) for one in record) == 1


def test_doubts_of_a_run_that_was_stopped_are_forgotten():
    pipe = tiny("sdxl")
    estimator = importance((4, 8, 12), kernel=None)
    guided, fresh = guide(pipe, estimator), guide(pipe, estimator)

    def stop(pipe, step, *_):
        if step == 3:  # late enough for doubts
            raise KeyboardInterrupt
        return {}

    with pytest.raises(KeyboardInterrupt):
        run_case("sdxl", guided, 5, callback_on_step_end=stop)
    messages = []
    for one in (guided, fresh):
        with pytest.warns(UnreliableEstimate) as record:
            run_case("sdxl", one, 2)
        messages += [str(one.message) for one in record if one.category is UnreliableEstimate]
    assert len(messages) == 2
    assert messages[0] == messages[1]
