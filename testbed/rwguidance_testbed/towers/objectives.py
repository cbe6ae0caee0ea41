"""The losses of a step: on painted pictures and their captions, or on preferences.

References:
    | Scaling Language-Image Pre-training via Masking (Li et al., 2022), arXiv:2212.00794
    | Rethinking the Inception Architecture for Computer Vision (Szegedy et al., 2016),
      arXiv:1512.00567 (label smoothing)
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager

import torch
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel

from ..encoders import Towers
from ..training.loop import Run
from ..training.options import BufferedOptions
from .augmentation import cutout, deform, jitter_brightness
from .buffer import PictureBuffer
from .losses import AlignmentHead, contrastive_loss
from .preference_pairs import Pairs

__all__ = ["captions_loss", "preferences_loss", "visible_patches"]

_SMOOTHING = 0.1
"""Label smoothing, at its customary value, for a caption may be true of another picture, too."""


def captions_loss(
    towers: Towers,
    head: AlignmentHead,
    buffer: PictureBuffer,
    run: Run,
    options: BufferedOptions,
) -> Callable[[], Tensor]:
    """Returns a function that draws pairs of pictures from a buffer and returns their loss.

    It also replaces the oldest pictures of the buffer.

    Arguments:
        towers: The towers.
        head: Head in whose projection both pictures of a pair are compared.
        buffer: Buffer of pictures.
        run: Run that says at which step the training is, with the source of random numbers.
        options: Options of the training.
    """

    embed = options.compile(_embed_both)

    def loss() -> Tensor:
        drawn = buffer.batch(options.batch // 2, run.generator)
        buffer.advance(run.step)
        pictures = drawn.pictures.transpose(0, 1).flatten(0, 1).float() / 255
        pictures = jitter_brightness(deform(pictures, run.generator), run.generator)
        pictures = cutout(pictures, run.generator)
        patches = visible_patches(len(pictures), run, options.steps)
        first, second = zip(*drawn.captions, strict=True)
        with _half_precision():
            tokens = towers.tokens([*first, *second, *drawn.negatives])
            x, y = embed(towers, pictures, patches, tokens)
        pairs, (*captions, negatives) = x.float().chunk(2), y.float().chunk(3)
        # What is false of a first picture may be true of the second one.
        own = [
            contrastive_loss(pairs[i], captions[i], false, towers.log_scale, _SMOOTHING)
            for i, false in enumerate((negatives, negatives[:0]))
        ]
        return (own[0] + own[1]) / 2 + head(*pairs)

    return loss


def preferences_loss(
    towers: Towers, pairs: Pairs, run: Run, options: BufferedOptions
) -> Callable[[], Tensor]:
    """Returns a function that draws pairs with preferences and returns their loss.

    Arguments:
        towers: The towers.
        pairs: Pairs, of which those to check with are left out.
        run: Run that says at which step the training is, with the source of random numbers.
        options: Options of the training.
    """

    learned, _ = pairs.split()

    def loss() -> Tensor:
        draws = torch.randint(len(learned), (options.batch,), generator=run.generator)
        patches = visible_patches(2 * options.batch, run, options.steps)
        with _half_precision():
            return pairs.loss(towers, learned[draws], patches)

    return loss


def visible_patches(count: int, run: Run, steps: int) -> Tensor | None:
    """Returns half of the 64 patches of each picture, at random, or None for all.

    A step on half of the patches costs half as much; in the last fifth of the steps all are seen,
    as they will be seen later.

    Arguments:
        count: Number of pictures.
        run: Run that says at which step the training is, with the source of random numbers.
        steps: Number of steps in all.

    Returns:
        Indices with shape (count, 32).
    """

    if run.step >= 0.8 * steps:
        return None
    return torch.rand(count, 64, generator=run.generator).argsort(1)[:, :32]


def _embed_both(
    towers: Towers, pictures: Tensor, patches: Tensor | None, tokens: Tensor
) -> tuple[Tensor, Tensor]:
    return towers.embed_pictures(pictures, patches), towers.embed_tokens(tokens)


@contextmanager
def _half_precision() -> Iterator[None]:
    """Computes in half precision, without the fused kernel of attention, slow on a CPU."""

    with torch.autocast("cpu", dtype=torch.bfloat16), sdpa_kernel(SDPBackend.MATH):
        yield
