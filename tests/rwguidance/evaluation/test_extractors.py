"""Vision models as embeddings: what their own libraries return, of tiny random weights."""

import re

import pytest
import torch
from safetensors.torch import save_file

import zoo
from rwguidance.evaluation import embeddings
from rwguidance.support.fingerprint import fingerprint

torchvision = pytest.importorskip("torchvision")
timm = pytest.importorskip("timm")
transformers = pytest.importorskip("transformers")

IMAGES = torch.rand(3, 3, 40, 56, generator=torch.Generator().manual_seed(0))


def seeded(build):
    """A network in eval mode, whose random weights leave the global generator as it is."""

    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return build().eval()


@pytest.fixture(scope="module")
def shufflenet(tmp_path_factory):
    network = seeded(lambda: torchvision.models.get_model("shufflenet_v2_x0_5", weights=None))
    path = tmp_path_factory.mktemp("torchvision") / "weights.pth"
    torch.save(network.state_dict(), path)
    return network, path


@torch.no_grad()
def test_a_model_of_torchvision_gives_what_its_last_layer_takes(shufflenet):
    network, path = shufflenet
    found = embeddings.load("torchvision:shufflenet_v2_x0_5", path)(IMAGES)
    assert found.shape == (3, 1024)
    pixels = torchvision.models.get_model_weights("shufflenet_v2_x0_5").DEFAULT.transforms()(IMAGES)
    assert pixels.shape == (3, 3, 224, 224)
    torch.testing.assert_close(network.fc(found), network(pixels))


@torch.no_grad()
def test_a_model_of_timm_gives_its_pooled_features(tmp_path):
    network = seeded(lambda: timm.create_model("test_vit"))
    save_file(network.state_dict(), tmp_path / "model.safetensors")
    found = embeddings.load("timm:test_vit", tmp_path / "model.safetensors")(IMAGES)
    config = timm.data.resolve_model_data_config(network)
    pixels = timm.data.create_transform(**config, is_training=False)(IMAGES)
    assert pixels.shape[1:] == config["input_size"]
    torch.testing.assert_close(network.head(found), network(pixels))


def vit(**options):
    return transformers.ViTConfig(
        hidden_size=16,
        num_hidden_layers=1,
        num_attention_heads=2,
        intermediate_size=16,
        image_size=32,
        patch_size=16,
        initializer_range=0.3,
        **options,
    )


def save(folder, network, size=32):
    network.save_pretrained(folder)
    keys = {
        "size": {"height": size, "width": size},
        "image_mean": [0.5] * 3,
        "image_std": [0.2] * 3,
    }
    transformers.ViTImageProcessor(**keys).save_pretrained(folder)
    return f"transformers:{folder}"


def pixels_of(images):
    small = torch.nn.functional.interpolate(images, (32, 32), mode="bilinear", antialias=True)
    return (small - 0.5) / 0.2


def assert_same_pictures(found, expected):
    """To what resizing by another function changes, which is far less than pictures differ by."""

    spread = float(expected.std(0).mean())
    assert spread > 0
    torch.testing.assert_close(found, expected, rtol=0, atol=0.1 * spread)


@torch.no_grad()
def test_a_model_of_transformers_gives_its_pooled_output(tmp_path):
    network = seeded(lambda: transformers.ViTModel(vit()))
    found = embeddings.load(save(tmp_path, network))(IMAGES)
    expected = network(pixel_values=pixels_of(IMAGES)).pooler_output
    assert_same_pictures(found, expected)


def test_nothing_is_fetched_and_no_code_of_a_folder_is_run(tmp_path, monkeypatch):
    name, asked = save(tmp_path, seeded(lambda: transformers.ViTModel(vit()))), []

    def noting(load):
        return lambda *a, **keywords: asked.append(keywords) or load(*a, **keywords)

    for library in (transformers.AutoModel, transformers.AutoImageProcessor):
        monkeypatch.setattr(library, "from_pretrained", noting(library.from_pretrained))
    embeddings.load(name)
    safe = [(one["local_files_only"], one["trust_remote_code"]) for one in asked]
    assert safe == [(True, False)] * 2
    assert asked[0]["use_safetensors"] is True  # a pickle could run code, too


@torch.no_grad()
def test_a_classifier_has_no_pooler_of_its_own(tmp_path):
    network = seeded(lambda: transformers.ViTForImageClassification(vit(num_labels=3)))
    found = embeddings.load(save(tmp_path, network))(IMAGES)
    expected = network.vit(pixel_values=pixels_of(IMAGES)).last_hidden_state.mean(1)
    assert_same_pictures(found, expected)


@torch.no_grad()
def test_of_two_towers_it_is_the_projected_embedding(tmp_path):
    text = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "vocab_size": 20}
    text |= {"intermediate_size": 16, "max_position_embeddings": 8}
    text |= {"bos_token_id": 0, "eos_token_id": 1, "pad_token_id": 1}
    image = {key: value for key, value in vit().to_dict().items() if key in VISION}
    config = transformers.CLIPConfig(text_config=text, vision_config=image, projection_dim=12)
    network = seeded(lambda: transformers.CLIPModel(config))
    found = embeddings.load(save(tmp_path, network))(IMAGES)
    state = network.vision_model(pixel_values=pixels_of(IMAGES)).pooler_output
    assert found.shape == (3, 12)
    assert_same_pictures(found, network.visual_projection(state))


VISION = {
    "hidden_size",
    "num_hidden_layers",
    "num_attention_heads",
    "intermediate_size",
    "image_size",
    "patch_size",
}


