"""The zoo: equal to its references, differentiable, cached, and the same in any company."""

import json
from pathlib import Path

import numpy
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from torch import nn

import rewards
import tiny_checkpoints as tiny
import zoo
from common import randn
from rewards.images import from_pil
from rewards.preprocessing import _resampling
from rwguidance import Tilt
from rwguidance.testing import check_reward

GOLDENS = Path(__file__).parent / "goldens"
IMAGES = tiny.images()

# Largest difference from the reference, in score units. A reference differs from itself by as much
# on another machine: 3e-7 in a cosine, which PickScore multiplies by 100, 3e-6 after ImageReward's
# head. RGBA is left out where the reference resizes transparency along with color.
GOLDEN = {
    "pickscore": ("pickscore", 1e-4, ()),
    "hpsv2": ("hpsv2", 1e-6, ()),
    "hpsv2.1": ("hpsv2_1", 1e-6, ()),
    "clipscore": ("clipscore", 3e-6, ("RGBA",)),
    "imagereward": ("imagereward", 1e-5, ("RGBA",)),
    "aesthetic": ("aesthetic", 1e-5, ("RGBA",)),
}


@pytest.fixture(scope="session")
def paths(tmp_path_factory):
    return {name: zoo.write(name, tmp_path_factory.mktemp("zoo")) for name in zoo.OPTIONS}


@pytest.fixture(scope="session")
def loaded(paths):
    return {name: zoo.load(name, path) for name, path in paths.items()}


@pytest.fixture(params=list(zoo.OPTIONS))
def reward(request, loaded):
    return loaded[request.param]


@pytest.fixture(params=zoo.TWO_TOWERS)
def two_towers(request, loaded):
    loaded[request.param].forget_prompts()
    return loaded[request.param]


def small(n=3, width=61, height=53):
    names = ["640x427", "97x131", "300x224", "200x150"][:n]
    return torch.stack([from_pil(IMAGES[name].resize((width, height))) for name in names])


TEXTS = ["a cat", "a rather longer prompt, “quoted”, that is about 3 cats", ""]


# Equal to the references.


def test_goldens_are_of_these_images_and_prompts():
    for name, _, _ in GOLDEN.values():
        golden = json.loads((GOLDENS / f"{name}.json").read_text())
        seen = {key: tiny.image_fingerprint(image) for key, image in IMAGES.items()}
        assert golden["images"] == seen
        assert golden["prompts"] == (tiny.PROMPTS if name != "aesthetic" else tiny.PROMPTS[:1])


@pytest.mark.parametrize("name", GOLDEN)
def test_scores_equal_the_reference(name, loaded):
    file, tolerance, left_out = GOLDEN[name]
    golden = json.loads((GOLDENS / f"{file}.json").read_text())
    matrix = loaded[name].score_matrix(list(IMAGES.values()), golden["prompts"])
    rows = {key: matrix[i] for i, key in enumerate(IMAGES)}
    pairs = [
        (float(rows[key][k]), score)
        for key, k, score in golden["scores"]
        if score is not None and key not in left_out
    ]
    ours, theirs = torch.tensor(pairs, dtype=torch.float64).unbind(1)
    assert len(pairs) >= 9 * len(golden["prompts"])
    assert theirs.std() > 1000 * tolerance, "the scores must differ for the comparison to mean much"
    assert (ours - theirs).abs().max() <= tolerance


@pytest.mark.parametrize("name", GOLDEN)
def test_pixels_equal_the_reference(name, loaded):
    file, _, left_out = GOLDEN[name]
    golden = json.loads((GOLDENS / f"{file}.json").read_text())
    # HPSv2 resizes in floating point; the others' pixels are k / 255, normalized.
    for key, expected in golden["pixels"].items():
        if key in left_out or key in golden["errors"]:
            continue
        pixels = loaded[name].preprocess(from_pil(IMAGES[key])[None])[0]
        summary = tiny.pixel_summary(pixels)
        torch.testing.assert_close(
            torch.tensor(summary["values"]), torch.tensor(expected["values"]), rtol=0, atol=3e-6
        )
        assert summary["sum_of_squares"] == pytest.approx(expected["sum_of_squares"], rel=1e-6)


