"""Hard negatives: captions that are false of a picture in one word.

References:
    | When and why vision-language models behave like bags-of-words, and what to do about it?
      (Yuksekgonul et al., 2023), arXiv:2210.01936
"""

import re
from collections.abc import Mapping, Sequence

import torch
from torch import Generator

from ..data import Drawing, sources
from ..scenes import COLORS, KIND_WORDS, Scene, on_background, straight_quotes

__all__ = ["hard_negative"]

_SIZE_WORDS = {"small": "large", "large": "small"}


def hard_negative(
    scene: Scene, drawing: Drawing, relatives: Mapping[str, Sequence[str]], generator: Generator
) -> str:
    """Returns a caption that is false of a scene in one respect that its own caption names.

    Arguments:
        scene: The scene.
        drawing: The drawing that it shows.
        relatives: Names of each kind of things.
        generator: Source of the respect and of the other word.
    """

    pick = lambda options: options[int(torch.randint(len(options), (), generator=generator))]
    name = straight_quotes(drawing.name)
    named = name in scene.caption
    word = name if named else KIND_WORDS[drawing.kind]
    words = (
        [straight_quotes(other) for other in relatives[drawing.kind]]
        if named
        else KIND_WORDS.values()
    )
    candidates = [other for other in words if other != word] or ["thing"]
    head, _, tail = scene.caption.partition(word)
    changes = [head + pick(candidates) + tail]
    size = re.search(r"\b(small|large)\b", head)
    if size:
        changes.append(head.replace(size[0], _SIZE_WORDS[size[0]]) + word + tail)
    ground = re.match(r" on an? (\w+) background", tail)
    if ground:
        color = pick([color for color in COLORS if color != ground[1]])
        changes.append(f"{head}{word} {on_background(color)}{tail[ground.end() :]}")
    styles = {row["name"]: row["words"] for row in sources()["styles"]}
    own = f", {styles[drawing.style]} style"
    if own in tail:
        style = pick([words for words in styles.values() if words != styles[drawing.style]])
        changes.append(head + word + tail.replace(own, f", {style} style"))
    return str(pick(changes))
