r"""Scores images with a reference implementation, unmodified, in an environment of its own.

Run by the interpreter of the environment that README.md describes:

    python run.py hpsv2 --checkpoint HPS_v2_compressed.pt --config config.json \
        --cases cases.json --out scores.json

`cases.json` is a list. An item [image file, prompt] gives one number, by the call that a user of
the reference makes for one image. An item {"images": [...], "prompts": [...]} gives one row of
numbers per image, by the call for several images, where there is one. A score that the reference
fails to give is null, with the error beside it.

Each class below calls a reference and says what must be prepared for it; how its score comes about
is the reference's business. Any architecture will do: it follows from the checkpoint, but for
HPSv2, which needs open_clip's configuration of it.
"""

import argparse
import importlib
import json
import os
import sys
import time
import types
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

os.environ["HF_HUB_OFFLINE"] = "1"  # otherwise a missing file means minutes of retries

import numpy as np
import torch
from PIL import Image

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))
from tiny_checkpoints import pixel_summary

PACKAGES = {
    "hpsv2": ["hpsv2", "ftfy"],
    "pickscore": ["transformers", "tokenizers"],
    "imagereward": ["image-reward", "transformers", "timm", "fairscale"],
    "clipscore": ["openai-clip", "ftfy"],
    "aesthetic": ["openai-clip"],
}


class HPSv2:
    """`hpsv2.img_score.score`, with a model in its cache so that it does not ask for the hub's.

    The cached model is zeroed: the scores then prove that `cp` was read.
    """

    def __init__(self, args):
        self.checkpoint = str(args.checkpoint)
        self.module = import_hpsv2()
        self.module.device = args.device

        factory = importlib.import_module("hpsv2.src.open_clip.factory")
        factory.add_model_config(args.config)
        model, _, self.preprocess = factory.create_model_and_transforms(
            args.config.stem,
            pretrained=None,
            precision="amp",
            device=args.device,
            light_augmentation=True,
            output_dict=True,
        )
        for parameter in model.parameters():
            parameter.data.zero_()
        self.module.model_dict.update(model=model, preprocess_val=self.preprocess)

    def score(self, image, prompt):
        return float(self.module.score(image, prompt, cp=self.checkpoint)[0])

    def scores(self, images, prompts):
        """One row per prompt: the reference takes several images, and one prompt."""

        rows = [self.module.score(images, prompt, cp=self.checkpoint) for prompt in prompts]
        return [[float(score) for score in row] for row in rows]

    def pixels(self, image):
        return self.preprocess(Image.open(image))

    def tokens(self, prompt):
        return self.module.get_tokenizer("ViT-H-14")([prompt])[0].tolist()


def import_hpsv2():
    """The wheel's scorer. Its factory imports `turtle` by mistake, which wants Tk."""

    try:
        importlib.import_module("turtle")
    except ImportError:
        sys.modules["turtle"] = types.SimpleNamespace(forward=None)
    return importlib.import_module("hpsv2.img_score")


class PickScore:
    """The recipe of the model card: AutoProcessor and AutoModel, without anything else."""

    def __init__(self, args):
        from transformers import AutoModel, AutoProcessor

        self.device = args.device
        self.processor = AutoProcessor.from_pretrained(args.checkpoint)
        model, report = AutoModel.from_pretrained(args.checkpoint, output_loading_info=True)
        assert not report["missing_keys"], report["missing_keys"]
        self.model = model.eval().to(args.device)

    def score(self, image, prompt):
        return self.scores([image], [prompt])[0][0]

    @torch.no_grad()
    def scores(self, images, prompts):
        opened = [Image.open(image) for image in images]
        image = self.model.get_image_features(**self.inputs(images=opened))
        image = image / torch.norm(image, dim=-1, keepdim=True)
        text = self.model.get_text_features(**self.inputs(text=prompts))
        text = text / torch.norm(text, dim=-1, keepdim=True)
        return (self.model.logit_scale.exp() * (text @ image.T)).tolist()

    def inputs(self, **inputs):
        options = {"padding": True, "truncation": True, "max_length": 77, "return_tensors": "pt"}
        return self.processor(**inputs, **options).to(self.device)

    def pixels(self, image):
        return self.inputs(images=[Image.open(image)])["pixel_values"][0]

    def tokens(self, prompt):
        return self.inputs(text=[prompt])["input_ids"][0].tolist()


