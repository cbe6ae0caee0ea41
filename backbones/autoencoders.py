"""Autoencoders in place of a pipeline's own: small ones, at a fraction of its cost.

The tiny autoencoders of the TAESD family were distilled from the VAEs of SDXL, SD3 and FLUX. Their
latents are in the units of the denoising network, with scale 1 and shift 0, where those of a VAE
are not; adapters read both from the configuration of the autoencoder that they call.

They are published in two layouts. The original one numbers the layers of a decoder from 1, behind
a clamp without weights, which diffusers does not count.
"""

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import nn

from rwguidance.support import outside
from rwguidance.support.files import expanded
from rwguidance.support.tensors import read_tensors

from .index import check_whole, read_config

__all__ = ["check_autoencoder", "check_channels", "in_dtype", "load_autoencoder"]

_CLASSES = ("AutoencoderTiny", "AutoencoderKL")


def load_autoencoder(
    source: nn.Module | str | os.PathLike[str], original: str, dtype: torch.dtype
) -> nn.Module:
    """The autoencoder of diffusers that an option `vae` names, frozen and in eval mode.

    Arguments:
        source: An AutoencoderTiny or AutoencoderKL, which is returned as it is; or a local folder,
            either as `save_pretrained` writes it, or with two files in the original layout.
        original: Beginning of the names of these two files: "taesdxl" stands for
            taesdxl_encoder.safetensors and taesdxl_decoder.safetensors.
        dtype: The precision of weights that are read from a folder.

    Raises:
        TypeError: If `source` is something else.
        FileNotFoundError: If the folder is not there or holds neither.
        ValueError: If the folder holds something else than an autoencoder.
    """

    if isinstance(source, nn.Module):
        if not {cls.__name__ for cls in type(source).__mro__} & set(_CLASSES):
            raise TypeError(
                f"vae must be an {' or '.join(_CLASSES)} of diffusers, or a folder that holds one, "
                f"got {type(source).__name__}"
            )
        return source
    if not isinstance(source, str | os.PathLike):
        raise TypeError(f"vae must be an autoencoder or a folder, got {type(source).__name__}")
    folder = expanded(source)
    files = {part: folder / f"{original}_{part}.safetensors" for part in ("encoder", "decoder")}
    if (folder / "config.json").is_file():
        vae = _saved(folder, dtype)
    elif all(file.is_file() for file in files.values()):
        vae = _original(files, dtype)
    else:
        held = sorted(path.name for path in folder.iterdir()) if folder.is_dir() else []
        raise FileNotFoundError(
            f"vae must be a local folder with config.json, as save_pretrained writes it, or with "
            f"{' and '.join(file.name for file in files.values())}; {folder} "
            + (f"holds {', '.join(held[:8])}" if held else "is no folder, or is empty")
            + f"; fetch one with `hf download madebyollin/{original} --local-dir DIRECTORY`"
        )
    return vae.eval().requires_grad_(False)


def check_autoencoder(vae: nn.Module, channels: int, vae_scale_factor: int) -> None:
    """Checks that an autoencoder can stand in for another.

    Arguments:
        vae: The autoencoder.
        channels: Channels of the latents.
        vae_scale_factor: Pixels of an image per pixel of its latents, along one side.

    Raises:
        ValueError: If its latents have other channels or another size.
    """

    check_channels(vae, channels)
    config: Any = vae.config
    found = 2 ** (len(config.block_out_channels) - 1)
    if found != vae_scale_factor:
        raise ValueError(
            f"vae must map {vae_scale_factor} pixels to one latent pixel, as that of the pipeline, "
            f"got {found}"
        )


def in_dtype(dtype: torch.dtype) -> dict[str, torch.dtype]:
    """The keyword with which this version of diffusers is told the precision of weights."""

    # Renamed in 0.42, which warns of the old name.
    version = tuple(map(int, _diffusers().__version__.split(".")[:2]))
    return {"dtype" if version >= (0, 42) else "torch_dtype": dtype}


def _diffusers() -> Any:
    return outside.require("diffusers", "autoencoders need", "backbones")


def check_channels(vae: nn.Module, channels: int) -> None:
    """Checks the channels of an autoencoder's latents, which needs no pipeline.

    Arguments:
        vae: The autoencoder.
        channels: Channels that the latents must have.

    Raises:
        ValueError: If the latents have other channels.
    """

    config: Any = vae.config
    if config.latent_channels != channels:
        raise ValueError(
            f"vae must have latents of {channels} channels, as the pipeline has, "
            f"got {config.latent_channels}: it belongs to another family"
        )


def _saved(folder: Path, dtype: torch.dtype) -> nn.Module:
    name = read_config(folder / "config.json").get("_class_name")
    if name not in _CLASSES:
        raise ValueError(
            f"vae must be a folder with an {' or '.join(_CLASSES)}, {folder} has {name}"
        )
    read = getattr(_diffusers(), name).from_pretrained
    vae: nn.Module
    told = {"local_files_only": True, "output_loading_info": True}
    vae, report = read(str(folder), **told, **in_dtype(dtype))
    check_whole(vae, report, folder)
    return vae


def _original(files: Mapping[str, Path], dtype: torch.dtype) -> nn.Module:
    encoder, decoder = (read_tensors(files[part]) for part in ("encoder", "decoder"))
    state = {f"encoder.layers.{name}": value for name, value in encoder.items()}
    state |= {f"decoder.layers.{_after_clamp(name)}": value for name, value in decoder.items()}
    state = {name: value.to(dtype) for name, value in state.items()}
    channels = decoder["1.weight"].shape[1] if "1.weight" in decoder else 4
    with torch.device("meta"):  # no weights to be drawn first
        vae: nn.Module = _diffusers().AutoencoderTiny(latent_channels=channels)
    try:
        vae.load_state_dict(state, assign=True)
    except RuntimeError as error:
        raise ValueError(
            f"{files['encoder']} and {files['decoder'].name} do not hold a tiny autoencoder in its "
            f"original layout: {str(error)[:500]}"
        ) from None
    return vae


def _after_clamp(name: str) -> str:
    layer, _, rest = name.partition(".")
    return f"{int(layer) - 1}.{rest}" if layer.isdigit() else name