def test_clipscore_has_three_scalings(loaded, paths):
    golden = json.loads((GOLDENS / "clipscore.json").read_text())
    plain = zoo.load("clipscore", paths["clipscore"], scaling="percent")
    logit = zoo.load("clipscore", paths["clipscore"], scaling="logit")
    # Prompt 0 is plain English: the tokenizers agree, cleaned or not.
    chosen = [(key, c, p) for key, k, c, p in golden["cosines"] if k == 0 and key != "RGBA"]
    images = [IMAGES[key] for key, _, _ in chosen]
    prompts = [tiny.PROMPTS[0]] * len(images)
    with_prefix, bare = (torch.tensor(column) for column in list(zip(*chosen, strict=True))[1:])
    # Cosines, to the rounding of float32, which depends on the number of threads.
    close = lambda a, b: torch.testing.assert_close(a, b, rtol=0, atol=5e-7)
    close(loaded["clipscore"](images, prompts) / 2.5, with_prefix.clamp(min=0))
    close(plain(images, prompts) / 100, bare)
    close(logit(images, prompts) / float(logit.logit_scale.log_scale.exp()), bare)
    with pytest.raises(ValueError, match=r"scaling must be one of .*, got 'best'"):
        zoo.load("clipscore", paths["clipscore"], scaling="best")


def test_hpsv2_takes_what_its_reference_fails_on(loaded):
    """A longer side of 224 is padded, a line keeps a pixel, transparency is dropped."""

    reward = loaded["hpsv2"]
    golden = json.loads((GOLDENS / "hpsv2.json").read_text())
    assert set(golden["errors"]) == {"224x200", "RGBA"}
    pixels = reward.preprocess(from_pil(IMAGES["224x200"])[None])
    black = reward.preprocess(torch.zeros(1, 3, 224, 224))
    assert torch.equal(pixels[..., :12, :], black[..., :12, :])
    assert torch.equal(pixels[..., 212:, :], black[..., 212:, :])
    line = Image.new("RGB", (1024, 1), "white")
    assert reward([IMAGES["224x200"], IMAGES["RGBA"], line], ["a"] * 3).isfinite().all()


def test_versions_of_hpsv2_differ_in_their_weights_only(loaded):
    a, b = (loaded[name](small(), TEXTS) for name in ("hpsv2", "hpsv2.1"))
    assert (a - b).abs().max() > 1e-3


def test_heads_are_affine_maps_of_the_unit_embedding(paths, loaded):
    """The collapsed head equals the layers, applied one by one."""

    folder = Path(paths["aesthetic"])
    layers = torch.load(folder / "sac+logos+ava1-l14-linearMSE.pth", weights_only=True)
    e = torch.nn.functional.normalize(randn(0, 5, 768, dtype=torch.float32), dim=-1)
    x = e
    for i in (0, 2, 4, 6, 7):
        x = nn.functional.linear(x, layers[f"layers.{i}.weight"], layers[f"layers.{i}.bias"])
    torch.testing.assert_close(loaded["aesthetic"].head(e), x[:, 0], rtol=1e-5, atol=1e-5)


# The contract of a reward.


def test_rewards_conform(reward, paths):
    if reward.spec.name == "clipscore":  # flat where the cosine is negative
        check_reward(reward, small(), TEXTS, differentiable=False)
        reward = zoo.load("clipscore", paths["clipscore"], scaling="logit")
    check_reward(reward, small(), TEXTS, differentiable=zoo.can_be_double(reward.spec.name))


@pytest.mark.parametrize("name", zoo.EIGHT_BIT)
def test_unrounded_gradients_conform(name, paths):
    """Finite differences confirm the gradient where nothing is rounded to 8 bits."""

    reward = zoo.load(name, paths[name], preprocessing="fast")
    if name == "clipscore":
        reward = zoo.load(name, paths[name], preprocessing="fast", scaling="logit")
    check_reward(reward, small(), TEXTS, differentiable=zoo.can_be_double(name))


