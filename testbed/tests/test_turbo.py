"""The teacher of the turbo model: what its network starts from, and what it is trained on."""

import json
import math
from dataclasses import replace

import pytest
import torch
from safetensors.torch import load_file

from common import assert_rounds_to, assert_within
from rwguidance.support.randomness import seeded
from rwguidance_testbed import flow, scenes, turbo, vae
from rwguidance_testbed.data import Drawing, Drawings
from rwguidance_testbed.tokenizer import tokenize, train_tokenizer
from rwguidance_testbed.training import loop
from rwguidance_testbed.training.buffer import LatentBuffer

pytest.importorskip("diffusers")

pytestmark = pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning")


@pytest.fixture(scope="module")
def flow_pipe(tmp_path_factory):
    folder = tmp_path_factory.mktemp("words")
    tokenizer = train_tokenizer(["red apple on a blue background"] * 3, folder, size=600)
    autoencoder = vae.new(smoke=True).eval()
    autoencoder.register_to_config(scaling_factor=1.5, shift_factor=0.25)
    return flow.new(autoencoder, tokenizer, smoke=True)


@pytest.fixture(scope="module")
def pipe(flow_pipe):
    return turbo.new(flow_pipe, smoke=True)


class Spy:
    """A network that returns what it is told to, and remembers what it was asked."""

    def __init__(self, answer=None):
        self.answer = answer

    def __call__(self, unet, x_t, step, text, pooled):
        self.x_t, self.step, self.text, self.pooled = x_t, step, text, pooled
        return x_t if self.answer is None else self.answer


class TestStart:
    @pytest.mark.parametrize("smoke", [True, False])
    def test_the_network_gives_back_its_input(self, flow_pipe, generator, smoke):
        unet = turbo.new(flow_pipe, smoke).unet
        x = torch.randn(4, 8, 8, 8, generator=generator)
        text, pooled = torch.ones(4, 16, 64), torch.ones(4, 32)
        with torch.no_grad():
            found = turbo.predict_noise(unet, x, torch.tensor([0, 10, 500, 999]), text, pooled)
        # What group normalization alone does to 8 x 8 positions is 30 times as much.
        assert float((found - x).square().mean().sqrt()) < 2e-3

    def test_every_weight_can_learn(self, flow_pipe, generator):
        unet = turbo.new(flow_pipe, smoke=True).unet
        optimizer = torch.optim.SGD(unet.parameters(), lr=1e-3)
        x, y = (torch.randn(4, 8, 8, 8, generator=generator) for _ in range(2))
        text = torch.randn(4, 16, 64, generator=generator)
        pooled = torch.randn(4, 32, generator=generator)
        for _ in range(2):  # the last layer first, the others through it
            optimizer.zero_grad()
            predicted = turbo.predict_noise(unet, x, torch.tensor([5, 10, 500, 999]), text, pooled)
            (predicted - y).square().mean().backward()
            optimizer.step()
        still = [name for name, p in unet.named_parameters() if not p.grad.abs().max() > 0]
        assert not still

    def test_a_network_without_room_is_refused(self, flow_pipe):
        import diffusers

        with seeded(0):
            unet = diffusers.UNet2DConditionModel(
                in_channels=8, out_channels=8, block_out_channels=(8,), norm_num_groups=2,
                down_block_types=("DownBlock2D",), up_block_types=("UpBlock2D",),
                cross_attention_dim=8, attention_head_dim=1,
            )  # fmt: skip
        with pytest.raises(ValueError, match=r"room for 8 groups .* has 2"):
            turbo.initialize_to_identity(unet)


