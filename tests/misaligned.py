"""Weights at unusual addresses, as files that are mapped into memory have them.

``make test-settings`` runs the tests so. Memory that PyTorch allocates begins at a multiple of 64
bytes; a tensor of a mapped file begins anywhere, kernels cut their loops at other places, and sums
round otherwise. Here what is read from a file lies 8, 16, 32 or 40 bytes behind a multiple of 64,
each file at another of these, so that no two copies of a network agree in the last bit by luck.
`load_state_dict` copies into memory that PyTorch allocated, and stays as it is.
"""

import functools
import itertools

import numpy as np
import torch
from torch import Tensor, nn

OFFSETS = (8, 16, 32, 40)
_offsets = itertools.cycle(OFFSETS)


def install():
    """Makes what reads weights return them misaligned, for the rest of the process."""

    import diffusers
    import safetensors.torch
    import transformers

    safetensors.safe_open = _opening(safetensors.safe_open)
    safetensors.torch.load_file = _moving(safetensors.torch.load_file)
    torch.load = _moving(torch.load)
    for cls in (diffusers.ModelMixin, transformers.PreTrainedModel):
        cls.from_pretrained = classmethod(_moving(cls.from_pretrained.__func__))


def moved(tensor, offset):
    """A copy of a tensor that begins `offset` bytes behind a multiple of 64."""

    if tensor.device.type != "cpu" or not tensor.is_floating_point() or not tensor.numel():
        return tensor
    size = tensor.numel() * tensor.element_size()
    room = np.empty(size + 128, np.uint8)
    start = -room.ctypes.data % 64 + offset
    # A storage of its own, no larger than the tensor: saving it writes nothing else.
    copy = torch.from_numpy(room[start : start + size]).view(tensor.dtype).view(tensor.shape)
    return copy.copy_(tensor.detach())


def _moving(function):
    @functools.wraps(function)
    def wrapper(*args, **kwargs):
        return _move(function(*args, **kwargs), next(_offsets))

    return wrapper


def _opening(function):
    class Opened:
        def __init__(self, *args, **kwargs):
            self.file = function(*args, **kwargs)
            self.offset = next(_offsets)

        def __enter__(self):
            self.file.__enter__()
            return self

        def __exit__(self, *error):
            return self.file.__exit__(*error)

        def get_tensor(self, name):
            return moved(self.file.get_tensor(name), self.offset)

        def __getattr__(self, name):
            return getattr(self.file, name)

    return Opened


def _move(value, offset):
    """The same with its tensors moved: those of dictionaries and tuples, at any depth."""

    if isinstance(value, nn.Module):
        with torch.no_grad():
            for tensor in itertools.chain(value.parameters(), value.buffers()):
                tensor.data = moved(tensor, offset)
    elif isinstance(value, Tensor):
        return moved(value, offset)
    elif isinstance(value, dict):
        for key, item in value.items():
            value[key] = _move(item, offset)
    elif type(value) is tuple:
        return tuple(_move(item, offset) for item in value)
    return value