@pytest.mark.parametrize("name", zoo.EIGHT_BIT)
def test_straight_through_gradients_point_along_the_unrounded_ones(name, loaded, paths):
    def gradient(reward):
        x = small(1, 250, 300).requires_grad_()
        return torch.autograd.grad(reward(x, ["a cat"]).sum(), x)[0].flatten()

    options = {"scaling": "logit"} if name == "clipscore" else {}
    rounded, smooth = (
        gradient(zoo.load(name, paths[name], preprocessing=mode, **options))
        for mode in ("reference", "fast")
    )
    assert torch.cosine_similarity(rounded, smooth, dim=0) > 0.98
    assert 0.9 < rounded.norm() / smooth.norm() < 1.1


def test_pil_and_tensors_score_the_same(reward):
    names = ["640x427", "97x131", "L"]
    pil = [IMAGES[name] for name in names]
    values = reward(pil, TEXTS)
    assert values.dtype == torch.float32
    torch.testing.assert_close(reward([from_pil(image) for image in pil], TEXTS), values)
    one_by_one = [reward(image, [text]) for image, text in zip(pil, TEXTS, strict=True)]
    scale = values.abs().max()
    torch.testing.assert_close(torch.cat(one_by_one), values, rtol=0, atol=1e-5 * float(scale))


def test_images_of_many_sizes_pass_the_tower_once(reward, monkeypatch):
    calls = []
    forward = type(reward).forward
    monkeypatch.setattr(
        type(reward), "forward", lambda self, x, p: calls.append(len(x)) or forward(self, x, p)
    )
    reward([IMAGES["97x131"], IMAGES["224x224"], IMAGES["31x47"]], TEXTS)
    assert calls == [3]


def test_the_matrix_holds_every_pair(reward):
    images, prompts = small(2), TEXTS
    matrix = reward.score_matrix(images, prompts)
    assert matrix.shape == (2, 3)
    for j, prompt in enumerate(prompts):
        pair = reward(images, [prompt] * 2)
        torch.testing.assert_close(matrix[:, j], pair, rtol=1e-5, atol=2e-5)


def test_preferences_are_a_softmax_of_the_training_logits(loaded):
    images, prompt = small(), "a cat"
    scores = {name: loaded[name](images, [prompt] * 3) for name in loaded}
    scale = lambda name: loaded[name].logit_scale.log_scale.exp()
    expected = {
        "pickscore": scores["pickscore"],
        "hpsv2": scale("hpsv2") * scores["hpsv2"],
        "imagereward": 1.0333394966054072 * scores["imagereward"],
    }
    assert scale("hpsv2") > 10
    for name, logits in expected.items():
        probabilities = loaded[name].prefer(images, prompt)
        torch.testing.assert_close(probabilities, logits.softmax(0), rtol=1e-4, atol=1e-6)
        assert float(probabilities.sum()) == pytest.approx(1)
    for name in ("aesthetic", "aesthetic-v2.5"):
        with pytest.raises(TypeError, match="was not trained on preferences"):
            loaded[name].prefer(images, prompt)
    with pytest.raises(TypeError, match="prompt must be one string for all candidates, got list"):
        loaded["pickscore"].prefer(images, [prompt] * 3)


def test_pairing_is_strict(two_towers):
    with pytest.raises(ValueError, match="prompts must hold one item per sample, 3, got 2"):
        two_towers(small(), TEXTS[:2])
    with pytest.raises(TypeError, match=r"write \[prompt\] \* n to repeat one prompt"):
        two_towers(small(), "a cat")


def test_a_broken_image_is_named_with_its_prompt(reward):
    x = small()
    x[1, 2, 3, 4] = torch.nan
    values = reward(x, TEXTS)
    assert values.isnan().tolist() == [False, True, False]
    torch.testing.assert_close(values[::2], reward(x[::2], TEXTS[::2]), rtol=1e-5, atol=1e-5)
    with pytest.raises(ValueError, match=r"item 1 \(nan, condition 'a rather longer prompt"):
        Tilt(reward, 1.0)(x, TEXTS)


# Precision and memory.


