"""The guidance network: its outputs, tokens, strengths, sizes, and the folders it is stored in."""

import json

import pytest
import torch
import torch.nn.functional as F
from safetensors.torch import load_file, save_file
from test_latents import White, awake_latent
from torch import nn

from backbones import TextCondition
from common import SCHEDULES, randn
from rwguidance import LearnedShift, networks
from rwguidance.networks import PRESETS, GuidanceNetwork
from rwguidance.networks.convolutions import GROUPS, _Attention, _Block, _CrossAttention
from rwguidance.support.randomness import seeded

POOLED, TOKENS, LENGTH = 6, 5, 4
SCHEDULE = SCHEDULES["cosine"]


def build(output="shift", text=POOLED, tokens=TOKENS, strength=True, awake=True, **options):
    options = {"channels": 4, "schedule": SCHEDULE, "widths": (8, 16), "depth": 1, **options}
    network = GuidanceNetwork(output=output, text=text, tokens=tokens, strength=strength, **options)
    network = network.double()
    return awake_latent(network) if awake else network


def states(n=3, height=6, width=7):
    return randn(3, n, 4, height, width), torch.linspace(0.1, 0.9, n, dtype=torch.float64)


def condition(n=3, seed=7, mask=None):
    embeddings = {"pooled": randn(seed, n, POOLED), "text": randn(seed + 1, n, LENGTH, TOKENS)}
    if mask is not None:
        embeddings["mask"] = mask
    return TextCondition(tuple(f"prompt {i}" for i in range(n)), embeddings)


def with_tokens(given, tokens, **more):
    return TextCondition(given.prompts, {**given.embeddings, "text": tokens, **more})


@pytest.mark.parametrize("output", ["shift", "log_h", "change", "changes"])
def test_it_starts_at_zero_and_has_the_shape_of_its_output(output):
    x, t = states()
    shape = (3,) if output == "log_h" else x.shape
    assert torch.equal(build(output, awake=False)(x, t, condition(), 1.0), x.new_zeros(shape))
    out = build(output)(x, t, condition(), 1.0)
    assert out.shape == shape
    assert out.abs().min() > 0


@pytest.mark.parametrize("output", ["shift", "log_h"])
def test_gradients_pass_through_every_layer(output):
    network = build(output, widths=(8, 8))
    for i, weight in enumerate(network.parameters()):
        weight.data = 0.3 * randn(i, *weight.shape)
        weight.requires_grad_(False)
    (x, t), given = states(2, 4, 4), condition(2)
    tokens = given.embeddings["text"].requires_grad_()
    function = lambda x, tokens: network(x, t, with_tokens(given, tokens), 1.0)
    assert torch.autograd.gradcheck(function, (x.requires_grad_(), tokens), fast_mode=True)


def test_log_h_is_made_of_the_mean_over_pixels():
    network, (x, t), stages = build("log_h"), states(), []
    network.encoder.register_forward_hook(lambda module, given, found: stages.extend(found[0]))
    out = network(x, t, condition(), 1.0)
    assert stages[-1].shape[-2:] == (3, 4)
    hidden = F.silu(network.head(stages[-1].sum((2, 3)) / 12))
    torch.testing.assert_close(out, network.last(hidden)[:, 0], rtol=1e-12, atol=1e-15)


@pytest.mark.parametrize("output", ["shift", "log_h", "change", "changes"])
@pytest.mark.parametrize("weights", [torch.bfloat16, torch.float32, torch.float64])
@pytest.mark.parametrize("given", [torch.bfloat16, torch.float32, torch.float64])
def test_outputs_are_float32_or_wider_whatever_states_and_weights_are(output, weights, given):
    x, t = states()
    x = x.bfloat16().to(given)
    network = build(output).calibrated({1.0: 2.0, 4.0: 3.0})
    text = condition()
    strengths = torch.tensor([1.5, 2.0, 3.0], dtype=torch.float64)
    exact = network(x.double(), t, text, strengths)
    found = network.to(weights)(x, t, text, strengths)
    wide = torch.promote_types(torch.float32, weights)
    if output == "shift":  # times the variance, which has the precision of the states
        wide = torch.promote_types(wide, given)
    assert found.dtype == wide
    scales = torch.promote_types(torch.float32, given)
    rounding = max(torch.finfo(dtype).eps for dtype in (weights, scales))
    assert (found - exact).norm() < 20 * rounding * exact.norm()


