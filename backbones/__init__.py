"""What is pretrained: text-to-image models. Knows nothing of rewards."""

from rwguidance.support.aliases import alias

alias(__name__, "rwguidance.backbones")  # under either name, it is one module

from rwguidance.backbone import Backbone

from .conditioning import TextCondition
from .guide import guide
from .pipelines import PipelineBackbone
from .published import from_pipeline
from .registry import available, load, register
from .tiny import tiny

__all__ = [
    "Backbone",
    "PipelineBackbone",
    "TextCondition",
    "available",
    "from_pipeline",
    "guide",
    "load",
    "register",
    "tiny",
]
