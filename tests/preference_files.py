"""Files of preference data as they are published, with every kind of row that cannot be used."""

import csv
import io
import json
import tarfile

import pyarrow
import torch
import torch.nn.functional as F
from PIL import Image
from pyarrow import parquet

from path_model import Text
from rwguidance.backbone import Generator
from rwguidance.preparation import Preparation
from rwguidance.support.randomness import normal

CAPTIONS = ("a red cat", "a blue dog", "a key", "A boat!")


def encoded(level, kind="PNG", size=(20, 16)):
    """A picture of one level of gray, encoded."""

    file = io.BytesIO()
    Image.new("RGB", size, (level, level, level)).save(file, kind)
    return file.getvalue()


class Model(Generator):
    """A model whose latents are means of blocks of four pixels, in one channel."""

    depends_on = ("shape",)

    def __init__(self, shape=(1, 4, 4)):
        super().__init__()
        self.shape = shape
        self.calls = 0

    def condition(self, prompts):
        codes = torch.tensor([[len(p), sum(map(ord, p))] for p in prompts], dtype=torch.float32)
        return Text(prompts, {"code": codes})

    def draw_noise(self, n, generator=None):
        return normal((n, *self.shape), generator)

    def generate(self, noise, condition):
        return 0.5 + 0.1 * noise

    def decode(self, latents):
        return F.interpolate(latents, scale_factor=4).expand(-1, 3, -1, -1).clamp(0, 1)

    def encode(self, images):
        self.calls += 1
        return F.avg_pool2d(images.mean(1, keepdim=True), 4)


class Light(torch.nn.Module):
    """The mean of all pixels."""

    depends_on = ()

    def forward(self, images, prompts):
        return images.mean((1, 2, 3))


def job(out, **settings):
    given = {
        "backbone": Model(),
        "rewards": {"light": Light()},
        "batch_size": 3,
        "validation": 0.25,
    }
    return Preparation(out=out, **{**given, **settings})


def pick_a_pic(file, n=17, dirty=True):
    """Pick-a-Pic, whose pictures tell their rows; returns its rows and what some of them lack."""

    rows = [
        {
            "caption": CAPTIONS[i % 4],
            "jpg_0": encoded(10 * i),
            "jpg_1": encoded(10 * i + 5),
            "label_0": (1.0, 0.0, 0.5)[i % 3],
            "label_1": (0.0, 1.0, 0.5)[i % 3],
            "has_label": True,
        }
        for i in range(n)
    ]
    problems = {}
    if dirty:
        changes = {
            1: ({"caption": None}, "no caption"),
            2: ({"caption": "  "}, "no caption"),
            4: ({"jpg_0": None}, "no picture jpg_0"),
            5: ({"jpg_1": b"no picture"}, "a picture is none of JPEG, PNG, WEBP"),
            7: ({"label_0": None}, "no label_0"),
            8: ({"has_label": False}, "no label"),
            10: ({"label_0": 0.7}, "labels must be 1 and 0, or 0.5 and 0.5, got 0.7 and 1"),
            11: ({"jpg_1": encoded(9)[:60]}, "a picture cannot be decoded"),
        }
        for i, (change, problem) in changes.items():
            rows[i].update(change)
            problems[i] = problem
    table = {name: [row[name] for row in rows] for name in rows[0]}
    parquet.write_table(pyarrow.table(table), file, row_group_size=5)
    return rows, problems


def add(archive, name, content):
    member = tarfile.TarInfo(name)
    member.size = len(content)
    archive.addfile(member, io.BytesIO(content))


def web_dataset(file):
    """Pick-a-Pic as WebDataset; returns what rows lack."""

    with tarfile.open(file, "w") as archive:
        for i in range(6):
            add(archive, f"set/{i:03d}.0.png", encoded(20 * i))
            if i != 1:
                add(archive, f"set/{i:03d}.1.png", encoded(20 * i + 7) if i != 2 else b"no")
            labels = {"caption": CAPTIONS[i % 4], "label_0": 0.0, "label_1": 1.0}
            text = "{" if i == 3 else json.dumps(labels)
            add(archive, f"set/{i:03d}.json", text.encode())
    return {
        1: "no picture jpg_1",
        2: "a picture is none of JPEG, PNG, WEBP",
        3: "no label_0",
    }


def folder(root):
    """HPD's and ImageReward's tables beside pictures; returns what rows of the former lack."""

    (root / "images").mkdir(parents=True)
    for i in range(4):
        (root / "images" / f"{i}.jpg").write_bytes(encoded(60 * i, "JPEG"))
    paths = lambda *names: [f"images/{name}.jpg" for name in names]
    rows = [
        {"prompt": "p0", "image_path": paths(0, 1), "human_preference": [1, 0]},
        {"prompt": "p1", "image_path": [*paths(0), "../out.tar"], "human_preference": [1, 0]},
        {"prompt": "p2", "image_path": paths(2, 9), "human_preference": [0, 1]},
        {"prompt": "p3", "image_path": paths(2), "human_preference": [0, 1]},
        {"prompt": "p4", "image_path": paths(2, 3), "human_preference": [0]},
        7,
        {"prompt": "p5", "image_path": paths(2, 3), "human_preference": [0, 1]},
    ]
    (root / "hpd.json").write_text(json.dumps(rows))
    with (root / "reward.csv").open("w", newline="") as file:
        table = csv.writer(file)
        table.writerow(("prompt_id", "prompt", "image_path", "rank"))
        for i, rank in enumerate((1, 2, 2, 3)):
            table.writerow(("x", "ranked", f"images/{i}.jpg", rank))
        table.writerow(("y", "alone", "images/0.jpg", 1))
        table.writerow(("y", "alone", "images/1.jpg", ""))
    return {
        1: "a picture must lie in the folder of its table",
        2: "no such picture, images/9.jpg",
        3: "image_path must be a list of two or more pictures",
        4: "human_preference must have a number for each picture",
        5: "image_path must be a list",
    }
