"""Preferences between pictures of both generators."""

import json

import pytest
import torch
from test_gold import decoded

from rwguidance.support.randomness import seeded
from rwguidance_testbed import encoders, flow, gold, preferences, scenes, turbo, vae
from rwguidance_testbed.data import Drawing, Drawings
from rwguidance_testbed.tokenizer import tokenizer_corpus, train_tokenizer

pytest.importorskip("diffusers")

pytestmark = pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning")


@pytest.fixture(scope="module")
def built(tmp_path_factory):
    """Drawings of two names, and both generators and the judge with random weights."""

    out = tmp_path_factory.mktemp("preferences")
    entries = [
        Drawing(name, style, "food-drink", "food-fruit", (), "generator")
        for name in ("red apple", "banana", "grapes")
        for style in ("noto", "twemoji")
    ]
    pixels = torch.zeros(6, 4, 80, 80, dtype=torch.uint8)
    pixels[:, :, 20:60, 20:60] = 255
    drawings = Drawings(entries, pixels)
    drawings.save(out)
    tokenizer = train_tokenizer(tokenizer_corpus(drawings), out / "words")
    autoencoder = vae.new(smoke=True).eval()
    draws = torch.Generator().manual_seed(0)
    vae.export(autoencoder, scenes.sample_pictures(drawings, 16, draws)[0], out / "vae")
    with seeded(0):
        import diffusers

        autoencoder = diffusers.AutoencoderKL.from_pretrained(out / "vae")
    # Any other number: that of the smallest autoencoder is too small to be seen.
    autoencoder.register_to_config(shift_factor=0.7)
    autoencoder.half().save_pretrained(out / "vae")
    pipe = flow.new(autoencoder.float(), tokenizer, smoke=True)
    flow.export(pipe, out / "words", out / "flow")
    flow.export(turbo.new(pipe, smoke=True), out / "words", out / "turbo")
    encoders.new("judge", out / "words", smoke=True).write(out / "judge")
    return out


def run(built, **changes):
    folders = {"vae": "vae", "flow": "flow", "turbo": "turbo", "judge": "judge"}
    settings = {"captions": 40, "each": 2, "agreement": 0.7, "out": built / "pairs.parquet"}
    paths = {name: built / folder for name, folder in folders.items()}
    preferences.train(data=built, **{**paths, **settings, **changes})


class TestPairs:
    def test_all_pairs_of_a_caption_and_no_others(self):
        index = preferences.all_pairs(3, 4)
        assert len(index) == 3 * 6
        assert len({frozenset(pair) for pair in index.tolist()}) == 18
        assert bool((index[:, 0] // 4 == index[:, 1] // 4).all())
        assert bool((index[:, 0] != index[:, 1]).all())

    def test_no_place_belongs_to_one_of_the_generators(self):
        index = preferences.all_pairs(1, 6) % 6
        mixed = index[(index < 3).sum(1) == 1]
        assert len(mixed) == 9
        assert int((mixed[:, 0] < 3).sum()) in (4, 5)

    def test_captions_are_different_and_of_learned_names(self, built):
        drawings = Drawings.load(built)
        found = preferences.sample_captions(drawings, 100, torch.Generator().manual_seed(0))
        assert len(set(found)) == len(found) == 100
        again = preferences.sample_captions(drawings, 100, torch.Generator().manual_seed(0))
        assert found == again


class TestGenerators:
    def test_pictures_are_those_of_the_pipelines(self, built):
        generators = preferences.Generators(built / "flow", built / "turbo", built / "vae")
        captions = ["red apple", "banana"]
        found = generators.draw(captions, 2, torch.Generator().manual_seed(3))
        assert (found.shape, found.dtype) == ((2, 4, 3, 64, 64), torch.uint8)
        noise = torch.Generator().manual_seed(3)
        prompts = ["red apple", "red apple", "banana", "banana"]
        size = {"height": 64, "width": 64, "output_type": "pt"}
        for i, (pipe, settings) in enumerate(generators.runs):
            images = pipe(prompts, generator=noise, **size, **settings).images
            ours = found[:, 2 * i : 2 * i + 2].flatten(0, 1).float() / 255
            # In half precision, and rounded to 8 bits.
            assert float((ours - images).abs().mean()) < 0.01
            assert float((ours - images.flip(0)).abs().mean()) > 0.01

    def test_they_take_four_steps_and_one_without_guidance(self, built):
        generators = preferences.Generators(built / "flow", built / "turbo", built / "vae")
        calls = []
        for pipe, _ in generators.runs:
            network = getattr(pipe, "transformer", None) or pipe.unet
            network.register_forward_hook(lambda module, x, y: calls.append(len(y[0])))
        generators.draw(["red apple"], 3, torch.Generator().manual_seed(3))
        assert calls == [3] * 5


@pytest.mark.slow
class TestCommand:
    def test_it_goes_on_where_it_was_and_writes_what_the_utility_says(self, built, monkeypatch):
        drawn = []
        draw = preferences.Generators.draw

        def interrupted(self, captions, each, generator):
            if len(drawn) == 1:
                raise KeyboardInterrupt
            return remembered(self, captions, each, generator)

        def remembered(self, captions, each, generator):
            drawn.append(generator.initial_seed())
            return draw(self, captions, each, generator)

        monkeypatch.setattr(preferences.Generators, "draw", interrupted)
        with pytest.raises(KeyboardInterrupt):
            run(built)
        assert not (built / "pairs.parquet").exists()
        monkeypatch.setattr(preferences.Generators, "draw", remembered)
        run(built)
        assert len(set(drawn)) == 2  # every part has noise of its own
        monkeypatch.setattr(preferences.Generators, "draw", draw)
        run(built)
        run(built, out=built / "whole.parquet")
        whole = (built / "whole.parquet").read_bytes()
        assert (built / "pairs.parquet").read_bytes() == whole
        from pyarrow import parquet

        table = parquet.read_table(built / "pairs.parquet").to_pydict()
        assert len(table["caption"]) == 40 * 6
        judge = gold.Gold(encoders.read("judge", built / "judge"))
        for side in (0, 1):
            pictures = torch.stack([decoded(raw) for raw in table[f"jpg_{side}"]]).float() / 255
            expected = judge(pictures, table["caption"])
            found = torch.tensor(table[f"utility_{side}"])
            torch.testing.assert_close(found, expected, rtol=0, atol=1e-4)
        figures = json.loads((built / "pairs.json").read_text())
        assert (figures["pairs"], figures["pictures"], figures["captions"]) == (240, 160, 40)
        utilities = torch.tensor([table["utility_0"], table["utility_1"]]).T
        clean = gold.prefer(utilities)
        labels = torch.tensor(table["label_0"])
        same = float((labels == clean).float().mean())
        assert figures["agreement_with_clean"] == pytest.approx(same, abs=1e-4)
        assert same == pytest.approx(0.7, abs=5 * (0.21 / 240) ** 0.5)

    def test_how_often_the_flow_is_preferred(self):
        index = torch.tensor([[0, 1], [0, 2], [3, 1], [5, 6]])
        labels = torch.tensor([1.0, 1.0, 1.0, 0.0])
        # Mixed are the second, which it wins, the third, which it loses, and the fourth.
        assert preferences._preferred(labels, index, 4, 2) == pytest.approx(1 / 3)