def test_half_precision_towers_keep_wide_heads(paths, reward):
    name = reward.spec.name
    half = zoo.load(name, paths[name], dtype=torch.bfloat16)
    values, exact = half(small(), TEXTS), reward(small(), TEXTS)
    assert values.dtype == torch.float32
    towers = {p.dtype for p in half.parameters()}
    assert torch.bfloat16 in towers
    # Tiny random towers amplify rounding: a few percent of the scale of the scores.
    scale = float(reward.score_matrix(small(), tiny.PROMPTS).abs().max())
    assert float((values - exact).abs().max()) < 0.1 * scale
    wide = {k: v.dtype for k, v in half.named_buffers() if k.startswith(("logit_scale", "head"))}
    assert wide
    assert set(wide.values()) == {torch.float32}
    same = dict(reward.named_buffers())
    assert all(torch.equal(dict(half.named_buffers())[k], same[k]) for k in wide)


def test_autocast_leaves_heads_alone(two_towers):
    with torch.autocast("cpu", dtype=torch.bfloat16):
        matrix = two_towers.score_matrix(small(), TEXTS)
        prompts = two_towers.encode_prompts(TEXTS)
    assert matrix.dtype == torch.float32
    two_towers.forget_prompts()
    # What was cached under autocast serves later calls without it.
    assert torch.equal(two_towers.encode_prompts(TEXTS), prompts)


@pytest.mark.parametrize("name", [n for n in zoo.OPTIONS if n != "hpsv2.1"])
def test_checkpointing_keeps_the_gradient_and_less_memory(name, paths, loaded):
    frugal = zoo.load(name, paths[name], gradient_checkpointing=True)
    gradients, kept = [], []
    for reward in (loaded[name], frugal):
        saved = []
        x = small().requires_grad_()
        with torch.autograd.graph.saved_tensors_hooks(
            lambda t, saved=saved: saved.append(1) or t, lambda t: t
        ):
            value = reward(x, TEXTS).sum()
        gradients.append(torch.autograd.grad(value, x)[0])
        kept.append(len(saved))
    assert gradients[0].abs().max() > 0 or name == "clipscore"
    torch.testing.assert_close(gradients[1], gradients[0])
    assert kept[1] < 0.7 * kept[0]


@pytest.mark.parametrize("name", ["pickscore", "hpsv2", "imagereward", "aesthetic"])
def test_image_towers_compile_without_a_break(name, loaded):
    """Preprocessing stays outside: its matrices are computed once per size and kept."""

    reward = loaded[name]
    tower = {
        "pickscore": lambda: reward.embed_images,
        "hpsv2": lambda: reward.embed_images,
        "imagereward": lambda: reward._look,
        "aesthetic": lambda: reward.image,
    }[name]()
    x = reward.preprocess(small())
    compiled = torch.compile(tower, backend="aot_eager", fullgraph=True)
    torch.testing.assert_close(compiled(x), tower(x), rtol=1e-4, atol=1e-4)


# The cache of prompts.


@pytest.fixture
def counted(two_towers, monkeypatch):
    """A reward that notes which prompts reach its text tower."""

    seen = []
    embed = two_towers.embed_prompts
    monkeypatch.setattr(
        two_towers, "embed_prompts", lambda prompts: seen.append(list(prompts)) or embed(prompts)
    )
    return two_towers, seen


def test_a_prompt_is_embedded_once(counted):
    reward, seen = counted
    first = reward(small(), ["a", "b", "a"])
    assert seen == [["a", "b"]]
    assert torch.equal(reward(small(), ["a", "b", "a"]), first)
    reward.score_matrix(small(), ["b", "c"])
    assert seen == [["a", "b"], ["c"]]


def test_the_cache_forgets_the_least_recently_used(counted, monkeypatch):
    reward, seen = counted
    monkeypatch.setattr(reward, "cache_size", 2)
    for prompts in (["a"], ["b"], ["a"], ["c"], ["a"], ["b"]):
        reward.encode_prompts(prompts)
    assert seen == [["a"], ["b"], ["c"], ["b"]]
    several = ["p", "q", "r", "s"]  # more than it holds
    together = reward.encode_prompts(several)
    alone = torch.cat([reward.encode_prompts([prompt]) for prompt in several])
    torch.testing.assert_close(together, alone)
    monkeypatch.setattr(reward, "cache_size", 0)
    reward.encode_prompts(["z"])
    assert not reward._cache


