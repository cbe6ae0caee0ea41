"""Every public class with state says what its results depend on, and says enough."""

import functools
import os
import subprocess
import sys

import pytest
import torch

import rewards
import zoo
from backbones import flux, sd3, sdxl
from backbones.any_pipeline import AnyPipeline
from backbones.latents import LatentCodec
from backbones.tiny import tiny
from identity import Case, Each, check, classes_with_state, keys_of
from pixel_law import Law as PixelLaw
from plain_rewards import Brightness, Letters, Redness
from rewards.clip import ImageTower, TextTower
from rewards.learned import LearnedReward
from rewards.towers import AffineHead, EmbeddingReward, LogitScale
from rwguidance import (
    DDIM,
    Bank,
    CosineSchedule,
    DiscreteSchedule,
    GuidedModel,
    Heun,
    ImportanceSampling,
    LearnedExpectation,
    LearnedShift,
    LeaveOneOut,
    LookAhead,
    PlugIn,
    RectifiedSchedule,
    TargetESS,
    Tempered,
    Tilt,
    VESchedule,
    VPSchedule,
    toy,
)
from rwguidance.estimators import (
    FMPS,
    FlowMap,
    InnerFlow,
    PosteriorSampling,
    Renoising,
    SecondOrderPlugIn,
)
from rwguidance.evaluation.extractors import Extractor
from rwguidance.evaluation.meter import Counted
from rwguidance.losses import log_mse
from rwguidance.networks import (
    AtStrength,
    ExpectationMLP,
    GuidanceNetwork,
    LatentExpectation,
    LatentShift,
    ShiftMLP,
)
from rwguidance.support.fingerprint import fingerprint
from rwguidance.trainer.material import Encode, Encoded, OfPrompts, Stored
from rwguidance.trainer.problem import Outputs
from rwguidance.training import (
    EstimatedShiftObjective,
    ExpectationObjective,
    GradientObjective,
    NoiseObjective,
    OutputObjective,
    ShiftObjective,
    StrengthsObjective,
)

# Schedulers of diffusers hand tensors to numpy in a way that newer versions of it dislike.
pytestmark = pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning")

ELSEWHERE = {
    "backbones.decoding.PipelineDecoder": "tests/backbones/test_draw.py, which has its pipelines",
    "rewards.hpsv3.HPSv3": "tests/rewards/test_hpsv3.py, which has its files",
    "rewards.vlm.TransformersVLM": "tests/rewards/test_vlm.py, which has its files",
}

NO_RESULT = {
    # What they hold decides no saved result: commands, files, tables, one call of a pipeline.
    "app.demo.digits.Digits",
    "app.page.blocks.Bounded",
    "app.page.studio.Studio",
    "backbones.beginning.Beginning",
    "backbones.guided_pipeline._guided_pipeline_class.<locals>.GuidedPipeline",
    "backbones.guided_steps.StepGuidance",
    "backbones.recorded.Recorded",
    "evaluation.meter.Meter",
    "evaluation.prompts.PromptTable",
    "generation.console.Terminal",
    "generation.work.Forecast",
    "metrics.accumulators.Accumulator",
    "metrics.frechet.Moments",
    "rewards.prompt_cache.PromptCache",
    "rewards.remote.limits.Budget",
    "rewards.remote.limits.Deadline",
    "rewards.remote.server.RewardServer",
    "rewards.scoring.journal.Journal",
    "rewards.scoring.journal.OwnJournal",
    "rewards.scoring.summaries.Tally",
    "rewards.table.RewardTable",
    "rewards.towers.WideModule",
    "support.digests.Numbers",
    "support.registry.Registry",
    "trainer.figures.Thumbnail",
    "trainer.log.Log",
    "training.recipe.InBfloat16",
    "training.state.State",
}

TABLE = torch.linspace(0.999, 0.01, 100).double()
EYE = torch.eye(2)


def linear(*slope):
    return toy.Linear(slope or [1.0, 0.0])


def law(scale=1.0):
    return toy.Gaussian([0.0, 1.0], scale * EYE)


def model(schedule=None):
    return law().model(schedule or CosineSchedule())


def bank(**changes):
    x_0 = torch.arange(24.0).reshape(12, 2) / 7
    facts = {"condition": ["a"] * 6 + ["b"] * 6, "rewards": x_0[:, 0].clone()}
    return Bank(**{"x_0": x_0, **facts, **changes})


def half(t):
    return 0.5 * t