def test_a_change_is_a_shift_without_its_factor():
    x, t = states()
    sigma = torch.sin(torch.pi / 2 * t)[:, None, None, None]  # alpha^2 + sigma^2 = 1
    shift, change = (build(output)(x, t, condition(), 2.0) for output in ("shift", "change"))
    torch.testing.assert_close(shift, sigma**2 * change, rtol=1e-12, atol=1e-15)


def test_tokens_matter_and_their_order_does_not():
    x, t = states()
    network, given = build(), condition()
    out, tokens = network(x, t, given, 1.0), given.embeddings["text"]
    other = network(x, t, with_tokens(given, tokens + 1e-2 * randn(0, *tokens.shape)), 1.0)
    assert (other - out).flatten(1).abs().amax(1).min() > 1e-9
    swapped = network(x, t, with_tokens(given, tokens.flip(1)), 1.0)
    torch.testing.assert_close(swapped, out, rtol=1e-9, atol=1e-12)


def test_masked_tokens_are_not_seen():
    x, t = states()
    network = build()
    mask = torch.tensor([[1, 1, 0, 0], [1, 1, 1, 1], [0, 0, 0, 0]])
    given = condition(mask=mask)
    out, tokens = network(x, t, given, 1.0), given.embeddings["text"]
    changed = torch.where(mask.bool()[..., None], tokens, 1e3)
    torch.testing.assert_close(
        network(x, t, with_tokens(given, changed), 1.0), out, rtol=1e-9, atol=1e-12
    )
    cut = TextCondition(("a",), {"pooled": given.embeddings["pooled"][:1], "text": tokens[:1, :2]})
    alone = network(x[:1], t[:1], cut, 1.0)
    torch.testing.assert_close(alone, out[:1], rtol=1e-9, atol=1e-12)


def test_cross_attention_is_that_of_torch():
    attention = build().encoder.tokens
    torch.nn.init.ones_(attention.nothing)
    x, tokens = randn(0, 2, 16, 3, 5), randn(1, 2, LENGTH, TOKENS)
    texts = torch.cat((torch.ones(2, 1, 16).double(), attention.text(tokens)), 1)
    heads = lambda value: value.unflatten(-1, (8, 2)).transpose(1, 2)
    query = heads(attention.query(attention.norm(x)).flatten(2).mT)
    key, value = map(heads, attention.project(texts).chunk(2, -1))
    mixed = torch.nn.functional.scaled_dot_product_attention(query, key, value)
    expected = x + attention.last(mixed.transpose(1, 2).flatten(2).mT.reshape(x.shape))
    torch.testing.assert_close(attention(x, tokens, None), expected, rtol=1e-12, atol=1e-12)


def test_strengths_are_told_apart_from_weak_to_strong():
    x, t = states(1)
    network, given = build(), condition(1)
    strengths = [0.0625, 0.25, 0.5, 1.0, 2.0, 4.0, 16.0]
    outs = torch.stack([network.at(s)(x, t, given).flatten() for s in strengths])
    assert torch.pdist(outs).min() > 1e-6
    x, t = states(3)
    together = network(x, t, condition(), torch.tensor([0.5, 1.0, 4.0]))
    for i, strength in enumerate((0.5, 1.0, 4.0)):
        alone = network(x[i : i + 1], t[i : i + 1], condition()[i : i + 1], strength)
        torch.testing.assert_close(together[i : i + 1], alone, rtol=1e-9, atol=1e-12)