@pytest.mark.parametrize(
    "move", [lambda r: r.to(torch.float64), lambda r: r.half(), lambda r: r.to("cpu")]
)
def test_the_cache_is_dropped_when_the_reward_moves(paths, move):
    reward = zoo.load("pickscore", paths["pickscore"])
    reward.encode_prompts(["a"])
    assert list(reward._cache) == ["a"]
    assert not move(reward)._cache


def test_inference_mode_does_not_spoil_later_gradients(reward):
    _resampling.cache_clear()
    with torch.inference_mode():
        reward(small(), TEXTS)
    x = small().requires_grad_()
    reward(x, TEXTS).sum().backward()
    assert x.grad is not None


def test_other_weights_bring_other_embeddings(paths):
    reward = zoo.load("pickscore", paths["pickscore"])
    before = reward(small(), TEXTS)
    state = {k: v.flip(0) if k.startswith("text.") else v for k, v in reward.state_dict().items()}
    reward.load_state_dict(state)
    assert (reward(small(), TEXTS) - before).abs().max() > 1e-2


def test_autocast_leaves_pixels_alone(paths):
    reward = zoo.load("pickscore", paths["pickscore"], preprocessing="fast")
    pixels = reward.preprocess(small())
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert torch.equal(reward.preprocess(small()), pixels)


@pytest.mark.parametrize("name", ["pickscore", "hpsv2"])
def test_functional_gradients_equal_those_of_the_tape(name, loaded):
    x = small().requires_grad_()
    value = lambda x: loaded[name](x, TEXTS).sum()
    (expected,) = torch.autograd.grad(value(x), x)
    torch.testing.assert_close(torch.func.grad(value)(x.detach()), expected)


def test_loading_draws_no_random_numbers_and_trains_nothing(reward):
    assert not any(p.requires_grad for p in reward.parameters())
    assert not reward.training  # the autouse fixture watches the generator


# Anything that comes in.


@settings(max_examples=100)
@given(
    prompt=st.text(max_size=300),
    size=st.tuples(st.integers(1, 70), st.integers(1, 70)),
    seed=st.integers(0, 1000),
)
def test_any_image_and_prompt_give_one_number_always(prompt, size, seed, loaded):
    image = torch.from_numpy(numpy.random.default_rng(seed).random((3, *size), numpy.float32))
    for name in ("pickscore", "hpsv2", "clipscore"):
        first, second = (loaded[name]([image], [prompt]) for _ in range(2))
        assert first.isfinite().all()
        assert torch.equal(first, second)


@settings(max_examples=50)
@given(prompt=st.text(max_size=300), seed=st.integers(0, 1000))
def test_imagereward_takes_any_prompt(prompt, seed, loaded):
    image = torch.from_numpy(numpy.random.default_rng(seed).random((3, 40, 30), numpy.float32))
    first, second = (loaded["imagereward"]([image], [prompt]) for _ in range(2))
    assert first.isfinite().all()
    assert torch.equal(first, second)


def test_the_norms_of_imagereward_divide_as_those_of_its_vision_transformer(loaded):
    norms = [m for m in loaded["imagereward"].image.modules() if isinstance(m, torch.nn.LayerNorm)]
    assert {norm.eps for norm in norms} == {1e-6}


# What is said of them.


def test_the_page_says_what_the_facts_say():
    page = (Path(__file__).parents[2] / "docs" / "rewards.md").read_text()
    for spec in rewards.available():
        assert f"| {spec.name} | {spec.formula} |" in page
        assert f"| {spec.parity} |" in page


# Rewards without weights.


def test_jpeg_is_the_size_of_the_file(tmp_path):
    images = [IMAGES["97x131"], IMAGES["1024x1024"], IMAGES["L"]]
    sizes = []
    for i, image in enumerate(images):
        image.convert("RGB").save(tmp_path / f"{i}.jpg", quality=95)
        sizes.append((tmp_path / f"{i}.jpg").stat().st_size / 1000)
    torch.testing.assert_close(rewards.load("jpeg")(images), -torch.tensor(sizes))
    torch.testing.assert_close(
        rewards.load("jpeg", incompressible=True)(images), torch.tensor(sizes)
    )
    check_reward(rewards.load("jpeg"), small())
    with pytest.raises(ValueError, match=r"quality must lie in \[1, 95\], got 100"):
        rewards.load("jpeg", quality=100)
