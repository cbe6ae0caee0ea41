"""Embeddings of images by any vision model that is here, behind the preprocessing of that model.

========================  ==============================  ====================================
name                      path                            features
========================  ==============================  ====================================
``torchvision:resnet18``  a file of weights               input of the last linear layer
``timm:resnet18``         a file of weights               pooled features
``transformers:FOLDER``   none, the folder is in the      image embedding of two towers, else
                          name                            pooled output, else mean of the tokens
``reward:pickscore``      that of the reward              embedding by the tower of the reward
========================  ==============================  ====================================

:func:`rwguidance.evaluation.embeddings.load` takes these names. Nothing is downloaded, no code that
comes with weights is run, and no pickle of anything but tensors is read.
"""

import os
from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from ..support import checks
from ..support.files import expanded
from ..support.outside import require
from ..support.randomness import forked

__all__ = ["Extractor", "extractor"]

PathLike = str | os.PathLike[str]

_OFFLINE: Any = {"local_files_only": True, "trust_remote_code": False}


class Extractor(nn.Module):
    """A network behind its preprocessing: images (B, 3, H, W) in [0, 1], sRGB, to features (B, D).

    Arguments:
        name: Its name, for messages.
        preprocess: Function of float32 images that returns what the network takes.
        network: The network, which returns features.
        about: Description of the function, by which embeddings of one network are told apart.
    """

    depends_on = ("about", "network")

    def __init__(
        self,
        name: str,
        preprocess: Callable[[Tensor], Tensor],
        network: nn.Module,
        about: str = "",
    ) -> None:
        super().__init__()
        self.name = name
        self.about = about
        self.preprocess = preprocess
        self.network = network

    def forward(self, images: Tensor) -> Tensor:
        """Returns the features in float32 or wider, with shape (B, D).

        Raises:
            TypeError: If the images are no floating-point tensor.
            ValueError: If they have another shape, or the network returns no vectors.
        """

        checks.states("images", images)
        if images.ndim != 4 or images.shape[1] != 3:
            raise ValueError(f"images must have shape (B, 3, H, W), got {tuple(images.shape)}")
        like = next(self.network.parameters(), images)
        pixels = self.preprocess(images.float()).to(like)
        features = self.network(pixels)
        if isinstance(features, Tensor):
            features = features.squeeze((2, 3)) if features.ndim == 4 else features  # pooled maps
        if not isinstance(features, Tensor) or features.ndim != 2:
            raise ValueError(
                f"{self.name} must give one vector per image, got {checks.described(features)}"
            )
        return features.float() if features.dtype != torch.float64 else features


def extractor(name: str) -> Callable[..., nn.Module] | None:
    """Returns the function that makes an embedding of a name with a colon; None for other names.

    It takes the keywords that :func:`rwguidance.evaluation.embeddings.load` passes on.
    """

    kind, colon, model = str(name).partition(":")
    return partial(_KINDS[kind], model) if colon and kind in _KINDS else None


def _torchvision(model: str, path: PathLike | None = None) -> Extractor:
    models = require("torchvision", f"torchvision:{model} needs", "embeddings").models
    if model not in models.list_models():
        raise LookupError(f"torchvision has no model {model!r}; torchvision.models.list_models()")
    weights = models.get_model_weights(model).DEFAULT
    file = _file(f"torchvision:{model}", path, weights.url)
    with forked():
        network = models.get_model(model, weights=None)
    layers = [layer for layer, part in network.named_modules() if isinstance(part, nn.Linear)]
    if not layers:
        raise ValueError(f"torchvision:{model} has no linear layer at its end, so no features")
    _fill(network, file)
    *_, layer = layers
    parent, _, last = layer.rpartition(".")
    setattr(network.get_submodule(parent), last, nn.Identity())
    name = f"torchvision:{model}"
    return Extractor(name, weights.transforms(), network, about=name)