class Half:
    depends_on = ()

    def __call__(self, t):
        return 0.5 * t


class Times:
    depends_on = ()

    def __call__(self, n, generator):
        return torch.full((n,), 0.5, dtype=torch.float64)


class Upper:
    depends_on = ()

    def __call__(self, items):
        return [item.upper() for item in items]


def core():
    net = functools.partial(ExpectationMLP, (2,), width=8, depth=2)
    tilt = lambda beta=1.0: Tilt(linear(), beta)
    objective = {
        "base": {"model": model(), "bank": bank(), "tilt": tilt()},
        "changes": {
            "model": model(VPSchedule()),
            "bank": bank(rewards=torch.arange(12.0)),
            "tilt": tilt(0.5),
            "batch_size": 128,
            "times": Times(),
            "encode": Upper(),
        },
    }
    one_step = {
        "base": {"generate": torch.nn.Identity(), "tilt": tilt(), "draw": torch.nn.ReLU()},
        "changes": {
            "generate": torch.nn.Tanh(),
            "tilt": tilt(2.0),
            "draw": torch.nn.Sigmoid(),
            "condition": Each(["a"], ["b"]),
            "batch_size": 3,
        },
    }
    latent = {
        "base": {"channels": 4, "schedule": VPSchedule(), "text": None, "widths": (8, 8)},
        "changes": {
            "channels": 8,
            "schedule": VPSchedule(0.1, 10.0),
            "text": 3,
            "widths": (8, 16),
            "depth": 1,
        },
        "follows": ("seed",),  # of the head too, which starts at zero
    }
    return {
        "VPSchedule": Case(VPSchedule, {}, {"beta_min": 0.2, "beta_max": 10.0}),
        "CosineSchedule": Case(CosineSchedule),
        "VESchedule": Case(
            VESchedule,
            {"sigma_min": 0.1, "sigma_max": 9.0},
            {"sigma_min": 0.2, "sigma_max": 8.0},
        ),
        "RectifiedSchedule": Case(RectifiedSchedule),
        "DiscreteSchedule": Case(
            DiscreteSchedule,
            {"alphas_cumprod": TABLE},
            {"alphas_cumprod": Each(TABLE[:-1], torch.linspace(0.9, 0.5, 100).double(), TABLE**2)},
        ),
        "DDIM": Case(DDIM, {}, {"eta": 0.5}),
        "Heun": Case(Heun),
        "Tempered": Case(Tempered, {"factor": 0.5}, {"factor": 0.25}),
        "LeaveOneOut": Case(LeaveOneOut, {}, {"factors": (1.0, 0.5), "seed": 1}),
        "TargetESS": Case(TargetESS, {"fraction": 0.5}, {"fraction": 0.25}),
        "Tilt": Case(
            Tilt,
            {"reward": linear(), "beta": 1.0},
            {
                "reward": Each(linear(0.0, 1.0), toy.Step(0.0, 1.0), Redness()),
                "beta": 2.0,
                "decode": Half(),
            },
        ),
        "Bank": Case(
            Bank,
            {"x_0": bank().x_0, "condition": bank().condition, "rewards": bank().rewards},
            {
                "x_0": Each(2 * bank().x_0, bank().x_0.double()),
                "condition": Each(["a"] * 6 + ["c"] * 6, list(range(12))),
                "rewards": Each(2 * bank().rewards, None),
                "log_importance": Each(torch.arange(12.0), -torch.arange(12.0)),
            },
            {"origin": {"made": "elsewhere"}, "decode": torch.tanh},
        ),
        "ImportanceSampling": Case(
            ImportanceSampling,
            {"bank": bank(), "tilt": tilt()},
            {
                "bank": Each(
                    bank(rewards=torch.arange(12.0)),
                    bank(condition=["a"] * 12),
                    bank(log_importance=torch.arange(12.0)),
                ),
                "tilt": tilt(0.5),
                "kernel": Each(Tempered(0.5), Tempered(0.25), TargetESS(0.5), LeaveOneOut()),
            },
            {"pareto_k": True},
        ),
        "LearnedExpectation": Case(
            LearnedExpectation, {"network": net()}, {"network": net(seed=1)}
        ),
        "LearnedShift": Case(LearnedShift, {"network": net()}, {"network": net(seed=1)}),
        "FMPS": Case(FMPS, {"tilt": tilt()}, {"tilt": tilt(2.0)}),
        "FlowMap": Case(
            FlowMap,
            {"times": [1.0, 0.5, 0.0]},
            {"times": [1.0, 0.4, 0.0], "renoise": 0.5, "nodes": 2, "sampler": DDIM(0.5)},
        ),
        "InnerFlow": Case(InnerFlow, {"steps": 4}, {"steps": 5, "sampler": DDIM(0.5)}),
        "Renoising": Case(
            Renoising,
            {"times": [1.0, 0.5, 0.0]},
            {"times": [1.0, 0.4, 0.0], "sampler": DDIM(0.5)},
        ),
        "PosteriorSampling": Case(
            PosteriorSampling,
            {"tilt": tilt(), "draws": InnerFlow(4)},
            {
                "tilt": tilt(2.0),
                "draws": InnerFlow(5),
                "n": 3,
                "first_order": True,
                "bank": bank(),
                "seed": 1,
            },
        ),
        "SecondOrderPlugIn": Case(
            SecondOrderPlugIn,
            {"tilt": tilt()},
            {"tilt": tilt(2.0), "jacobian": False, "iterations": 4, "prior_variance": 2.0},
        ),
        "LookAhead": Case(LookAhead, {"tilt": tilt()}, {"tilt": tilt(2.0)}),
        "PlugIn": Case(
            PlugIn,
            {"tilt": tilt()},
            {"tilt": tilt(2.0), "jacobian": False, "damping": 1.0, "prior_variance": 2.0},
        ),
        "GuidedModel": Case(
            GuidedModel,
            {"base": model(), "estimator": PlugIn(tilt())},
            {
                "base": model(VPSchedule()),
                "estimator": PlugIn(tilt(2.0)),
                "scale": Each(2.0, Half()),
                "window": (0.0, 0.5),
            },
        ),
        "ExpectationMLP": Case(
            ExpectationMLP,
            {"event": (2,), "labels": ["a", "b"], "width": 8, "depth": 2},
            {
                "event": (3,),
                "labels": Each(["a", "c"], ["b", "a"]),
                "width": 4,
                "depth": 1,
                "seed": 1,
            },
        ),
        "ShiftMLP": Case(
            ShiftMLP,
            {"event": (2,), "schedule": VPSchedule(), "width": 8, "depth": 2},
            {
                "event": (3,),
                "schedule": CosineSchedule(),
                "labels": ["a"],
                "width": 4,
                "depth": 1,
                "seed": 1,
            },
        ),
        "GuidanceNetwork": Case(
            GuidanceNetwork,
            latent["base"],
            {
                **latent["changes"],
                "output": Each("log_h", "change", "changes"),
                "tokens": 5,
                "strength": True,
                "scales": {1.0: 2.0},
            },
            follows=latent["follows"],
        ),
        "AtStrength": Case(
            AtStrength,
            {"network": GuidanceNetwork(**latent["base"], strength=True), "strength": 1.0},
            {
                "network": GuidanceNetwork(**{**latent["base"], "channels": 8}, strength=True),
                "strength": 2.0,
            },
        ),
        "LatentExpectation": Case(LatentExpectation, **latent),
        "LatentShift": Case(LatentShift, **latent),
        "ExpectationObjective": Case(
            ExpectationObjective,
            {**objective["base"], "cycle_weight": 0.5, "classifier": net()},
            {
                **objective["changes"],
                "loss": log_mse,
                "eta": 0.5,
                "preferred": bank(),
                "penalty": 0.5,
                "cycle_weight": 0.25,
                "classifier": net(seed=1),
                "group_size": 2,
            },
        ),
        "EstimatedShiftObjective": Case(
            EstimatedShiftObjective,
            objective["base"],
            {**objective["changes"], "tilted": 0.25, "effective": 5.0},
        ),
        "StrengthsObjective": Case(
            StrengthsObjective,
            {"objectives": {1.0: ShiftObjective(**objective["base"])}},
            {
                "objectives": Each(
                    {2.0: ShiftObjective(**objective["base"])},
                    {1.0: EstimatedShiftObjective(**objective["base"])},
                )
            },
        ),
        "OutputObjective": Case(
            OutputObjective,
            one_step["base"],
            {**one_step["changes"], "variance": 2.0},
            {"decode_batch": 2},
        ),
        "GradientObjective": Case(
            GradientObjective,
            one_step["base"],
            {**one_step["changes"], "std": 2.0, "variance": 2.0, "pictures": 9, "seed": 1},
            {"decode_batch": 2},
        ),
        "NoiseObjective": Case(
            NoiseObjective,
            one_step["base"],
            {**one_step["changes"], "std": 2.0, "prior": torch.nn.Tanh()},
            {"decode_batch": 2},
        ),
        "ShiftObjective": Case(
            ShiftObjective,
            {**objective["base"], "expectation": net()},
            {**objective["changes"], "expectation": Each(net(seed=1), None)},
        ),
    }