class TestLoss:
    def draw(self, pipe, spy, count=2000):
        alphas = pipe.scheduler.alphas_cumprod
        draws = torch.Generator().manual_seed(5)
        latents = torch.randn(count, 2, 2, 2, generator=draws)
        text, pooled = torch.ones(count, 3, 4), torch.ones(count, 5)
        loss = turbo.denoising_loss(None, latents, text, pooled, alphas, draws, spy)
        square = alphas[spy.step][:, None, None, None]
        noise = (spy.x_t - square.sqrt() * latents) / (1 - square).sqrt()
        return float(loss), latents, square, noise

    def test_the_error_is_that_of_the_velocity(self, pipe):
        spy = Spy()
        loss, latents, square, noise = self.draw(pipe, spy)
        # Velocities alpha * noise - sigma * x_0 of the truth, and of what is said at x_t.
        x_0 = (spy.x_t - (1 - square).sqrt() * spy.x_t) / square.sqrt()
        velocity = lambda x_0, noise: square.sqrt() * noise - (1 - square).sqrt() * x_0
        error = velocity(x_0, spy.x_t) - velocity(latents, noise)
        assert loss == pytest.approx(float(error.square().mean()), rel=1e-4)

    def test_noise_is_normal_and_steps_are_uniform(self, pipe):
        spy = Spy()
        _, _, square, noise = self.draw(pipe, spy)
        flat = noise[square.flatten() < 0.9].flatten().double()
        assert_within(flat.mean(), 0, 1 / math.sqrt(flat.numel()))
        assert_within(flat.square().mean(), 1, math.sqrt(2 / flat.numel()))
        assert_within(spy.step.double().mean(), 499.5, 1000 / math.sqrt(12 * 2000))
        assert (int(spy.step.min()), int(spy.step.max())) == (0, 999)

    def test_one_caption_in_ten_is_left_out_as_the_pipeline_does(self, pipe):
        spy = Spy()
        self.draw(pipe, spy)
        out = spy.pooled[:, 0] == 0
        assert bool((spy.pooled == spy.pooled[:, :1]).all())
        assert torch.equal(spy.text.flatten(1).amax(1) == 0, out)
        assert_within(out.double().mean(), 0.1, math.sqrt(0.1 * 0.9 / 2000))
        _, empty, _, pooled = pipe.encode_prompt("red apple", do_classifier_free_guidance=True)
        assert not empty.any()
        assert not pooled.any()

    def test_prompts_and_sizes_are_what_the_pipeline_says(self, pipe):
        seen = {}

        def remember(module, arguments, options):
            seen.update(text=options["encoder_hidden_states"], **options["added_cond_kwargs"])

        prompts = ["red apple", "a red apple on a blue background"]
        hook = pipe.unet.register_forward_pre_hook(remember, with_kwargs=True)
        pipe.set_progress_bar_config(disable=True)
        draws = torch.Generator().manual_seed(0)
        size = {"height": 64, "width": 64, "num_inference_steps": 1, "guidance_scale": 0.0}
        pipe(prompts, generator=draws, output_type="latent", **size)
        hook.remove()
        tokens = tokenize(pipe.tokenizer, prompts)
        text, pooled = turbo.embed_captions((pipe.text_encoder, pipe.text_encoder_2), tokens)
        torch.testing.assert_close(seen["text"], text, rtol=0, atol=1e-6)
        torch.testing.assert_close(seen["text_embeds"], pooled, rtol=0, atol=1e-6)
        assert seen["time_ids"].tolist() == [list(turbo.SIZES)] * 2


@pytest.fixture(scope="module")
def trained(flow_pipe, tmp_path_factory):
    """A smoke run of two steps, on drawings of two learned names."""

    out = tmp_path_factory.mktemp("turbo")
    train_tokenizer(["red apple on a blue background"] * 3, out / "flow" / "tokenizer", 600)
    pixels = torch.zeros(4, 4, 80, 80, dtype=torch.uint8)
    pixels[:, :, 20:60, 20:60] = 255
    entries = [
        Drawing(name, style, "food-drink", "food-fruit", (), "generator")
        for name in ("red apple", "banana")
        for style in ("noto", "twemoji")
    ]
    Drawings(entries, pixels).save(out)
    pictures, _ = scenes.sample_pictures(
        Drawings(entries, pixels), 16, torch.Generator().manual_seed(0)
    )
    vae.export(flow_pipe.vae, pictures, out / "vae")
    flow.export(flow_pipe, out / "flow" / "tokenizer", out / "flow")
    return out


