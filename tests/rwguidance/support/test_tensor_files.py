"""Banks, networks and checkpoints that hold anything: a ValueError that names the file."""

import json
import os
import struct
import zipfile

import pytest
import torch
from safetensors.torch import save_file

from common import randn
from rwguidance import Bank, RectifiedSchedule, networks
from rwguidance.networks import LatentShift
from rwguidance.support.checks import path
from rwguidance.support.files import open_regular, read_regular
from rwguidance.support.tensors import (
    check_config,
    read_pickle,
    read_tensor_file,
    write_pickle,
    write_tensor_file,
)
from rwguidance.training import train

READERS = {"bank": Bank.load, "network": networks.load}


def files(folder):
    """Files that are none of what is read, by what is wrong with them."""

    whole = folder / "whole"
    Bank(randn(0, 4, 2), rewards=randn(1, 4)).save(whole)
    data = whole.read_bytes()
    header = lambda entry: (lambda text: struct.pack("<Q", len(text)) + text)(
        json.dumps(entry).encode()
    )
    tensor = {"dtype": "F32", "shape": [2**40], "data_offsets": [0, 2**42]}
    return {
        "nothing": b"",
        "half": data[: len(data) // 2],
        "a long header": struct.pack("<Q", 2**62) + data[8:],
        "a header that is no JSON": struct.pack("<Q", 10) + b"x" * 20,
        "a terabyte": header({"x_0": tensor}) + bytes(16),
        "nested": struct.pack("<Q", 200_000) + b"[" * 200_000,
        "a zip": b"PK\3\4" + bytes(100),
        "a text": b"import os",
    }


@pytest.mark.parametrize("reader", READERS)
def test_what_is_no_file_of_tensors_is_a_value_error_with_its_name(tmp_path, reader):
    for name, data in files(tmp_path).items():
        file = tmp_path / "f.safetensors"
        file.write_bytes(data)
        with pytest.raises(ValueError, match=r"f\.safetensors") as caught:
            READERS[reader](file)
        assert "weights_only" not in str(caught.value), name


@pytest.mark.parametrize(
    "metadata",
    [
        {"condition": "{"},
        {"condition": "[" * 100_000},
        {"condition": '["a"]'},
        {"condition": "null", "origin": "[1]"},
        {"condition": '{"a": 1}'},
    ],
)
def test_a_bank_whose_facts_are_wrong_is_a_value_error(tmp_path, metadata):
    save_file({"x_0": torch.zeros(2, 3)}, tmp_path / "bank", metadata)
    with pytest.raises(ValueError, match="bank does not hold a whole bank"):
        Bank.load(tmp_path / "bank")


@pytest.mark.parametrize(
    "tensors",
    [{"x_0": torch.zeros(2, 3, dtype=torch.int8)}, {"x_0": torch.full((2, 3), torch.nan)}],
)
def test_a_bank_of_other_numbers_is_a_value_error(tmp_path, tensors):
    save_file(tensors, tmp_path / "bank", {"condition": "null"})
    with pytest.raises(ValueError, match="bank does not hold a whole bank"):
        Bank.load(tmp_path / "bank")


@pytest.mark.parametrize(
    "change",
    [
        {"depth": 10**9},
        {"widths": [8] * 5000},
        {"channels": 10**12},
        {"channels": "four"},
        {"schedule": 3},
        {"schedule": {"name": "Other"}},
        {"more": 1},
    ],
)
def test_a_network_of_absurd_arguments_is_a_value_error(tmp_path, change):
    file = tmp_path / "network"
    network = LatentShift(4, RectifiedSchedule(), widths=(8,), depth=1)
    network.save(file)
    arguments = {"channels": 4, "text": None, "widths": [8], "depth": 1, "seed": 0}
    arguments["schedule"] = {"name": "RectifiedSchedule"}
    metadata = {"network": "LatentShift", "arguments": json.dumps({**arguments, **change})}
    save_file(network.state_dict(), file, metadata)
    with pytest.raises(ValueError, match="network"):
        networks.load(file)


class Line(torch.nn.Module):
    def __init__(self):
        super().__init__()
        self.weight = torch.nn.Parameter(torch.ones(1, 1))

    def forward(self, x):
        return x @ self.weight


def objective(network, generator):
    return {"loss": network(torch.randn(3, 1, generator=generator)).square().mean()}


@pytest.mark.parametrize("damage", ["half", "list", "step", "network", "losses"])
def test_a_checkpoint_that_is_none_is_a_value_error(tmp_path, damage):
    file = tmp_path / "run.pt"
    run = lambda: train(Line(), objective, 2, checkpoint=file)
    run()
    if damage == "half":
        file.write_bytes(file.read_bytes()[:500])
    else:
        state = torch.load(file, weights_only=True)
        changes = {"step": 99, "network": {}, "losses": None}
        state = [1] if damage == "list" else {**state, damage: changes[damage]}
        torch.save(state, file)
    with pytest.raises(ValueError, match=r"run\.pt") as caught:
        run()
    assert "weights_only" not in str(caught.value)


def test_only_regular_files_are_read(tmp_path):
    with pytest.raises(OSError, match="must be a regular file, got a folder"):
        open_regular(tmp_path)
    if hasattr(os, "mkfifo"):
        os.mkfifo(tmp_path / "pipe")
        with pytest.raises(OSError, match="must be a regular file, got a pipe"):
            open_regular(tmp_path / "pipe")
    (tmp_path / "long").write_bytes(b"12345")
    assert read_regular(tmp_path / "long") == read_regular(tmp_path / "long", 5) == b"12345"
    with pytest.raises(OSError, match="must have at most 4 bytes, got 5"):
        read_regular(tmp_path / "long", 4)


def test_paths_begin_in_the_users_folder_and_hold_no_nul(tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("USERPROFILE", str(tmp_path))
    assert path("out", "~/a") == tmp_path / "a"
    assert str(path("out", "~nobody-of-this-name/a")) == "~nobody-of-this-name/a"
    Bank(torch.zeros(2, 1)).save("~/bank")
    assert len(Bank.load("~/bank")) == 2
    with pytest.raises(ValueError, match="out must be a path without NUL"):
        path("out", "a\0b")


@pytest.mark.parametrize("name", ["bank", "network", "checkpoint"])
def test_a_flipped_bit_among_the_numbers_is_noticed(tmp_path, name):
    file = tmp_path / "file"
    network = LatentShift(4, RectifiedSchedule(), widths=(8,), depth=1)
    run = lambda: train(Line(), objective, 2, checkpoint=file)
    save = {"bank": Bank(randn(0, 50, 20)).save, "network": network.save}
    save.get(name, lambda path: run())(file)
    read = {"bank": Bank.load, "network": networks.load}.get(name, lambda path: run())
    read(file)
    data = bytearray(file.read_bytes())
    data[len(data) // 2] ^= 1
    file.write_bytes(data)
    with pytest.raises(ValueError, match=r"/file "):
        read(file)


@pytest.mark.parametrize(
    ("entry", "most"),
    [("num_layers", 1000), ("depth", 1000), ("image_size", 8192), ("vocab_size", 2**24)],
)
def test_sizes_up_to_a_bound_are_not_absurd(entry, most):
    for size in (most, -most):
        check_config({"part": [{entry: size}]}, "config.json")
        with pytest.raises(
            ValueError, match=rf"config\.json asks .*: {entry} is {size + size // most:,}"
        ):
            check_config({"part": [{entry: size + size // most}]}, "config.json")


def test_a_thousand_numbers_are_the_longest_list():
    check_config({"layers": [1] * 1000, "names": ["a"] * 1001}, "config.json")
    with pytest.raises(ValueError, match="layers has 1,001 entries"):
        check_config({"layers": [1] * 1001}, "config.json")


def test_a_file_of_which_one_part_is_compressed_is_refused(tmp_path):
    torch.save({"x": torch.ones(3)}, tmp_path / "plain.pt")
    with (
        zipfile.ZipFile(tmp_path / "plain.pt") as plain,
        zipfile.ZipFile(tmp_path / "some.pt", "w") as some,
    ):
        for i, entry in enumerate(plain.infolist()):
            kind = zipfile.ZIP_DEFLATED if i == 1 else zipfile.ZIP_STORED
            some.writestr(entry, plain.read(entry), kind)
    with pytest.raises(ValueError, match=r"some\.pt cannot be read as a file of tensors"):
        read_pickle(tmp_path / "some.pt")


def test_the_same_content_makes_the_same_bytes(tmp_path):
    texts = {name: f'{name} é \u2028 " \\ \n' for name in "abcdefgh"}
    for i in range(4):
        write_tensor_file(tmp_path / f"{i}.safetensors", {"x": torch.ones(3)}, texts)
    assert len({(tmp_path / f"{i}.safetensors").read_bytes() for i in range(4)}) == 1
    tensors, found = read_tensor_file(tmp_path / "0.safetensors")
    assert {name: found[name] for name in texts} == texts
    assert tensors["x"].tolist() == [1, 1, 1]


@pytest.mark.parametrize("room", [0, 1000, 300_000])
def test_a_checkpoint_that_does_not_fit_is_named(tmp_path, room):
    resource = pytest.importorskip("resource")
    path = tmp_path / "checkpoint.pt"
    write_pickle(path, {"x": torch.ones(3)})
    before, bounds = path.read_bytes(), resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (room, bounds[1]))
    try:
        with pytest.raises(OSError, match=r"the disk may be full.*checkpoint\.pt"):
            write_pickle(path, {"x": torch.ones(100_000), "y": torch.ones(5)})
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, bounds)
    assert path.read_bytes() == before
    assert list(tmp_path.iterdir()) == [path]
