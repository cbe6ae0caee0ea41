"""The shipped models: whole, within their size, documented, and loaded as their formats say."""

import copy
import importlib.util
import json
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from torch.testing import assert_close

import backbones
import rewards
from rwguidance import networks, sample
from rwguidance.app.cli import main
from rwguidance.evaluation import embeddings, prompts
from rwguidance.generation.run import Run
from rwguidance.store import Store
from rwguidance.support import packaged
from rwguidance.support.randomness import seeded
from rwguidance.testing import check_reward
from rwguidance_testbed import encoders, flow, shipped, tokenizer, turbo, vae
from rwguidance_testbed.adversarial import lora
from rwguidance_testbed.prompt_sets import prompts_of
from zoo import can_be_double

diffusers = pytest.importorskip("diffusers")
pytest.importorskip("open_clip")

pytestmark = pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning")

ROOT = Path(__file__).parents[2]
WEIGHTS = shipped._WEIGHTS
THERE = sorted(path.name for path in WEIGHTS.iterdir() if path.is_dir())
PIPELINES = {
    "emoji-flow": (flow, 4, None),
    "emoji-flow-teacher": (flow, 20, 3.0),
    "emoji-turbo": (turbo, 1, None),
}
REWARDS = {"emoji-pick": ("pick", 16), "emoji-hps": ("hps", 24)}
UTILITIES = {"emoji-gold", "emoji-match"}
NETWORKS = ["emoji-turbo-change", "emoji-turbo-guide", "emoji-turbo-noise"]
LORAS = ["emoji-turbo-wide"]
OTHERS = {"emoji-judge", *NETWORKS, "emoji-vae"}
PROMPTS = ["red apple", "a key on a blue background", "", " ".join(["red apple"] * 40)]


def test_what_can_be_shipped_is_registered_and_can_be_trained():
    named = {name for name in backbones.available() if name.startswith("emoji-")}
    named |= {spec.name for spec in rewards.available() if spec.name.startswith("emoji-")}
    assert named == {*PIPELINES, *LORAS, *REWARDS, *UTILITIES}
    assert embeddings.available() == ["emoji-judge"]
    assert "emoji-demo" in [known.name for known in prompts.available()]
    assert networks.available() == NETWORKS
    assert {*PIPELINES, *LORAS, *REWARDS, *OTHERS} == set(shipped.MODELS)
    for module in shipped.MODELS.values():
        assert importlib.util.find_spec(f"rwguidance_testbed.{module}"), module


# What lies in the package.


def test_the_hashes_are_those_of_the_files():
    known = json.loads((WEIGHTS / "hashes.json").read_text())
    found = {name: packaged.digests(WEIGHTS / name) for name in THERE}
    assert known == found, "run `python -m rwguidance_testbed.shipped`"
    assert all(re.fullmatch(r"[0-9a-f]{64}", d) for files in known.values() for d in files.values())
    assert {path.name for path in WEIGHTS.iterdir()} == {*THERE, "hashes.json"}
    assert all(shipped.folder(name) == WEIGHTS / name for name in THERE)
    assert shipped.names() == THERE


def test_everything_is_small():
    size = sum(path.stat().st_size for path in WEIGHTS.rglob("*") if path.is_file())
    assert size <= 40 * 2**20


@pytest.mark.parametrize("name", THERE)
def test_every_model_has_its_card(name):
    card = (WEIGHTS / name / "README.md").read_text(encoding="utf-8")
    assert card.startswith("---\nlicense: mit\n")
    assert f"\n# {name}\n" in card
    assert "rwguidance_testbed/NOTICE" in card
    for heading in ("Data", "Training", "Quality"):
        assert re.search(rf"^\*\*{heading}\.\*\* \S", card, re.MULTILINE), f"no **{heading}.**"
    assert f"python -m rwguidance_testbed.{shipped.MODELS[name]} " in card
    assert re.search(r"^\|.*\| *[\d.]+ *\|", card, re.MULTILINE), "no table with figures"


def paths_in(folder, own=()):
    """Files that name a folder of the machine where they were written, with what they name."""

    pattern = rb"(?<![\w.:/])/(?:home|root|tmp|work|usr|mnt|var|data|Users|content)/\w+"
    found = []
    for path in sorted(path for path in folder.rglob("*") if path.is_file()):
        content = path.read_bytes()
        found += [(path.name, match) for match in re.findall(pattern, content)]
        found += [(path.name, name) for name in own if str(name).encode() in content]
        if path.suffix == ".json":
            named = [v for k, v in flat(json.loads(content)) if k.endswith("name_or_path") and v]
            found += [(path.name, value) for value in named]
    return found


