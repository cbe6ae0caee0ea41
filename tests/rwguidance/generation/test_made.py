"""Pictures of an earlier generation: their prompts are told by its table as they are."""

import torch

from rwguidance.generation.made import Made, read_made
from rwguidance.generation.pictures import read_facts, save_picture


def test_spaces_of_prompts_are_part_of_them(tmp_path):
    table = [
        "prompt,number,base,aligned,error",
        " a cat ,0,a/0-base.png,a/0-aligned.png,",
        '"  a, dog",0,b/0-base.png,b/0-aligned.png,',
        "an owl,0,,,it failed",
    ]
    (tmp_path / "results.csv").write_text("\r\n".join([*table, ""]), encoding="utf-8")
    names = ["a/0-base.png", "a/0-aligned.png", "b/0-base.png", "c/0-base.png"]
    assert read_made(tmp_path, names) == {
        "a/0-base.png": Made(" a cat ", "base"),
        "a/0-aligned.png": Made(" a cat ", "aligned"),
        "b/0-base.png": Made("  a, dog", "base"),
        "c/0-base.png": None,
    }
    (tmp_path / "results.csv").unlink()
    assert read_made(tmp_path, names[:1]) == {"a/0-base.png": None}


def test_facts_are_read_without_the_pixels(tmp_path):
    path = tmp_path / "a.png"
    image = torch.rand(3, 40, 40, generator=torch.Generator().manual_seed(0))
    save_picture(image, path, {"prompt": "a cat", "kind": "aligned"})
    path.write_bytes(path.read_bytes()[:-1000])
    assert read_facts(path) is None
    assert read_made(tmp_path, ["a.png"]) == {"a.png": Made("a cat", "aligned")}
