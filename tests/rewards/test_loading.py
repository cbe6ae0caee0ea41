"""Files: found, checked, never executed; what is wrong with them is said."""

import json
import os
import pickle
import socket
import subprocess
import sys
import threading
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

import rewards
import tiny_checkpoints as tiny
import zoo
from rewards.base import RewardFile
from rewards.loading import assign_weights, empty_weights, find_file, read_weights, require
from rewards.towers import AffineHead

ROOT = Path(__file__).parents[2]


@pytest.fixture(autouse=True)
def no_network(monkeypatch):
    def refuse(*arguments):
        raise AssertionError("the network was used")

    monkeypatch.setattr(socket.socket, "connect", refuse)
    monkeypatch.setattr(socket, "getaddrinfo", refuse)


@pytest.fixture(scope="module")
def hpsv2(tmp_path_factory):
    return tiny.write_hpsv2(tmp_path_factory.mktemp("hpsv2"))


def test_a_directory_or_the_file_in_it_will_do(hpsv2, tmp_path):
    from_file = zoo.load("hpsv2", hpsv2)
    from_folder = zoo.load("hpsv2", hpsv2.parent)
    x = torch.rand(1, 3, 20, 20, generator=torch.Generator().manual_seed(0))
    torch.testing.assert_close(from_file(x, ["a"]), from_folder(x, ["a"]))
    tiny.write_pickscore(tmp_path)
    values = [
        rewards.load("pickscore", tmp_path / name)(x, ["a"]) for name in ("", "model.safetensors")
    ]
    torch.testing.assert_close(*values)  # not equal: the files are mapped, each at its address


@pytest.mark.parametrize("name", ["pickscore", "clipscore"])
def test_old_folders_hold_a_pickle_of_tensors(name, tmp_path):
    write = tiny.write_pickscore if name == "pickscore" else tiny.write_clip
    for i, safetensors in enumerate((True, False)):
        write(tmp_path / f"{i}", safetensors=safetensors)
    assert not (tmp_path / "1" / "model.safetensors").exists()
    x = torch.rand(1, 3, 20, 20, generator=torch.Generator().manual_seed(0))
    values = (rewards.load(name, tmp_path / f"{i}")(x, ["a"]) for i in range(2))
    torch.testing.assert_close(*values)


def test_the_tokenizer_may_be_elsewhere(tmp_path):
    tiny.write_pickscore(tmp_path / "model")
    (tmp_path / "words").mkdir()
    for name in ("vocab.json", "merges.txt"):
        (tmp_path / "model" / name).rename(tmp_path / "words" / name)
    with pytest.raises(
        FileNotFoundError,
        match=r"vocab\.json.*`hf download laion/CLIP-ViT-H-14\S* vocab\.json merges",
    ):
        rewards.load("pickscore", tmp_path / "model")
    rewards.load("pickscore", tmp_path / "model", tokenizer=tmp_path / "words")


@pytest.mark.parametrize("wrap", ["raw", "state_dict", "model", "module."])
def test_weights_come_out_of_their_wrapping(wrap, tmp_path):
    weights = {"a": torch.arange(3.0), "b.c": torch.ones(2, 2)}
    content = {
        "raw": weights,
        "state_dict": {"state_dict": weights, "epoch": 3},
        "model": {"model": weights},
        "module.": {f"module.{name}": value for name, value in weights.items()},
    }[wrap]
    torch.save(content, tmp_path / "weights.pt")
    read = read_weights(tmp_path / "weights.pt")
    assert read.keys() == weights.keys()
    assert all(torch.equal(read[name], weights[name]) for name in weights)


def test_files_of_before_zip_are_read(tmp_path):
    weights = {"a": torch.arange(3.0)}
    torch.save(weights, tmp_path / "old.pth", _use_new_zipfile_serialization=False)
    assert torch.equal(read_weights(tmp_path / "old.pth")["a"], weights["a"])


class Trap:
    """A pickle that makes a file when it is loaded."""

    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return (Path.touch, (self.path,))


def test_code_in_a_file_is_refused_and_not_executed(tmp_path):
    marker = tmp_path / "executed"
    file = tmp_path / "HPS_v2_compressed.pt"
    torch.save({"state_dict": {"a": torch.zeros(1)}, "x": Trap(marker)}, file)
    with pytest.raises(ValueError, match="a pickle of something else, which is never executed"):
        zoo.load("hpsv2", file)
    file.write_bytes(pickle.dumps(Trap(marker)))
    with pytest.raises(ValueError, match="never executed"):
        zoo.load("hpsv2", file)
    assert not marker.exists()
    pickle.loads(file.read_bytes())
    assert marker.exists(), "the trap must work for the test to mean anything"


