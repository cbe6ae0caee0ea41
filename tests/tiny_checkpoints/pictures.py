"""Prompts and photo-like images by formula, and sums that notice a changed pixel."""

import numpy as np
import torch
from PIL import Image

from .weights import uniform

PROMPTS = [
    "a photo of an astronaut riding a horse on mars",
    "two red apples and 3.5 kg of pears, on a wooden table!",
    "“Café au lait”, a naïve façade – it’s déjà vu…",  # noqa: RUF001
    "一只戴着墨镜的猫，坐在沙发上。",  # noqa: RUF001
    "a 🐙 playing the 🎸 under ｆｕｌｌｗｉｄｔｈ neon ﬁreworks",  # noqa: RUF001
    "Tom &amp;amp; Jerry in a caf&eacute;, 5 &lt; 7",
    "  A   VERY\tLOUD\n\nPORTRAIT   OF A   KING  ",
    "",
    "a masterpiece, intricate clockwork dragonfly, " + "iridescent wings, brass gears, " * 20,
    "0123456789 #$%'()*+,-./:;=?@[\\]^_`{|}~ don't we'll they're",
    "portrait of an old fisherman mending nets at dawn, weathered hands, warm rim light, shallow "
    "depth of field, film grain, muted palette, award winning photograph, by the harbour wall",
]


def images():
    """Photo-like images of the sizes and modes at which preprocessings are known to part.

    With the shorter side at 224, the margins of 640x427, 225x337 and 500x374 are 111 and 75, where
    rounding down and rounding to even part; that of 448x301 is 109, where they agree. The short
    side of 448x301 becomes exactly 150.5 when the long one becomes 224. The long side of 224x200
    is 224 already. 31x47 is enlarged.
    """

    sizes = [
        (640, 427),
        (97, 131),
        (300, 224),
        (200, 150),
        (1024, 1024),
        (224, 200),
        (224, 224),
        (225, 337),
        (500, 374),
        (448, 301),
        (31, 47),
    ]
    made = {f"{width}x{height}": picture(width, height) for width, height in sizes}
    made["L"] = picture(240, 181).convert("L")
    made["RGBA"] = with_alpha(picture(181, 241))
    return made


def picture(width, height):
    """Gradients, ripples, sharp edges and grain, from exactly rounded operations only."""

    choice = (uniform(f"picture {width}x{height}", 32).astype(np.float64) + 1) / 2
    y, x = np.meshgrid(
        (np.arange(height) + 0.5) / height, (np.arange(width) + 0.5) / width, indexing="ij"
    )

    grain = uniform(f"grain {width}x{height}", height * width * 3).reshape(height, width, 3)
    disc = (x - choice[0]) ** 2 + (y - choice[1]) ** 2 < 0.02 + 0.1 * choice[2]
    bar = np.abs(x * choice[3] + y * choice[4] - 0.5 * choice[5]) < 0.05
    ripple = wave(x * (3 + 20 * choice[6]) + y * (3 + 20 * choice[7]))

    channels = []
    for k in range(3):
        base, dx, dy, depth, disc_k, bar_k = choice[8 + 6 * k : 14 + 6 * k]
        light = (
            0.1 + 0.6 * base + 0.6 * (dx - 0.5) * x + 0.6 * (dy - 0.5) * y + 0.2 * depth * ripple
        )
        light = np.where(disc, 0.7 * disc_k + 0.3 * light, light)
        light = np.where(bar, bar_k, light)
        channels.append(light + 0.04 * grain[..., k])

    levels = np.floor(np.clip(np.stack(channels, -1), 0, 1) * 255 + 0.5)
    return Image.fromarray(levels.astype(np.uint8))


def wave(t):
    """A periodic parabola between -1 and 1, in place of a sine."""

    t = t - np.floor(t)
    return 8 * t * (1 - t) - 1


def with_alpha(image):
    width, height = image.size
    y, x = np.mgrid[:height, :width]
    alpha = np.where((x // 16 + y // 16) % 2 == 0, 255, (x * 255) // width)
    image.putalpha(Image.fromarray(alpha.astype(np.uint8)))
    return image


def image_fingerprint(image):
    """Mode, size and integer sums of the pixels: a changed image is noticed."""

    pixels = np.asarray(image).astype(np.int64).ravel()
    weights = np.arange(pixels.size) % 251
    return [image.mode, *image.size, int(pixels.sum()), int((pixels * weights).sum())]


def pixel_summary(pixels):
    """Sum, sum of squares and 20 evenly spaced values of a preprocessed image, any shape."""

    flat = torch.as_tensor(pixels).double().flatten()
    index = [i * (len(flat) - 1) // 19 for i in range(20)]
    return {
        "sum": float(flat.sum()),
        "sum_of_squares": float(flat.square().sum()),
        "values": flat[index].tolist(),
    }
