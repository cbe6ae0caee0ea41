"""From files of pairs to a reward that every command reads, by commands alone."""

import json
from pathlib import Path

import pytest
import torch
from rwguidance.rewards.learned import LearnedReward
from typer.testing import CliRunner

import tiny_checkpoints as tiny
from preference_files import CAPTIONS, encoded, pick_a_pic
from rwguidance import rewards
from rwguidance.app.cli import app
from rwguidance.app.commands.sources import Sources
from rwguidance.app.commands.train_reward import _as_path
from rwguidance.preparation import Prepared
from rwguidance.trainer.preferences import fit_reward, fit_weights, read_comparisons

pytestmark = [
    pytest.mark.filterwarnings("ignore::rwguidance.UnreliableEstimate"),
    pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning"),
]

TOWER = ("--path", "pickscore=tower", "--option", "pickscore:verify=false")


def command(*arguments, code=0):
    found = CliRunner().invoke(app, list(map(str, arguments)))
    assert found.exit_code == code, (found.output, found.exception)
    return found


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    """Pairs, a tower and a model of a user; what the commands made of them."""

    root = tmp_path_factory.mktemp("pairs")
    (root / "mine.py").write_text(
        "from path_model import PathModel\nfrom preference_files import Light\n\n"
        "model, light = PathModel(), Light()\n"
    )
    pick_a_pic(root / "a.parquet", n=16, dirty=False)
    tiny.write_pickscore(root / "tower")
    with pytest.MonkeyPatch.context() as inside:
        inside.chdir(root)
        prepare = ("prepare", "--backbone", "mine.py:model", "--data", "a.parquet", "--size", 16)
        prepare += ("--out", "data", "--reward", "mine.py:light", "--validation", 0.6)
        command(*prepare)
        command(*prepare, "--features", "pickscore", *TOWER)
        train = ("train-reward", "--data", "data", "--features", "pickscore", *TOWER)
        said = command(*train, "--ridge", 0.1, "--out", "made/reward").output
        (root / "said.txt").write_text(said)
    return root


@pytest.fixture(autouse=True)
def inside(root, monkeypatch):
    monkeypatch.chdir(root)


def images():
    generator = torch.Generator().manual_seed(0)
    return torch.rand(3, 3, 16, 16, generator=generator)


class TestTheReward:
    def test_it_is_a_weighted_sum_of_the_features_of_the_pairs(self):
        weights = fit_weights(read_comparisons(Prepared("data"), "pickscore", "train"), 0.1)
        reward = rewards.load("made/reward")
        pictures, prompts = images(), list(CAPTIONS[:3])
        expected = reward.tower.features(pictures, prompts).double() @ weights
        assert torch.allclose(reward(pictures, prompts).double(), expected, atol=1e-5)
        assert weights.abs().max() > 0

    def test_features_hold_the_cosine_and_the_look(self):
        tower = rewards.load("made/reward").tower
        pictures, prompts = images(), list(CAPTIONS[:3])
        products, look = tower.features(pictures, prompts).chunk(2, 1)
        cosine = tower(pictures, prompts) / tower.logit_scale(torch.ones(()))
        assert torch.allclose(products.sum(1), cosine, atol=1e-5)
        assert torch.allclose(look.norm(dim=1), torch.ones(3), atol=1e-5)

    def test_pictures_that_people_prefer_have_more_of_it(self):
        data = Prepared("data")
        weights = fit_weights(read_comparisons(data, "pickscore", "train"), 1e-4)
        tower, right = rewards.load("made/reward").tower, []
        for i in range(16):  # as pick_a_pic writes them: the first, the second, a tie in turn
            if CAPTIONS[i % 4] in data.split("train") and i % 3 != 2:
                levels = torch.tensor([10 * i, 10 * i + 5]) / 255
                pictures = levels[:, None, None, None].expand(2, 3, 16, 16)
                first, second = tower.features(pictures, [CAPTIONS[i % 4]] * 2).double() @ weights
                right.append(bool(first > second) == (i % 3 == 0))
        assert len(right) == 8
        assert sum(right) >= 7

    def test_it_has_a_gradient(self):
        pictures = images().requires_grad_()
        reward = rewards.load("made/reward")
        (gradient,) = torch.autograd.grad(reward(pictures, ["a key"] * 3).sum(), pictures)
        assert gradient.abs().amax((1, 2, 3)).min() > 0

    def test_probabilities_are_those_of_the_law(self):
        reward = rewards.load("made/reward")
        first, second = reward(images()[:2], ["a key"] * 2).double()
        preferred = reward.prefer(images()[:2], "a key").double()
        assert float(preferred[0]) == pytest.approx(float((first - second).sigmoid()), abs=1e-6)

    def test_half_precision_leaves_the_weights_alone(self):
        reward = rewards.load("made/reward", dtype=torch.bfloat16)
        assert reward.head.weight.dtype == torch.float32
        assert reward(images(), ["a key"] * 3).isfinite().all()