def toys():
    points = torch.arange(12.0).reshape(6, 2)
    mixture = {
        "log_weights": [0.0, -1.0],
        "means": [[0.0, 0.0], [1.0, 1.0]],
        "covariances": torch.stack((EYE, 2 * EYE)),
    }
    step = Tilt(toy.Step(0.0, 1.0), 1.0)
    line = lambda mean: toy.Gaussian([mean], torch.eye(1))
    return {
        "law.model": Case(
            lambda law, schedule: law.model(schedule),
            {"law": law(), "schedule": CosineSchedule()},
            {"law": law(2.0), "schedule": VPSchedule()},
        ),
        "Empirical": Case(
            toy.Empirical,
            {"points": points},
            {"points": points + 1, "bandwidth": 0.5, "log_weights": torch.arange(6.0)},
        ),
        "GaussianMixture": Case(
            toy.GaussianMixture,
            mixture,
            {
                "log_weights": [0.0, -2.0],
                "means": [[0.0, 0.0], [1.0, 2.0]],
                "covariances": EYE[None],
            },
        ),
        "Gaussian": Case(
            toy.Gaussian,
            {"mean": [0.0, 1.0], "covariance": EYE},
            {"mean": [0.0, 2.0], "covariance": 2 * EYE},
        ),
        "StepTilted": Case(
            toy.StepTilted,
            {"base": line(0.0), "tilt": step},
            {"base": line(1.0), "tilt": Tilt(toy.Step(0.0, 2.0), 1.0)},
        ),
        "Oracle": Case(
            toy.Oracle,
            {"law": law(), "tilt": Tilt(linear(), 1.0)},
            {"law": law(2.0), "tilt": Tilt(linear(), 2.0)},
        ),
        "Linear": Case(toy.Linear, {"b": [1.0, 0.0]}, {"b": [1.0, 1.0], "c": 1.0}),
        "Quadratic": Case(
            toy.Quadratic,
            {"center": [0.0, 0.0], "precision": EYE},
            {"center": [1.0, 0.0], "precision": 2 * EYE, "b": [1.0, 0.0]},
        ),
        "Bumps": Case(
            toy.Bumps,
            {"log_heights": [0.0], "centers": [[0.0, 0.0]], "precisions": EYE[None]},
            {"log_heights": [1.0], "centers": [[1.0, 0.0]], "precisions": 2 * EYE[None]},
        ),
        "Step": Case(
            toy.Step,
            {"threshold": 0.0, "height": 1.0},
            {"threshold": 1.0, "height": 2.0},
        ),
    }


