"""What is pretrained: text-to-image models. Knows nothing of rewards."""

from rwguidance.support.aliases import alias

alias(__name__, "rwguidance.backbones")  # under either name, it is one module

from rwguidance.backbone import Backbone, Generator, TextToImage

from . import models  # noqa: F401  (registers those that are published)
from .adapter import PipelineAdapter
from .any_pipeline import AnyPipeline
from .call_condition import CallCondition
from .conditioning import TextCondition
from .decoding import PipelineDecoder
from .draw import draw
from .flux import Flux
from .guide import guide
from .pipelines import PipelineBackbone
from .published import Published, from_pipeline
from .registry import available, load, register
from .sd3 import SD3
from .sdxl import SDXL
from .tiny import tiny

__all__ = [
    "SD3",
    "SDXL",
    "AnyPipeline",
    "Backbone",
    "CallCondition",
    "Flux",
    "Generator",
    "PipelineAdapter",
    "PipelineBackbone",
    "PipelineDecoder",
    "Published",
    "TextCondition",
    "TextToImage",
    "available",
    "draw",
    "from_pipeline",
    "guide",
    "load",
    "register",
    "tiny",
]
