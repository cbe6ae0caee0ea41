r"""Has the reference implementations score the tiny checkpoints, and stores it in ../goldens.

    RWGUIDANCE_REFERENCE_PYTHON=<environment>/bin/python \
        python tests/rewards/references/make_goldens.py

README.md says how to make the environment. Run it again when `tests/tiny_checkpoints` changes,
and only then: it prints by how much the scores moved. LAION's published head is scored too if
--published-head names it.
"""

import argparse
import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path

import torch
from safetensors.torch import load_file

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))
import tiny_checkpoints as tiny

GOLDENS = Path(__file__).resolve().parents[1] / "goldens"
AESTHETIC_CONFIG = {**tiny.CLIP_CONFIG, "embed_dim": 768}


def main():
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("names", nargs="*", help="which ones; all by default")
    parser.add_argument("--published-head", type=Path, help="sac+logos+ava1-l14-linearMSE.pth")
    args = parser.parse_args()

    with tempfile.TemporaryDirectory() as folder:
        folder = Path(folder)
        images = save_images(folder / "images")
        recipes = dict(RECIPES)
        if args.published_head:
            recipes["aesthetic_published"] = lambda path: published(path, args.published_head)

        for name in args.names or recipes:
            recipe = recipes[name](folder / name)
            store(GOLDENS / f"{name}.json", golden(recipe, images, folder))


# Each recipe writes a checkpoint into a folder. It returns the arguments of run.py and the weights.


def hpsv2(folder, name="HPS_v2_compressed.pt"):
    path = tiny.write_hpsv2(folder, name=name)
    config = folder / "tiny.json"
    tiny.write_json(config, tiny.HPSV2_CONFIG)
    arguments = ["hpsv2", "--checkpoint", path, "--config", config]
    return arguments, torch.load(path, weights_only=True)["state_dict"]


def hpsv2_1(folder):
    return hpsv2(folder, name="HPS_v2.1_compressed.pt")


def pickscore(folder):
    tiny.write_pickscore(folder)
    return ["pickscore", "--checkpoint", folder], load_file(folder / "model.safetensors")


def imagereward(folder):
    tiny.write_imagereward(folder)
    state = torch.load(folder / "ImageReward.pt", weights_only=True)
    return ["imagereward", "--checkpoint", folder], state


def clipscore(folder):
    path, state = save_openai(folder, tiny.CLIP_CONFIG)
    return ["clipscore", "--checkpoint", path], state


def aesthetic(folder):
    path, state = save_openai(folder, AESTHETIC_CONFIG)
    head = tiny.write_aesthetic_head(folder / "head.pth")
    state |= torch.load(head, weights_only=True)
    return ["aesthetic", "--checkpoint", path, "--head", head], state


def published(folder, head):
    path, state = save_openai(folder, AESTHETIC_CONFIG)
    state |= torch.load(head, map_location="cpu", weights_only=True)
    return ["aesthetic", "--checkpoint", path, "--head", head], state


def save_openai(folder, config):
    folder.mkdir(parents=True)
    state = tiny.openai_state_dict(config)
    torch.save(state, folder / "openai.pt")
    return folder / "openai.pt", state


RECIPES = {
    "hpsv2": hpsv2,
    "hpsv2_1": hpsv2_1,
    "pickscore": pickscore,
    "imagereward": imagereward,
    "clipscore": clipscore,
    "aesthetic": aesthetic,
}


def save_images(folder):
    """PNG files, which lose nothing. By file name: image name and fingerprint."""

    folder.mkdir()
    saved = {}
    for name, image in tiny.images().items():
        path = folder / f"{name}.png"
        image.save(path)
        saved[str(path)] = (name, tiny.image_fingerprint(image))
    return saved


def golden(recipe, images, folder):
    """What the tests want to know of the reference: scores, and how it came to them."""

    arguments, state = recipe
    # The aesthetic score has no prompt.
    prompts = tiny.PROMPTS[:1] if arguments[0] == "aesthetic" else tiny.PROMPTS
    pairs = [(path, k) for path in images for k in range(len(prompts))]

    some = list(images)[:3]
    several = {"images": some, "prompts": prompts}
    cases = [[path, prompts[k]] for path, k in pairs]
    result = run([*arguments, "--details"], [*cases, several], folder)

    *scores, together = result["scores"]
    *errors, _ = result["errors"]
    names = {path: name for path, (name, _) in images.items()}
    rows = [[names[path], k, score] for (path, k), score in zip(pairs, scores, strict=True)]
    failed = {names[path]: e for (path, _), e in zip(pairs, errors, strict=True) if e}
    made = {
        "reference": result["reference"],
        "versions": result["versions"],
        "weights": tiny.fingerprint(state),
        "images": dict(images.values()),
        "prompts": prompts,
        "errors": failed,
        "scores": rows,
        "batch_deviation": deviation(scores, together),
        "pixels": {names[path]: summary for path, summary in result["pixels"].items()},
    }
    if arguments[0] != "aesthetic":
        made["tokens"] = [result["tokens"][prompt] for prompt in prompts]
    if "extra" in result:
        made["cosines"] = [
            [*row[:2], extra["cosine"], extra["cosine_without_prefix"]]
            for row, extra in zip(rows, result["extra"], strict=True)
        ]
    return made


def run(arguments, cases, folder):
    """Asks the interpreter of the references, on one thread."""

    python = os.environ.get("RWGUIDANCE_REFERENCE_PYTHON")
    if python is None:
        raise SystemExit("set RWGUIDANCE_REFERENCE_PYTHON; the README.md beside explains it")

    tiny.write_json(folder / "cases.json", cases)
    script = Path(__file__).with_name("run.py")
    command = [python, "-W", "ignore", script, *arguments, "--cases", folder / "cases.json"]
    subprocess.run([*command, "--out", folder / "out.json"], check=True)
    return json.loads((folder / "out.json").read_text(encoding="utf-8"))


def deviation(scores, together):
    """How far the reference is from itself when it is given several images and prompts at once."""

    flat = [score for row in together for score in row]
    return max(abs(a - b) for a, b in zip(scores, flat, strict=False))


def store(path, made):
    """One line per entry, so that a difference can be read."""

    if path.exists():
        stored = json.loads(path.read_text(encoding="utf-8"))
        print(path.name, "moved by", movement(stored["scores"], made["scores"]))

    path.parent.mkdir(exist_ok=True)
    parts = ",\n".join(f"{json.dumps(key)}: {lines(value)}" for key, value in made.items())
    path.write_text("{\n" + parts + "\n}\n", encoding="utf-8")


def lines(value):
    dump = lambda v: json.dumps(v, ensure_ascii=False)
    if isinstance(value, dict) and value:
        return "{\n" + ",\n".join(f"{dump(k)}: {dump(v)}" for k, v in value.items()) + "\n}"
    if isinstance(value, list):
        return "[\n" + ",\n".join(map(dump, value)) + "\n]"
    return dump(value)


def movement(stored, made):
    before = {(name, k): score for name, k, score in stored}
    moves = [
        abs(score - before[name, k])
        for name, k, score in made
        if score is not None and before.get((name, k)) is not None
    ]
    return max(moves, default=None)


if __name__ == "__main__":
    main()