class Towers(EmbeddingReward):
    depends_on = ("factor",)
    spec = rewards.PickScore.spec

    def __init__(self, factor=1.0):
        super().__init__(torch.zeros(()))
        self.factor = factor

    def embed_images(self, images):
        return self.factor * images.mean((2, 3))[:, :2]

    def embed_prompts(self, prompts):
        return torch.tensor([[len(prompt), 1.0] for prompt in prompts])

    def value(self, cosine):
        return cosine


def composites():
    parts = [Brightness(), Redness()]
    remote = {"url": "http://a.example/score", "token": "x"}
    layers = {"0.weight": torch.ones(1, 3), "0.bias": torch.zeros(1)}
    return {
        "WeightedSum": Case(
            rewards.WeightedSum,
            {"rewards": parts, "weights": [1.0, 2.0]},
            {"weights": [1.0, 3.0]},
            follows=("rewards",),
        ),
        "WeightedSum of others": Case(
            lambda weight: rewards.WeightedSum([Brightness(), Redness(weight)], [1.0, 2.0]),
            {"weight": 1.5},
            {"weight": 2.5},
        ),
        "LearnedReward": Case(
            LearnedReward,
            {"name": "mine", "tower": Towers(), "weights": torch.ones(4)},
            {"tower": Towers(2.0), "weights": torch.zeros(4), "bias": 1.0},
            {"name": "other", "usual": (-1.0, 1.0)},
        ),
        "LowerConfidenceBound": Case(
            lambda kappa, weight=1.5: rewards.LowerConfidenceBound(
                [Brightness(), Redness(weight)], kappa
            ),
            {"kappa": 1.0},
            {"kappa": 2.0, "weight": 2.5},
        ),
        "Normalized": Case(
            rewards.Normalized,
            {"reward": Redness(), "normalizer": rewards.Affine(2.0)},
            {
                "reward": Each(Redness(2.5), Letters()),
                "normalizer": Each(
                    rewards.Affine(3.0),
                    rewards.ZScore(0.0, 1.0),
                    rewards.ZScore(0.0, 1.0, {"a": (0.0, 1.0, 3)}),
                    rewards.ZScore(0.0, 1.0, {"a": (0.5, 1.0, 3)}),
                    rewards.Rank((0.0, 1.0), (0.25, 0.75)),
                ),
            },
        ),
        "JPEG": Case(rewards.JPEG, {}, {"incompressible": True, "quality": 90}),
        "RemoteReward": Case(
            rewards.RemoteReward,
            remote,
            {
                "url": "http://a.example/score?model=b",
                "needs_prompt": False,
                "typical_range": (0.0, 2.0),
            },
            {"timeout": 1.0, "total_timeout": 9.0, "retries": 1, "batch_size": 2, "token": "y"},
            ("token_variable",),
        ),
        "LogitScale": Case(
            LogitScale, {"log_scale": torch.tensor(1.0)}, {"log_scale": torch.tensor(2.0)}
        ),
        "AffineHead": Case(
            AffineHead,
            {"weights": layers, "where": "here"},
            {"weights": {**layers, "0.bias": torch.ones(1)}},
            {"where": "there"},
        ),
    }


