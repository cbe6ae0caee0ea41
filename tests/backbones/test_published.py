"""Backbones from a name, a folder, a file, a repository or a pipeline."""

import math
import shutil
from dataclasses import replace

import diffusers
import pytest
import torch
from safetensors.torch import load_file, save_file
from torch.testing import assert_close

import backbones
from backbones.autoencoders import in_dtype
from backbones.console import facts
from common import randn
from law_pipelines import with_scheduler
from pipeline_cases import EULER, QUIET, SIZE

pytestmark = QUIET


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    saved = {}
    for name in ("sdxl-turbo", "sdxl", "sd3", "flux-schnell", "flux"):
        saved[name] = tmp_path_factory.mktemp(name)
        backbones.tiny(name).save_pretrained(saved[name])
    return saved


NAMES = {
    "sdxl": ("sdxl", 50, 5.0),
    "sdxl-turbo": ("sdxl-turbo", 4, None),
    "sd3.5-medium": ("sd3", 40, 4.5),
    "sd3.5-large": ("sd3", 28, 3.5),
    "sd3.5-large-turbo": ("sd3", 4, None),
    "flux-schnell": ("flux-schnell", 4, None),
    "flux-dev": ("flux", 50, 3.5),
}


def test_the_published_names():
    assert set(NAMES) <= set(backbones.available())


@pytest.mark.parametrize("name", NAMES)
def test_a_name_and_a_folder_make_a_backbone(name, folders):
    folder, steps, scale = NAMES[name]
    backbone = backbones.load(name, folders[folder], **SIZE)
    assert (backbone.steps, backbone.guidance_scale) == (steps, scale)
    assert not backbone.training
    assert not any(p.requires_grad for p in backbone.parameters())
    twin = backbones.from_pipeline(backbones.tiny(folder), scale, **SIZE)
    x_t = randn(0, 2, backbone.channels, 8, 12, dtype=torch.float32)
    with torch.no_grad():
        loaded, fresh = (b(x_t, 0.5, b.condition(["a", "b"])) for b in (backbone, twin))
    if name != "flux-schnell":  # of which the published one sees fewer tokens
        assert_close(loaded.mean, fresh.mean, rtol=1e-4, atol=1e-4)


def test_weights_are_read_in_the_precision_asked_for(folders):
    backbone = backbones.load("sdxl-turbo", folders["sdxl-turbo"], "cpu", torch.bfloat16)
    assert {p.dtype for p in backbone.parameters()} == {torch.bfloat16}
    assert backbone.dtype == torch.bfloat16


def test_guidance_that_a_model_does_not_have(folders):
    for name, folder in (("sdxl-turbo", "sdxl-turbo"), ("sd3.5-large-turbo", "sd3")):
        with pytest.raises(ValueError, match=f"{name} was distilled to run without .*, got 5"):
            backbones.load(name, folders[folder], guidance_scale=5.0)
        assert not backbones.load(name, folders[folder], guidance_scale=0.0).guided
    with pytest.raises(ValueError, match="flux-schnell was distilled to run without"):
        backbones.load("flux-schnell", folders["flux-schnell"], guidance_scale=3.5)
    with pytest.raises(ValueError, match=r"guidance_scale must be None, .*schnell.* got 3\.5"):
        backbones.from_pipeline(backbones.tiny("flux-schnell"), 3.5)
    with pytest.raises(ValueError, match="holds a model that takes a guidance scale, so it is not"):
        backbones.load("flux-schnell", folders["flux"])
    for scale in (-1.0, math.inf, math.nan):
        with pytest.raises(ValueError, match=f"guidance_scale must be at least 0.* got {scale}"):
            backbones.from_pipeline(backbones.tiny("sdxl"), scale)


def test_folders_that_hold_something_else(folders, tmp_path):
    with pytest.raises(
        ValueError, match="holds a FluxPipeline, but sdxl is a StableDiffusionXLPipeline"
    ):
        backbones.load("sdxl", folders["flux"])
    with pytest.raises(
        FileNotFoundError, match=r"no model_index\.json in .*hf download stabilityai"
    ):
        backbones.load("sdxl", tmp_path)
    with pytest.raises(FileNotFoundError, match="no file or directory with the backbone 'sdxl' at"):
        backbones.load("sdxl", tmp_path / "absent")
    with pytest.raises(ValueError, match="config is for single-file checkpoints, but path is"):
        backbones.load("sdxl", folders["sdxl"], config=tmp_path)
    with pytest.raises(TypeError, match=r"takes \(.*guidance_scale=5\.0.*\): .*'guidance'"):
        backbones.load("sdxl", folders["sdxl"], guidance=5.0)