class ImageReward:
    """`ImageReward.load(...).score(prompt, image)`, with an image tower as deep as the file's."""

    def __init__(self, args):
        folder = args.checkpoint
        path = folder / "ImageReward.pt"
        state = torch.load(path, map_location="cpu", weights_only=True)

        blip = importlib.import_module("ImageReward.models.BLIP.blip_pretrain")
        blip.create_vit = lambda *_: blip_vision(state)
        os.chdir(folder)  # the tokenizer is looked for as ./bert-base-uncased, before the hub

        module = importlib.import_module("ImageReward")
        self.model = module.load(
            str(path), device=args.device, med_config=str(folder / "med_config.json")
        )
        # The reference loads leniently: a misnamed tensor would stay random, unnoticed.
        odd = set(state) ^ set(self.model.state_dict())
        assert not odd, f"only in the file or only in the model: {sorted(odd)}"

    def score(self, image, prompt):
        return float(self.model.score(prompt, image))

    def scores(self, images, prompts):
        """One row per prompt: the reference takes several images, and one prompt."""

        return [np.atleast_1d(self.model.score(prompt, images)).tolist() for prompt in prompts]

    def pixels(self, image):
        return self.model.preprocess(Image.open(image))

    def tokens(self, prompt):
        tokenizer = self.model.blip.tokenizer
        return tokenizer(prompt, padding="max_length", truncation=True, max_length=35).input_ids


def blip_vision(state):
    """The reference's image tower in the size of the file, and its width."""

    prefix = "blip.visual_encoder."
    width = state[f"{prefix}cls_token"].shape[-1]
    patch = state[f"{prefix}patch_embed.proj.weight"].shape[-1]
    patches = state[f"{prefix}pos_embed"].shape[1] - 1

    vit = importlib.import_module("ImageReward.models.BLIP.vit")
    tower = vit.VisionTransformer(
        img_size=patch * round(patches**0.5),
        patch_size=patch,
        embed_dim=width,
        depth=sum(k.startswith(f"{prefix}blocks.") and k.endswith("norm1.bias") for k in state),
        num_heads=width // 64,
    )
    return tower, width


class Tower:
    """OpenAI's CLIP and its preprocessing, from its own `clip.load`."""

    def __init__(self, args):
        self.clip = importlib.import_module("clip")
        self.device = args.device
        torch.jit.load = rewinding(torch.jit.load)
        self.model, self.preprocess = self.clip.load(str(args.checkpoint), device=args.device)

    @torch.no_grad()
    def embed_images(self, images):
        pixels = torch.stack([self.pixels(image) for image in images]).to(self.device)
        return unit(self.model.encode_image(pixels))

    @torch.no_grad()
    def embed_prompts(self, prompts):
        tokens = self.clip.tokenize(prompts, truncate=True).to(self.device)
        return unit(self.model.encode_text(tokens))

    def pixels(self, image):
        return self.preprocess(Image.open(image))


def rewinding(load):
    """`clip.load` reads a plain state dict when TorchScript cannot, but from the file's end."""

    def load_or_rewind(file, *args, **kwargs):
        try:
            return load(file, *args, **kwargs)
        except RuntimeError:
            file.seek(0)
            raise

    return load_or_rewind


def unit(embedding):
    vectors = embedding.cpu().numpy()
    return vectors / np.sqrt(np.sum(vectors**2, axis=1, keepdims=True))


class CLIPScore(Tower):
    """2.5 max(cos, 0) of the image and of "A photo depicts " + prompt (Hessel et al., 2021)."""

    prefix = "A photo depicts "

    def score(self, image, prompt):
        return self.scores([image], [prompt])[0][0]

    def scores(self, images, prompts):
        cosines = self.cosines(images, [self.prefix + prompt for prompt in prompts])
        return (2.5 * np.clip(cosines, 0, None)).tolist()

    def cosines(self, images, prompts):
        return self.embed_prompts(prompts) @ self.embed_images(images).T

    def extra(self, image, prompt):
        """The cosine with and without the prefix: what other scores of this name scale."""

        with_prefix, plain = self.cosines([image], [self.prefix + prompt, prompt])[:, 0].tolist()
        return {"cosine": with_prefix, "cosine_without_prefix": plain}

    def tokens(self, prompt):
        return self.clip.tokenize(self.prefix + prompt, truncate=True)[0].tolist()


