r"""The gold utility of pictures, known and deterministic, and preferences by it.

The utility of a picture x for a prompt y is

.. math:: u(x, y) = 5 \cos(e_x, e_y) + 12 \, s(x) + 8 \, c(x) + 4 \, m(x)

with the judge's embeddings, the sharpness s, the contrast c and the colorfulness m. The last three
do not depend on the prompt. The weights are chosen, not fitted, such that among pictures of one
prompt no term decides alone. Known and deterministic is what a gold utility must be, for proxy
rewards learn from it and over-optimization is measured by it.

Preferences are those of Bradley and Terry: the first of two pictures is preferred with probability
:math:`\sigma((u(x_0, y) - u(x_1, y)) / T)`.

References:
    | Measuring Colourfulness in Natural Images (Hasler and Suesstrunk, 2003)
"""

import hashlib
import io
from collections.abc import Sequence
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Generator, Tensor, nn

from rwguidance.support.files import replacing
from rwguidance.support.outside import require

from .encoders import Towers

__all__ = [
    "WEIGHTS",
    "Gold",
    "colorfulness",
    "contrast",
    "prefer",
    "sharpness",
    "temperature_for",
    "write_pairs",
]

WEIGHTS = {"match": 5.0, "sharpness": 12.0, "contrast": 8.0, "colorfulness": 4.0}
"""Weights of the terms of the utility."""

_LUMINANCE = (0.299, 0.587, 0.114)


class Gold(nn.Module):
    """The gold utility.

    Arguments:
        judge: Judge of how well pictures match prompts.
    """

    depends_on = ()

    def __init__(self, judge: Towers) -> None:
        super().__init__()
        self.judge = judge.eval().requires_grad_(False)

    @torch.no_grad()
    def terms(self, pictures: Tensor, prompts: Sequence[str]) -> dict[str, Tensor]:
        """Returns the terms without their weights, named as in `WEIGHTS`, each with shape (B,).

        Arguments:
            pictures: Pictures in [0, 1], with shape (B, 3, 64, 64); values outside are clamped, as
                saving a picture does.
            prompts: One prompt for each picture.

        Raises:
            ValueError: If there is not one prompt for each picture.
        """

        if len(prompts) != len(pictures):
            raise ValueError(
                f"prompts must be one for each of {len(pictures)} pictures, got {len(prompts)}"
            )
        pictures = pictures.float().clamp(0, 1)
        return {
            "match": self.judge(pictures, prompts),
            "sharpness": sharpness(pictures),
            "contrast": contrast(pictures),
            "colorfulness": colorfulness(pictures),
        }

    def forward(self, pictures: Tensor, prompts: Sequence[str]) -> Tensor:
        """Returns utilities, with shape (B,); arguments and errors are those of :meth:`terms`."""

        terms = self.terms(pictures, prompts)
        return torch.stack([weight * terms[name] for name, weight in WEIGHTS.items()]).sum(0)


def sharpness(pictures: Tensor) -> Tensor:
    r"""Returns the share of detail in what varies, :math:`a / (a + b)`, 0 where nothing does.

    Here a is the mean absolute difference between luminance and its mean over 3 x 3 pixels, and b
    that between the latter and its mean over 5 x 5 pixels. Noise has the largest share, about 0.8,
    what was blurred a small one.

    Arguments:
        pictures: Pictures in [0, 1], with shape (B, 3, H, W).

    Returns:
        Numbers in [0, 1], with shape (B,).
    """

    y = _luminance(pictures)[:, None]
    small = F.avg_pool2d(y, 3, stride=1, padding=1, count_include_pad=False)
    wide = F.avg_pool2d(small, 5, stride=1, padding=2, count_include_pad=False)
    fine, coarse = ((p - q).abs().mean((1, 2, 3)) for p, q in ((y, small), (small, wide)))
    # Means over windows of one value are that value only up to rounding.
    flat = y.flatten(1).amax(1) - y.flatten(1).amin(1) < 1e-4
    return torch.where(flat, 0.0, fine / torch.where(flat, 1.0, fine + coarse))


def contrast(pictures: Tensor) -> Tensor:
    """Returns the standard deviation of the luminance over pixels, from 0 to 0.5, of shape (B,)."""

    return _luminance(pictures).flatten(1).std(1, correction=0)


def colorfulness(pictures: Tensor) -> Tensor:
    r"""Returns Hasler's and Suesstrunk's :math:`\sigma + 0.3 \mu`, fitted to what people said.

    Arguments:
        pictures: Pictures in [0, 1], with shape (B, 3, H, W).

    Returns:
        Numbers from 0 for grays to about 1, with shape (B,): theirs over 255.
    """

    red, green, blue = pictures.flatten(2).unbind(1)
    opponents = torch.stack((red - green, (red + green) / 2 - blue))
    spread = opponents.var(-1, correction=0).sum(0).sqrt()
    return spread + 0.3 * opponents.mean(-1).square().sum(0).sqrt()