@pytest.mark.parametrize("name", ["sdxl-turbo", "sd3.5-large-turbo", "flux-schnell"])
def test_a_variant_is_read_where_it_is_asked_for(name, tmp_path):
    pipe = backbones.tiny(NAMES[name][0])
    pipe.to(torch.float16).save_pretrained(tmp_path, variant="fp16")
    backbone = backbones.load(name, tmp_path, variant="fp16", **SIZE)
    assert {p.dtype for p in backbone.parameters()} == {torch.float32}
    half = backbones.load(name, tmp_path, dtype=torch.float16, variant="fp16", **SIZE)
    weights = {key: p.clone() for key, p in half.named_parameters()}
    assert all(torch.equal(p.half(), weights[key]) for key, p in backbone.named_parameters())
    for asked in (None, "bf16"):
        message = f"holds weights of variant='fp16', got variant={asked!r}; pass one"
        with pytest.raises(FileNotFoundError, match=message):
            backbones.load(name, tmp_path, variant=asked)
    backbones.tiny(NAMES[name][0], seed=1).save_pretrained(tmp_path)
    plain = dict(backbones.load(name, tmp_path, **SIZE).named_parameters())
    again = dict(backbones.load(name, tmp_path, variant="fp16", **SIZE).named_parameters())
    assert not all(torch.equal(p.half(), weights[key]) for key, p in plain.items())
    assert all(torch.equal(p.half(), weights[key]) for key, p in again.items())
    with pytest.raises(
        FileNotFoundError, match=r"of variant=None and variant='fp16', got .*'int8'"
    ):
        backbones.load(name, tmp_path, variant="int8")


def test_parts_that_have_no_such_variant_are_read_without(tmp_path):
    backbones.tiny("sdxl").to(torch.float16).save_pretrained(tmp_path, variant="fp16")
    whole = dict(backbones.load("sdxl", tmp_path, variant="fp16", **SIZE).named_parameters())
    file = tmp_path / "text_encoder" / "model.fp16.safetensors"
    file.rename(file.with_name("model.safetensors"))
    mixed = dict(backbones.load("sdxl", tmp_path, variant="fp16", **SIZE).named_parameters())
    assert mixed.keys() == whole.keys()
    assert all(torch.equal(value, whole[name]) for name, value in mixed.items())


def test_the_variants_of_a_folder(tmp_path):
    (tmp_path / "unet").mkdir()
    names = ("model.a.safetensors", "model.b-00001-of-00002.safetensors", "model.json.b.index")
    for name in (*names, "model-00001-of-00002.c.bin"):
        (tmp_path / "unet" / name).touch()
    assert backbones.published._variants(tmp_path) == {"a", "b", "c"}
    (tmp_path / "unet" / "diffusion_pytorch_model-00002-of-00002.safetensors").touch()
    assert backbones.published._variants(tmp_path) == {"a", "b", "c", None}


def replace_loader(monkeypatch, pipe):
    """The calls of `from_pretrained` as (source, keywords); it returns this pipeline."""

    asked = []

    def from_pretrained(source, **keywords):
        asked.append((source, keywords))
        return pipe

    monkeypatch.setattr(diffusers.DiffusionPipeline, "from_pretrained", from_pretrained)
    return asked


@pytest.fixture
def downloads(monkeypatch, folders):
    """What was asked of the hub, which has one repository, whatever its name."""

    asked = []

    def download(source, **keywords):
        asked.append((source, keywords))
        return folders["sd3"]

    monkeypatch.setattr(diffusers.DiffusionPipeline, "download", download)
    return asked


def test_a_variant_of_a_repository_or_of_a_file(downloads, tmp_path):
    backbones.load("sd3.5-large-turbo")
    with pytest.raises(FileNotFoundError, match="weights of variant=None, got variant='fp16'"):
        backbones.load("sd3.5-large-turbo", "hf://someone/tuned", variant="fp16")
    assert [keywords["variant"] for _, keywords in downloads] == [None, "fp16"]
    file = tmp_path / "model.safetensors"
    file.write_bytes(b"")
    with pytest.raises(ValueError, match="variant is for folders and repositories, got 'fp16'"):
        backbones.load("sd3.5-large-turbo", file, config=tmp_path, variant="fp16")