class TestTheFolder:
    def test_the_card_tells_agreement_and_calibration(self, root):
        card = (root / "made/reward/README.md").read_text()
        for text in ("agreement of learned", "agreement of mine.py:light", "slope", "held out"):
            assert text in card

    def test_figures_are_said(self, root):
        said = " ".join((root / "said.txt").read_text().split())
        assert "agreement of learned: " in said
        assert "made/reward has the reward and its card: --reward made/reward" in said

    def test_a_folder_of_weights_is_noted_as_it_is_found_from_anywhere(self, root, monkeypatch):
        tower, kept = rewards.load("pickscore", path="tower", verify=False), []
        monkeypatch.setattr(Sources, "reward", lambda self, name: tower)
        monkeypatch.setattr(Sources, "check", lambda self, *names: None)
        keep = lambda self, out, place, options, card: kept.append(place)
        monkeypatch.setattr(LearnedReward, "save_pretrained", keep)
        train = ("train-reward", "--data", "data", "--features", "pickscore", "--ridge", 0.1)
        for path in ((), ("--path", "pickscore=hf://a/tower"), ("--path", "pickscore=tower")):
            command(*train, "--out", "made/other", *path)
        assert kept == [None, "hf://a/tower", str(Path.cwd() / "tower")]

    def test_two_spreads_around_zero_are_usual(self):
        found = fit_reward(Prepared("data"), "pickscore", 0.1)
        usual = rewards.load("made/reward").spec.typical_range
        assert usual == pytest.approx((-2 * found.spread, 2 * found.spread))
        train = read_comparisons(Prepared("data"), "pickscore", "train")
        differences = train.differences.double() @ found.weights  # twice the variance of one
        assert found.spread == pytest.approx(float(differences.square().mean() / 2) ** 0.5)
        assert train.preferences.dtype == torch.float64  # thirds of three votes are not rounded

    def test_figures_are_those_of_the_held_out_pairs(self):
        data = Prepared("data")
        found = fit_reward(data, "pickscore", 0.1)
        train, unseen = (read_comparisons(data, "pickscore", s) for s in ("train", "validation"))
        assert found.pairs == (len(train.prompts), len(unseen.prompts))
        assert found.prompts == (len(data.split("train")), len(data.split("validation")))
        assert found.pairs[0] != found.pairs[1]
        scores, preferences = unseen.differences.double() @ found.weights, unseen.preferences
        entropy = torch.nn.functional.binary_cross_entropy_with_logits(scores, preferences)
        assert found.loss.value == pytest.approx(float(entropy))
        assert list(found.agreement) == ["learned", "mine.py:light"]
        kept = preferences != 0.5
        for values, figure in zip(
            (scores, unseen.rewards["mine.py:light"]), found.agreement.values(), strict=True
        ):
            right = ((values > 0) == (preferences > 0.5))[kept].double().mean()
            assert figure.value == pytest.approx(float(right))

    def test_a_folder_is_told_from_a_name_by_its_separator(self):
        assert _as_path(Path("made")) == "./made"
        assert _as_path(Path("made/reward")) == "made/reward"

    def test_another_tower_is_refused(self, root):
        tiny.write_clip(root / "other", config=tiny.clip.CLIP_CONFIG)
        with pytest.raises(ValueError, match="was trained on another pickscore"):
            rewards.load("made/reward", preprocessing="fast", path="other")

    @pytest.mark.parametrize(
        "broken", ['{"reward": "LearnedReward"}', '{"reward": "LearnedReward",']
    )
    def test_damage_is_told(self, tmp_path, broken):
        (tmp_path / "config.json").write_text(broken)
        with pytest.raises(ValueError, match=r"config\.json"):
            rewards.load(f"{tmp_path}/")

    def test_towers_that_are_not_two_towers_are_refused(self, tmp_path):
        settings = {"reward": "LearnedReward", "tower": "jpeg", "options": {}, "path": None}
        (tmp_path / "config.json").write_text(json.dumps({**settings, "usual": [-1, 1], "key": ""}))
        with pytest.raises((TypeError, ValueError, FileNotFoundError)):
            rewards.load(f"{tmp_path}/")

    @pytest.mark.parametrize("weights", [torch.ones(2, 2), torch.tensor([1.0, torch.inf])])
    def test_weights_that_are_no_finite_vector_are_refused(self, weights):
        tower = rewards.load("made/reward").tower
        with pytest.raises(ValueError, match="weights must be finite"):
            LearnedReward("mine", tower, weights)


