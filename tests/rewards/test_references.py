"""Opt-in: the references themselves, and LAION's published head.

Run `make test-references` with RWGUIDANCE_REFERENCE_PYTHON naming the interpreter of the
environment that tests/rewards/references/README.md describes, and RWGUIDANCE_LAION_HEAD the file
sac+logos+ava1-l14-linearMSE.pth.
"""

import json
import os
import subprocess
from pathlib import Path

import pytest
import torch
from test_zoo import GOLDEN

import rewards
import tiny_checkpoints as tiny
import zoo
from common import randn

pytestmark = pytest.mark.references

FOLDER = Path(__file__).parent
NAMES = ["640x427", "225x337", "31x47"]


def reference(folder, name, *arguments):
    """Scores of a few images with all prompts, fresh from the reference; None where it fails."""

    cases, out = folder / "cases.json", folder / "out.json"
    images = tiny.images()
    for key in NAMES:
        images[key].save(folder / f"{key}.png")
    pairs = [[str(folder / f"{key}.png"), prompt] for key in NAMES for prompt in tiny.PROMPTS]
    cases.write_text(json.dumps(pairs))
    python = os.environ["RWGUIDANCE_REFERENCE_PYTHON"]
    command = [python, FOLDER / "references" / "run.py", name, *arguments]
    command += ["--cases", cases, "--out", out]
    subprocess.run([str(part) for part in command], check=True, capture_output=True)
    result = json.loads(out.read_text())
    assert result["errors"] == [None] * len(pairs)
    return torch.tensor(result["scores"]).reshape(len(NAMES), len(tiny.PROMPTS))


def arguments_of(name, folder):
    if name == "hpsv2":
        tiny.write_json(folder / "tiny.json", tiny.HPSV2_CONFIG)
        return ["--checkpoint", tiny.write_hpsv2(folder), "--config", folder / "tiny.json"]
    if name in ("clipscore", "aesthetic"):
        config = zoo.CLIP_768 if name == "aesthetic" else tiny.CLIP_CONFIG
        torch.save(tiny.openai_state_dict(config), folder / "openai.pt")
        head = ["--head", tiny.write_aesthetic_head(folder / "head.pth")]
        return ["--checkpoint", folder / "openai.pt", *(head if name == "aesthetic" else [])]
    zoo.write(name, folder)
    return ["--checkpoint", folder]


@pytest.mark.parametrize("name", ["pickscore", "hpsv2", "clipscore", "imagereward", "aesthetic"])
def test_scores_equal_the_reference_run_now(name, tmp_path):
    for part in ("theirs", "ours"):
        (tmp_path / part).mkdir()
    theirs = reference(tmp_path, name, *arguments_of(name, tmp_path / "theirs"))
    reward = zoo.load(name, zoo.write(name, tmp_path / "ours"))
    images = tiny.images()
    ours = reward.score_matrix([images[key] for key in NAMES], tiny.PROMPTS)
    torch.testing.assert_close(ours, theirs, rtol=0, atol=GOLDEN[name][1])


def test_the_published_head_is_one_affine_map(tmp_path):
    """LAION's weights: 5.236646 + 17.995625 cos(w, e), and the digest of the file."""

    head = Path(os.environ["RWGUIDANCE_LAION_HEAD"])
    tiny.write_clip(tmp_path, projection_dim=768, config=zoo.CLIP_768)
    reward = rewards.load("aesthetic", head, clip=tmp_path)  # compares the digest
    weight, bias = reward.head.weight, reward.head.bias
    assert float(weight.norm()) == pytest.approx(17.995625, abs=1e-5)
    assert float(bias) == pytest.approx(5.236646, abs=1e-5)

    layers = torch.load(head, map_location="cpu", weights_only=True)
    x = e = torch.nn.functional.normalize(randn(0, 100, 768, dtype=torch.float32), dim=-1)
    for i in (0, 2, 4, 6, 7):
        x = torch.nn.functional.linear(x, layers[f"layers.{i}.weight"], layers[f"layers.{i}.bias"])
    torch.testing.assert_close(reward.head(e), x[:, 0], rtol=0, atol=1e-5)

    golden = json.loads((FOLDER / "goldens" / "aesthetic_published.json").read_text())
    images = tiny.images()
    for key, _, score in golden["scores"]:
        if key != "RGBA":
            assert float(reward([images[key]])) == pytest.approx(score, abs=1e-5)