def test_a_hub_that_cannot_be_reached_says_what_to_do(monkeypatch):
    import huggingface_hub

    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    hint = "hf download stabilityai/sdxl-turbo --local-dir DIRECTORY"
    with pytest.raises(FileNotFoundError, match=f"sdxl-turbo cannot be loaded from .*{hint}"):
        backbones.load("sdxl-turbo", "hf://example/no-such-repository")


def test_a_repository_is_asked_for_by_name_and_revision(downloads):
    single = backbones.load("sd3.5-large-turbo")
    half = backbones.load("sd3.5-medium", "hf://someone/tuned@v2", dtype=torch.float16)
    assert [(source, keywords["revision"]) for source, keywords in downloads] == [
        ("stabilityai/stable-diffusion-3.5-large-turbo", None),
        ("someone/tuned", "v2"),
    ]
    for backbone, dtype in ((single, torch.float32), (half, torch.float16)):
        assert {p.dtype for p in backbone.pipe.transformer.parameters()} == {dtype}
    with pytest.raises(ValueError, match="holds a StableDiffusion3Pipeline, but sdxl is a Stable"):
        backbones.load("sdxl", "hf://someone/other")


@pytest.mark.parametrize("key", ["sdxl", "sd3"])
def test_a_text_encoder_that_lacks_weights_is_refused(key, folders, tmp_path):
    """Such as one whose names of weights this version of transformers does not know."""

    folder = tmp_path / key
    shutil.copytree(folders[key], folder)
    file = folder / "text_encoder" / "model.safetensors"
    weights = {name.replace("layers.0", "blocks.0"): w for name, w in load_file(file).items()}
    file.unlink()  # it is mapped
    save_file(weights, file, {"format": "pt"})
    message = r"text_encoder must hold all weights of a CLIPText.* lacks 16, .*layers\.0"
    with torch.random.fork_rng(devices=[]), pytest.raises(ValueError, match=message):
        backbones.load("sdxl" if key == "sdxl" else "sd3.5-medium", folder)


def test_a_folder_is_read_without_the_hub(monkeypatch, folders):
    asked = replace_loader(monkeypatch, backbones.tiny("sd3"))
    backbones.load("sd3.5-large-turbo", folders["sd3"])
    assert [keywords["local_files_only"] for _, keywords in asked] == [True]


def test_a_single_file_is_read_without_the_hub(monkeypatch, tmp_path, folders):
    asked = []
    pipe = backbones.tiny("sdxl")

    def from_single_file(source, **keywords):
        asked.append((source, keywords))
        return pipe

    monkeypatch.setattr(type(pipe), "from_single_file", from_single_file)
    file = tmp_path / "model.safetensors"
    file.write_bytes(b"")
    assert backbones.load("sdxl", file, config=folders["sdxl"]).pipe is pipe
    for config in (None, tmp_path / "absent"):
        with pytest.raises(
            ValueError, match=r"config must be a local folder .*, got .*hf download"
        ):
            backbones.load("sdxl", file, config=config)
    ((source, keywords),) = asked
    assert source == str(file)
    assert keywords["local_files_only"]
    assert keywords["config"] == str(folders["sdxl"])
    assert in_dtype(torch.float32).items() <= keywords.items()


def test_pipelines_that_are_not_supported():
    message = "pipe must be a pipeline of diffusers that has a scheduler, .* got Linear"
    with torch.random.fork_rng(devices=[]):
        other = torch.nn.Linear(1, 1)
    with pytest.raises(TypeError, match=message):
        backbones.from_pipeline(other)
    pipe = with_scheduler(backbones.tiny("sdxl"), "DPMSolverMultistepScheduler")
    with pytest.raises(TypeError, match=r"EulerDiscreteScheduler or .*has DPMSolverMultistepSch"):
        backbones.from_pipeline(pipe)
    with pytest.raises(
        TypeError, match="SD3 adapts StableDiffusion3Pipeline of diffusers, got Sta"
    ):
        backbones.sd3.SD3(pipe)
    pipe = with_scheduler(backbones.tiny("sdxl"), EULER, prediction_type="sample")
    with pytest.raises(
        ValueError, match="prediction_type must be 'epsilon' or 'v_prediction', got"
    ):
        backbones.from_pipeline(pipe)
    pipe = with_scheduler(backbones.tiny("sdxl"), EULER, timestep_type="continuous")
    with pytest.raises(ValueError, match="timestep_type must be 'discrete', got 'continuous'"):
        backbones.from_pipeline(pipe)
    with pytest.raises(ValueError, match="height must be a multiple of 4 pixels, got 18"):
        backbones.from_pipeline(backbones.tiny("flux"), height=18)
    with pytest.raises(ValueError, match="decode_batch must be at least 1, got 0"):
        backbones.from_pipeline(backbones.tiny("flux"), decode_batch=0)
    with pytest.raises(ValueError, match=r"max_sequence_length must lie in \[1, 512\], got 513"):
        backbones.from_pipeline(backbones.tiny("flux"), max_sequence_length=513)
    with pytest.raises(ValueError, match=r"with a T5 encoder, .*XLPipeline has not, got 77"):
        backbones.from_pipeline(backbones.tiny("sdxl"), max_sequence_length=77)