def test_factors_are_linear_in_the_logarithm_of_the_strength():
    x, t = states()
    network = build()
    scaled = network.calibrated({1.0: 2.0, 4.0: 3.0, 16.0: 1.0})
    for strength, factor in ((0.5, 2), (1, 2), (2, 2.5), (4, 3), (8, 2), (16, 1), (50, 1)):
        plain = network(x, t, condition(), strength)
        found = scaled(x, t, condition(), strength)
        torch.testing.assert_close(found, factor * plain, rtol=1e-9, atol=1e-12)
    assert network.scales is None
    assert scaled.last.weight is network.last.weight
    single = build(strength=False)
    twice = single.calibrated({1.0: 2.0})
    torch.testing.assert_close(twice(x, t, condition()), 2 * single(x, t, condition()))
    with pytest.raises(ValueError, match="one factor, for a network of one strength"):
        single.calibrated({1.0: 2.0, 2.0: 3.0})


def test_a_gradient_reaches_every_parameter_of_it():
    network = build()
    out = network(*states(), condition(), torch.tensor([0.5, 1.0, 4.0]))
    (out - 1).square().sum().backward()
    for name, parameter in network.named_parameters():
        assert parameter.grad.abs().max() > 0, name


def test_it_is_differentiated_twice():
    network = build("log_h", channels=1)
    x, t = randn(0, 2, 1, 3, 3).requires_grad_(), torch.tensor([0.3, 0.8]).double()
    with torch.random.fork_rng(devices=[]):  # the check draws directions
        torch.manual_seed(0)
        call = lambda x: network(x, t, condition(2), 1.0)
        assert torch.autograd.gradgradcheck(call, (x,), atol=1e-4)


def test_an_estimator_takes_it_at_a_strength():
    x, t = states()
    network = build()
    with torch.no_grad():
        estimate = LearnedShift(network.at(2.0))(White(SCHEDULE), x, t, condition())
        assert torch.equal(estimate.shift, network(x, t, condition(), 2.0))


@pytest.mark.parametrize(("name", "megabytes"), [("tiny", 2.04), ("paper", 72.1), ("huge", 502)])
def test_presets_have_the_size_that_is_stated(name, megabytes):
    with torch.device("meta"):
        network = GuidanceNetwork.preset(name, 4, SCHEDULE, text=1280, tokens=2048, strength=True)
    size = sum(parameter.numel() for parameter in network.parameters()) * 4e-6
    assert size == pytest.approx(megabytes, rel=2e-3)
    with pytest.raises(LookupError, match=f"{name}x"):
        GuidanceNetwork.preset(f"{name}x", 4, SCHEDULE)
    assert list(PRESETS) == ["tiny", "small", "paper", "large", "huge"]


# -- storage -------------------------------------------------------------------------------------


@pytest.mark.parametrize("output", ["shift", "log_h", "change", "changes"])
def test_a_folder_holds_all_of_it(output, tmp_path):
    network = build(output, seed=3).calibrated({0.5: 1.5, 2.0: 1.25})
    facts = {"backbone": "emoji-turbo", "reward": "emoji-pick", "beta": 0.25}
    network.save_pretrained(tmp_path / "made", facts, "Trained on **shapes**.")
    assert sorted(path.name for path in (tmp_path / "made").iterdir()) == [
        "README.md",
        "config.json",
        "model.safetensors",
    ]
    x, t = states()
    expected = network(x, t, condition(), 1.0)
    for other in (
        GuidanceNetwork.from_pretrained(tmp_path / "made"),
        networks.load(tmp_path / "made"),
    ):
        assert torch.equal(other(x, t, condition(), 1.0), expected)
        assert other.arguments == network.arguments
    card = (tmp_path / "made" / "README.md").read_text()
    assert card.startswith("---\nlibrary_name: rwguidance\n")
    for part in ("| beta | 0.25 |", "emoji-turbo", "Trained on **shapes**.", f"| {output} |"):
        assert part in card
    size = sum(p.numel() for p in network.parameters())
    assert f"{size / 1e6:.2f} million" in card