def train(out, steps, name="turbo"):
    options = replace(turbo.OPTIONS, steps=steps, batch=4, kept=8, smoke=True)
    turbo.train(out, out / "vae", out / "flow", out / name, every=2, options=options)


@pytest.mark.slow
class TestTraining:
    def test_the_folder_is_read_by_its_class_and_the_run_goes_on(self, trained, capsys):
        import diffusers

        train(trained, 2)
        with seeded(0):
            autoencoder = diffusers.AutoencoderKL.from_pretrained(trained / "vae")
        pipe = turbo.read(trained / "turbo", autoencoder)
        assert type(pipe).__name__ == "StableDiffusionXLPipeline"
        before = torch.load(trained / "turbo.state", weights_only=True)["modules"]
        for key, value in pipe.unet.state_dict().items():
            assert torch.equal(value, before["average"][key].half().float())
        moved = before["unet"]["conv_out.weight"] - before["average"]["conv_out.weight"]
        assert float(moved.abs().max()) > 0
        written = load_file(trained / "turbo" / "text_encoder" / "model.safetensors")
        assert all(name.startswith("text_model.") for name in written)  # as transformers 4 has them
        words = flow.read(trained / "flow", autoencoder)
        for key, value in pipe.text_encoder_2.state_dict().items():
            assert torch.equal(value, words.text_encoder_2.state_dict()[key])
        tokens = tokenize(pipe.tokenizer, ["red apple", "on a blue background"])
        for ours, theirs in zip(
            pipe.text_encoder(tokens, output_hidden_states=True).hidden_states,
            words.text_encoder(tokens, output_hidden_states=True).hidden_states,
            strict=True,
        ):
            assert_rounds_to(ours, theirs, terms=1024)  # each was read from a file of its own
        assert (trained / "sheets" / "turbo-00000008.png").stat().st_size > 1000
        assert (
            "/"
            not in json.loads((trained / "turbo" / "unet" / "config.json").read_text())[
                "_name_or_path"
            ]
        )
        capsys.readouterr()
        train(trained, 3)
        assert "going on at step 2" in capsys.readouterr().out
        figures = json.loads((trained / "turbo" / "figures.json").read_text())
        assert (figures["steps"], figures["pictures_seen"]) == (3, 12)

    def test_latents_are_those_of_a_pipeline_without_a_shift(self, trained, monkeypatch):
        seen = []

        def spy(unet, latents, *others):
            seen.append(latents)
            return sum(p.sum() for p in unet.parameters()) * 0.0

        monkeypatch.setattr(turbo, "denoising_loss", spy)
        monkeypatch.setattr(LatentBuffer, "renew", lambda self, count: None)
        buffers = []
        start = LatentBuffer.__init__

        def remember(self, *arguments):
            start(self, *arguments)
            buffers.append(self)

        monkeypatch.setattr(LatentBuffer, "__init__", remember)
        train(trained, 1, "spied")
        kept = buffers[0].latents  # (mode - 0.25 or what the export found) * scaling
        config = buffers[0].vae.config
        expected = kept + config.shift_factor * config.scaling_factor
        distance = (seen[0][:, None] - expected[None]).flatten(2).abs().amax(2)
        assert float(distance.amin(1).max()) < 1e-6
        assert abs(config.shift_factor * config.scaling_factor) > 1e-3

    def test_the_rate_is_that_of_the_loop(self, trained, monkeypatch):
        rates = []
        run = loop.Run.train

        def remember(self, steps, batch, rate, *others):
            rates.extend(rate(step) for step in (0, 1))
            run(self, 0, batch, rate, *others)

        monkeypatch.setattr(loop.Run, "train", remember)
        train(trained, 2, "rates")
        assert rates == [loop.learning_rate(step, 2, 2e-3) for step in (0, 1)]