def flat(value, key=""):
    if isinstance(value, dict):
        return [pair for k, v in value.items() for pair in flat(v, k)]
    if isinstance(value, list):
        return [pair for v in value for pair in flat(v, key)]
    return [(key, value)]


@pytest.mark.parametrize("name", THERE)
def test_no_file_names_a_folder_of_its_machine(name):
    assert paths_in(WEIGHTS / name) == []


def test_paths_are_found(tmp_path):
    (tmp_path / "a.json").write_text('{"x": [{"_name_or_path": "somewhere"}]}')
    (tmp_path / "b.md").write_text("--out out/testbed/x, https://a.b/home/c; from /home/me/x")
    torch.save({"at": "/home/me/x", "w": torch.zeros(3)}, tmp_path / "c.pt")
    assert {name for name, _ in paths_in(tmp_path)} == {"a.json", "b.md", "c.pt"}
    assert len(paths_in(tmp_path)) == 3
    assert ("b.md", "out/test") in paths_in(tmp_path, ["out/test"])


def test_git_ignores_nothing_of_it():
    files = [str(path) for path in WEIGHTS.rglob("*") if path.is_file()]
    run = subprocess.run(
        ["git", "check-ignore", "--no-index", *files],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
    )
    if run.returncode == 128:
        pytest.skip("not a checkout")
    assert (run.returncode, run.stdout) == (1, ""), "wheels leave out what git ignores"


# What a version with all models would be.


@pytest.fixture(scope="module")
def weights(tmp_path_factory):
    """Tiny models of every kind, as their training writes them, in the place of the shipped."""

    root = tmp_path_factory.mktemp("package") / "weights"
    root.mkdir()
    folder = root.with_name("tokenizer")
    vocabulary = tokenizer.train_tokenizer(PROMPTS[:2] * 3, folder, size=600)
    autoencoder = vae.new(smoke=True).half()
    autoencoder.register_to_config(scaling_factor=0.8, shift_factor=0.25)
    autoencoder.save_pretrained(root / "emoji-vae")
    pipe = flow.new(autoencoder, vocabulary, smoke=True)
    flow.export(pipe, folder, root / "emoji-flow-teacher")
    pipe.scheduler = diffusers.FlowMatchEulerDiscreteScheduler(shift=3.0)
    flow.export(pipe, folder, root / "emoji-flow")
    pipe = turbo.new(pipe, smoke=True)
    pipe.scheduler = diffusers.EulerAncestralDiscreteScheduler(
        **turbo.SCHEDULE, timestep_spacing="trailing"
    )
    flow.export(pipe, folder, root / "emoji-turbo")
    changed = copy.deepcopy(pipe.unet)
    with torch.no_grad():
        changed.conv_out.weight.add_(0.1)
    lora.write(root / "emoji-turbo-wide", changed, pipe.unet, 1)
    for kind in encoders.KINDS:
        encoders.new(kind, folder, smoke=True).write(root / f"emoji-{kind}")
    return root


@pytest.fixture(scope="module")
def hashed(weights):
    known = shipped.write(weights)
    assert known == json.loads((weights / "hashes.json").read_text())
    assert set(known) == set(shipped.MODELS) - set(NETWORKS)
    return weights


@pytest.fixture
def put(monkeypatch):
    """Puts a folder in the place of the shipped weights."""

    def put(root):
        assert root.name == "weights"
        monkeypatch.setattr(packaged, "_locate", lambda package: root.parent)
        monkeypatch.setattr(shipped, "_WEIGHTS", root)
        return root

    yield put
    packaged._checked.cache_clear()


@pytest.fixture
def full(hashed, put):
    return put(hashed)


@pytest.fixture
def place(put, tmp_path):
    """A place for weights of its own."""

    root = tmp_path / "weights"
    root.mkdir()
    return put(root)


def test_what_training_writes_names_no_folder(weights):
    assert paths_in(weights, [weights, weights.parent]) == []