CARD = """---
library_name: rwguidance
tags:
- reward-weighted-guidance
- diffusion
---

# Guidance network

| | |
| --- | --- |
| beta | 0.25 |
| of | a\\|b c |
| output | {output} |
| parameters | {count:.2f} million, {size:.3g} MB |
| path | CosineSchedule |
| latents | 4 channels, any height and width |
| sees | the state, the noise level{sees} |

```python
from rwguidance.networks import GuidanceNetwork

network = GuidanceNetwork.from_pretrained("...")
{use}
```
"""
ALL = f", the pooled text ({POOLED}), the tokens of the text ({TOKENS}), the strength of the tilt"
PLAIN = {"text": None, "tokens": None, "strength": False}


@pytest.mark.parametrize(
    ("output", "options", "sees", "use"),
    [
        ("shift", {}, ALL, "guided = GuidedModel(backbone, LearnedShift(network.at(1.0)))"),
        ("log_h", PLAIN, "", "guided = GuidedModel(backbone, LearnedExpectation(network))"),
        (
            "change",
            {**PLAIN, "text": POOLED},
            f", the pooled text ({POOLED})",
            "generate = output_map(generator, network)  # or noise_map, as it was trained",
        ),
        (
            "changes",
            {**PLAIN, "tokens": TOKENS},
            f", the tokens of the text ({TOKENS})",
            "generate = change_map(generator, network)",
        ),
    ],
    ids=["shift", "log_h", "change", "changes"],
)
@pytest.mark.parametrize(("dtype", "wide"), [(torch.float64, 8), (torch.bfloat16, 2)])
@pytest.mark.parametrize(
    "notes", ["", " \n", "\nOf **shapes**.\n\nMore.\n"], ids=["none", "blank", "some"]
)
def test_its_card_says_what_it_is_and_how_it_is_used(
    output, options, sees, use, dtype, wide, notes, tmp_path
):
    network = build(output, **options).to(dtype)
    network.save_pretrained(tmp_path, {"beta": 0.25, "of": "a|b\nc"}, notes)
    count = sum(parameter.numel() for parameter in network.parameters()) / 1e6
    expected = CARD.format(output=output, count=count, size=count * wide, sees=sees, use=use)
    expected += "\nOf **shapes**.\n\nMore.\n" if notes.strip() else ""
    assert (tmp_path / "README.md").read_text(encoding="utf-8") == expected


def test_one_file_holds_all_of_it(tmp_path):
    network = build().calibrated({1.0: 1.5})
    network.save(tmp_path / "network.safetensors")
    other = networks.load(tmp_path / "network.safetensors")
    assert type(other) is GuidanceNetwork
    x, t = states()
    assert torch.equal(other(x, t, condition(), 1.0), network(x, t, condition(), 1.0))


READERS = {
    "a folder": (GuidanceNetwork.from_pretrained, "folder"),
    "a folder by any name": (networks.load, "folder"),
    "a file": (networks.load, "network.safetensors"),
    "a file of latents": (networks.latents.read, "network.safetensors"),
}


@pytest.mark.parametrize("name", READERS)
def test_it_is_read_on_the_device_that_is_asked_for(name, tmp_path):
    network = build()
    network.save(tmp_path / "network.safetensors")
    network.save_pretrained(tmp_path / "folder")
    (read, source), weight = READERS[name], network.last.weight
    for options in ({}, {"device": None}, {"device": "cpu"}, {"device": torch.device("cpu")}):
        assert torch.equal(read(tmp_path / source, **options).last.weight, weight)
    with pytest.raises(ValueError, match="device meta"):  # which files cannot be read on
        read(tmp_path / source, device="meta")


