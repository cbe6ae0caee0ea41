"""The flow teacher: its attention, its loss, and smoke runs."""

import json
import math
import re
from dataclasses import replace
from pathlib import Path

import pytest
import torch

import rwguidance_testbed
from common import assert_rounds_to, assert_within
from rwguidance.support.randomness import seeded
from rwguidance_testbed import flow, vae
from rwguidance_testbed.data import load_names
from rwguidance_testbed.tokenizer import (
    CONTEXT_LENGTH,
    tokenize,
)
from rwguidance_testbed.training.attention import CountedAttention
from rwguidance_testbed.training.buffer import LatentBuffer
from rwguidance_testbed.training.sheets import check_prompts


def parts_of(pipe):
    return [pipe.transformer, pipe.text_encoder, pipe.text_encoder_2]


class Spy(torch.nn.Module):
    """A transformer that returns its input and remembers what it was asked."""

    def __init__(self):
        super().__init__()
        self.attn_processors = {}

    def forward(self, **inputs):
        self.seen = inputs
        return (inputs["hidden_states"],)


class TestFlow:
    def inputs(self, flow_pipe, zeros, generator):
        normal = lambda *shape: torch.randn(*shape, generator=generator)
        text = torch.cat((normal(3, 5, 64), torch.zeros(3, zeros, 64)), dim=1)
        shared = {
            "pooled_projections": normal(3, 64),
            "timestep": torch.tensor([1.0, 500.0, 900.0]),
        }
        return {"hidden_states": normal(3, 8, 8, 8), **shared}, text

    @pytest.mark.parametrize("zeros", [1, 7, 256])
    def test_one_token_counts_as_many(self, flow_pipe, zeros, generator):
        from diffusers.models.attention_processor import JointAttnProcessor2_0

        inputs, text = self.inputs(flow_pipe, zeros, generator)
        transformer = flow_pipe.transformer
        with torch.no_grad():
            transformer.set_attn_processor(JointAttnProcessor2_0())
            expected = transformer(**inputs, encoder_hidden_states=text).sample
            count = None if zeros == 1 else torch.tensor(3 * [math.log(zeros)])
            transformer.set_attn_processor(CountedAttention(count))
            found = transformer(**inputs, encoder_hidden_states=text[:, :6]).sample
        assert torch.allclose(found, expected, atol=2e-5)

    def test_the_loss_is_of_noise_minus_data_on_straight_lines(self, flow_pipe, generator):
        spy = Spy()
        latents = torch.randn(400, 8, 8, 8, generator=generator)
        tokens = tokenize(flow_pipe.tokenizer, ["red apple"]).expand(400, -1)
        with torch.no_grad():
            draws = torch.Generator().manual_seed(7)
            loss = flow.flow_matching_loss([spy, *parts_of(flow_pipe)[1:]], latents, tokens, draws)
        t = spy.seen["timestep"][:, None, None, None] / 1000
        noise = (spy.seen["hidden_states"] - (1 - t) * latents) / t
        error = spy.seen["hidden_states"] - (noise - latents)
        assert float(loss) == pytest.approx(float(error.square().mean()), rel=1e-3)
        flat = noise.flatten().double()
        assert_within(flat.mean(), 0, 1 / math.sqrt(flat.numel()))
        assert_within(flat.square().mean(), 1, math.sqrt(2 / flat.numel()))
        odds = t.flatten().double().logit()
        assert_within(odds.mean(), 0, 1 / 20)
        assert_within(odds.square().mean(), 1, math.sqrt(2) / 20)

    def test_prompts_are_encoded_as_the_pipeline_does(self, flow_pipe, generator):
        spy = Spy()
        prompts = ["red apple", "a key on a blue background"]
        with torch.no_grad():
            text, _, pooled, _ = flow_pipe.encode_prompt(
                prompts, None, None, do_classifier_free_guidance=False, max_sequence_length=1
            )
            latents = torch.zeros(2, 8, 8, 8)
            tokens = tokenize(flow_pipe.tokenizer, prompts)
            flow.flow_matching_loss([spy, *parts_of(flow_pipe)[1:]], latents, tokens, generator)
        assert_rounds_to(spy.seen["encoder_hidden_states"], text, terms=1024)
        assert_rounds_to(spy.seen["pooled_projections"], pooled, terms=1024)

    def test_counts_reach_the_attention(self, flow_pipe, generator):
        processor = CountedAttention()
        flow_pipe.transformer.set_attn_processor(processor)
        tokens = tokenize(flow_pipe.tokenizer, ["red apple"]).expand(500, -1)
        with torch.no_grad():
            flow.flow_matching_loss(
                parts_of(flow_pipe), torch.zeros(500, 8, 8, 8), tokens, generator
            )
        share = processor.log_count / math.log(256)
        assert_within(share.mean(), 0.5, math.sqrt(1 / 12 / 500))
        assert 0 <= float(share.min()) < 0.02
        assert 0.98 < float(share.max()) < 1

    def test_one_caption_in_ten_is_left_out(self, generator):
        tokens, empty = torch.ones(4000, 3), torch.zeros(1, 3)
        found = flow.drop_captions(tokens, empty, generator)
        assert bool((found == found[:, :1]).all())
        assert_within(1 - found[:, 0].mean(), 0.1, math.sqrt(0.1 * 0.9 / 4000))

    def test_latents_are_used_again_until_they_are_replaced(self, flow_pipe, emoji_drawings):
        buffer = LatentBuffer(
            emoji_drawings, flow_pipe.vae, flow_pipe.tokenizer, 10, torch.Generator().manual_seed(0)
        )
        before = buffer.latents.clone()
        buffer.renew(3)
        buffer.renew(4)
        same = (buffer.latents == before).flatten(1).all(1)
        assert same.tolist() == [False] * 7 + [True] * 3
        buffer.renew(4)
        assert buffer.oldest == 1
        latents, tokens = buffer.batch(500, torch.Generator().manual_seed(0))
        assert (latents.shape, tokens.shape) == ((500, 8, 8, 8), (500, CONTEXT_LENGTH))
        assert len(latents.flatten(1).unique(dim=0)) == 10

    def test_sixty_prompts_of_learned_names(self):
        prompts = check_prompts()
        assert len(set(prompts)) == len(prompts) >= 59
        assert {re.split(" on an? ", p)[0] for p in prompts} <= set(load_names()["train"])
        assert not any(" a orange" in p for p in prompts)


