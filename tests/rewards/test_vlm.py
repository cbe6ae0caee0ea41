"""Rewards that ask a vision-language model: the formulas on a model in closed form, and the whole
way through transformers on a tiny random model."""

import copy
import json
import math
from types import SimpleNamespace

import pytest
import torch

import rewards
from rewards.hpsv3 import HPSv3
from rewards.unified import UnifiedReward, parse_score
from rewards.vlm import TransformersVLM, VisionLanguageModel, load_vlm
from rewards.vqascore import VQAScore
from rwguidance.testing import check_reward
from tiny_qwen import CHAT, PROMPTS, as_pil, copied, images, write_tokenizer

# A model in closed form


class Known(VisionLanguageModel):
    """An answer's token k has the probability brightness ** (k + 1); reviews are given."""

    def __init__(self, reviews=()):
        super().__init__()
        self.reviews = list(reviews)
        self.asked = []

    def token_log_probs(self, images, questions, answers):
        self.asked += list(zip(questions, answers, strict=True))
        light = images.flatten(1).mean(1)
        tokens = [answer.split() for answer in answers]
        return [
            torch.stack([(k + 1) * x.log() for k in range(len(words))])
            for x, words in zip(light, tokens, strict=True)
        ]

    def generate(self, images, instructions):
        self.asked += instructions
        return [self.reviews.pop(0) for _ in instructions]


def test_vqascore_is_the_probability_of_yes():
    model = Known()
    x = images(3)
    values = VQAScore(model=model)(x, PROMPTS)
    torch.testing.assert_close(values, x.flatten(1).mean(1))
    assert model.asked[0] == ('Does this figure show "a cat"? Please answer yes or no.', "Yes")
    assert model.asked[2][0] == f'Does this figure show "{PROMPTS[2]}"? Please answer yes or no.'


def test_vqascore_is_the_geometric_mean_over_tokens():
    x = images(2)
    values = VQAScore(model=Known(), answer="Yes it does", question="{prompt}?")(x, PROMPTS[:2])
    torch.testing.assert_close(values, x.flatten(1).mean(1) ** 2)  # (1 + 2 + 3) / 3


def test_vqascore_of_half_precision_loses_no_digits():
    class Half(Known):
        def token_log_probs(self, images, questions, answers):
            return [torch.linspace(-1, -0.001, 300).to(torch.float16) for _ in images]

    values = VQAScore(model=Half())(images(2), PROMPTS[:2])
    exact = torch.linspace(-1, -0.001, 300).half().double().mean().exp()
    torch.testing.assert_close(values, exact.float().expand(2), rtol=1e-6, atol=0)


def test_vqascore_keeps_the_contract_and_the_models_gradient():
    reward = VQAScore(model=Known())
    check_reward(reward, images(3), PROMPTS, differentiable=True)
    assert not VQAScore.spec.differentiable  # that of the models of load_vlm


def test_models_that_return_something_else_are_refused():
    class Wrong(Known):
        def token_log_probs(self, images, questions, answers):
            return [torch.zeros(2), torch.zeros(())]

        def generate(self, images, instructions):
            return ["Final Score: 3"]

    with pytest.raises(
        ValueError, match=r"one tensor of shape \(T,\).*got shapes \[\(2,\), \(\)\]"
    ):
        VQAScore(model=Wrong())(images(2), PROMPTS[:2])
    with pytest.raises(ValueError, match="one text per image, 2, got 1"):
        UnifiedReward(model=Wrong())(images(2), PROMPTS[:2])


def test_log_likelihood_sums_over_tokens():
    x = images(2)
    values = Known().log_likelihood(x, ["?", "?"], ["Yes", "Yes it does"])
    torch.testing.assert_close(values, x.flatten(1).mean(1).log() * torch.tensor([1.0, 6.0]))


def test_unified_reward_reads_the_grades():
    model = Known(["a cat (animal): 1\nFinal Score: 4.25", "I refuse.", "Final Score: 5"])
    values = UnifiedReward(model=model)(images(3), PROMPTS)
    assert values[0] == 4.25
    assert values[1].isnan()
    assert values[2] == 5
    assert all(
        f"Text Caption: [{prompt}]" in text
        for prompt, text in zip(PROMPTS, model.asked, strict=True)
    )
    assert "assign a score from 1 to 5 after 'Final Score:'" in model.asked[0]


