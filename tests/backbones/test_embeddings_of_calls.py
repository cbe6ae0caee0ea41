"""What guidance networks find in the conditions of pipelines that have no family of their own."""

import pytest
import torch
from rwguidance.backbones.call_condition import embeddings_of_call
from test_any_pipeline import PROMPTS, adapted
from torch.testing import assert_close

from common import randn
from pipeline_cases import QUIET
from rwguidance import DDIM, GuidedModel, LearnedShift, sample
from rwguidance.backbones import CallCondition
from rwguidance.networks import GuidanceNetwork

pytestmark = QUIET

MASKED = {"sd-turbo": False, "z-image": True, "sana-sprint": True}
"""Names of tiny pipelines, and whether their prompts have as many tokens each as they have."""


def network_for(backbone, condition):
    embeddings = condition.embeddings
    network = GuidanceNetwork(
        channels=backbone.draw_noise(1, torch.Generator().manual_seed(0)).shape[1],
        schedule=backbone.schedule,
        tokens=embeddings["text"].shape[2],
        text=embeddings["pooled"].shape[1] if "pooled" in embeddings else None,
        widths=(8,),
        depth=1,
    )
    with torch.no_grad():
        network.last.weight.normal_(generator=torch.Generator().manual_seed(0))
    return network.requires_grad_(False)


@pytest.mark.parametrize("name", MASKED)
class TestPipelines:
    def test_networks_read_the_prompt_and_no_other(self, name):
        _, backbone = adapted(name)
        condition = backbone.condition(PROMPTS)
        assert ("mask" in condition.embeddings) == MASKED[name]
        network = network_for(backbone, condition)
        x_t = backbone.draw_noise(1, torch.Generator().manual_seed(0)).repeat(3, 1, 1, 1)
        t = torch.full((3,), 0.5, dtype=torch.float64)
        together = network(x_t, t, condition)
        for i, prompt in enumerate(PROMPTS):
            alone = network(x_t[:1], t[:1], backbone.condition([prompt]))
            assert_close(together[i : i + 1], alone, rtol=1e-3, atol=1e-4)
        assert (together[0] - together[1]).abs().max() > 1e-3
        turned = network(x_t, t, condition[[1, 0, 2]])
        assert_close(turned, together[[1, 0, 2]], rtol=1e-3, atol=1e-4)

    def test_a_guided_run_has_what_the_network_needs(self, name):
        _, backbone = adapted(name)
        condition = backbone.condition(PROMPTS[:2])
        network = network_for(backbone, condition)
        guided = GuidedModel(backbone, LearnedShift(network), scale=0.1)
        noise, times = backbone.draw_noise(2, torch.Generator().manual_seed(1)), backbone.times(2)
        with torch.no_grad():
            plain = sample(backbone, DDIM(), noise, times, condition)
            changed = sample(guided, DDIM(), noise, times, condition)
        assert changed.isfinite().all()
        assert (plain - changed).abs().max() > 1e-4

    def test_the_rows_are_those_of_the_prompts(self, name):
        condition = adapted(name)[1].condition(PROMPTS)
        one = condition[[2]].embeddings["text"][0]
        whole = condition.embeddings["text"][2, : len(one)]
        assert_close(one, whole)
        assert condition.embeddings["text"].shape[0] == len(PROMPTS)


def test_negative_prompts_are_not_taken_for_prompts():
    with_scale = adapted("sd-turbo")[1].condition(PROMPTS, "fog").embeddings["text"]
    without = adapted("sd-turbo", guidance_scale=None)[1].condition(PROMPTS).embeddings["text"]
    assert_close(with_scale, without)


def test_results_are_told_by_their_shapes():
    one, other, negative = (randn(i, 2, 5, 8) for i in range(3))
    mask = torch.tensor([[1, 1, 1, 0, 0], [1, 1, 1, 1, 1]])
    pooled, places = randn(3, 2, 7), torch.zeros(5, 3)
    first = embeddings_of_call([(one, mask, negative, 1 - mask)], 2)
    assert set(first) == {"text", "mask"}
    assert first["text"] is one
    assert torch.equal(first["mask"], mask.bool())
    second = embeddings_of_call([(other, places, pooled), (negative, mask.float())], 2)
    assert second["text"] is other
    assert second["pooled"] is pooled
    assert torch.equal(second["mask"], mask.bool())
    assert embeddings_of_call([(randn(4, 4, 5, 8), None)], 2) == {}
    assert embeddings_of_call([[one, None]], 2)["text"] is one
    assert embeddings_of_call([(torch.zeros(3, 3),)], 3) == {}  # three places, not three prompts
    wide = randn(5, 2, 5)  # as many numbers as there are tokens, and one that a mask might hold
    wide[0, 0] = 0
    third = embeddings_of_call([(one, wide)], 2)
    assert set(third) == {"text", "pooled"}
    assert third["pooled"] is wide


def test_lists_of_tokens_are_padded():
    tokens = [torch.ones(2, 4), torch.ones(3, 4)]
    found = embeddings_of_call([(tokens, [torch.zeros(1, 4)] * 2)], 2)
    assert found["text"].sum() == 20
    assert found["mask"].tolist() == [[True, True, False], [True, True, True]]


def test_rows_of_results_are_taken_by_their_shapes():
    layers, text, places = randn(0, 3, 2, 5, 8), randn(1, 2, 5, 8), torch.zeros(2, 3)
    tokens = [torch.ones(2, 4), torch.ones(3, 4)]
    condition = CallCondition.of(["a", "b"], [(layers, text, places, tokens, None)])
    (found,) = condition[[1]].results
    assert torch.equal(found[0], layers[:, [1]])
    assert torch.equal(found[1], text[[1]])
    assert found[2] is places
    assert found[3] == [tokens[1]]
    assert found[4] is None
    for pair in ([text, None], [None, text]):  # not one tensor for each of two prompts
        (found,) = CallCondition.of(["a", "b"], [pair])[[1]].results
        (taken,) = (part for part in found if part is not None)
        assert torch.equal(taken, text[[1]])


def test_they_cannot_be_stored():
    condition = CallCondition.of(PROMPTS, [(torch.ones(3, 2, 4),)])
    assert not condition.storable
    with pytest.raises(TypeError, match="cannot be made of embeddings"):
        condition.restored(PROMPTS, condition.embeddings)