class TestFolder:
    def test_what_is_not_shipped_says_what_is(self, place):
        (place / "emoji-vae").mkdir()
        shipped.write(place)
        message = r"emoji-pick' does not come with this version .*which has emoji-vae"
        with pytest.raises(FileNotFoundError, match=message + r"; .*rwguidance_testbed\.towers`"):
            shipped.folder("emoji-pick")
        with pytest.raises(FileNotFoundError, match=message):
            rewards.load("emoji-pick")
        with pytest.raises(FileNotFoundError, match=r"emoji-turbo' does not come"):
            backbones.load("emoji-turbo")
        with pytest.raises(FileNotFoundError, match="emoji-judge' does not come"):
            shipped.gold()

    def test_names_that_do_not_exist(self, place):
        with pytest.raises(FileNotFoundError, match=r"weights/emoji-clip' does not come"):
            shipped.folder("emoji-clip")
        (place / "emoji-clip").mkdir()
        with pytest.raises(ValueError, match=r"must be among emoji-flow, .*, got emoji-clip$"):
            shipped.write(place)


def test_the_table_counts_parameters_and_bytes(full):
    rows = [line.split() for line in shipped.report(full).splitlines()]
    assert rows[0] == ["name", "parameters", "bytes"]
    count = {name: (int(n.replace(",", "")), int(b.replace(",", ""))) for name, n, b in rows[1:]}
    *models, last = count
    assert models == sorted(path.name for path in full.iterdir() if path.is_dir())
    assert (last, count["all"]) == ("all", tuple(sum(count[m][i] for m in models) for i in (0, 1)))
    for name, kind in (("emoji-judge", "judge"), ("emoji-pick", "pick"), ("emoji-hps", "hps")):
        own = encoders.read(kind, full / name).parameters()
        assert count[name][0] == sum(p.numel() for p in own)
    files = [path for path in (full / "emoji-hps").iterdir() if path.is_file()]
    assert count["emoji-hps"][1] == sum(len(path.read_bytes()) for path in files)


def test_text_encoders_have_the_names_that_every_version_of_transformers_reads():
    files = list(WEIGHTS.glob("*/text_encoder*/model.safetensors"))
    assert len(files) >= 2
    for file in files:
        assert all(name.startswith("text_") for name in load_file(file)), file


def autoencoder_of(root):
    return diffusers.AutoencoderKL.from_pretrained(root / "emoji-vae").float().eval()


def check_pipeline(name, root, steps):
    """The pictures of the adapter are those of the plain class of diffusers."""

    module, default, scale = PIPELINES[name]
    backbone = backbones.load(name)
    assert (backbone.steps, backbone.guidance_scale) == (default, scale)
    assert (backbone.height, backbone.width) == (64, 64)
    assert {p.dtype for p in backbone.parameters()} == {torch.float32}
    assert not backbone.training
    assert not any(p.requires_grad for p in backbone.parameters())
    one = {"max_sequence_length": 1} if module is flow else {}
    assert {"max_sequence_length": backbone.max_sequence_length} == (
        one or {"max_sequence_length": None}
    )

    pipe = module.read(root / name, autoencoder_of(root))
    pipe.set_progress_bar_config(disable=True)
    expected = pipe(
        PROMPTS[:2],
        height=64,
        width=64,
        num_inference_steps=steps,
        guidance_scale=scale or 0.0,
        generator=torch.Generator().manual_seed(1),
        output_type="pt",
        **one,
    ).images
    generator = torch.Generator().manual_seed(1)
    noise = backbone.draw_noise(2, generator)
    condition, times = backbone.condition(PROMPTS[:2]), backbone.times(steps)
    with torch.no_grad():
        latents = sample(backbone, backbone.sampler, noise, times, condition, generator)
        found = backbone.decode(latents)
    assert found.shape == (2, 3, 64, 64)
    assert_close(found, expected, rtol=0, atol=2e-4)
    assert float((found[0] - found[1]).abs().max()) > 1e-3
    with torch.no_grad():  # what encodes is the inverse of what decodes
        means = pipe.vae.encode(2 * found - 1).latent_dist.mean
        again = (pipe.vae.decode(means).sample / 2 + 0.5).clamp(0, 1)
        assert_close(backbone.decode(backbone.encode(found)), again, rtol=0, atol=2e-4)


def check_towers(name, root, pictures):
    """The scores of the reward are those of the towers as the test bed reads them."""

    kind, limit = REWARDS[name]
    reward = rewards.load(name)
    assert reward.spec.context_length == limit
    assert reward.size == 64 if kind == "hps" else reward.image.size == 64
    towers = encoders.read(kind, root / name).eval()
    with torch.no_grad():
        cosine = towers(pictures, PROMPTS)
        expected = towers.log_scale.exp() * cosine if kind == "pick" else cosine
        found = reward(pictures, PROMPTS)
    assert_close(found, expected, rtol=1e-4, atol=1e-5)
    assert float(cosine.std()) > 1e-4
    return reward, found