def evaluations():
    network = lambda scale: LogitScale(torch.tensor(scale))
    return {
        "Counted": Case(Counted, {"reward": Redness()}, {"reward": Redness(2.5)}),
        "Extractor": Case(
            Extractor,
            {"name": "a", "preprocess": torch.sin, "network": network(1.0)},
            {"network": network(2.0), "about": "sine"},
            {"name": "b", "preprocess": torch.cos},  # which `about` describes
        ),
    }


class Drawn:
    """What of prepared data the embeddings depend on."""

    def __init__(self, drawer):
        self.about = {"prompt drawer": {"weights": drawer}, "embeddings": {}}


def trainings():
    encode = lambda drawer: Encode(Drawn(drawer), PixelLaw(), ["a", "b"])
    return {
        "Stored": Case(Stored, {"name": "a", "key": "b"}, {"key": "c"}, {"name": "d"}),
        "OfPrompts": Case(OfPrompts, {"reward": Redness()}, {"reward": Redness(2.5)}),
        "Encode": Case(
            Encode,
            {"data": Drawn("x"), "backbone": PixelLaw(), "prompts": ["a", "b"]},
            {"data": Drawn("y")},
            {"backbone": PixelLaw(0.2), "prompts": ["b"]},  # whose embeddings are those of the data
        ),
        "Encoded": Case(
            Encoded,
            {"prompts": ["a"], "encode": encode("x")},
            {"prompts": ["b"], "encode": encode("y")},
        ),
        "Outputs": Case(
            Outputs,
            {"backbone": PixelLaw(), "times": torch.tensor([1.0, 0.0])},
            {"backbone": PixelLaw(0.2), "times": torch.tensor([1.0, 0.5, 0.0])},
            {"gradient": True},
        ),
    }


def of_zoo(name, folder):
    path = zoo.write(name, folder) if folder is not None else None
    return functools.partial(zoo_case, name, path)


def zoo_case(name, path):
    load = functools.partial(zoo.load, name)
    fast = {} if name.startswith("hpsv2") else {"preprocessing": "fast"}
    scaling = {"scaling": "logit"} if name == "clipscore" else {}
    changes = {**fast, **scaling}
    known = {"gradient_checkpointing": True}
    known |= {"cache_size": 3} if name in zoo.TWO_TOWERS else {}
    make = lambda **keywords: load(**keywords)
    case = Case(make, {"path": path}, changes, known)
    case.follows = ("keywords",)
    return case


BACKBONES = {"sdxl-turbo": sdxl.SDXL, "sd3": sd3.SD3, "flux": flux.Flux, "sd1.5": AnyPipeline}