@pytest.fixture
def empty_registry(monkeypatch):
    from rwguidance.support.registry import Registry

    registry = Registry("backbone", "rwguidance.backbones", backbones.registry._check)
    monkeypatch.setattr(backbones.registry, "_registry", registry)


@pytest.mark.usefixtures("empty_registry")
def test_a_backbone_of_ones_own_is_described_by_its_first_line():
    def make(width=8):
        """Makes it.

        Arguments:
            width: Its width.
        """

    backbones.register("mine")(make)
    about = {"name": "mine", "class": "make", "about": "Makes it.", "takes": "(width=8)"}
    assert facts("mine") == about


@pytest.mark.usefixtures("empty_registry")
def test_a_function_may_be_registered_but_must_return_a_backbone():
    backbones.register("good")(lambda: backbones.from_pipeline(backbones.tiny("sd3")))
    backbones.register("bad")(lambda: torch.nn.Identity())
    assert backbones.load("good").default_steps == 28
    with pytest.raises(TypeError, match=r"'bad' must return .*backbones\.Generator, got Identity"):
        backbones.load("bad")


def test_a_model_without_a_family_is_one_string(tmp_path):
    names = {"z-image-turbo": "z-image", "sd-turbo": "sd-turbo", "pixart-sigma": "pixart-sigma"}
    for name, tiny in names.items():
        pipe = backbones.tiny(tiny)
        pipe.save_pretrained(tmp_path / tiny)
        options = {"height": 16, "width": 16}
        if "pixart" in name:
            options["call"] = {"use_resolution_binning": False}
        with torch.random.fork_rng(devices=[]):  # by which some are made before they are read
            backbone = backbones.load(name, tmp_path / tiny, **options)
        assert (
            backbone.steps == {m.name: m for m in backbones.models.MODELS}[name].defaults["steps"]
        )
        assert backbone.guided == (name == "pixart-sigma")
        fresh = backbones.from_pipeline(pipe, backbone.guidance_scale, **options)
        x_t = backbone.draw_noise(1, torch.Generator().manual_seed(0))
        with torch.no_grad():
            loaded, made = (b(x_t, 0.5, b.condition(["a"])).mean for b in (backbone, fresh))
        assert_close(loaded, made, rtol=1e-4, atol=1e-4)
    with pytest.raises(ValueError, match="holds a ZImagePipeline, but sana is a SanaPipeline"):
        backbones.load("sana", tmp_path / "z-image")
    with pytest.raises(ValueError, match="z-image-turbo was distilled to run without"):
        backbones.load("z-image-turbo", tmp_path / "z-image", guidance_scale=5.0)


def test_every_published_model_says_what_one_must_know():
    for model in backbones.models.MODELS:
        assert model.license
        assert model.defaults["steps"] >= 1
        assert hasattr(diffusers, model.pipeline_class) or model.pipeline
        assert model.distilled == (model.defaults.get("guidance_scale") is None)
        place = model.source.removeprefix("hf://")
        assert facts(model.name)["card"] == f"https://huggingface.co/{place}"


@pytest.mark.parametrize("name", ["name", "source", "card", "license", "pipeline", "vae", "lora"])
def test_facts_of_a_published_model_that_are_no_texts_are_named(name):
    with pytest.raises(TypeError, match=rf"^{name} must be a string, got int 3$"):
        replace(backbones.models.MODELS[0], **{name: 3})


def test_an_unknown_backbone_is_refused_with_those_that_exist():
    with pytest.raises(LookupError, match=r"^there is no backbone 'sdxl-turbi', there are '"):
        backbones.load("sdxl-turbi")
