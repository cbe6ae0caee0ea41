"""Checkpoints as people keep them: shards, variants, prefixes, one tokenizer file, and halves."""

import json
import pickle
import shutil
import zipfile

import pytest
import torch
from safetensors.torch import load_file, save_file

import rewards
import tiny_checkpoints
from rewards.clip import load_tokenizer
from rewards.loading import assign_weights, find_weights, read_config, read_weights
from rewards.pickscore import PickScore
from rewards.vocabulary import check_vocabulary, vocabulary_digest
from rwguidance.support.tensors import read_tensors

PROMPTS = ["A Cat", "a dog, running"]


@pytest.fixture(scope="module")
def original(tmp_path_factory):
    folder = tmp_path_factory.mktemp("pick")
    tiny_checkpoints.write_pickscore(folder)
    return folder, load_file(folder / "model.safetensors"), score(folder)


@pytest.fixture
def folder(original, tmp_path):
    """The files but for the weights."""

    for file in original[0].iterdir():
        if file.name != "model.safetensors":
            shutil.copyfile(file, tmp_path / file.name)
    return tmp_path


def score(folder, **options):
    images = torch.rand(2, 3, 40, 40, generator=torch.Generator().manual_seed(0))
    return rewards.load("pickscore", folder, **options)(images, PROMPTS)


def write_index(folder, name, weights, save):
    """Two shards and their index."""

    names = sorted(weights)
    parts = {"one": names[::2], "two": names[1::2]}
    ending = "bin" if ".bin." in name else "safetensors"
    for part, own in parts.items():
        save({key: weights[key] for key in own}, folder / f"{part}.{ending}")
    table = {key: f"{part}.{ending}" for part, own in parts.items() for key in own}
    (folder / name).write_text(json.dumps({"metadata": {}, "weight_map": table}))


@pytest.mark.parametrize(
    ("name", "save"),
    [
        ("model.safetensors.index.json", save_file),
        ("model.safetensors.index.fp16.json", save_file),
        ("pytorch_model.bin.index.json", torch.save),
    ],
)
def test_shards_with_an_index_load(original, folder, name, save):
    write_index(folder, name, original[1], save)
    assert torch.equal(score(folder), original[2])


@pytest.mark.parametrize(
    ("prefix", "name"),
    [
        ("module.", "model.safetensors"),
        ("model.module._orig_mod.", "model.fp16.safetensors"),
        ("_orig_mod.module.model.", "pytorch_model.bin"),
    ],
)
def test_what_wrappers_put_before_names_is_dropped(original, folder, prefix, name):
    weights = {prefix + key: value for key, value in original[1].items()}
    if name.endswith(".bin"):
        torch.save({"epoch": 3, "model_state_dict": weights}, folder / name)
    else:
        save_file(weights, folder / name)
    assert torch.equal(score(folder), original[2])


def test_one_variant_is_taken_and_of_several_one_must_be_named(original, folder):
    file = PickScore.spec.file("model.safetensors")
    for name in ("model.fp16.safetensors", "model.ema.safetensors"):
        save_file(original[1], folder / name)
    with pytest.raises(ValueError, match=r"one of model\.ema\.safetensors, model\.fp16\.safet"):
        find_weights(PickScore.spec, file, folder)
    assert torch.equal(score(folder / "model.ema.safetensors"), original[2])


@pytest.mark.parametrize(
    ("table", "message"),
    [
        ({"a": "../other.safetensors"}, "must name files beside it, got '../other.safetensors'"),
        ({"a": "/etc/passwd"}, "must name files beside it"),
        ({"a": 3}, "must name files beside it"),
        ({}, "names no tensors"),
        ({"a": "lost.safetensors"}, "names the shard lost.safetensors, which is not beside it"),
        ({"a": "one.safetensors", "b": "one.safetensors"}, "lacks 1 of the tensors .* such as b"),
        ({"a": "m.safetensors.index.json"}, "must name files of tensors"),
        (None, "is not the index of shards"),
    ],
)
def test_an_index_that_lies_is_refused(tmp_path, table, message):
    save_file({"a": torch.ones(2)}, tmp_path / "one.safetensors")
    index = tmp_path / "m.safetensors.index.json"
    index.write_text(json.dumps({"weight_map": table} if table is not None else [1]))
    with pytest.raises(ValueError, match=message):
        read_weights(index)