def backbone_case(name):
    pipe = tiny(name)
    sizes = {"height": 2 * pipe.vae_scale_factor * 8, "width": 2 * pipe.vae_scale_factor * 8}
    base = {"pipe": pipe, "height": 16, "width": 16}
    changes = {
        "pipe": tiny(name, seed=1),
        "guidance_scale": 2.5,
        **sizes,
        "steps": 7,
    }
    incidental = {"decode_batch": 1}
    if name == "sd1.5":
        changes["call"] = {"clip_skip": 1}
    else:
        changes["vae"] = tiny(name, seed=1).vae
        incidental["checkpoint_decode"] = True
    changes |= {"max_sequence_length": 5} if name in ("sd3", "flux") else {}
    return Case(BACKBONES[name], base, changes, incidental, ("max_sequence_length",))


def quick(*names, only):
    """Names as parameters, all of which but one are slow."""

    return [name if name == only else pytest.param(name, marks=pytest.mark.slow) for name in names]


GROUPS = {
    "core": core,
    "toys": toys,
    "composites": composites,
    "evaluations": evaluations,
    "trainings": trainings,
}
ALL = [(group, name) for group, make in GROUPS.items() for name in make()]


@pytest.mark.parametrize(("group", "name"), ALL)
def test_arguments_and_entries_count_and_equals_are_equal(group, name):
    check(lambda: GROUPS[group]()[name])


@pytest.mark.parametrize("name", quick(*zoo.OPTIONS, only="aesthetic"))
def test_rewards_of_the_zoo_count_by_options_and_weights(name, tmp_path):
    check(of_zoo(name, tmp_path), tensors=1)


@pytest.mark.parametrize("name", quick(*BACKBONES, only="flux"))
def test_backbones_count_by_options_and_by_what_their_pipelines_hold(name):
    check(lambda: backbone_case(name), tensors=2)


def test_a_codec_counts_by_its_autoencoder():
    vae = [tiny("sd3", seed=seed).vae for seed in (0, 0, 1)]
    key = lambda vae, **options: fingerprint(
        LatentCodec(**{"vae": vae, "device": torch.device("cpu"), "shifted": True, **options})
    )
    assert key(vae[0]) == key(vae[1], batch=1, recompute=True, device=torch.device("meta"))
    assert len({key(vae[0]), key(vae[2]), key(vae[0], shifted=False)}) == 3


@pytest.mark.slow
def test_processes_agree():
    cases = {f"{g} {n}": case for g, make in GROUPS.items() for n, case in make().items()}
    code = (
        "import test_identity as t, identity as i\n"
        "print(i.keys_of({f'{g} {n}': c for g, m in t.GROUPS.items() for n, c in m().items()}))"
    )
    found = subprocess.run(
        [sys.executable, "-c", code],
        env={**os.environ, "PYTHONPATH": ":".join(sys.path), "PYTHONHASHSEED": "7"},
        capture_output=True,
        text=True,
        check=True,
    )
    assert found.stdout.strip() == keys_of(cases)


def test_no_public_class_with_state_is_forgotten():
    found = classes_with_state("rwguidance", "rwguidance.rewards", "rwguidance.backbones")
    tested = {
        *(type(case.make(**case.base)) for make in GROUPS.values() for case in make().values()),
        *(rewards.registry._registry.load(name) for name in zoo.OPTIONS),
        *BACKBONES.values(),
        LatentCodec,
        ImageTower,  # within the rewards of the zoo
        TextTower,
        rewards.UnifiedReward,
        rewards.VQAScore,
    }
    known = {f"rwguidance.{name}" for name in (*NO_RESULT, *ELSEWHERE)}
    missing = {name for name, cls in found.items() if cls not in tested} - known
    assert not missing, f"say what they depend on, and test it here: {sorted(missing)}"
    assert known <= set(found), "these are gone"
    silent = [n for n, c in found.items() if n not in known and "depends_on" not in c.__dict__]
    assert not silent


def test_models_behind_questions_count_with_the_questions():
    class Model(rewards.vlm.VisionLanguageModel):
        depends_on = ("name",)

        def __init__(self, name):
            super().__init__()
            self.name = name

        def token_log_probs(self, images, questions, answers):
            raise NotImplementedError

        def generate(self, images, instructions):
            raise NotImplementedError

    vqa = lambda name="a", **options: fingerprint(rewards.VQAScore(model=Model(name), **options))
    keys = {vqa(), vqa("b"), vqa(question="{prompt}?"), vqa(answer="No")}
    assert len(keys) == 4
    assert vqa() in keys
    unified = lambda name: fingerprint(rewards.UnifiedReward(model=Model(name)))
    assert unified("a") == unified("a") != unified("b")
