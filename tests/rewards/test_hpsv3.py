"""HPSv3 on tiny random weights in the layout of the published ones, against transformers."""

import json

import pytest
import torch
from PIL import Image
from safetensors.torch import load_file, save_file

import rewards
from rewards.hpsv3 import HPSv3, read_template
from rwguidance.testing import check_reward
from tiny_qwen import CHAT, PROMPTS, as_pil, copied, fill, images, qwen_config, write_tokenizer

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


@pytest.mark.parametrize("size", [(1, 201), (201, 1)])
def test_hpsv3_refuses_images_more_than_200_times_as_long_as_wide(hpsv3, size):
    with pytest.raises(ValueError, match=f"as long as wide, got {size[0]} x {size[1]}$"):
        hpsv3(torch.zeros(1, 3, *size), PROMPTS[:1])
    shape = tuple(side - side // 200 for side in size)  # 200 times is fine
    assert hpsv3.preprocess(torch.zeros(1, 3, *shape)).shape[0] > 0


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
