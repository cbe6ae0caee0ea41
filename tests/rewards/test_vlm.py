"""Rewards that ask a vision-language model: the formulas on a model in closed form, and the whole
way through transformers on tiny random models in the layout of the published ones."""

import copy
import json
import math

import pytest
import torch
from PIL import Image
from safetensors.torch import load_file, save_file

import rewards
from rewards.hpsv3 import HPSv3, read_template
from rewards.unified import UnifiedReward, parse_score
from rewards.vlm import VisionLanguageModel, load_vlm
from rewards.vqascore import VQAScore
from rwguidance.testing import check_reward

PROMPTS = ["a cat", "two dogs on a very long red sofa, oil painting", "猫 {braces} & <tags>"]


def images(n=2, height=30, width=41, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return torch.randint(0, 256, (n, 3, height, width), generator=generator) / 255


def as_pil(image):
    return Image.fromarray((255 * image).round().byte().permute(1, 2, 0).numpy())


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


def test_vqascore_keeps_the_contract_and_the_models_gradient():
    reward = VQAScore(model=Known())
    check_reward(reward, images(3), PROMPTS, differentiable=True)
    assert not VQAScore.spec.differentiable  # that of the models of load_vlm


def test_models_that_return_something_else_are_refused():
    class Wrong(Known):
        def token_log_probs(self, images, questions, answers):
            return [torch.zeros(()) for _ in images]

        def generate(self, images, instructions):
            return ["Final Score: 3"]

    with pytest.raises(ValueError, match=r"one tensor of shape \(T,\).*got shapes \[\(\), \(\)\]"):
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


SPECIAL = [
    "<|endoftext|>",
    "<|im_start|>",
    "<|im_end|>",
    "<|vision_start|>",
    "<|vision_end|>",
    "<|vision_pad|>",
    "<|image_pad|>",
    "<|video_pad|>",
]
CHAT = (
    "{% for m in messages %}{% if loop.first and m['role'] != 'system' %}<|im_start|>system\n"
    "You are a helpful assistant.<|im_end|>\n{% endif %}<|im_start|>{{ m['role'] }}\n"
    "{% for c in m['content'] %}{% if c['type'] == 'image' %}<|vision_start|><|image_pad|>"
    "<|vision_end|>{% else %}{{ c['text'] }}{% endif %}{% endfor %}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)


def write_tokenizer(path):
    """A byte-level tokenizer with a few merges and the special tokens of Qwen2-VL."""

    import tokenizers

    letters = sorted(tokenizers.pre_tokenizers.ByteLevel.alphabet())
    merges = [("Y", "e"), ("Ye", "s"), ("Ċ", "Ye"), ("Ċ", "Yes"), ("c", "a"), ("ca", "t")]
    words = [*letters, *(a + b for a, b in merges)]
    words = tokenizers.Tokenizer(
        tokenizers.models.BPE({token: i for i, token in enumerate(words)}, merges)
    )
    words.pre_tokenizer = tokenizers.pre_tokenizers.ByteLevel(
        add_prefix_space=False, use_regex=False
    )
    words.decoder = tokenizers.decoders.ByteLevel()
    words.add_special_tokens(SPECIAL)
    words.save(str(path))
    return words


def qwen_config(words, rows=None):
    """The published config.json of Qwen2-VL in its own layout, tiny."""

    return {
        "architectures": ["Qwen2VLForConditionalGeneration"],
        "model_type": "qwen2_vl",
        "vision_start_token_id": words.token_to_id("<|vision_start|>"),
        "vision_end_token_id": words.token_to_id("<|vision_end|>"),
        "vision_token_id": words.token_to_id("<|vision_pad|>"),
        "image_token_id": words.token_to_id("<|image_pad|>"),
        "video_token_id": words.token_to_id("<|video_pad|>"),
        "hidden_act": "silu",
        "hidden_size": 32,
        "intermediate_size": 48,
        "max_position_embeddings": 4096,
        "max_window_layers": 2,
        "num_attention_heads": 4,
        "num_hidden_layers": 2,
        "num_key_value_heads": 2,
        "rms_norm_eps": 1e-06,
        "rope_theta": 1000000.0,
        "sliding_window": 32768,
        "tie_word_embeddings": False,
        "use_sliding_window": False,
        "vision_config": {
            "depth": 2,
            "embed_dim": 32,
            "mlp_ratio": 2,
            "num_heads": 2,
            "in_chans": 3,
            "hidden_size": 32,
            "patch_size": 14,
            "spatial_merge_size": 2,
            "spatial_patch_size": 14,
            "temporal_patch_size": 2,
        },
        "rope_scaling": {"type": "mrope", "mrope_section": [1, 1, 2]},
        "vocab_size": rows or words.get_vocab_size(),
    }


def fill(module):
    """Random weights with some spread, so that everything matters."""

    generator = torch.Generator().manual_seed(1)
    for name, value in sorted(module.state_dict().items()):
        noise = torch.randn(value.shape, generator=generator)
        if name.endswith("norm.weight") or ".norm" in name or "layernorm.weight" in name:
            value.copy_(1 + 0.2 * noise)
        elif value.ndim == 1:
            value.copy_(0.1 * noise)
        else:
            fan = math.prod(value.shape[1:]) if "embed_tokens" not in name else 1
            value.copy_(1.5 * noise / fan**0.5)
    return module


@pytest.fixture(scope="module")
def transformers():
    import transformers

    if int(transformers.__version__.split(".")[0]) < 5:
        pytest.skip("the tiny models here are those of transformers 5")
    return transformers


@pytest.fixture(scope="module")
def qwen(transformers, tmp_path_factory):
    """A tiny Qwen2-VL with its processor, as save_pretrained writes it."""

    folder = tmp_path_factory.mktemp("qwen")
    words = write_tokenizer(folder / "tokenizer.json")
    tokenizer = transformers.PreTrainedTokenizerFast(
        tokenizer_file=str(folder / "tokenizer.json"),
        eos_token="<|im_end|>",
        pad_token="<|endoftext|>",
        padding_side="right",
    )
    image_processor = transformers.Qwen2VLImageProcessor(
        size={"shortest_edge": 28 * 28, "longest_edge": 28 * 28 * 6}
    )
    processor = transformers.Qwen2VLProcessor(
        image_processor,
        tokenizer,
        transformers.Qwen2VLVideoProcessor(),
        chat_template=CHAT,
    )
    processor.save_pretrained(folder)
    with torch.random.fork_rng(devices=[]):
        model = transformers.Qwen2VLForConditionalGeneration(
            transformers.Qwen2VLConfig(**qwen_config(words))
        )
    fill(model).save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def vlm(qwen):
    return load_vlm(qwen, torch.float32, max_new_tokens=5)


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
        vlm.token_log_probs(images(1), ["cat?"], [""])


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
    reward(images(1), PROMPTS[:1])
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


def copied(folder, target):
    for file in folder.iterdir():
        (target / file.name).write_bytes(file.read_bytes())
    return target


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


# HPSv3


RUBRIC = "\nPlease rate.\nTextual prompt - {text_prompt}\n\n"
TAIL = "\nPlease provide the overall ratings of this image: <|Reward|>\n\nEND\n"


@pytest.fixture(scope="module")
def published(transformers, tmp_path_factory):
    """HPSv3's four files: the weights under the names of transformers 4.45, tiny and random."""

    folder = tmp_path_factory.mktemp("hpsv3")
    words = write_tokenizer(folder / "tokenizer.json")
    config = qwen_config(words)  # whose vocabulary lacks the new token, as the published one
    (folder / "config.json").write_text(json.dumps(config))
    (folder / "data_collator_qwen.py").write_text(
        f'raise SystemExit("not to be executed")\nINSTRUCTION = """{RUBRIC}"""\n'
        f'prompt_with_special_token = """{TAIL}"""\nx: int = 1\na = b = print(3)\n'
    )
    with torch.random.fork_rng(devices=[]):
        model = transformers.Qwen2VLForConditionalGeneration(
            transformers.Qwen2VLConfig(**qwen_config(words, words.get_vocab_size() + 1))
        )
        head = torch.nn.Sequential(
            torch.nn.Linear(32, 1024),
            torch.nn.ReLU(),
            torch.nn.Dropout(0.05),
            torch.nn.Linear(1024, 16),
            torch.nn.ReLU(),
            torch.nn.Linear(16, 2),
        )
    weights = {
        name.replace("model.language_model.", "model.").replace("model.visual.", "visual."): value
        for name, value in fill(model).state_dict().items()
    }
    weights |= {f"rm_head.{name}": value for name, value in fill(head).state_dict().items()}
    assert {name.split(".")[0] for name in weights} == {"model", "visual", "lm_head", "rm_head"}
    save_file({k: v.contiguous() for k, v in weights.items()}, folder / "HPSv3.safetensors")
    return folder, model.eval(), head.eval()


@pytest.fixture(scope="module")
def hpsv3(published):
    return rewards.load("hpsv3", path=published[0], dtype=torch.float32)


def reference(transformers, published, picture, prompt):
    """Mean and log-spread by transformers' own processor, positions and model, for one image."""

    folder, model, head = published
    tokenizer = transformers.PreTrainedTokenizerFast(
        tokenizer_file=str(folder / "tokenizer.json"), pad_token="<|endoftext|>"
    )
    tokenizer.add_special_tokens({"additional_special_tokens": ["<|Reward|>"]})
    area = 256 * 28 * 28
    processor = transformers.Qwen2VLProcessor(
        transformers.Qwen2VLImageProcessor(
            size={"shortest_edge": area, "longest_edge": area}, do_resize=False
        ),
        tokenizer,
        transformers.Qwen2VLVideoProcessor(),
        chat_template=CHAT,
    )
    text = (RUBRIC + TAIL).format(text_prompt=prompt)
    asked = processor.apply_chat_template(
        [{"role": "user", "content": [{"type": "image"}, {"type": "text", "text": text}]}],
        tokenize=False,
        add_generation_prompt=True,
    )
    inputs = processor(text=[asked], images=[[picture]], return_tensors="pt")
    with torch.no_grad():
        hidden = model.model(**inputs).last_hidden_state
        mask = inputs["input_ids"] == tokenizer.convert_tokens_to_ids("<|Reward|>")
        return head(hidden[mask])[0]


@pytest.mark.parametrize("size", [(30, 41), (448, 448), (60, 20)])
def test_hpsv3_equals_transformers(transformers, published, hpsv3, size):
    x = images(2, *size)
    resized = hpsv3.preprocess(x)
    height, width = resized.shape[-2:]
    assert height % 28 == width % 28 == 0
    pictures = [as_pil(image).resize((width, height), Image.BICUBIC) for image in x]
    expected = torch.stack(
        [reference(transformers, published, pictures[i], PROMPTS[i]) for i in range(2)]
    )
    with torch.no_grad():
        both = hpsv3._outputs(resized, PROMPTS[:2])
    torch.testing.assert_close(both, expected, rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(hpsv3(x, PROMPTS[:2]), expected[:, 0], rtol=1e-4, atol=1e-4)
    assert abs(float(expected[0, 0] - expected[1, 0])) > 1e-2


@pytest.mark.parametrize(
    ("size", "expected"),
    [
        ((448, 448), (448, 448)),
        ((1024, 1024), (448, 448)),
        ((31, 31), (448, 448)),
        ((512, 768), (364, 532)),
        ((768, 512), (532, 364)),
        ((100, 150), (392, 560)),
        ((20, 4000), (56, 6356)),
    ],
)
def test_hpsv3_sizes_are_qwens(transformers, size, expected):
    from transformers.models.qwen2_vl.image_processing_qwen2_vl import smart_resize

    from rewards.hpsv3 import _target_size

    area = 256 * 28 * 28
    if min(size) >= 28:
        assert _target_size(*size) == smart_resize(*size, 28, area, area)
    height, width = _target_size(*size)
    assert height % 28 == width % 28 == 0
    if size[0] != 20:
        assert (height, width) == expected


def test_hpsv3_keeps_the_contract(hpsv3):
    check_reward(hpsv3, images(3), PROMPTS)


def test_hpsv3_gradient_is_that_of_the_smooth_resize(published):
    reward = rewards.load(
        "hpsv3", path=published[0], preprocessing="fast", dtype=torch.float32
    ).double()
    x = images(2, 28, 28).double().requires_grad_()
    values = reward(x, PROMPTS[:2])
    (gradient,) = torch.autograd.grad(values.sum(), x)
    step = 1e-3 * torch.randn(x.shape, generator=torch.Generator().manual_seed(0)).double()
    inside = lambda s: (0.25 + 0.5 * x.detach() + s).requires_grad_()
    start = inside(0 * step)
    (gradient,) = torch.autograd.grad(reward(start, PROMPTS[:2]).sum(), start)
    slope = (gradient * step).flatten(1).sum(1)
    with torch.no_grad():
        change = (reward(inside(step), PROMPTS[:2]) - reward(inside(-step), PROMPTS[:2])) / 2
    torch.testing.assert_close(slope, change, rtol=1e-2, atol=1e-5)
    assert not any(parameter.requires_grad for parameter in reward.parameters())


def test_hpsv3_has_a_gradient_after_a_first_call_in_inference_mode(published):
    reward = rewards.load("hpsv3", path=published[0], dtype=torch.float32)
    x = images(1)
    with torch.inference_mode():
        reward(x, PROMPTS[:1])
    (gradient,) = torch.autograd.grad(reward(x.requires_grad_(), PROMPTS[:1]).sum(), x)
    assert bool((gradient != 0).any())


def test_hpsv3_head_stays_wide(published):
    reward = rewards.load("hpsv3", path=published[0], dtype=torch.bfloat16)
    values = reward(images(1), PROMPTS[:1])
    assert values.dtype == torch.float32
    assert {p.dtype for p in reward.network.backbone.parameters()} == {torch.bfloat16}
    assert {p.dtype for p in reward.network.head.parameters()} == {torch.float32}
    again = reward.to(torch.float16)
    assert {p.dtype for p in again.network.head.parameters()} == {torch.float32}
    assert HPSv3(published[0])._place.dtype == torch.bfloat16


def test_hpsv3_has_no_preference_probabilities(hpsv3):
    with pytest.raises(TypeError, match="two normal variables"):
        hpsv3.prefer(images(2), "a cat")


def test_hpsv3_refuses_special_tokens_in_prompts(hpsv3):
    for token in ("<|Reward|>", "<|image_pad|>", "<|im_end|>"):
        with pytest.raises(ValueError, match=r"prompts must not hold <\|"):
            hpsv3(images(1), [f"a cat {token}"])


def copy_with(published, folder, change):
    weights = load_file(copied(published[0], folder) / "HPSv3.safetensors")
    save_file(change(weights), folder / "HPSv3.safetensors")
    return folder


def test_hpsv3_reads_the_names_of_newer_transformers(published, hpsv3, tmp_path):
    def rename(name):
        if name.startswith("visual."):
            return f"model.{name}"
        return name.replace("model.", "model.language_model.") if "model." in name else name

    newer = lambda weights: {rename(name): value for name, value in weights.items()}
    reward = HPSv3(copy_with(published, tmp_path, newer)).float()
    x = images(2)
    torch.testing.assert_close(reward.eval()(x, PROMPTS[:2]), hpsv3(x, PROMPTS[:2]))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (
            lambda w: {k: v for k, v in w.items() if k != "rm_head.3.bias"},
            r"missing head\.layers\.3\.bias",
        ),
        (lambda w: {**w, "model.layers.7.x": torch.zeros(1)}, "unexpected backbone.*layers.7.x"),
        (lambda w: {**w, "strange.x": torch.zeros(1)}, "unexpected strange.x"),
        (
            lambda w: {**w, "rm_head.5.weight": torch.zeros(4, 16)},
            r"\(4, 16\) instead of \(2, 16\)",
        ),
        (lambda w: {"x": torch.zeros(1)}, "no embedding of tokens"),
        (
            lambda w: {**w, "model.embed_tokens.weight": torch.zeros(3, 32)},
            "is for 3 tokens, but tokenizer.json",
        ),
    ],
)
def test_hpsv3_refuses_other_checkpoints(published, tmp_path, change, message):
    reward = HPSv3(copy_with(published, tmp_path, change))
    with pytest.raises(ValueError, match=message):
        reward(images(1), ["a"])


def test_hpsv3_looks_for_local_files_at_once(published, tmp_path):
    with pytest.raises(FileNotFoundError, match=r"HPSv3\.safetensors"):
        HPSv3(tmp_path)
    weights = published[0] / "HPSv3.safetensors"
    (tmp_path / weights.name).write_bytes(weights.read_bytes())
    with pytest.raises(FileNotFoundError, match=r"config\.json from hf://Qwen"):
        HPSv3(tmp_path)
    with pytest.raises(FileNotFoundError, match=r"data_collator_qwen\.py from https://.*HPSv3"):
        HPSv3(tmp_path, base=published[0])
    template = tmp_path / "rubric.txt"
    template.write_text(RUBRIC + TAIL)
    reward = HPSv3(weights, template=template).float().eval()
    full = HPSv3(published[0]).float().eval()
    torch.testing.assert_close(reward(images(1), ["a"]), full(images(1), ["a"]))
    with pytest.raises(ValueError, match="preprocessing"):
        HPSv3(published[0], preprocessing="quick")


def test_templates(tmp_path):
    def written(name, text):
        (tmp_path / name).write_text(text, encoding="utf-8")
        return tmp_path / name

    assert read_template(written("a.txt", "{text_prompt}ü<|Reward|>")) == "{text_prompt}ü<|Reward|>"
    good = 'INSTRUCTION = "{text_prompt}"\nprompt_with_special_token = "<|Reward|>"'
    assert read_template(written("a.py", good)) == "{text_prompt}<|Reward|>"
    for name, text, message in (
        ("b.txt", "<|Reward|>", "text_prompt} once"),
        ("c.txt", "{text_prompt}", "once"),
        ("d.txt", "{text_prompt}<|Reward|><|Reward|>", "once"),
        ("e.txt", "<|Reward|>{text_prompt}", "after"),
        ("f.py", "INSTRUCTION = 'x'", "prompt_with_special_token"),
        ("g.py", "INSTRUCTION = f()", "INSTRUCTION"),
        ("h.py", "no Python at all", "not a file of Python"),
    ):
        with pytest.raises(ValueError, match=message):
            read_template(written(name, text))