class TestCommands:
    def test_pictures_are_scored(self, root):
        (root / "pictures").mkdir(exist_ok=True)
        for level in (40, 200):
            (root / "pictures" / f"{level}.png").write_bytes(encoded(level))
        (root / "prompts.txt").write_text("a key\n")
        given = ("score", "pictures", "--reward", "made/reward", "--prompts", "prompts.txt")
        command(*given, "--restart")
        assert (root / "scores.csv").read_text().count("\n") == 3

    @pytest.mark.slow
    def test_data_is_prepared_and_a_network_trained_for_it(self):
        prepare = ("prepare", "--backbone", "mine.py:model", "--data", "a.parquet", "--size", 16)
        command(*prepare, "--out", "scored", "--reward", "made/reward", "--validation", 0.6)
        train = ("train", "--data", "scored", "--backbone", "mine.py:model", "--preset", "gradient")
        train += ("--reward", "made/reward", "--network-preset", "tiny", "--steps", 2)
        train += ("--batch-size", 2, "--warm-up", 0, "--shown", 1, "--images", 1, "--beta", 1)
        command(*train, "--out", "network")

    def test_features_that_were_not_prepared_are_told(self):
        train = ("train-reward", "--data", "data", "--features", "hpsv2", "--out", "none")
        found = command(*train, code=1)
        assert "features must be among those that were prepared, pickscore" in str(found.exception)

    def test_other_weights_than_those_prepared_are_told(self):
        train = ("train-reward", "--data", "data", "--features", "pickscore", "--out", "none")
        options = (*TOWER, "--option", "pickscore:preprocessing=fast")
        assert "are others than" in str(command(*train, *options, code=1).exception)

    def test_code_of_a_user_makes_no_folder(self):
        train = ("train-reward", "--data", "data", "--features", "mine.py:light", "--out", "none")
        assert "holds no code" in str(command(*train, code=1).exception)

    def test_features_need_two_towers_and_pairs(self):
        prepare = ("prepare", "--backbone", "mine.py:model", "--size", 16, "--out", "none")
        found = command(*prepare, "--data", "a.parquet", "--features", "mine.py:light", code=1)
        assert "two towers" in str(found.exception)