def test_unified_reward_keeps_the_contract():
    class Constant(Known):
        def generate(self, images, instructions):
            return [f"Final Score: {1 + 4 * float(x.mean()):.4f}" for x in images]

    check_reward(UnifiedReward(model=Constant()), images(3), PROMPTS)


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("Final Score: 4", 4.0),
        ("final score: 4", 4.0),
        ("Final Score:4.", 4.0),
        ("Final Score: 3.75\n", 3.75),
        ("Final Score:\n2", 2.0),
        ("**Final Score:** 4", 4.0),
        ("**Final Score**: **4.5**", 4.5),
        ('{"Final Score": 3}', 3.0),
        ("Final Score (1-5): 2.7", 2.7),
        ("Final Score (1\u20135): [5]", 5.0),
        ("Final Score = 1", 1.0),
        ("Final Score: 4/5", 4.0),
        ("Final Score: 4.0 / 5.0, well done", 4.0),
        ("Final Score: 4 out of 5.", 4.0),
        ("Final Score: 3, because it is fine", 3.0),
        ("Final Score: 1\nFinal Score: 5", 5.0),
        ("dog (animal): 1\nsofa (object): 0\nFinal Score: 2.0", 2.0),
        ("Final  Score: 2.694700002670288", 2.694700002670288),
    ],
)
def test_parser_reads(text, value):
    assert parse_score(text) == value


@pytest.mark.parametrize(
    "text",
    [
        "",
        "4",
        "Score: 4",
        "Final Score:",
        "Final Score: four",
        "Final Score: good, 4",
        "Final Score: 0",
        "Final Score: 5.01",
        "Final Score: 45",
        "Final Score: -3",
        "Final Score: +3",
        "Final Score: .5",
        "Final Score: 4.5.6",
        "Final Score: 3,5",
        "Final Score: 3-4",
        "Final Score: 3 to 4",
        "Final Score: 4%",
        "Final Score: 4th",
        "Final Score: 4e7",
        "Final Score: 4/10",
        "Final Score: 4 out of 10",
        "Final Score: 4/52",
        "Final Score: 4/5.5",
        "Final Score: nan",
        "Final Score: 4 ... no. Final Score: unclear",
        "dog (animal): 1\nsofa (object): 0",
    ],
)
def test_parser_finds_no_grade(text):
    assert math.isnan(parse_score(text))


@pytest.mark.parametrize("reward", [VQAScore, UnifiedReward])
def test_models_are_checked(reward, tmp_path):
    with pytest.raises(TypeError, match=r"exactly one of path and model"):
        reward(path=tmp_path, model=Known())
    with pytest.raises(TypeError, match=r"model must be a .*VisionLanguageModel.*got function"):
        reward(model=lambda images, prompts: images)
    with pytest.raises(FileNotFoundError, match=r"config\.json"):
        reward(path=tmp_path)


def test_vqascore_arguments():
    with pytest.raises(TypeError, match=r"path= .* or model=.*CLIP-FlanT5"):
        VQAScore()
    with pytest.raises(ValueError, match="question must hold"):
        VQAScore(model=Known(), question="Is it good?")
    with pytest.raises(ValueError, match="answer must hold"):
        VQAScore(model=Known(), answer="")
    with pytest.raises(ValueError, match="max_new_tokens"):
        load_vlm("hf://owner/name", max_new_tokens=0)


@pytest.mark.parametrize("reward", [VQAScore, UnifiedReward, HPSv3])
def test_specs_are_honest(reward):
    assert reward.spec.parity.startswith("not run here")
    assert reward.spec in rewards.available()


def test_nothing_is_read_before_the_first_score():
    # Repositories that do not exist: touching them would fail, or ask the network.
    for reward in (
        rewards.load("vqascore", path="hf://nobody/nothing"),
        rewards.load("unified-reward", dtype=torch.float32),
        rewards.load("hpsv3"),
    ):
        assert sum(parameter.numel() for parameter in reward.parameters()) == 0
        assert reward.device == torch.device("cpu")


# Tiny models of transformers


@pytest.fixture(scope="module")
def vlm(qwen):
    return load_vlm(qwen, torch.float32, max_new_tokens=5)