def _timm(model: str, path: PathLike | None = None) -> Extractor:
    timm = require("timm", f"timm:{model} needs", "embeddings")
    if not timm.is_model(model):
        raise LookupError(f"timm has no model {model!r}; timm.list_models() has them all")
    file = _file(f"timm:{model}", path, f"https://huggingface.co/timm, the model {model}")
    with forked():
        network = timm.create_model(model, pretrained=False)
    _fill(network, file)
    network.reset_classifier(0)
    config = timm.data.resolve_model_data_config(network)
    preprocess = timm.data.create_transform(**config, is_training=False)
    return Extractor(f"timm:{model}", preprocess, network, about=f"timm:{model}")


def _transformers(folder: str) -> Extractor:
    name, place = f"transformers:{folder}", expanded(folder)
    wanted = ("config.json", "preprocessor_config.json", "*.safetensors")
    missing = [one for one in wanted if not any(place.glob(one))]
    if missing:
        raise FileNotFoundError(
            f"{name} needs a folder that save_pretrained of a model and of its image processor "
            f"wrote; {place} lacks {', '.join(missing)}"
        )
    library = require("transformers", f"{name} needs", "embeddings")
    with forked():
        network, found = library.AutoModel.from_pretrained(
            place, use_safetensors=True, output_loading_info=True, **_OFFLINE
        )
    lost = sorted(found["missing_keys"])
    # A classifier has no pooler of its own; a random one would be no feature.
    pooler = [key for key in lost if "pooler" in key.split(".")]  # old versions name the whole path
    if len(pooler) < len(lost):
        raise ValueError(f"{name} lacks weights, which would be random: {', '.join(lost[:5])}")
    processor = library.AutoImageProcessor.from_pretrained(place, **_OFFLINE)
    prepare = lambda x: processor(images=x, do_rescale=False, return_tensors="pt")["pixel_values"]
    features = _ImageFeatures(network, pooled=not pooler)
    return Extractor(name, prepare, features, about=processor.to_json_string())


class _ImageFeatures(nn.Module):
    """What a model of transformers says of images."""

    depends_on = ("model", "pooled")

    def __init__(self, model: Any, pooled: bool) -> None:
        super().__init__()
        self.model = model
        self.pooled = pooled

    def forward(self, pixels: Tensor) -> Any:
        if hasattr(self.model, "get_image_features"):
            output = self.model.get_image_features(pixel_values=pixels)
            if isinstance(output, Tensor):
                return output
        else:
            output = self.model(pixel_values=pixels)
        pooled = getattr(output, "pooler_output", None) if self.pooled else None
        return output.last_hidden_state.mean(1) if pooled is None else pooled


class _Tower(nn.Module):
    """The image tower of a reward."""

    depends_on = ("reward",)

    def __init__(self, reward: Any) -> None:
        super().__init__()
        self.reward = reward

    def forward(self, pixels: Tensor) -> Any:
        return self.reward.embed_images(pixels)


def _reward(name: str, path: PathLike | None = None, **options: Any) -> Extractor:
    from .. import rewards

    reward: Any = rewards.load(name, path, **options)
    if not hasattr(reward, "embed_images"):
        raise TypeError(f"reward:{name} has no image tower of its own, no embed_images")
    return Extractor(f"reward:{name}", reward.preprocess, _Tower(reward))


_KINDS: Mapping[str, Callable[..., Extractor]] = {
    "reward": _reward,
    "timm": _timm,
    "torchvision": _torchvision,
    "transformers": _transformers,
}


def _file(name: str, path: PathLike | None, source: str) -> Path:
    """The file of weights, which must be there."""

    place = None if path is None else expanded(path)
    if place is None or not place.is_file():
        got = "none" if path is None else f"{path}, which is no file"
        raise FileNotFoundError(
            f"{name} needs path=, a local file of its weights, got {got}; get it from {source}"
        )
    return place


def _fill(network: nn.Module, file: Path) -> None:
    from ..rewards.loading import assign_weights, read_weights

    # Counters of batches, which old files lack, are not used.
    own = {k: v for k, v in network.state_dict().items() if k.endswith("num_batches_tracked")}
    assign_weights(network, {**own, **read_weights(file)}, file)
