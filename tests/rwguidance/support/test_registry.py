"""Registries: names in, classes out, and foreign packages that may be broken."""

import sys

import pytest
import torch
from torch import nn

import backbones
import backbones.registry
import rewards
import rewards.registry
from common import randn
from rwguidance import (
    DDIM,
    Bank,
    GuidedModel,
    ImportanceSampling,
    RectifiedSchedule,
    Tilt,
    networks,
    sample,
)
from rwguidance.evaluation import PromptSet, embeddings, prompts
from rwguidance.prediction import Prediction
from rwguidance.support.registry import BrokenEntryPoint, Registry, build
from rwguidance.testing import check_model, check_reward

GROUP = "rwguidance.tests"


def install(tmp_path, monkeypatch, name, entries, source, group=GROUP):
    """Makes a package importable whose metadata advertise the entry points `entries`."""

    root = tmp_path / name
    info = root / f"{name}-1.0.dist-info"
    info.mkdir(parents=True)
    (root / f"{name}.py").write_text(source)
    (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {name}\nVersion: 1.0\n")
    lines = [f"[{group}]", *(f"{key} = {value}" for key, value in entries.items())]
    (info / "entry_points.txt").write_text("\n".join(lines) + "\n")
    monkeypatch.syspath_prepend(str(root))
    monkeypatch.delitem(sys.modules, name, raising=False)


def test_a_name_leads_to_what_was_registered():
    registry = Registry("thing", GROUP)

    @registry.register("one")
    class One:
        pass

    assert registry.load("one") is One
    assert registry.names() == ["one"]
    assert registry.available() == {"one": One}


def test_a_name_is_taken_once_but_the_same_object_may_come_again():
    registry = Registry("thing", GROUP)
    registry.register("int")(int)
    registry.register("int")(int)
    with pytest.raises(ValueError, match=r"thing 'int' is already registered, by builtins\.int"):
        registry.register("int")(float)
    assert registry.load("int") is int


def test_an_unknown_name_lists_what_exists_and_guesses():
    registry = Registry("thing", GROUP)
    with pytest.raises(LookupError, match="no thing 'alpha': none is registered or installed"):
        registry.load("alpha")
    registry.register("alpha")(int)
    registry.register("beta")(float)
    with pytest.raises(LookupError, match="no thing 'alpa', there are 'alpha', 'beta'; did you "):
        registry.load("alpa")


@pytest.mark.parametrize("name", [None, 3, int, object(), torch.ones(2), ["jpeg"]], ids=type)
def test_what_is_no_name_is_refused_by_every_registry(name):
    registries = (rewards, backbones, embeddings, prompts)
    for load in (Registry("thing", GROUP).load, networks.published, *(r.load for r in registries)):
        with pytest.raises(
            TypeError, match=r"^name must be a string, one of those that avail.*got"
        ):
            load(name)
    with pytest.raises(TypeError, match=r"^source must be a path, got"):
        networks.load(name)


@pytest.mark.parametrize(("name", "error"), [(int, TypeError), ("", ValueError)])
def test_a_name_is_a_nonempty_string(name, error):
    with pytest.raises(error, match="a thing is registered under a"):
        Registry("thing", GROUP).register(name)


def test_the_check_sees_everything_that_comes_in(tmp_path, monkeypatch):
    def check(name, value):
        if not isinstance(value, int):
            raise TypeError(f"{name} must be an int")

    install(tmp_path, monkeypatch, "checked_package", {"two": "checked_package:TWO"}, "TWO = '2'")
    registry = Registry("number", GROUP, check)
    with pytest.raises(TypeError, match="three must be an int"):
        registry.register("three")("3")
    with pytest.raises(BrokenEntryPoint, match=r"number 'two'.*TypeError: two must be an int"):
        registry.load("two")


def test_packages_are_imported_only_when_their_name_is_asked_for(tmp_path, monkeypatch):
    install(tmp_path, monkeypatch, "lazy_package", {"lazy": "lazy_package:VALUE"}, "VALUE = 7")
    registry = Registry("thing", GROUP)
    registry.register("mine")(1)
    assert registry.names() == ["lazy", "mine"]
    assert registry.load("mine") == 1
    assert "lazy_package" not in sys.modules
    assert registry.load("lazy") == 7
    assert registry.load("lazy") == 7


def test_a_broken_package_is_named_and_breaks_no_other(tmp_path, monkeypatch):
    install(tmp_path, monkeypatch, "good_package", {"good": "good_package:VALUE"}, "VALUE = 7")
    bad = {"bad": "bad_package:VALUE", "bad_too": "bad_package:OTHER"}
    install(tmp_path, monkeypatch, "bad_package", bad, "raise RuntimeError('no such kernel')")
    empty = {"empty": "empty_package:VALUE"}
    install(tmp_path, monkeypatch, "empty_package", empty, "")
    registry = Registry("thing", GROUP)

    assert registry.load("good") == 7
    message = "thing 'bad' .*'bad_package:VALUE' of bad_package.*RuntimeError: no such kernel"
    with pytest.raises(BrokenEntryPoint, match=message):
        registry.load("bad")
    with pytest.raises(BrokenEntryPoint, match=r"'empty'.*AttributeError"):
        registry.load("empty")
    with pytest.warns(RuntimeWarning) as record:
        assert registry.available() == {"good": 7}
    assert [str(w.message).split("'")[1] for w in record] == ["bad", "bad_too", "empty"]


def test_a_name_provided_twice_is_refused(tmp_path, monkeypatch):
    install(tmp_path, monkeypatch, "first_package", {"name": "first_package:VALUE"}, "VALUE = 7")
    registry = Registry("thing", GROUP)
    registry.register("name")(8)
    with pytest.raises(BrokenEntryPoint, match="'name' is already registered"):
        registry.load("name")

    install(tmp_path, monkeypatch, "second_package", {"name": "second_package:VALUE"}, "VALUE = 9")
    with pytest.raises(BrokenEntryPoint, match=r"second_package.*'name' is already registered"):
        Registry("thing", GROUP).load("name")


def test_other_groups_are_not_looked_at(tmp_path, monkeypatch):
    install(tmp_path, monkeypatch, "other_package", {"x": "other_package:X"}, "X = 1", "other")
    assert Registry("thing", GROUP).names() == []


def test_build_freezes_casts_and_explains(tmp_path):
    class Linear(nn.Module):
        def __init__(self, width, path=None):
            super().__init__()
            self.layer = nn.Linear(width, 1, dtype=torch.float32)
            self.path = path

    rng = torch.random.get_rng_state()
    module = build("thing", "linear", Linear, tmp_path, "cpu", torch.float64, {"width": 2})
    torch.random.set_rng_state(rng)  # nn.Linear draws its weights from the global generator
    assert module.path == tmp_path
    assert module.layer.weight.dtype == torch.float64
    assert not module.training
    assert not any(parameter.requires_grad for parameter in module.parameters())
    with pytest.raises(FileNotFoundError, match="no file or directory with the thing 'linear' at"):
        build("thing", "linear", Linear, tmp_path / "absent", None, None, {"width": 2})
    with pytest.raises(TypeError, match=r"thing 'linear' takes \(width, path=None\): .*'height'"):
        build("thing", "linear", Linear, None, None, None, {"width": 1, "height": 2})


def test_build_gives_the_dtype_to_what_takes_one():
    def make(dtype="its own"):
        module = nn.Identity()
        module.dtype = dtype
        module.register_buffer("whole", torch.zeros(1, dtype=torch.float64))
        return module

    module = build("thing", "make", make, None, None, "bfloat16", {})
    assert module.dtype == torch.bfloat16
    assert module.whole.dtype == torch.float64  # not rounded a second time
    assert build("thing", "make", make, None, None, None, {}).dtype == "its own"
    for name, options in (("path", (3.5, None, None)), ("device", (None, 3.5, None))):
        with pytest.raises(TypeError, match=f"^{name} must be .* got float 3.5"):
            build("thing", "make", make, *options, {})


SPEC = {
    "title": "Redness",
    "differentiable": True,
    "needs_prompt": True,
    "code_license": "MIT",
    "weights_license": "none",
    "formula": "mean red channel, plus a gain per letter of the prompt",
    "typical_range": (0.0, 1.0),
    "citation": "none",
}


class Redness(rewards.Reward):
    spec = rewards.RewardSpec(name="redness", **SPEC)

    def __init__(self, gain=0.01):
        super().__init__()
        self.register_buffer("gain", torch.tensor(gain, dtype=torch.float64))

    def forward(self, images, prompts):
        letters = torch.tensor([len(prompt) for prompt in prompts], dtype=torch.float64)
        return images[:, 0].mean((1, 2)).square() + self.gain * letters


@pytest.fixture
def reward_registry(monkeypatch):
    registry = Registry("reward", "nobody.rewards", rewards.registry._check)
    monkeypatch.setattr(rewards.registry, "_registry", registry)
    return registry


def images(n=3, seed=0):
    return torch.rand(n, 3, 4, 5, generator=torch.Generator().manual_seed(seed)).double()


def test_a_reward_by_name(reward_registry):
    assert rewards.available() == []
    assert rewards.register("redness")(Redness) is Redness
    assert rewards.available() == [Redness.spec]
    reward = rewards.load("redness", dtype=torch.float64, gain=0.5)
    assert isinstance(reward, Redness)
    assert not reward.training
    values = reward(images(2), ["a", "abc"])
    torch.testing.assert_close(values, images(2)[:, 0].mean((1, 2)) ** 2 + torch.tensor([0.5, 1.5]))
    check_reward(reward, images(), ["a", "abc", "ab"])


def test_a_reward_of_another_package(reward_registry, tmp_path, monkeypatch):
    source = (
        "import rewards\n"
        "class Flat(rewards.Reward):\n"
        "    spec = rewards.RewardSpec(name='flat', title='Flat', differentiable=False,\n"
        "        needs_prompt=False, code_license='MIT', weights_license='none', formula='0',\n"
        "        typical_range=(0, 1), citation='none')\n"
        "    def forward(self, images, prompts):\n"
        "        assert prompts == []\n"
        "        return images.new_zeros(len(images))\n"
    )
    entries = {"flat": "flat_package:Flat"}
    install(tmp_path, monkeypatch, "flat_package", entries, source, "nobody.rewards")
    assert [spec.name for spec in rewards.available()] == ["flat"]
    assert rewards.load("flat")(images()).tolist() == [0, 0, 0]


def test_entry_points_of_the_groups_are_the_registries(tmp_path, monkeypatch):
    groups = {
        "rwguidance.rewards": rewards.registry,
        "rwguidance.backbones": backbones.registry,
        "rwguidance.networks": networks.registry,
        "rwguidance.prompts": prompts,
        "rwguidance.embeddings": embeddings,
    }
    for group, module in groups.items():
        assert module._registry.group == group


def test_a_module_may_register_several_names(tmp_path, monkeypatch):
    registry = Registry("thing", "nobody.things")
    monkeypatch.setattr(sys, "thing_registry", registry, raising=False)
    source = (
        "import sys\nsys.thing_registry.register('one')(1)\nsys.thing_registry.register('two')(2)\n"
    )
    entries = {"one": "things_package", "two": "things_package", "three": "things_package"}
    install(tmp_path, monkeypatch, "things_package", entries, source, "nobody.things")
    assert registry.names() == ["one", "three", "two"]
    assert (registry.load("two"), registry.load("one")) == (2, 1)
    with pytest.raises(BrokenEntryPoint, match="things_package does not register it"):
        registry.load("three")


def test_trained_networks_by_name(tmp_path, monkeypatch):
    registry = Registry("network", "nobody.n", networks.registry._check)
    monkeypatch.setattr(networks.registry, "_registry", registry)
    monkeypatch.chdir(tmp_path)
    network = networks.LatentShift(2, RectifiedSchedule(), widths=(8, 16)).half()
    network.save(tmp_path / "network.safetensors")
    facts = {"backbone": "b", "reward": "r", "beta": 0.5, "source": str(tmp_path)}
    mine = networks.PublishedNetwork(name="mine", **facts)
    assert networks.register("mine")(mine) is networks.published("mine") is mine
    assert networks.available() == ["mine"]
    found = networks.load("mine")
    assert {p.dtype for p in found.parameters()} == {torch.float32}
    assert not any(p.requires_grad for p in found.parameters())
    for key, value in network.state_dict().items():
        assert torch.equal(found.state_dict()[key], value.to(found.state_dict()[key].dtype))
    # A file of that name comes first; its precision is that in which it was saved.
    network.save(tmp_path / "mine")
    assert networks.load("mine").state_dict().keys() == network.state_dict().keys()
    assert torch.float16 in {p.dtype for p in networks.load("mine").parameters()}
    with pytest.raises(FileNotFoundError, match="no network at other"):
        networks.load("other")
    with pytest.raises(LookupError, match="there is no network 'other', there are 'mine'"):
        networks.published("other")
    with pytest.raises(ValueError, match="'mine' must be registered under its name, not 'other'"):
        networks.register("other")(mine)
    with pytest.raises(TypeError, match=r"must be a rwguidance\.networks\.PublishedNetwork, got"):
        networks.register("shift")(network)


def test_sets_of_prompts_by_name(monkeypatch):
    monkeypatch.setattr(prompts, "_registry", Registry("prompt set", "nobody.p", prompts._check))
    facts = {"title": "Two", "license": "MIT", "source": "here"}
    two = PromptSet(name="two", prompts=("a", "b"), **facts)
    assert prompts.register("two")(two) is two
    assert [known.name for known in prompts.available()] == ["two"]
    assert str(prompts.available()).splitlines()[1].split() == ["two", "2", "MIT", "here"]
    assert prompts.load("two") is two
    with pytest.raises(LookupError, match="there is no prompt set 'three', there are 'two'"):
        prompts.load("three")
    with pytest.raises(ValueError, match="'two' must be registered under its name, not 'three'"):
        prompts.register("three")(two)
    with pytest.raises(
        TypeError, match=r"must be a rwguidance\.evaluation\.PromptSet, .* got list"
    ):
        prompts.register("list")(["a"])
    for some in ((), ("a", "a")):
        with pytest.raises(ValueError, match=r"prompts must be distinct and at least one, got \d"):
            PromptSet(name="x", prompts=some, **facts)


def test_embeddings_by_name(monkeypatch):
    registry = Registry("embedding", "nobody.e", embeddings._check)
    monkeypatch.setattr(embeddings, "_registry", registry)

    @embeddings.register("means")
    class Means(torch.nn.Module):
        def forward(self, images):
            return images.mean((2, 3))

    x = images().float()
    module = embeddings.load("means")
    assert not module.training
    torch.testing.assert_close(module(x), x.mean((2, 3)))
    assert embeddings.available() == ["means"]
    with pytest.raises(TypeError, match="unexpected keyword argument 'size'"):
        embeddings.load("means", size=3)
    with pytest.raises(TypeError, match="embedding 'one' must be a class or a function"):
        embeddings.register("one")(1)


def test_what_is_not_a_reward_is_refused(reward_registry):
    with pytest.raises(TypeError, match=r"'int' must be a subclass of rewards\.Reward, got "):
        rewards.register("int")(int)
    without = type("Without", (rewards.Reward,), {"forward": Redness.forward})
    with pytest.raises(TypeError, match="must have a class attribute spec of type RewardSpec"):
        rewards.register("without")(without)
    with pytest.raises(ValueError, match="registered under its spec's name, 'redness'"):
        rewards.register("blueness")(Redness)
    with pytest.raises(ValueError, match=r"typical_range must be \(low, high\) with low < high"):
        rewards.RewardSpec(name="x", **{**SPEC, "typical_range": (1.0, 0.0)})


@pytest.mark.parametrize(
    ("x", "prompts", "error", "message"),
    [
        (images().mul(255).byte(), ["a"] * 3, TypeError, r"in \[0, 1\], got torch.uint8; divide "),
        ([0.5], ["a"], TypeError, r"images\[0\] must be a float tensor, .*, got float"),
        (images()[0], ["a"] * 3, ValueError, r"shape \(B, 3, H, W\), got \(3, 4, 5\)"),
        (images().mT.flip(1)[:, :2], ["a"] * 3, ValueError, r"shape \(B, 3, H, W\), got \(3, 2"),
        (2 * images() - 1, ["a"] * 3, ValueError, r"must lie in \[0, 1\], got values from -0"),
        (images(), None, ValueError, "redness needs prompts, one per image, got None"),
        (images(), "abc", TypeError, r"prompts must hold one hashable item .*got str"),
        (images(), ["a", "b"], ValueError, "prompts must hold one item per sample, 3, got 2"),
        (images(), [1, 2, 3], TypeError, "prompts must be strings, got int"),
        (images(), ["a", "\ud800", "c"], ValueError, r"half of a surrogate pair in prompts\[1\]"),
    ],
)
def test_bad_images_and_prompts(x, prompts, error, message):
    with pytest.raises(error, match=message):
        Redness()(x, prompts)


def test_nan_images_are_named_by_the_tilt():
    x = images()
    x[1, 0, 0, 0] = torch.nan
    with pytest.raises(ValueError, match=r"item 1 \(nan, condition 'b'\)"):
        Tilt(Redness(), 1.0)(x, ["a", "b", "c"])


class Toy(backbones.Backbone):
    """Backbone of the law N(0, I) of 3 x 2 x 2 latents, moved by the length of the prompt."""

    def __init__(self, path=None):
        super().__init__(RectifiedSchedule())

    def forward(self, x_t, t, condition=None):
        scales = self.schedule.at(t, like=x_t)
        center = torch.tensor([len(prompt) for prompt in condition]).to(x_t).reshape(-1, 1, 1, 1)
        gain = scales.alpha / (scales.alpha**2 + scales.sigma**2)
        return Prediction.from_mean(center + gain * (x_t - scales.alpha * center), x_t, scales)

    def condition(self, prompts):
        return tuple(prompts)

    def draw_noise(self, n, generator=None):
        return torch.randn(n, 3, 2, 2, generator=generator, dtype=torch.float64)

    def decode(self, latents):
        return torch.sigmoid(latents)

    def times(self, steps):
        return torch.linspace(1, 0, steps + 1, dtype=torch.float64)


def test_a_backbone_and_a_reward_meet_in_the_core(monkeypatch, generator):
    registry = Registry("backbone", "nobody.backbones", backbones.registry._check)
    monkeypatch.setattr(backbones.registry, "_registry", registry)
    backbones.register("toy")(Toy)
    assert backbones.available() == ["toy"]
    backbone = backbones.load("toy")
    prompts = ["a", "abc"]
    condition = backbone.condition(prompts)
    x_0 = torch.tensor([1.0, 3.0]).reshape(2, 1, 1, 1) + randn(0, 2, 3, 2, 2)
    check_model(backbone, x_0, condition)

    bank_prompts = prompts * 20
    lengths = torch.tensor([len(prompt) for prompt in bank_prompts])[:, None, None, None]
    bank = Bank(lengths + randn(1, 40, 3, 2, 2), bank_prompts)
    tilt = Tilt.for_ess(Redness(), bank, 0.5, backbone.decode)
    guided = GuidedModel(backbone, ImportanceSampling(bank, tilt), window=(0.8, 1.0))
    run = lambda model: sample(
        model,
        DDIM(),
        backbone.draw_noise(2, generator.manual_seed(0)),
        backbone.times(6),
        condition,
    )
    x_0 = run(guided)
    gain = tilt.rewards[0](backbone.decode(x_0), condition) - tilt.rewards[0](
        backbone.decode(run(backbone)), condition
    )
    assert x_0.shape == (2, 3, 2, 2)
    assert bool((gain > 0).all())


def test_what_is_not_a_backbone_is_refused():
    with pytest.raises(TypeError, match=r"'toy' must be a subclass of backbones\.Backbone or "):
        backbones.register("toy")(Redness)
    with pytest.raises(LookupError, match="there is no backbone 'nonsense'"):
        backbones.load("nonsense")
    with pytest.raises(LookupError, match="there is no reward 'nonsense'"):
        rewards.load("nonsense")