@pytest.fixture(scope="module")
def pictures():
    values = torch.randint(256, (4, 3, 8, 8), generator=torch.Generator().manual_seed(0)) / 255
    return torch.nn.functional.interpolate(values, size=64, mode="nearest")


class TestLoading:
    @pytest.mark.parametrize(("name", "steps"), [(name, 2) for name in PIPELINES])
    def test_a_pipeline_is_that_of_diffusers(self, full, name, steps):
        check_pipeline(name, full, steps)

    def test_one_step_is_what_the_turbo_model_takes(self, full):
        check_pipeline("emoji-turbo", full, 1)
        backbone = backbones.load("emoji-turbo")
        assert len(backbone.times()) == 2
        assert len(backbones.load("emoji-flow").times()) == 5

    def test_the_wide_model_is_diffusers_own_sum(self, generator):
        wide, plain = (backbones.load(f"emoji-turbo{end}") for end in ("-wide", ""))
        x_t, condition = plain.draw_noise(2, generator), plain.condition(["sun", "red apple"])
        with torch.no_grad():
            found, before = (b(x_t, 1.0, condition).noise for b in (wide, plain))
            plain.pipe.load_lora_weights(str(WEIGHTS / "emoji-turbo-wide"))  # beside the weights
            beside = plain(x_t, 1.0, condition).noise
        assert_close(found, beside, rtol=1e-3, atol=1e-4)
        assert not torch.allclose(found, before, atol=1e-2)

    @pytest.mark.parametrize("name", ["emoji-flow", "emoji-turbo"])
    def test_all_parts_have_the_precision_asked_for(self, full, name, generator):
        backbone = backbones.load(name, dtype=torch.bfloat16)
        assert {p.dtype for p in backbone.parameters()} == {torch.bfloat16}
        denoised = backbone(
            backbone.draw_noise(1, generator), 0.5, backbone.condition(["sun"])
        ).mean
        assert backbone.decode(denoised).isfinite().all()

    @pytest.mark.parametrize("name", ["emoji-flow", "emoji-turbo"])
    def test_one_of_ones_own(self, full, tmp_path, name):
        own = tmp_path / "own"
        shutil.copytree(full / name, own)
        denoiser = next(own.glob("*/diffusion_pytorch_model.safetensors"))
        from safetensors.torch import save_file

        halved = {key: value / 2 for key, value in load_file(denoiser).items()}
        save_file(halved, denoiser, {"format": "pt"})
        first, second = (
            dict(backbones.load(name, path).named_parameters()) for path in (None, own)
        )
        part = f"components.{denoiser.parent.name}."
        for key, value in first.items():
            assert_close(second[key], value / 2 if key.startswith(part) else value)
        with pytest.raises(ValueError, match=f"{name} was distilled to run without"):
            backbones.load(name, own, guidance_scale=3.0)

    def test_an_autoencoder_of_ones_own(self, full, tmp_path):
        own = vae.new(smoke=True, seed=5)
        own.register_to_config(scaling_factor=2.0, shift_factor=0.0)
        own.save_pretrained(tmp_path / "vae")
        option = backbones.load("emoji-flow", vae=tmp_path / "vae")
        shutil.copytree(full / "emoji-flow", tmp_path / "flow")
        shutil.copytree(tmp_path / "vae", tmp_path / "flow" / "vae")
        inside = backbones.load("emoji-flow", tmp_path / "flow")
        for backbone in (option, inside):
            assert backbone.vae.config.scaling_factor == 2.0
            weights = backbone.vae.state_dict()
            assert all(torch.equal(v, weights[k]) for k, v in own.state_dict().items())
        with seeded(0):
            other = diffusers.AutoencoderTiny()
        with pytest.raises(ValueError, match="vae must have latents of 8 channels"):
            backbones.load("emoji-flow", vae=other)

    def test_paths_that_lead_nowhere(self, full, tmp_path):
        with pytest.raises(
            FileNotFoundError, match=r"no model_index.json .*comes with rwguidance_t"
        ):
            backbones.load("emoji-flow", tmp_path)
        with pytest.raises(ValueError, match="holds a StableDiffusion3Pipeline, but emoji-tu"):
            backbones.load("emoji-turbo", full / "emoji-flow")
        with pytest.raises(ValueError, match=r"config must be .* does not hold, got None$"):
            backbones.load("emoji-flow", full / "emoji-flow" / "model_index.json")
        message = r"emoji-hps needs HPS_v2\S+ and arch.* without path= .*_testbed, and package:"
        with pytest.raises(FileNotFoundError, match=message):
            rewards.load("emoji-hps", tmp_path)
        with pytest.raises(FileNotFoundError, match=r"emoji-pick needs config\.json and model"):
            rewards.load("emoji-pick", tmp_path)

    def test_a_damaged_model_is_not_loaded(self, full, put, tmp_path):
        copy = tmp_path / "weights"
        shutil.copytree(full, copy)
        put(copy)
        pointer = b"version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 1\n"
        (copy / "emoji-vae" / "diffusion_pytorch_model.safetensors").write_bytes(pointer)
        (copy / "emoji-hps" / "architecture.json").write_text("{")
        with pytest.raises(ValueError, match=r"emoji-vae is not .*model\.safetensors is .* 63 b"):
            backbones.load("emoji-turbo")
        with pytest.raises(ValueError, match=r"emoji-hps is not .*: architecture\.json is changed"):
            rewards.load("emoji-hps")
        with pytest.raises(ValueError, match=r"architecture\.json does not hold what it should"):
            rewards.load("emoji-hps", copy / "emoji-hps")

    def test_loading_shows_no_progress(self, full, capfd):
        logging = diffusers.utils.logging
        assert logging.is_progress_bar_enabled()
        backbones.load("emoji-flow")
        assert capfd.readouterr() == ("", "")
        assert logging.is_progress_bar_enabled()

    @pytest.mark.parametrize("name", REWARDS)
    def test_a_reward_is_its_towers(self, full, pictures, name):
        reward, found = check_towers(name, full, pictures)
        assert {p.dtype for p in reward.parameters()} == {torch.float32}
        # What is too long is cut, as by the published ones.
        cut = [*PROMPTS[:3], " ".join(["red apple"] * 300)]
        assert_close(reward(pictures, cut), found, rtol=1e-5, atol=1e-6)
        for path in (full / name, full / name / reward.spec.files[name == "emoji-pick"].name):
            assert_close(rewards.load(name, path)(pictures, PROMPTS), found, rtol=1e-4, atol=1e-5)
        assert float((reward(pictures, PROMPTS[::-1]) - found).abs().max()) > 1e-4
        other = {"emoji-pick": "pickscore", "emoji-hps": "hpsv2"}[name]
        options = {}
        if name == "emoji-hps":
            options["architecture"] = json.loads((full / name / "architecture.json").read_text())
        same = rewards.load(other, full / name, **options)(pictures, PROMPTS)
        assert_close(same, found, rtol=1e-4, atol=1e-5)

    @pytest.mark.parametrize("name", REWARDS)
    def test_a_reward_is_one_for_guidance(self, full, pictures, name):
        double = can_be_double(name)
        check_reward(rewards.load(name), pictures[:2], PROMPTS[:2], differentiable=double)

    def test_the_judge_is_frozen_and_single(self, full, pictures):
        judge = shipped.judge()
        assert not judge.training
        assert {(p.dtype, p.requires_grad) for p in judge.parameters()} == {(torch.float32, False)}
        expected = encoders.read("judge", full / "emoji-judge").eval()(pictures, PROMPTS)
        assert_close(judge(pictures, PROMPTS), expected)
        assert_close(shipped.gold().terms(pictures, PROMPTS)["match"], expected)

    @pytest.mark.parametrize("name", sorted(UTILITIES))
    def test_utilities_are_rewards(self, full, pictures, name):
        reward = rewards.load(name)
        gold = shipped.gold()
        terms = gold.terms(pictures, PROMPTS)
        expected = terms["match"] if name == "emoji-match" else gold(pictures, PROMPTS)
        assert_close(reward(pictures, PROMPTS), expected)
        differentiable = None if can_be_double(name) else False
        check_reward(reward, pictures[:2], PROMPTS[:2], differentiable=differentiable)
        large = torch.nn.functional.interpolate(pictures, scale_factor=2.0, mode="nearest")
        assert_close(reward(large, PROMPTS), expected, rtol=0.1, atol=0.2)

    def test_the_embedding_is_the_judges(self, full, pictures):
        expected = shipped.judge().embed_pictures(pictures)
        assert_close(embeddings.load("emoji-judge")(pictures), expected)
        assert len(prompts.load("emoji-demo").prompts) == 12