@pytest.fixture(scope="module")
def trained(emoji_folder, tmp_path_factory):
    """Smoke runs of everything, one after the other."""

    out = tmp_path_factory.mktemp("trained")
    options = replace(vae.OPTIONS, steps=2, batch=4, smoke=True)
    vae.train(emoji_folder, out / "vae", options=options)
    train(emoji_folder, out, "flow", 2)
    return out


def train(data, out, name, steps, **changes):
    options = replace(flow.OPTIONS, steps=steps, batch=4, kept=8, smoke=True)
    flow.train(data, out / "vae", out / name, every=2, options=options, **changes)


@pytest.mark.slow
class TestTraining:
    def test_the_pipeline_is_read_by_its_class_and_draws(self, trained):
        import diffusers

        with seeded(0):
            autoencoder = diffusers.AutoencoderKL.from_pretrained(trained / "vae")
        pipe = flow.read(trained / "flow", autoencoder)
        state = torch.load(trained / "flow.state", weights_only=True)["modules"]
        for name in ("transformer", "text_encoder", "text_encoder_2"):
            for key, value in getattr(pipe, name).state_dict().items():
                average = state[f"average_{name}"].get(key)
                assert average is None or torch.equal(value, average.half().float())
        assert not torch.equal(
            state["transformer"]["proj_out.weight"],
            state["average_transformer"]["proj_out.weight"],
        )
        assert (trained / "sheets" / "flow-00000008.png").stat().st_size > 1000
        pipe.set_progress_bar_config(disable=True)
        draws = torch.Generator().manual_seed(0)
        images = pipe(
            "red apple", height=64, width=64, num_inference_steps=2, generator=draws
        ).images
        assert images[0].size == (64, 64)

    def test_averages_follow_the_weights(self, trained, emoji_folder):
        train(emoji_folder, trained, "first", 1)
        state = torch.load(trained / "first.state", weights_only=True)["modules"]
        with seeded(0):
            autoencoder = vae.new(smoke=True)
        tokenizer = flow.read(trained / "first", autoencoder).tokenizer
        first = flow.new(autoencoder, tokenizer, smoke=True).transformer.state_dict()
        for name in ("proj_out.weight", "context_embedder.weight"):
            now = state["transformer"][name]
            expected = torch.lerp(first[name], now, 9 / 11)
            assert torch.allclose(state["average_transformer"][name], expected, atol=1e-7)
            assert not torch.allclose(first[name], now)

    def test_a_run_goes_on_and_starts_from_what_was_written(self, trained, emoji_folder, capsys):
        train(emoji_folder, trained, "flow", 3)
        assert "going on at step 2" in capsys.readouterr().out
        (trained / "flow" / "figures.json").unlink()
        train(emoji_folder, trained, "flow", 1)
        first = json.loads((trained / "flow" / "figures.json").read_text())
        assert (first["steps"], first["pictures_seen"]) == (3, 12)
        capsys.readouterr()
        train(emoji_folder, trained, "second", 1, start=trained / "flow")
        assert "going on" not in capsys.readouterr().out
        second = json.loads((trained / "second" / "figures.json").read_text())
        assert (second["steps"], second["pictures_seen"]) == (1, 16)
        state = torch.load(trained / "second.state", weights_only=True)["modules"]
        with seeded(0):
            autoencoder = vae.new(smoke=True)
        start = flow.read(trained / "flow", autoencoder).transformer.state_dict()
        for name, value in start.items():
            moved = (state["transformer"][name] - value).abs().max()
            assert 0 <= float(moved) < 1e-3, name


WEIGHTS = Path(rwguidance_testbed.__file__).with_name("weights")


def test_the_flow_draws_what_it_is_asked_for_through_the_adapter_too():
    import diffusers

    import backbones
    from rwguidance import sample as run

    with seeded(0):
        autoencoder = diffusers.AutoencoderKL.from_pretrained(WEIGHTS / "emoji-vae")
    pipe = flow.read(WEIGHTS / "emoji-flow", autoencoder)
    pipe.set_progress_bar_config(disable=True)
    prompts = [f"red apple on a {color} background" for color in ("black", "white")]
    size = {"height": 64, "width": 64, "max_sequence_length": 1}
    backbone = backbones.from_pipeline(pipe, **size)
    generator = lambda: torch.Generator().manual_seed(0)
    plain = pipe(
        prompts, num_inference_steps=4, guidance_scale=0.0, generator=generator(),
        output_type="pt", **size,
    ).images  # fmt: skip
    with torch.no_grad():
        noise = backbone.draw_noise(2, generator())
        x_0 = run(backbone, backbone.sampler, noise, backbone.times(4), backbone.condition(prompts))
        images = backbone.decode(x_0)
    torch.testing.assert_close(images, plain, rtol=0, atol=1e-4)
    dark, light = images[:, :, :6, :].mean((1, 2, 3)).tolist()
    assert dark < 0.3 < 0.7 < light
    red, green, _ = images[:, :, 24:44, 20:44].mean((0, 2, 3)).tolist()
    assert red > 1.5 * green