@torch.no_grad()
@pytest.mark.parametrize("name", ["pickscore", "hpsv2"])
def test_a_reward_lends_its_tower(name, tmp_path):
    import rewards

    path = zoo.write(name, tmp_path)
    options = zoo.OPTIONS[name]
    reward = rewards.load(name, path, **options)
    found = embeddings.load(f"reward:{name}", path, **options)(IMAGES)
    prompts = ["a", "b", "c"]
    cosine = (found / found.norm(dim=1, keepdim=True) * reward.encode_prompts(prompts)).sum(1)
    torch.testing.assert_close(reward.value(cosine), reward(IMAGES, prompts))


def test_it_is_identified_by_its_weights_and_its_preprocessing(shufflenet, tmp_path):
    load = lambda path: embeddings.load("torchvision:shufflenet_v2_x0_5", path)
    key = fingerprint(load(shufflenet[1]))
    other = {
        k: v + 1 if k == "conv5.0.weight" else v for k, v in shufflenet[0].state_dict().items()
    }
    torch.save(other, tmp_path / "other.pth")
    assert fingerprint(load(tmp_path / "other.pth")) != key
    (tmp_path / "moved.pth").write_bytes(shufflenet[1].read_bytes())
    moved = load(tmp_path / "moved.pth")
    assert fingerprint(moved) == key
    moved.about = "another crop"
    assert fingerprint(moved) != key

    save_file(
        seeded(lambda: timm.create_model("test_vit")).state_dict(), tmp_path / "timm.safetensors"
    )
    save(tmp_path / "vit", seeded(lambda: transformers.ViTModel(vit())))
    make = (
        lambda: embeddings.load("timm:test_vit", tmp_path / "timm.safetensors"),
        lambda: embeddings.load(f"transformers:{tmp_path / 'vit'}"),
        lambda: embeddings.load("reward:pickscore", zoo.write("pickscore", tmp_path / "pick")),
    )
    (tmp_path / "pick").mkdir()
    keys = [[fingerprint(one()) for one in make] for _ in range(2)]
    assert keys[0] == keys[1]
    assert len(set(keys[0])) == 3


def test_batches_are_put_together_on_the_cpu(shufflenet):
    embedding = embeddings.load("torchvision:shufflenet_v2_x0_5", shufflenet[1], dtype="float64")
    whole = embedding(IMAGES)
    assert whole.dtype == torch.float64
    assert not any(parameter.requires_grad for parameter in embedding.parameters())
    torch.testing.assert_close(embeddings.embed(embedding, IMAGES, batch=2), whole)
    with pytest.raises(ValueError, match="batch must be at least 1, got 0"):
        embeddings.embed(embedding, IMAGES, 0)


@pytest.mark.parametrize(
    ("name", "path", "error", "message"),
    [
        ("torchvision:resnet18", None, FileNotFoundError, "needs path=.*from https://download.pyt"),
        ("timm:resnet18", None, FileNotFoundError, "needs path=.*huggingface.co/timm"),
        ("timm:resnet18", ".", FileNotFoundError, "which is no file"),
        ("timm:resnet18", "nowhere.pth", FileNotFoundError, "no file or directory"),
        ("torchvision:squeezenet1_0", __file__, ValueError, "has no linear layer at its end"),
        ("torchvision:resnet19", None, LookupError, "no model 'resnet19'"),
        ("timm:resnet19", None, LookupError, "no model 'resnet19'"),
        ("transformers:nowhere", None, FileNotFoundError, r"lacks config.json, preproc.*safetens"),
        ("reward:jpeg", None, TypeError, "reward:jpeg.* has no image tower"),
        ("reward:nothing", None, LookupError, "there is no reward 'nothing'"),
        ("else:resnet18", None, LookupError, "there is no embedding 'else:resnet18'|none is"),
    ],
)
def test_what_is_missing_is_named_before_any_work(name, path, error, message):
    with pytest.raises(error, match=message):
        embeddings.load(name, path)


def test_weights_of_another_model_are_refused(shufflenet, tmp_path):
    with pytest.raises(ValueError, match=r"does not fit this architecture: missing .*unexpected"):
        embeddings.load("torchvision:mobilenet_v3_small", shufflenet[1])
    part = {k: v for k, v in shufflenet[0].state_dict().items() if k != "conv1.0.weight"}
    torch.save(part, tmp_path / "part.pth")
    with pytest.raises(ValueError, match=re.escape("missing conv1.0.weight")):
        embeddings.load("torchvision:shufflenet_v2_x0_5", tmp_path / "part.pth")


def test_lost_weights_of_a_folder_are_named(tmp_path):
    name = save(tmp_path, seeded(lambda: transformers.ViTModel(vit())))
    from safetensors.torch import load_file

    weights = load_file(tmp_path / "model.safetensors")
    del weights[next(key for key in weights if key.endswith("attention.output.dense.bias"))]
    save_file(weights, tmp_path / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(ValueError, match=r"lacks weights, which would be random: .*\.bias$"):
        embeddings.load(name)


def test_pictures_have_three_channels(shufflenet):
    embedding = embeddings.load("torchvision:shufflenet_v2_x0_5", shufflenet[1])
    with pytest.raises(ValueError, match=r"images must have shape \(B, 3, H, W\), got \(3, 40, 56"):
        embedding(IMAGES[0])
    with pytest.raises(TypeError, match="images must be a floating-point tensor"):
        embedding((255 * IMAGES).byte())


def test_missing_weights_are_said_to_be_those_of_the_embedding(tmp_path):
    message = f"^no file or directory with the embedding 'torchvision:resnet18' at {tmp_path}/none$"
    with pytest.raises(FileNotFoundError, match=message):
        embeddings.load("torchvision:resnet18", tmp_path / "none")


def test_an_embedding_that_is_none_is_said_to_be_no_embedding():
    with pytest.raises(LookupError, match="there is no embedding 'unheard-of'"):
        embeddings.load("unheard-of")
