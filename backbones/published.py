"""Published models by name, local or from the hub, and pipelines that are already there."""

import inspect
import os
import pickle
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import nn

from rwguidance.support import checks
from rwguidance.support.files import expanded
from rwguidance.support.outside import on_hub, split_hub
from rwguidance.support.packaged import in_package, package_folder, package_of

from .adapter import PipelineAdapter
from .any_pipeline import AnyPipeline
from .autoencoders import check_channels, in_dtype, load_autoencoder
from .flux import Flux
from .index import INDEX, check_whole, network_class, read_index
from .lora import fuse_lora, require_peft
from .pipelines import PipelineBackbone, require
from .sd3 import SD3
from .sdxl import SDXL
from .tokenizers import check_tokenizers

__all__ = ["Published", "from_pipeline"]

FAMILIES: tuple[type[PipelineBackbone], ...] = (SDXL, SD3, Flux)
"""The families that are adapted."""


def from_pipeline(
    pipe: Any, guidance_scale: float | None = None, **options: Any
) -> PipelineAdapter:
    """A backbone around a pipeline that is already there. Weights are shared, nothing is changed.

    In particular the weights stay trainable if they are; where only guidance is wanted,
    `backbone.requires_grad_(False)` saves the memory of their gradients.

    Arguments:
        pipe: A pipeline of diffusers.
        guidance_scale: Scale of classifier-free guidance, in the convention of the pipeline. None
            is without, which is what turbo models need.
        options: Further keywords of the class: :class:`backbones.sdxl.SDXL`,
            :class:`backbones.sd3.SD3` or :class:`backbones.flux.Flux` for pipelines of these
            families, :class:`backbones.AnyPipeline` for others.

    Raises:
        TypeError: If the class of the pipeline or of its scheduler is not supported.
    """

    family = family_of(pipe, "pipe must be") if has_family(pipe) else AnyPipeline
    return family(pipe=pipe, guidance_scale=guidance_scale, **options)


def has_family(pipe: Any) -> bool:
    """Whether there is a family whose pipelines are of the class of this one."""

    names = [cls.__name__ for cls in type(pipe).__mro__]
    return any(family.pipeline_class in names for family in FAMILIES)


def family_of(pipe: Any, purpose: str, advice: str = "") -> type[PipelineBackbone]:
    """The family whose pipelines are of the class of this one.

    Arguments:
        pipe: A pipeline of diffusers.
        purpose: Who needs it, as a message begins: "pipe must be".
        advice: How the message ends.

    Raises:
        TypeError: If there is none; lists the classes that have one.
    """

    names = [cls.__name__ for cls in type(pipe).__mro__]
    for family in FAMILIES:
        if family.pipeline_class in names:
            return family
    supported = ", ".join(family.pipeline_class for family in FAMILIES)
    raise TypeError(
        f"{purpose} a pipeline of one of the classes {supported}, got {type(pipe).__name__}{advice}"
    )