@pytest.mark.parametrize(
    ("version", "name"), [("4.57.6", "torch_dtype"), ("5.0.0", "dtype"), ("5.2.9", "dtype")]
)
@pytest.mark.parametrize("hub", [True, False])
def test_what_transformers_is_asked_for(version, name, hub, monkeypatch, tmp_path):
    transformers = pytest.importorskip("transformers")
    calls = []

    def from_pretrained(*arguments, **options):
        calls.append((arguments, options))
        return SimpleNamespace(config=None)

    model = SimpleNamespace(from_pretrained=from_pretrained)  # versions before 4.46 have none
    monkeypatch.setattr(transformers, "AutoModelForImageTextToText", model, raising=False)
    monkeypatch.setattr(transformers, "__version__", version)
    (tmp_path / "config.json").write_text("{}")
    TransformersVLM("hf://owner/name@main" if hub else tmp_path, torch.float16).build()
    [((path,), options)] = calls
    source = {"revision": "main"} if hub else {"local_files_only": True}
    assert str(path) == ("owner/name" if hub else str(tmp_path))
    assert options == {
        name: torch.float16,
        "use_safetensors": True,
        "trust_remote_code": False,  # code that comes with a model is never run
        **source,
    }


def questions():
    return ["cat?", "Is this picture a rather long question about a cat, or not?", "猫?"]


def test_likelihoods_do_not_depend_on_the_batch(vlm):
    x, answers = images(3), ["Yes", "No, it is not", "Y"]
    together = vlm.token_log_probs(x, questions(), answers)
    assert [len(row) for row in together] == [1, 13, 1]
    for i in range(3):
        (alone,) = vlm.token_log_probs(x[i : i + 1], questions()[i : i + 1], answers[i : i + 1])
        torch.testing.assert_close(alone, together[i], rtol=1e-4, atol=1e-5)
    assert min(abs(float(a[0] - b[0])) for a, b in [together[:2], together[1:]]) > 1e-2


def test_likelihoods_are_those_of_the_whole_text(vlm):
    """The processor tokenizes question and answer in one piece, and the model scores all of it."""

    x, answer = images(1), "No, it is not"
    asked = vlm.processor.apply_chat_template(
        [{"role": "user", "content": [{"type": "image"}, {"type": "text", "text": "cat?"}]}],
        tokenize=False,
        add_generation_prompt=True,
    )
    inputs = vlm.processor(text=[asked + answer], images=[[as_pil(x[0])]], return_tensors="pt")
    with torch.no_grad():
        log_probs = vlm.network(**inputs).logits[0].log_softmax(-1)
    ids = inputs["input_ids"][0]
    expected = [log_probs[k - 1, ids[k]] for k in range(len(ids) - len(answer), len(ids))]
    (tokens,) = vlm.token_log_probs(x, ["cat?"], [answer])
    torch.testing.assert_close(tokens, torch.stack(expected), rtol=1e-4, atol=1e-5)


def test_answers_are_tokenized_by_themselves(vlm):
    # In one piece with the question's last line break, "Yes" would be another token.
    tokenizer = vlm.processor.tokenizer
    assert len(tokenizer("\nYes").input_ids) == 1
    assert len(tokenizer("Yes").input_ids) == 1
    (tokens,) = vlm.token_log_probs(images(1), ["cat?"], ["Yes"])
    assert tokens.shape == (1,)
    with pytest.raises(ValueError, match="answers must hold"):
        vlm.token_log_probs(images(2), ["cat?"] * 2, ["Yes", ""])


def test_probabilities_of_all_one_token_answers_sum_to_at_most_one(vlm):
    answers = [chr(i) for i in range(33, 127)]
    x = images(1).expand(len(answers), -1, -1, -1)
    total = float(vlm.log_likelihood(x, ["cat?"] * len(answers), answers).exp().sum())
    assert 0 < total <= 1