class Line(torch.nn.Module):
    def __init__(self):
        super().__init__()
        self.weight, self.bias = (torch.nn.Parameter(torch.zeros(n)) for n in ((1, 2), (1,)))


@pytest.mark.parametrize("dtype", [torch.int8, torch.uint8, torch.float8_e4m3fn])
def test_quantized_weights_are_refused(dtype):
    weights = {"weight": torch.ones(1, 2).to(dtype), "bias": torch.zeros(1)}
    with pytest.raises(
        ValueError, match=rf"weight in {str(dtype)[6:]}: quantized weights mean not"
    ):
        assign_weights(Line(), weights, "file")
    with pytest.raises(ValueError, match="a file must hold plain numbers"):
        assign_weights(Line(), {**weights, "scale": weights["weight"]}, "a file")


@pytest.mark.parametrize("name", ["vocab.json", "merges.txt", "both"])
def test_half_a_tokenizer_is_refused(original, folder, name):
    save_file(original[1], folder / "model.safetensors")
    if name != "merges.txt":
        words = json.loads((folder / "vocab.json").read_text(encoding="utf-8"))
        half = {word: i for word, i in words.items() if i < len(words) // 2 or word[:2] == "<|"}
        (folder / "vocab.json").write_text(json.dumps(half), encoding="utf-8")
    if name != "vocab.json":
        lines = (folder / "merges.txt").read_text(encoding="utf-8").splitlines()
        text = "\n".join(lines[: len(lines) // 2])
        (folder / "merges.txt").write_text(text + "\n", encoding="utf-8")
    with pytest.raises(ValueError, match=r"cut off|does not hold what it should"):
        score(folder)


def exchanged(folder, name):
    """Exchanges two tokens, or two merges: everything is there, and prompts have other numbers."""

    if name == "vocab.json":
        words = json.loads((folder / name).read_text(encoding="utf-8"))
        words["cat</w>"], words["dog</w>"] = words["dog</w>"], words["cat</w>"]
        (folder / name).write_text(json.dumps(words), encoding="utf-8")
    else:
        lines = (folder / name).read_text(encoding="utf-8").splitlines()
        lines[1], lines[2] = lines[2], lines[1]
        (folder / name).write_text("\n".join(lines) + "\n", encoding="utf-8")


@pytest.mark.parametrize("name", ["vocab.json", "merges.txt"])
def test_a_tokenizer_that_was_changed_is_refused_unless_it_is_said(original, folder, name):
    save_file(original[1], folder / "model.safetensors")
    exchanged(folder, name)
    with pytest.raises(
        ValueError, match=r"must hold the tokenizer of CLIP, .* or pass verify=False"
    ) as raised:
        score(folder)
    assert str(raised.value).startswith(f"{folder} ")
    assert score(folder, verify=False).isfinite().all()


def test_one_tokenizer_has_one_digest_whatever_its_files(original, tmp_path):
    tokenizer = load_tokenizer(PickScore.spec, original[0])
    tokenizer.add_tokens(["<one's own>"])
    tokenizer.save_pretrained(tmp_path)
    expected = vocabulary_digest(load_tokenizer(PickScore.spec, original[0]))
    for name in ("vocab.json", "merges.txt"):
        shutil.copyfile(original[0] / name, tmp_path / name)
    for name in ("vocab.json", "merges.txt"):  # which count if both are there
        (tmp_path / name).unlink()
        assert vocabulary_digest(load_tokenizer(PickScore.spec, tmp_path)) == expected


def test_the_words_of_imagereward_are_those_that_were_published(tmp_path):
    tiny_checkpoints.write_imagereward(tmp_path)
    with pytest.raises(ValueError, match="must hold the tokenizer of bert-base-uncased"):
        rewards.load("imagereward", tmp_path)


def test_a_tokenizer_of_another_model_is_refused(original):
    tokenizer = load_tokenizer(PickScore.spec, original[0])
    check_vocabulary(tokenizer, 49408, "whole")
    check_vocabulary(tokenizer, 49408 + 127, "padded")
    for rows in (49407, 49408 + 128, 60_000):
        with pytest.raises(
            ValueError, match=f"x must hold a vocabulary for {rows} rows .*got 4940"
        ):
            check_vocabulary(tokenizer, rows, "x")


@pytest.mark.parametrize(
    ("config", "message"),
    [
        ({"text_config": {"hidden_size": 10**12}}, "hidden_size is 1,000,000,000,000"),
        ({"text_config": {"num_hidden_layers": 10**6}}, "num_hidden_layers is 1,000,000"),
        ({"vision_config": {"image_size": 10**6}}, "image_size is 1,000,000"),
        ({"widths": [1] * 2000}, "widths has 2,000 entries"),
        ([1], "must hold an object of JSON, got list"),
    ],
)
def test_configurations_that_ask_for_absurd_sizes_are_refused(tmp_path, config, message):
    (tmp_path / "config.json").write_text(json.dumps(config))
    with pytest.raises(ValueError, match=message):
        read_config(tmp_path / "config.json")


def test_configurations_may_ask_for_what_some_model_has(tmp_path):
    sizes = {"vocab_size": 2**24, "num_hidden_layers": 1000, "vision": {"image_size": 8192}}
    (tmp_path / "config.json").write_text(json.dumps(sizes | {"widths": [1] * 1000}))
    assert read_config(tmp_path / "config.json")["vocab_size"] == 2**24
    for name, value in (("vocab_size", -(2**24) - 1), ("vocab_size", 2**24 + 1)):
        (tmp_path / "config.json").write_text(json.dumps({name: value}))
        with pytest.raises(ValueError, match="absurd size: vocab_size"):
            read_config(tmp_path / "config.json")


class Recording:
    """A pickle that would leave a file if it were executed."""

    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return open, (str(self.path), "w")


def test_nothing_is_executed_and_nobody_is_told_how_to(tmp_path):
    trace = tmp_path / "trace"
    with (tmp_path / "a.bin").open("wb") as file:
        pickle.dump({"weight": Recording(trace)}, file)
    torch.save({"weight": Recording(trace)}, tmp_path / "b.bin")
    for name in ("a.bin", "b.bin"):
        with pytest.raises(ValueError, match=r"which is never executed") as caught:
            read_tensors(tmp_path / name)
        assert "weights_only" not in str(caught.value)
        assert caught.value.__cause__ is None
        assert caught.value.__suppress_context__
    assert not trace.exists()


def test_a_file_that_asks_for_more_than_it_holds_is_refused(tmp_path):
    for more in (torch.ones(1).expand(10**6, 10**6), torch.ones(4).expand(2, 4)):
        torch.save({"weight": more}, tmp_path / "a.bin")
        with pytest.raises(ValueError, match="more numbers than it holds: 'weight' of shape"):
            read_tensors(tmp_path / "a.bin")
    torch.save({"weight": torch.zeros(10**6)}, tmp_path / "b.bin")
    with (
        zipfile.ZipFile(tmp_path / "b.bin") as plain,
        zipfile.ZipFile(tmp_path / "c.bin", "w", zipfile.ZIP_DEFLATED) as packed,
    ):
        for entry in plain.namelist():
            packed.writestr(entry, plain.read(entry))
    with pytest.raises(ValueError, match="cannot be read as a file of tensors"):
        read_tensors(tmp_path / "c.bin")