@dataclass(frozen=True)
class Published:
    """A published model: where it is, and how its authors run it. Calling it loads it.

    A package adds one to the library by an entry point of the group `rwguidance.backbones`.

    Arguments:
        name: The name under which it is registered.
        family: The adapter: a family's, or :class:`AnyPipeline`.
        source: Where it is: ``hf://owner/name``, or a folder of an installed package,
            ``package://name/folder`` (:mod:`rwguidance.support.packaged`).
        defaults: Keywords of the adapter that differ from its own defaults.
        distilled: Whether it was distilled to run without classifier-free guidance.
        vae: Where the autoencoder is, likewise, if the folder of the model has none.
        card: Where the model card is, a web address or ``package://name/folder/README.md``.
        license: The license of the weights, by name.
        pipeline: Name of the pipeline's class. Empty is that of the family.
        lora: Where a LoRA is that makes the model of the one in `source`, likewise; its weights are
            added to those that are loaded (:func:`.lora.fuse_lora`).

    Raises:
        TypeError: If one of the texts is none.
    """

    name: str
    family: type[PipelineAdapter]
    source: str
    defaults: Mapping[str, Any] = field(default_factory=dict)
    distilled: bool = False
    vae: str | None = None
    card: str = ""
    license: str = ""
    pipeline: str = ""
    lora: str | None = None

    def __post_init__(self) -> None:
        for name in ("name", "source", "card", "license", "pipeline"):
            checks.instance(name, getattr(self, name), str, "a string")
        for name in ("vae", "lora"):
            checks.optional(checks.instance, name, getattr(self, name), str, "a string")

    @property
    def pipeline_class(self) -> str:
        """Name of the pipeline's class."""

        return self.pipeline or self.family.pipeline_class

    @property
    def __signature__(self) -> inspect.Signature:
        keyword = lambda name, default: inspect.Parameter(
            name, inspect.Parameter.KEYWORD_ONLY, default=default
        )
        own = [keyword(name, None) for name in ("path", "dtype", "variant", "config")]
        options = [
            keyword(name, self.defaults.get(name, parameter.default))
            for name, parameter in inspect.signature(self.family).parameters.items()
            if name != "pipe"
        ]
        return inspect.Signature([*own, *options])

    def __call__(
        self,
        path: str | os.PathLike[str] | None = None,
        dtype: torch.dtype | None = None,
        variant: str | None = None,
        config: str | os.PathLike[str] | None = None,
        **options: Any,
    ) -> PipelineAdapter:
        """Loads the pipeline and adapts it.

        Arguments:
            path: A folder as `save_pretrained` writes it, a single-file checkpoint, or
                ``hf://owner/name[@revision]`` or ``package://name/folder``. None is the published
                model. With a local path the hub is never asked.
            dtype: The precision of the weights. None is float32.
            variant: Which files of a folder or repository to read where there are several for the
                same weights, such as "fp16". It says what is read, not what it is turned into:
                for that there is `dtype`.
            config: For a single-file checkpoint, a local folder with the pipeline's configuration
                and tokenizers, which such a file does not hold.
            options: Keywords of the adapter.

        Raises:
            ValueError: If classifier-free guidance is asked of a model that was distilled from it,
                the folder holds another kind of pipeline, a tokenizer is cut off, or a single file
                comes without `config`.
            FileNotFoundError: If the model, or this variant of it, is not there; says how to fetch
                it.
        """

        if self.lora is not None:
            require_peft()
        dtype = dtype or torch.float32
        options = {**self.defaults, **options}
        scale = options.get("guidance_scale")
        if self.distilled and scale is not None and scale > 1:
            raise ValueError(
                f"{self.name} was distilled to run without classifier-free guidance; "
                f"guidance_scale must be None, got {scale}"
            )
        if options.get("vae") is not None:  # a small file with an error comes before large ones
            options["vae"] = load_autoencoder(options["vae"], self.family.tiny_autoencoder, dtype)
            if not in_package(self.source):
                check_channels(options["vae"], self.family.latent_channels)
        pipe = self._pipeline(path, dtype, variant, config)
        if self.lora is not None:
            fuse_lora(pipe, self.lora)
        check_tokenizers(pipe, config or path or self.source)
        backbone = self.family(pipe=pipe, **options)
        if self.distilled and backbone.guidance_scale is not None and scale is None:
            raise ValueError(
                f"{path or self.source} holds a model that takes a guidance scale, so it is "
                f"not {self.name}"
            )
        return backbone

    def _pipeline(
        self,
        path: str | os.PathLike[str] | None,
        dtype: torch.dtype,
        variant: str | None,
        config: str | os.PathLike[str] | None,
    ) -> Any:
        diffusers = require("diffusers")
        keywords: dict[str, Any] = {**in_dtype(dtype)}
        path = self.source if path is None else path
        config = None if config is None else expanded(config)
        if not on_hub(path) and not in_package(path):
            path = expanded(path)
        if in_package(path):
            path = package_folder(path)
        hub = on_hub(path)
        if not hub and Path(path).is_file():
            if config is None or not Path(config).is_dir():
                # Without it, diffusers asks the hub whatever it is told.
                fetch = f"; fetch one with {self._download(_NO_WEIGHTS)}"
                raise ValueError(
                    "config must be a local folder with the pipeline's configuration and "
                    f"tokenizers, which a single file does not hold, got {config}"
                    + ("" if in_package(self.source) else fetch)
                )
            read = getattr(diffusers, self.pipeline_class).from_single_file
            if variant is not None:
                raise ValueError(
                    f"variant is for folders and repositories, got {variant!r}, but path is the "
                    f"file {path}"
                )
            if (Path(config) / INDEX).is_file():
                read_index(Path(config))
            return self._load(read, path, config=str(config), local_files_only=True, **keywords)
        if config is not None:
            raise ValueError(f"config is for single-file checkpoints, but path is {path}")

        read = diffusers.DiffusionPipeline
        if hub:
            source, revision = split_hub(path)
            path = self._load(read.download, source, revision=revision, variant=variant)
        with _without_bars() if in_package(self.source) else nullcontext():
            keywords |= self._parts(Path(path), dtype, variant)
            keywords |= {"variant": variant, "local_files_only": True}
            return self._load(read.from_pretrained, path, **keywords)

    def _parts(
        self, folder: Path, dtype: torch.dtype, variant: str | None
    ) -> dict[str, nn.Module | None]:
        """Checks a folder, and returns those components that diffusers is to be given.

        It wants to be told even of those that the folder says are none, such as the third text
        encoder where SD3 goes without. Networks are read here, since it would go on with random
        numbers for weights that a file has not.
        """

        index = self._check_folder(folder, variant)
        parts: dict[str, nn.Module | None] = {}
        if self.vae is not None and not (folder / "vae").is_dir():
            vae = package_folder(self.vae) if in_package(self.vae) else self.vae
            parts["vae"] = load_autoencoder(vae, self.family.tiny_autoencoder, dtype)
        for name, component in index.items():
            if name in parts:
                continue
            if component == [None, None]:
                parts[name] = None
            elif (kind := network_class(component)) is not None:
                parts[name] = self._network(folder / name, kind, dtype, variant)
        return parts

    def _network(
        self, folder: Path, kind: Any, dtype: torch.dtype, variant: str | None
    ) -> nn.Module:
        network: nn.Module
        network, report = self._load(
            kind.from_pretrained,
            folder,
            torch_dtype=dtype,
            low_cpu_mem_usage=True,
            variant=variant if variant in _variants(folder, "") else None,  # as diffusers does
            local_files_only=True,
            output_loading_info=True,
        )
        check_whole(network, report, folder)
        return network

    def _check_folder(self, folder: Path, variant: str | None) -> dict[str, Any]:
        if not (folder / INDEX).is_file():
            raise FileNotFoundError(
                f"no {INDEX} in {folder}: expected a folder as save_pretrained writes it, "
                f"or a single file; {self._how_to_get}"
            )
        content = read_index(folder)
        found = content.get("_class_name")
        if found != self.pipeline_class:
            raise ValueError(
                f"{folder} holds a {found}, but {self.name} is a {self.pipeline_class}"
            )
        variants = _variants(folder)
        if variants and variant not in variants:
            held = " and ".join(f"variant={name!r}" for name in sorted(variants, key=str))
            raise FileNotFoundError(
                f"{folder} holds weights of {held}, got variant={variant!r}; pass one that is "
                f"there, or {self._how_to_get}"
            )
        return content

    def _load(self, function: Any, source: Any, **keywords: Any) -> Any:
        try:
            return function(str(source), **keywords)
        except pickle.UnpicklingError:  # whose message advises to execute what is in the file
            raise ValueError(
                f"{source} has a file that is damaged, or a pickle of something else than tensors, "
                "which is never executed"
            ) from None
        except OSError as error:  # offline, not there, not allowed: one thing to the user
            reason, *_ = str(error).strip().splitlines() or [""]
            raise FileNotFoundError(
                f"{self.name} cannot be loaded from {source} ({type(error).__name__}: "
                f"{reason[:300]}): {self._how_to_get}"
            ) from error

    @property
    def _how_to_get(self) -> str:
        if in_package(self.source):
            made = f", and {self.card} says how it was made" if self.card else ""
            return f"without path= it comes with {package_of(self.source)}{made}"
        return (
            f"fetch it with {self._download()} (after accepting its license, if it has one to "
            "accept) and pass DIRECTORY as path="
        )

    @property
    def download(self) -> str:
        """The command that fetches the weights from the hub, for models that are there."""

        return self._download()

    def _download(self, options: str = "") -> str:
        repository, _ = split_hub(self.source)
        return f"`hf download {repository}{options} --local-dir DIRECTORY`"


@contextmanager
def _without_bars() -> Iterator[None]:
    """Within, nothing shows progress: what is small is there before one has read how far it is."""

    loggers = [require(name).utils.logging for name in ("diffusers", "transformers")]
    shown = [logger for logger in loggers if logger.is_progress_bar_enabled()]
    for logger in shown:
        logger.disable_progress_bar()
    try:
        yield
    finally:
        for logger in shown:
            logger.enable_progress_bar()


def _variants(folder: Path, parts: str = "*/") -> set[str | None]:
    """Returns the variants of the weights in the folders within one; None has no name.

    Arguments:
        folder: The folder of a pipeline.
        parts: Which folders within it, as a glob pattern; "" is the folder itself.
    """

    variants: set[str | None] = set()
    for file in [*folder.glob(f"{parts}*.safetensors"), *folder.glob(f"{parts}*.bin")]:
        # model[.fp16].safetensors, or as one of several, model[.fp16]-00001-of-00002.safetensors
        variant = file.stem.partition(".")[2].split("-")[0]
        variants.add(variant or None)
    return variants


_NO_WEIGHTS = " --exclude '*.safetensors'"