class Aesthetic(Tower):
    """LAION's aesthetic predictor v2: its linear layers on the unit embedding. No prompt."""

    def __init__(self, args):
        super().__init__(args)
        width = self.model.visual.output_dim
        self.layers = torch.nn.Sequential(
            torch.nn.Linear(width, 1024),
            torch.nn.Dropout(0.2),
            torch.nn.Linear(1024, 128),
            torch.nn.Dropout(0.2),
            torch.nn.Linear(128, 64),
            torch.nn.Dropout(0.1),
            torch.nn.Linear(64, 16),
            torch.nn.Linear(16, 1),
        )
        # The published file remembers the GPU that it was saved on.
        state = torch.load(args.head, map_location="cpu", weights_only=True)
        self.layers.load_state_dict({k.removeprefix("layers."): v for k, v in state.items()})
        self.layers.eval()

    def score(self, image, prompt):
        return self.scores([image], [prompt])[0][0]

    @torch.no_grad()
    def scores(self, images, prompts):
        embedding = torch.from_numpy(self.embed_images(images)).float()
        return [self.layers(embedding)[:, 0].tolist() for _ in prompts]


REFERENCES = {
    "hpsv2": HPSv2,
    "pickscore": PickScore,
    "imagereward": ImageReward,
    "clipscore": CLIPScore,
    "aesthetic": Aesthetic,
}


def main():
    args = parse()
    torch.set_num_threads(args.threads)
    reference = REFERENCES[args.reference](args)
    cases = json.loads(args.cases.read_text(encoding="utf-8"))

    answers = [answer(reference, case) for case in cases]  # also warms up
    seconds = [seconds_of_a_pass(reference, cases) for _ in range(args.repeat)]

    result = {
        "reference": args.reference,
        "versions": versions(args.reference),
        "threads": args.threads,
        "scores": [value for value, _ in answers],
        "errors": [error for _, error in answers],
        "seconds": seconds,
    }
    if args.details:
        result |= details(reference, cases)
    args.out.write_text(json.dumps(result, ensure_ascii=False), encoding="utf-8")


def parse():
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    path = lambda text: Path(text).resolve()
    parser.add_argument("reference", choices=REFERENCES)
    parser.add_argument("--checkpoint", type=path, required=True, help="file or folder")
    parser.add_argument("--config", type=path, help="hpsv2: open_clip's configuration, as JSON")
    parser.add_argument("--head", type=path, help="aesthetic: the file of the linear layers")
    parser.add_argument("--cases", type=path, required=True)
    parser.add_argument("--out", type=path, required=True)
    parser.add_argument("--repeat", type=int, default=0, help="passes to time, after the first")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--details", action="store_true", help="also pixels, tokens and more")
    return parser.parse_args()


def answer(reference, case):
    """The score and None, or None and the error."""

    try:
        return ask(reference, case), None
    except Exception as error:
        return None, f"{type(error).__name__}: {error}"


def ask(reference, case):
    if isinstance(case, dict):
        by_prompt = reference.scores(case["images"], case["prompts"])
        return [list(row) for row in zip(*by_prompt)]  # noqa: B905
    return reference.score(*case)


def seconds_of_a_pass(reference, cases):
    start = time.perf_counter()
    for case in cases:
        answer(reference, case)
    return time.perf_counter() - start


def versions(name):
    found = {"python": ".".join(map(str, sys.version_info[:3]))}
    for package in [*PACKAGES[name], "torch", "torchvision", "numpy", "pillow"]:
        try:
            found[package] = version(package)
        except PackageNotFoundError:
            found[package] = None
    return found


def details(reference, cases):
    """What the reference makes of each image and prompt, before any weight is involved."""

    pairs = [case for case in cases if not isinstance(case, dict)]
    images = dict.fromkeys(image for image, _ in pairs)
    prompts = dict.fromkeys(prompt for _, prompt in pairs)

    found = {"pixels": {image: pixel_summary(reference.pixels(image)) for image in images}}
    if hasattr(reference, "tokens"):
        found["tokens"] = {prompt: reference.tokens(prompt) for prompt in prompts}
    if hasattr(reference, "extra"):
        found["extra"] = [reference.extra(*pair) for pair in pairs]
    return found


if __name__ == "__main__":
    main()