def cut_to(content, keep):
    return content[: int(keep * len(content)) if keep < 1 else keep]


@pytest.mark.parametrize("keep", [0, 10, 0.5, 0.99])
def test_truncated_files_are_refused(hpsv2, keep, tmp_path):
    whole = hpsv2.read_bytes()
    cut = tmp_path / "HPS_v2_compressed.pt"
    cut.write_bytes(cut_to(whole, keep))
    with pytest.raises(ValueError, match="cannot be read as a file of tensors; it is damaged"):
        zoo.load("hpsv2", cut)
    folder = tmp_path / "pickscore"
    tiny.write_pickscore(folder)
    whole = (folder / "model.safetensors").read_bytes()
    (folder / "model.safetensors").write_bytes(
        whole[: int(keep * len(whole)) if keep < 1 else keep]
    )
    with pytest.raises(ValueError, match="is not a whole safetensors file"):
        rewards.load("pickscore", folder)


@pytest.mark.parametrize("content", [[1, 2], {}, {"a": "text"}, {1: torch.zeros(1)}])
def test_files_of_something_else_are_refused(content, tmp_path):
    torch.save(content, tmp_path / "x.pt")
    with pytest.raises(ValueError, match=r"must hold (a dictionary of|nothing but) tensors, got"):
        read_weights(tmp_path / "x.pt")


def test_wrong_names_and_shapes_are_listed(hpsv2, tmp_path):
    weights = torch.load(hpsv2, weights_only=True)["state_dict"]
    weights["surplus"] = weights.pop("ln_final.bias")
    weights["visual.proj"] = weights["visual.proj"][:, :3]
    torch.save({"state_dict": weights}, tmp_path / "HPS_v2_compressed.pt")
    with pytest.raises(ValueError, match="does not fit this architecture") as caught:
        zoo.load("hpsv2", tmp_path)
    for part in (
        "missing ln_final.bias",
        "unexpected surplus",
        "visual.proj of shape (64, 3) instead of (64, 32)",
    ):
        assert part in str(caught.value)


def test_another_architecture_is_noticed(hpsv2):
    with pytest.raises(
        ValueError, match=r"fit this .*: (missing \S+, ){4}missing \S+ and \d+ more"
    ):
        rewards.load("hpsv2", hpsv2, architecture="ViT-B-32")
    with pytest.raises(ValueError, match="architecture must be a configuration of open_clip, got "):
        rewards.load("hpsv2", hpsv2, architecture="ViT-Z-1")


def test_the_published_architecture_wants_the_published_file(hpsv2):
    with pytest.raises(ValueError, match=r"not the published HPSv2.0: its md5 is \w{32}, exp"):
        rewards.load("hpsv2", hpsv2)
    head = "sac+logos+ava1-l14-linearMSE.pth"
    tiny.write_aesthetic_head(hpsv2.parent / head)
    with pytest.raises(ValueError, match=r"its sha256 is \w{64}, expected 21dd590f.*verify=False"):
        rewards.load("aesthetic", hpsv2.parent / head)


def test_a_missing_file_says_what_where_and_how(tmp_path):
    with pytest.raises(FileNotFoundError, match="no file or directory with the reward 'hpsv2' at"):
        rewards.load("hpsv2", tmp_path / "nowhere")
    with pytest.raises(FileNotFoundError) as caught:
        rewards.load("hpsv2.1", tmp_path)
    for part in (
        "HPS_v2.1_compressed.pt",
        "hf://xswu/HPSv2",
        "Apache-2.0",
        "`hf download xswu/HPSv2 HPS_v2.1_compressed.pt --local-dir DIRECTORY`",
    ):
        assert part in str(caught.value)
    with pytest.raises(FileNotFoundError, match=r"`curl --location --output 'DIRECTORY/sac\+"):
        rewards.load("aesthetic", tmp_path)