def test_generation_is_greedy_and_does_not_depend_on_the_batch(vlm):
    x = images(3)
    together = vlm.generate(x, questions())
    assert together == vlm.generate(x, questions())
    assert together == [vlm.generate(x[i : i + 1], questions()[i : i + 1])[0] for i in range(3)]
    assert len(set(together)) == 3
    # Greedy: no other letter is more likely than the first one.
    letters = [chr(i) for i in range(33, 127)]
    for i in range(3):
        if (first := together[i][0]) in letters:
            ask = (x[i : i + 1].expand(94, -1, -1, -1), questions()[i : i + 1] * 94, letters)
            assert letters[int(vlm.log_likelihood(*ask).argmax())] == first
    assert any(text[0] in letters for text in together)


def test_vqascore_through_transformers(qwen, vlm):
    reward = rewards.load("vqascore", path=qwen, dtype=torch.float32)
    x = images(3)
    assert reward.model._network is None
    check_reward(reward, x, PROMPTS)
    asked = [f'Does this figure show "{p}"? Please answer yes or no.' for p in PROMPTS]
    expected = vlm.log_likelihood(x, asked, ["Yes"] * 3).exp()
    values = reward(x, PROMPTS)
    torch.testing.assert_close(values, expected, rtol=1e-4, atol=1e-6)
    assert bool(((values > 0) & (values < 1)).all())
    assert not any(parameter.requires_grad for parameter in reward.parameters())


def test_unified_reward_through_transformers(qwen):
    reward = rewards.load("unified-reward", model=load_vlm(qwen, max_new_tokens=3))
    assert reward(images(2), PROMPTS[:2]).isnan().all()  # random letters are no grade


def test_models_follow_their_reward(qwen):
    reward = VQAScore(path=qwen)
    seen = []
    note = lambda _, args, inputs: seen.append(inputs["pixel_values"].dtype)
    with reward.model.network.register_forward_pre_hook(note, with_kwargs=True):
        reward(images(1), PROMPTS[:1])
    assert seen == [torch.bfloat16]
    assert {p.dtype for p in reward.parameters()} == {torch.bfloat16}
    late = rewards.load("vqascore", path=qwen).to(torch.float64)
    late(images(1), PROMPTS[:1])
    assert {p.dtype for p in late.parameters()} == {torch.float64}
    assert late(images(1), PROMPTS[:1]).dtype == torch.float32
    assert {p.dtype for p in copy.deepcopy(late).float().parameters()} == {torch.float32}


def test_chat_template_is_needed(qwen, tmp_path):
    for file in qwen.iterdir():
        if "chat_template" not in file.name:
            (tmp_path / file.name).write_bytes(file.read_bytes())
    with pytest.raises(ValueError, match="must have a chat template"):
        load_vlm(tmp_path).generate(images(1), ["?"])


@pytest.mark.parametrize("written", [True, False])
def test_texts_start_once(qwen, transformers, tmp_path, written):
    """Whether the template or the tokenizer writes the token that starts a text."""

    from tokenizers.processors import TemplateProcessing

    words = write_tokenizer(tmp_path / "tokenizer.json")
    start = words.token_to_id("<|endoftext|>")
    words.post_processor = TemplateProcessing(
        single="<|endoftext|> $A", special_tokens=[("<|endoftext|>", start)]
    )
    words.save(str(tmp_path / "tokenizer.json"))
    processor = transformers.AutoProcessor.from_pretrained(qwen)
    processor.tokenizer = transformers.PreTrainedTokenizerFast(
        tokenizer_file=str(tmp_path / "tokenizer.json"),
        bos_token="<|endoftext|>",
        pad_token="<|vision_pad|>",
    )
    processor.chat_template = "{{ bos_token }}" * written + CHAT
    processor.save_pretrained(tmp_path)
    (tmp_path / "config.json").write_bytes((qwen / "config.json").read_bytes())
    inputs = load_vlm(tmp_path)._inputs(images(2), questions()[:2])
    ids = inputs["input_ids"]
    assert (ids == start).sum(1).tolist() == [1, 1]
    assert ids[1, 0] == start
    assert inputs["attention_mask"][0, 0] == 0


def test_models_must_continue_their_prompt(qwen, tmp_path):
    config = json.loads((copied(qwen, tmp_path) / "config.json").read_text())
    (tmp_path / "config.json").write_text(json.dumps({**config, "is_encoder_decoder": True}))
    with pytest.raises(ValueError, match="must be a model that continues its prompt"):
        load_vlm(tmp_path).generate(images(1), ["?"])
