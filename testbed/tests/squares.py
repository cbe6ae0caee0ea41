"""Drawings that are squares, of a color and a size for every name, with a bar for every style."""

import torch

from rwguidance_testbed.data import SIZE, Drawing, Drawings, assign_roles, sources
from rwguidance_testbed.scenes import COLORS, Scene

NAMES = ("red apple", "pizza", "carrot", "lemon", "sun", "key", "green apple", "cow face")
FOOD = ("red apple", "pizza", "carrot", "lemon", "green apple")


def draw_squares():
    entries, pixels = [], []
    for i, name in enumerate(NAMES):
        roles = assign_roles(name, [row["name"] for row in sources()["styles"]])
        for j, (style, role) in enumerate(roles.items()):
            kind = "food-fruit" if name in FOOD else "object-other"
            entries.append(Drawing(name, style, "x", kind, ("thing",), role))
            picture = torch.zeros(4, SIZE, SIZE, dtype=torch.uint8)
            picture[:, 5 : 25 + 6 * i, 5:75] = 255
            picture[:3, 5 : 25 + 6 * i, 5:75] = torch.tensor(
                [31 * i, 255 - 31 * i, 90 * i % 256], dtype=torch.uint8
            )[:, None, None]
            picture[:, 76:, : 8 + 8 * j] = 255
            pixels.append(picture)
    return Drawings(entries, torch.stack(pixels))


def scene(caption, **changes):
    """A scene with this caption."""

    values = {"drawing": 0, "background": COLORS["red"], "scale": 0.8, "angle": 0.0}
    values |= {"place": (0.0, 0.0), "hue": 0.0, "caption": caption}
    return Scene(**(values | changes))