def test_it_comes_from_the_hub_by_name(tmp_path, monkeypatch):
    import huggingface_hub

    network, asked = build(), []
    network.save_pretrained(tmp_path)

    def download(repository, revision=None, allow_patterns=None):
        asked.append((repository, revision, sorted(allow_patterns)))
        if repository == "some/nothing":
            raise OSError("offline\nand more")
        return str(tmp_path)

    monkeypatch.setattr(huggingface_hub, "snapshot_download", download)
    x, t = states()
    for source, revision in (("some/one", "v1"), ("hf://some/one@v1", None)):
        other = GuidanceNetwork.from_pretrained(source, revision)
        assert torch.equal(other(x, t, condition(), 1.0), network(x, t, condition(), 1.0))
        assert asked.pop() == ("some/one", "v1", ["config.json", "model.safetensors"])
    with pytest.raises(FileNotFoundError, match=r"some/nothing is neither cached .*OSError: off"):
        GuidanceNetwork.from_pretrained("some/nothing")
    with pytest.raises(FileNotFoundError, match=r"no folder .*, and no repository"):
        GuidanceNetwork.from_pretrained("nothing")


def test_it_goes_to_the_hub_with_its_card(monkeypatch):
    import huggingface_hub

    seen = {}

    class Api:
        def create_repo(self, repository, private, exist_ok):
            seen["made"] = repository, private, exist_ok
            return f"https://hub/{repository}"

        def upload_folder(self, repo_id, folder_path, allow_patterns):
            seen["network"] = GuidanceNetwork.from_pretrained(folder_path)

    monkeypatch.setattr(huggingface_hub, "HfApi", Api)
    network = build()
    assert network.push_to_hub("some/one", facts={"beta": 1}) == "https://hub/some/one"
    assert seen["made"] == ("some/one", True, True)
    assert torch.equal(seen["network"].last.weight, network.last.weight)


def test_damaged_folders_are_refused(tmp_path):
    build().save_pretrained(tmp_path)
    config, weights = tmp_path / "config.json", tmp_path / "model.safetensors"
    good = json.loads(config.read_text())
    for change, match in (
        ({"network": "Other"}, "is of a Other, expected GuidanceNetwork"),
        ({"depth": 2}, "does not fit GuidanceNetwork"),
        ({"schedule": {"name": "os.system"}}, "schedule must be one of"),
    ):
        config.write_text(json.dumps({**good, **change}))
        with pytest.raises(ValueError, match=match):
            GuidanceNetwork.from_pretrained(tmp_path)
    config.write_text("[1]")
    with pytest.raises(ValueError, match="no configuration of a network"):
        GuidanceNetwork.from_pretrained(tmp_path)
    config.write_text(json.dumps(good))
    tensors = load_file(weights)
    tensors.pop("last.weight")
    save_file(tensors, weights)
    with pytest.raises(ValueError, match=r"last\.weight"):
        GuidanceNetwork.from_pretrained(tmp_path)
    weights.write_bytes(b"no tensors")
    with pytest.raises(ValueError, match="not a whole safetensors file"):
        GuidanceNetwork.from_pretrained(tmp_path)
    weights.unlink()
    with pytest.raises(FileNotFoundError, match=r"no model\.safetensors"):
        GuidanceNetwork.from_pretrained(tmp_path)


# -- mistakes ------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("arguments", "match"),
    [
        ({"output": "score"}, r"output must be one of \['shift', .*'changes'\], got 'score'"),
        ({"tokens": 0}, "tokens must be at least 1, got 0"),
        ({"widths": (8, 12)}, "multiple of 8"),
        ({"scales": {}}, "scales must hold one factor at least"),
        ({"scales": {-1.0: 2.0}}, "scales must be positive and finite"),
    ],
)
def test_impossible_guidance_networks_are_refused(arguments, match):
    with pytest.raises(ValueError, match=match):
        build(**arguments)


