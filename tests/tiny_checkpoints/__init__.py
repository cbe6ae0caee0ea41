r"""Checkpoints, images and prompts made by formula, in the file formats of the real reward models.

The published weights weigh gigabytes and may not be at hand; what must be proven is that *any*
weights in these formats give the score that the reference implementation gives. So the weights are
a hash of (tensor name, index), the same on every machine, and nothing large is committed: the
reference implementations (`tests/rewards/references`) score the same files, and their scores are in
`tests/rewards/goldens`.

Nothing here draws from a random generator, and nothing needs more than torch, numpy, Pillow and
safetensors, because the environments of the references are years older than ours. Every builder
takes its architecture as an argument: the defaults are tiny, but a benchmark may ask for ViT-L/14.
"""

from .blip import (
    IMAGEREWARD_VISION,
    MED_CONFIG,
    write_aesthetic_head,
    write_bert_tokenizer,
    write_imagereward,
)
from .clip import (
    CLIP_CONFIG,
    HPSV2_CONFIG,
    bpe_file,
    native_state_dict,
    openai_state_dict,
    write_clip,
    write_clip_processor,
    write_hpsv2,
    write_pickscore,
)
from .pictures import PROMPTS, image_fingerprint, images, picture, pixel_summary
from .weights import fill, fingerprint, write_json

__all__ = [
    "CLIP_CONFIG",
    "HPSV2_CONFIG",
    "IMAGEREWARD_VISION",
    "MED_CONFIG",
    "PROMPTS",
    "bpe_file",
    "fill",
    "fingerprint",
    "image_fingerprint",
    "images",
    "native_state_dict",
    "openai_state_dict",
    "picture",
    "pixel_summary",
    "write_aesthetic_head",
    "write_bert_tokenizer",
    "write_clip",
    "write_clip_processor",
    "write_hpsv2",
    "write_imagereward",
    "write_json",
    "write_pickscore",
]
