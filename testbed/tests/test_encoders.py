"""The formats of the towers: written, read, and read by the loaders of published rewards."""

import json
import math

import pytest
import torch

import rewards
from rwguidance_testbed import encoders
from rwguidance_testbed.encoders import KINDS

SENTENCES = ["red apple", "a small sun on an orange background, noto style", "", "zürich 42!"]


@pytest.fixture(scope="module")
def pictures():
    draws = torch.Generator().manual_seed(0)
    return torch.randint(256, (4, 3, 64, 64), generator=draws).float() / 255


@pytest.fixture(scope="module")
def saved(square_tokenizer, tmp_path_factory):
    """Towers of every kind with the log of their scale changed, and where they were written."""

    found = {}
    for i, kind in enumerate(KINDS):
        model = encoders.new(kind, square_tokenizer, smoke=True, seed=i)
        with torch.no_grad():
            model.log_scale.fill_(2.0)
        folder = tmp_path_factory.mktemp(kind)
        model.write(folder)
        found[kind] = (model.eval(), folder)
    return found


class TestFormats:
    @pytest.mark.parametrize("kind", KINDS)
    def test_what_is_read_is_what_was_written_in_half_precision(self, saved, kind, pictures):
        model, folder = saved[kind]
        again = encoders.read(kind, folder)
        before, after = model.state_dict(), again.state_dict()
        assert set(before) == set(after)
        for name, value in before.items():
            assert value.dtype == after[name].dtype
            assert torch.equal(
                after[name], value.half().float() if value.is_floating_point() else value
            )
        with torch.no_grad():
            assert torch.allclose(
                again.eval()(pictures, SENTENCES), model(pictures, SENTENCES), atol=2e-3
            )
        again.write(folder)
        assert torch.equal(encoders.read(kind, folder).log_scale, again.log_scale)

    @pytest.mark.parametrize("kind", ["pick", "hps"])
    def test_patches_that_are_left_out_are_not_seen(self, saved, kind, pictures, generator):
        model, _ = saved[kind]
        every = torch.arange(64).expand(4, -1)
        chosen = torch.rand(4, 64, generator=generator).argsort(1)[:, :20]
        other = pictures.clone()
        for row, patches in enumerate(chosen.tolist()):
            for patch in set(range(64)) - set(patches):
                top, left = divmod(patch, 8)
                other[row, :, 8 * top : 8 * top + 8, 8 * left : 8 * left + 8] = 0.5
        with torch.no_grad():
            whole, part = model.embed_pictures(pictures), model.embed_pictures(pictures, chosen)
            assert torch.allclose(model.embed_pictures(pictures, every), whole, atol=1e-5)
            assert torch.allclose(model.embed_pictures(other, chosen), part, atol=1e-6)
            assert not torch.allclose(model.embed_pictures(other, chosen.flip(0)), part, atol=1e-3)
            assert torch.equal(model.embed_pictures(pictures), whole)

    def test_an_hps_starts_with_the_image_tower_of_a_pick(self, saved, square_tokenizer, pictures):
        pick, _ = saved["pick"]
        hps = encoders.new("hps", square_tokenizer, smoke=True, seed=8).eval()
        with torch.no_grad():
            before = hps.embed_pictures(pictures)
            encoders.copy_image_tower(hps, pick)
            found, wanted = hps.embed_pictures(pictures), pick.embed_pictures(pictures)
        assert torch.allclose(found, wanted, atol=1e-5)
        assert not torch.allclose(before, wanted, atol=0.1)

    def test_transformers_and_pick_score_agree(self, saved, pictures):
        import transformers

        _, folder = saved["pick"]
        ours = encoders.read("pick", folder).eval()
        with torch.random.fork_rng(devices=[]):
            plain = transformers.CLIPModel.from_pretrained(folder).float().eval()
        processor = transformers.CLIPImageProcessor.from_pretrained(folder)
        tokenizer = transformers.CLIPTokenizer.from_pretrained(folder)
        inputs = tokenizer(SENTENCES, padding=True, truncation=True, return_tensors="pt")
        pixels = processor(
            [(255 * p).round().byte().permute(1, 2, 0).numpy() for p in pictures],
            return_tensors="pt",
        )
        with torch.no_grad():
            expected = plain(**inputs, **pixels).logits_per_image
            cosines = ours(pictures, SENTENCES)
            found = rewards.load("pickscore", folder)(pictures, SENTENCES)
        assert torch.allclose(found, expected.diagonal(), atol=1e-4)
        assert torch.allclose(math.exp(2.0) * cosines, expected.diagonal(), atol=1e-4)
        assert float(expected.std()) > 0.1

    def test_open_clip_and_hpsv2_agree(self, saved, pictures):
        import open_clip

        _, folder = saved["hps"]
        ours = encoders.read("hps", folder).eval()
        architecture = json.loads((folder / "architecture.json").read_text())
        with torch.random.fork_rng(devices=[]):
            plain = open_clip.CLIP(**architecture).eval()
        file = folder / "HPS_v2_compressed.pt"
        plain.load_state_dict(torch.load(file, weights_only=True)["state_dict"])
        tokens = open_clip.SimpleTokenizer(context_length=24)(SENTENCES)
        mean, std = (
            torch.tensor(v)[:, None, None]
            for v in (open_clip.OPENAI_DATASET_MEAN, open_clip.OPENAI_DATASET_STD)
        )
        reward = rewards.load("hpsv2", folder, architecture=architecture)
        with torch.no_grad():
            x = plain.encode_image((pictures - mean) / std, normalize=True)
            y = plain.encode_text(tokens, normalize=True)
            expected = (x * y).sum(-1)
            found = reward(pictures, SENTENCES)
            assert torch.allclose(ours(pictures, SENTENCES), expected, atol=1e-5)
        assert torch.allclose(found, expected, atol=1e-5)
        assert float(reward.logit_scale.log_scale) == 2.0
        assert float(expected.std()) > 0.01

    @pytest.mark.parametrize("kind", KINDS)
    def test_every_prompt_fits_or_is_cut(self, saved, kind):
        model, _ = saved[kind]
        with torch.no_grad():
            long = model.embed_captions(["red apple " * 40, "red apple"])
            assert long.isfinite().all()
            assert not torch.allclose(long[0], long[1])
            alone = model.embed_captions(["red apple"])
        assert torch.allclose(long[1], alone[0], atol=1e-5)