def test_what_does_not_fit_it_is_named():
    x, t = states()
    network = build()
    with pytest.raises(ValueError, match=r"strength must be given .* this one takes it"):
        network(x, t, condition())
    with pytest.raises(ValueError, match=r"this one does not"):
        build(strength=False)(x, t, condition(), 1.0)
    for strength in (0.0, -1.0, torch.ones(2)):
        with pytest.raises(ValueError, match="strength must be positive"):
            network(x, t, condition(), strength)
    with pytest.raises(ValueError, match="strength=False"):
        build(strength=False).at(1.0)
    pooled = {"pooled": condition().embeddings["pooled"]}
    with pytest.raises(TypeError, match=r"embeddings\['text'\]"):
        network(x, t, TextCondition(("a", "b", "c"), pooled), 1.0)
    with pytest.raises(ValueError, match=r"\['text'\] must have shape \(3, L, 5\)"):
        network(x, t, with_tokens(condition(), randn(0, 3, LENGTH, TOKENS + 1)), 1.0)
    with pytest.raises(ValueError, match=r"\['mask'\] must have shape \(3, 4\), got \(3, 5\)"):
        network(x, t, condition(mask=torch.ones(3, 5)), 1.0)


def test_blocks_are_those_that_weights_are_stored_for():
    """By the kernels of PyTorch: a modulated norm between two convolutions, and one head."""

    x, embedding = randn(0, 2, GROUPS, 3, 4), randn(1, 2, 5)
    with seeded(0):
        block = _Block(GROUPS, 2 * GROUPS, 5).double()
        attention = _Attention(GROUPS).double()
    scale, shift = (embedding @ block.modulation.weight.T + block.modulation.bias).split(16, 1)
    normal = F.group_norm(x, GROUPS, block.norm.weight, block.norm.bias)
    inner = F.conv2d(F.silu(normal), block.first.weight, block.first.bias, padding=1)
    inner = F.group_norm(inner, GROUPS) * (1 + scale[..., None, None]) + shift[..., None, None]
    outer = F.conv2d(F.silu(inner), block.second.weight, block.second.bias, padding=1)
    expected = F.conv2d(x, block.beside.weight, block.beside.bias) + outer
    torch.testing.assert_close(block(x, embedding), expected, rtol=1e-10, atol=1e-12)

    normal = F.group_norm(x, GROUPS, attention.norm.weight, attention.norm.bias)
    parts = F.conv2d(normal, attention.project.weight, attention.project.bias).flatten(2).mT
    mixed = F.scaled_dot_product_attention(*parts.split(GROUPS, 2)).mT.reshape(x.shape)
    expected = x + F.conv2d(mixed, attention.last.weight, attention.last.bias)
    torch.testing.assert_close(attention(x), expected, rtol=1e-10, atol=1e-12)


def test_pixels_attend_to_tokens_with_heads_of_their_own():
    width, tokens, (high, wide) = 2 * GROUPS, 5, (3, 4)
    with seeded(0):
        attention = _CrossAttention(width, tokens).double()
        nn.init.normal_(attention.nothing)
    x, text = randn(0, 2, width, high, wide), randn(1, 2, 6, tokens)
    mask = torch.tensor([[True] * 6, [True] * 2 + [False] * 4])
    # Of each head alone, by the kernel of PyTorch.
    states = torch.cat((attention.nothing.expand(2, 1, -1), attention.text(text)), 1)
    queries = attention.query(attention.norm(x)).flatten(2).mT
    keys, values = attention.project(states).split(width, dim=-1)
    there = torch.cat((torch.ones(2, 1, dtype=torch.bool), mask), 1)[:, None]
    parts = [
        F.scaled_dot_product_attention(q, k, v, there)
        for q, k, v in zip(
            *(value.split(width // GROUPS, dim=-1) for value in (queries, keys, values)),
            strict=True,
        )
    ]
    expected = x + attention.last(torch.cat(parts, -1).mT.unflatten(2, (high, wide)))
    torch.testing.assert_close(attention(x, text, mask), expected)