@pytest.mark.slow
def test_the_prompts_of_the_demo_follow_their_rule(tmp_path):
    model, reward = backbones.load("emoji-flow"), rewards.load("emoji-pick")
    store = Store(tmp_path)
    run = Run(model, reward, model.times(4), 0, 32, None, store, lambda stage, done, total: None)
    spread = lambda prompt: float(run.bank(prompt.text, 32, "bank").rewards.std())
    candidates = prompts_of(36, 2, {prompt.real for prompt in prompts_of(200)})
    widest = sorted(candidates, key=spread, reverse=True)[:12]
    # Others are narrower by two parts in a hundred at least.
    assert set(prompts.load("emoji-demo").prompts) == {prompt.text for prompt in widest}


class TestCommands:
    @pytest.fixture
    def run(self, monkeypatch, capsys, tmp_path):
        def run(*arguments):
            monkeypatch.chdir(tmp_path)
            monkeypatch.setenv("COLUMNS", "120")
            monkeypatch.setattr(sys, "argv", ["rwguidance", *arguments])
            try:
                main()
                code = 0
            except SystemExit as stop:
                code = stop.code or 0
            captured = capsys.readouterr()
            return code, captured.out, captured.err

        return run

    def test_names_are_listed(self, run):
        code, out, _ = run("backbones")
        assert (code, set(PIPELINES) <= set(out.split())) == (0, True)
        code, out, _ = run("rewards")
        assert (code, set(REWARDS) <= set(out.split())) == (0, True)
        code, out, _ = run("rewards", "emoji-hps")
        assert code == 0
        assert "from package://rwguidance_testbed/weights/emoji-hps" in out

    def test_pictures_are_made_and_scored_without_a_path(self, full, run, tmp_path):
        one = ("--prompt", "red apple", "--bank", "4", "--cache", "banks")
        code, _, _ = run("generate", "--backbone", "emoji-flow", "--reward", "emoji-pick", *one)
        assert code == 0
        folder = next(path for path in (tmp_path / "out/generate").iterdir() if path.is_dir())
        for picture in folder.glob("*.png"):
            picture.with_suffix(".txt").write_text("red apple")
        code, out, _ = run("score", str(folder), "--reward", "emoji-pick,emoji-hps")
        assert code == 0
        assert out.count("emoji-") >= 2

    def test_what_is_not_there_is_one_line(self, place, run):
        one = ("--prompt", "red apple")
        code, _, err = run("generate", "--backbone", "emoji-flow", "--reward", "jpeg", *one)
        assert code == 1
        assert err.startswith("error: 'weights/emoji-flow' does not come with this version of rwgu")
        assert err.count("\n") == 1