def test_offline_without_a_cache_says_how_to_get_the_file(tmp_path):
    code = """
import rewards
try:
    rewards.load("aesthetic")
except FileNotFoundError as error:
    assert "HF_HUB_OFFLINE is set" in str(error), error
for name in ("pickscore", "hpsv2", "imagereward", "clipscore"):
    for path in (None, "hf://nobody/nothing@main"):
        try:
            rewards.load(name, path)
        except FileNotFoundError as error:
            print(error)
"""
    environment = {**os.environ, "HF_HUB_OFFLINE": "1", "HF_HOME": str(tmp_path)}
    environment["TORCH_HOME"] = str(tmp_path)
    run = subprocess.run(
        [sys.executable, "-c", code],
        cwd=ROOT,
        env=environment,
        capture_output=True,
        text=True,
        check=False,
    )
    assert run.returncode == 0, run.stderr
    assert run.stdout.count("is neither cached nor to be had from hf://") == 8
    assert run.stdout.count("fetch its files with `hf download") == 8


def test_a_hub_path_reads_the_cache(tmp_path, monkeypatch):
    asked = []

    def download(repository, name, revision=None):
        asked.append((repository, name, revision))
        return str(tmp_path / name)

    import huggingface_hub

    tiny.write_pickscore(tmp_path)
    monkeypatch.setattr(huggingface_hub, "hf_hub_download", download)
    rewards.load("pickscore", "hf://someone/else@abc")
    assert {(repository, revision) for repository, _, revision in asked} == {
        ("someone/else", "abc")
    }
    asked.clear()
    rewards.load("pickscore")
    assert ("yuvalkirstain/PickScore_v1", "model.safetensors", None) in asked
    assert ("laion/CLIP-ViT-H-14-laion2B-s32B-b79K", "merges.txt", None) in asked


def test_a_digest_is_compared(tmp_path):
    spec = rewards.HPSv2.spec
    (tmp_path / "x").write_bytes(b"abc")
    md5 = RewardFile(name="x", source="hf://a/b", digest="md5:900150983cd24fb0d6963f7d28e17f72")
    assert find_file(spec, md5, tmp_path) == tmp_path / "x"
    (tmp_path / "x").write_bytes(b"abd")
    with pytest.raises(ValueError, match="expected 900150983cd24fb0d6963f7d28e17f72"):
        find_file(spec, md5, tmp_path)
    assert find_file(spec, md5, tmp_path, verify=False) == tmp_path / "x"


def test_a_missing_module_names_the_extra():
    with pytest.raises(ImportError, match=r"'x' needs no_such: pip install 'rwguidance\[rew"):
        require("no_such", "x")
    with pytest.raises(ImportError, match=r"'x' needs json: pip install"):
        require("json.no_such", "x")  # a part that an older version lacks


def test_a_torchvision_of_another_build_is_explained(tmp_path, monkeypatch):
    source = "raise RuntimeError('operator torchvision::nms does not exist')"
    (tmp_path / "broken_clip.py").write_text(source)
    monkeypatch.syspath_prepend(str(tmp_path))
    with pytest.raises(ImportError, match="torch and torchvision were built for different devices"):
        require("broken_clip", "hpsv2")