def prefer(
    utilities: Tensor, temperature: float = 1.0, generator: Generator | None = None
) -> Tensor:
    """Returns which picture of each pair is preferred.

    Arguments:
        utilities: Utilities of both pictures of each pair, with shape (N, 2).
        temperature: Temperature of the preferences; the larger, the noisier they are.
        generator: Source of noisy preferences; None gives clean ones, by the larger utility, 0.5
            where both are equal.

    Returns:
        1 for the first picture, 0 for the second, with shape (N,).

    Raises:
        ValueError: If the temperature is not positive.
    """

    if not temperature > 0:
        raise ValueError(f"temperature must be positive, got {temperature}")
    difference = utilities[:, 0] - utilities[:, 1]
    if generator is None:
        return (difference.sign() + 1) / 2
    odds = (difference / temperature).sigmoid()
    return (torch.rand(odds.shape, generator=generator, dtype=odds.dtype) < odds).to(odds.dtype)


def temperature_for(utilities: Tensor, agreement: float) -> float:
    r"""Returns the temperature at which noisy preferences agree with clean ones as often as wanted.

    It solves :math:`E[\sigma(|u_0 - u_1| / T)] = a` by bisection.

    Arguments:
        utilities: Utilities of both pictures of each pair, with shape (N, 2).
        agreement: Share a of equal preferences, between 0.5 and 1.

    Raises:
        ValueError: If the share is not between 0.5 and 1, or the pairs cannot reach it because too
            many of them are ties.
    """

    if not 0.5 < agreement < 1:
        raise ValueError(f"agreement must lie between 0.5 and 1, got {agreement}")
    distance = (utilities[:, 0] - utilities[:, 1]).abs().double()
    share = lambda exponent: float((distance * 2.0**-exponent).sigmoid().mean())
    low, high = -60.0, 60.0
    if share(low) < agreement:
        raise ValueError(f"agreement must be at most {share(low):.3f} for these pairs")
    for _ in range(60):
        middle = (low + high) / 2
        low, high = (middle, high) if share(middle) > agreement else (low, middle)
    return float(2.0**low)


def write_pairs(
    path: Path,
    pictures: Tensor,
    index: Tensor,
    captions: Sequence[str],
    labels: Tensor,
    utilities: Tensor,
) -> None:
    """Writes pairs as :class:`rwguidance_testbed.towers.Pairs` reads them.

    The columns are those of Pick-a-Pic that say something here, and the utilities, `utility_0` and
    `utility_1`, from which clean preferences follow. Pictures are PNG, not JPEG, which would change
    pictures as small as these. As in Pick-a-Pic, a picture may be in several pairs.

    Arguments:
        path: Parquet file to write.
        pictures: Pictures of type uint8, with shape (M, 3, H, W).
        index: Indices of the first and of the second picture of each pair, with shape (N, 2).
        captions: One caption for each pair.
        labels: 1 if the first picture is preferred, 0 if the second is, 0.5 for a tie, shape (N,).
        utilities: Utilities of both pictures of each pair, with shape (N, 2).
    """

    arrow = require("pyarrow", "writing preferences needs", "rewards")
    parquet = require("pyarrow.parquet", "writing preferences needs", "rewards")
    raws = [_encode(picture) for picture in pictures]
    names = [hashlib.sha256(raw).hexdigest()[:16] for raw in raws]
    first, second = index.T.tolist()
    pick = lambda values, where: [values[i] for i in where]
    table = {
        "caption": list(captions),
        "jpg_0": pick(raws, first),
        "jpg_1": pick(raws, second),
        "image_0_uid": pick(names, first),
        "image_1_uid": pick(names, second),
        "label_0": labels.tolist(),
        "label_1": (1 - labels).tolist(),
        "utility_0": utilities[:, 0].tolist(),
        "utility_1": utilities[:, 1].tolist(),
        "has_label": [True] * len(first),
        "are_different": [names[i] != names[j] for i, j in zip(first, second, strict=True)],
        "ranking_id": list(range(len(first))),
    }
    path.parent.mkdir(parents=True, exist_ok=True)
    with replacing(path) as file:
        parquet.write_table(arrow.table(table), file)


def _luminance(pictures: Tensor) -> Tensor:
    weights = torch.tensor(_LUMINANCE, device=pictures.device)
    return torch.einsum("bchw,c->bhw", pictures, weights)


def _encode(picture: Tensor) -> bytes:
    image = require("PIL.Image", "writing preferences needs", "rewards")
    file = io.BytesIO()
    image.fromarray(picture.permute(1, 2, 0).contiguous().numpy()).save(file, "PNG")
    return file.getvalue()