# The shipped models themselves.


@pytest.mark.skipif("emoji-turbo-guide" not in THERE, reason="does not come with this version")
def test_the_network_is_for_the_model_and_the_strength_of_its_card():
    network = networks.load("emoji-turbo-guide")
    about = networks.published("emoji-turbo-guide")
    figures = json.loads((WEIGHTS / "emoji-turbo-guide" / "figures.json").read_text())
    assert about.beta == figures["beta"]
    assert sum(p.numel() for p in network.parameters()) == figures["parameters"]
    backbone = backbones.load(about.backbone)
    condition = backbone.condition(["red apple"])
    x_1 = backbone.draw_noise(1, torch.Generator().manual_seed(0))
    t = torch.ones(1, dtype=torch.float64)
    assert network(x_1, t, condition).shape == x_1.shape


@pytest.mark.parametrize("name", [name for name in NETWORKS[::2] if name in THERE])
def test_networks_of_one_step_change_noise_and_outputs(name):
    network, about = networks.load(name), networks.published(name)
    figures = json.loads((WEIGHTS / name / "figures.json").read_text())
    assert about.beta == figures["beta"]
    assert sum(p.numel() for p in network.parameters()) == figures["parameters"]
    backbone = backbones.load(about.backbone)
    noise = backbone.draw_noise(8, torch.Generator().manual_seed(0))
    condition = backbone.condition(["red apple"] * 8)
    for time in (0.0, 1.0):
        change = network(noise, torch.full((8,), time, dtype=torch.float64), condition)
        assert 0.01 < float(change.square().mean() ** 0.5) < 0.5
    assert network.output == "changes"


@pytest.mark.parametrize("name", [name for name in PIPELINES if name in THERE])
def test_a_shipped_pipeline_is_that_of_diffusers(name):
    check_pipeline(name, WEIGHTS, 2)


@pytest.mark.parametrize("name", [name for name in REWARDS if name in THERE])
def test_a_shipped_reward_is_its_towers(name, pictures):
    check_towers(name, WEIGHTS, pictures)