def test_threads_that_load_at_once_leave_nothing_behind(tmp_path):
    tiny.write_pickscore(tmp_path)
    threads = [
        threading.Thread(target=rewards.load, args=("pickscore", tmp_path)) for _ in range(4)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert torch.nn.Linear.register_parameter is torch.nn.Module.register_parameter
    with torch.random.fork_rng(devices=[]):
        assert not torch.nn.Linear(2, 2).weight.is_meta
    assert rewards.load("pickscore", tmp_path).device != torch.device("meta")


@pytest.mark.parametrize("name", ["pickscore", "imagereward"])
def test_a_tokenizer_beside_the_files_is_not_read(name, tmp_path):
    x = torch.rand(2, 3, 20, 20, generator=torch.Generator().manual_seed(0))
    prompts = ["a cat", "a much longer prompt about two cats"]
    if name == "pickscore":
        tiny.write_pickscore(tmp_path)
        settings = json.loads((tmp_path / "tokenizer_config.json").read_text())
        foreign = {"tokenizer_config.json": json.dumps({**settings, "padding_side": "left"})}
    else:
        tiny.write_imagereward(tmp_path)
        for file in (tmp_path / "bert-base-uncased").iterdir():
            file.rename(tmp_path / file.name)
        (tmp_path / "bert-base-uncased").rmdir()
        foreign = {"tokenizer.json": "{}", "tokenizer_config.json": "{}"}
    before = zoo.load(name, tmp_path)(x, prompts)
    for file, content in foreign.items():
        (tmp_path / file).write_text(content)
    torch.testing.assert_close(zoo.load(name, tmp_path)(x, prompts), before)


@pytest.mark.parametrize("file", ["vocab.json", "config.json"])
def test_damaged_text_files_are_named(file, tmp_path):
    tiny.write_pickscore(tmp_path)
    (tmp_path / file).write_text("{")
    with pytest.raises(ValueError, match=f"{file} does not hold what it should"):
        rewards.load("pickscore", tmp_path)


def test_a_tilde_is_home(tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    tiny.write_pickscore(tmp_path / "w")
    assert rewards.load("pickscore", "~/w").spec.name == "pickscore"
    with pytest.raises(FileNotFoundError, match="no file or directory with the reward"):
        rewards.load("pickscore", "")


def test_weights_of_double_precision_are_plain_numbers():
    with empty_weights():
        linear = torch.nn.Linear(3, 2)
    weights = {"weight": torch.full((2, 3), 0.1).double(), "bias": torch.ones(2).double()}
    assign_weights(linear, weights, "here", keep_dtype=True)
    assert linear.weight.dtype == torch.float64
    assert torch.equal(linear.weight, weights["weight"])


def test_weights_are_assigned_without_a_copy_and_in_float32():
    with empty_weights():
        linear = torch.nn.Linear(3, 2)
    assert linear.weight.is_meta
    weights = {"weight": torch.ones(2, 3), "bias": torch.ones(2, dtype=torch.float16)}
    assign_weights(linear, weights, "here")
    assert linear.weight.data_ptr() == weights["weight"].data_ptr()
    assert linear.bias.dtype == torch.float32


@pytest.mark.parametrize(
    ("weights", "message"),
    [
        ({}, "list index"),
        ({"layers.0.weight": torch.ones(2, 3), "layers.0.bias": torch.ones(2)}, r"shape \(2, 3\)"),
        ({"layers.0.weight": torch.ones(1, 3)}, "must hold linear layers that end in one number"),
        ({"conv.weight": torch.ones(1, 3)}, "but conv.weight"),
        (
            {
                "0.weight": torch.ones(2, 3),
                "0.bias": torch.ones(2),
                "1.weight": torch.ones(1, 5),
                "1.bias": torch.ones(1),
            },
            "must hold linear layers",
        ),
    ],
)
def test_heads_that_are_none_are_refused(weights, message):
    with pytest.raises(ValueError, match=message):
        AffineHead(weights, "head.pth")


def test_a_head_for_another_tower_is_refused(tmp_path):
    tiny.write_clip(tmp_path)
    head = tiny.write_aesthetic_head(tmp_path / "sac+logos+ava1-l14-linearMSE.pth")
    with pytest.raises(ValueError, match="is for embeddings of 768 numbers, but the tower's"):
        rewards.load("aesthetic", head, verify=False)


def test_imagereward_needs_a_vision_transformer(tmp_path):
    tiny.write_imagereward(tmp_path)
    weights = torch.load(tmp_path / "ImageReward.pt", weights_only=True)
    torch.save({k: v for k, v in weights.items() if "visual" not in k}, tmp_path / "ImageReward.pt")
    with pytest.raises(ValueError, match="does not hold an ImageReward: no vision transformer"):
        rewards.load("imagereward", tmp_path)


def test_siglip_without_its_image_tower_is_refused(tmp_path):
    zoo.write_siglip(tmp_path)
    weights = load_file(tmp_path / "model.safetensors")
    text = {name: value for name, value in weights.items() if not name.startswith("vision_model.")}
    save_file(text, tmp_path / "model.safetensors", {"format": "pt"})
    with pytest.raises(ValueError, match=r"does not fit .*: missing .*patch_embedding"):
        rewards.load("aesthetic-v2.5", tmp_path)


def test_a_configuration_that_does_not_fit_the_weights_is_noticed(tmp_path):
    tiny.write_pickscore(tmp_path)
    config = json.loads((tmp_path / "config.json").read_text())
    for part in ("vision_config", "vision_config_dict"):
        config[part]["num_hidden_layers"] += 1
    (tmp_path / "config.json").write_text(json.dumps(config))
    with pytest.raises(ValueError, match=r"missing vision_model\.encoder\.layers\.2"):
        rewards.load("pickscore", tmp_path)
