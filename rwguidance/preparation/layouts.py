"""Rows of preference data, in the columns in which they are published, as ranked pictures.

Every layout says which columns it reads. A row that cannot be used raises :class:`Dirty`.

References:
    | Pick-a-Pic: An Open Dataset of User Preferences for Text-to-Image Generation (Kirstain et al.,
      2023), arXiv:2305.01569
    | Human Preference Score v2 (Wu et al., 2023), arXiv:2306.09341
    | HPSv3: Towards Wide-Spectrum Human Preference Score (Ma et al., 2025), arXiv:2508.03789
    | ImageReward: Learning and Evaluating Human Preferences for Text-to-Image Generation (Xu et
      al., 2023), arXiv:2304.05977
"""

import math
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from ..support import checks

__all__ = ["LAYOUTS", "Dirty", "Layout", "Ranked", "layout_of", "own_layout"]


class Dirty(ValueError):
    """A row of data cannot be used; says why."""


@dataclass(frozen=True)
class Ranked:
    """Pictures of one caption, from the best to the worst as people see them.

    Arguments:
        caption: The caption.
        pictures: The pictures as the data holds them: encoded bytes, a mapping with ``bytes`` or
            ``path``, or a path beside the file of the row.
        ranks: Rank of each picture; lower is better, and equal ones are ties.
        group: A name that pictures of other rows share if they are ranked with these. None if the
            row stands alone.
    """

    caption: str
    pictures: tuple[Any, ...]
    ranks: tuple[float, ...]
    group: str | None = None


@dataclass(frozen=True)
class Layout:
    """Columns of preference data, and how a row of them is read.

    Arguments:
        name: Name of the layout.
        columns: Names of the columns that it needs.
        read: Function from a row to its pictures; raises :class:`Dirty`.
    """

    name: str
    columns: tuple[str, ...]
    read: Callable[[Mapping[str, Any]], Ranked]


def layout_of(columns: Collection[str]) -> Layout:
    """Returns the published layout that data with these columns has.

    Raises:
        ValueError: If none of them fits; lists them.
    """

    for layout in LAYOUTS:
        if set(layout.columns) <= set(columns):
            return layout
    known = "; ".join(f"{layout.name}: {', '.join(layout.columns)}" for layout in LAYOUTS)
    raise ValueError(
        f"data must have the columns of one of these layouts, {known}; got "
        f"{', '.join(sorted(columns)) or 'none'}. Name those of your own with columns"
    )


def own_layout(names: Mapping[str, str]) -> Layout:
    """Returns a layout of pairs whose columns have names of one's own.

    Arguments:
        names: Names of the columns, by what they hold: ``first`` and ``second`` (pictures),
            ``caption``, and ``preference`` (1 where the first picture is preferred, 0 where the
            second one is, 0.5 for a tie).

    Raises:
        ValueError: If one of these is missing, or there are others.
    """

    checks.instance("columns", names, Mapping, "a mapping")
    if set(names) != set(_PARTS):
        raise ValueError(f"columns must name {', '.join(_PARTS)}, got {', '.join(names) or 'none'}")
    first, second, caption, preference = (names[part] for part in _PARTS)

    def read(row: Mapping[str, Any]) -> Ranked:
        label = _number(row, preference)
        if label not in (0.0, 0.5, 1.0):
            raise Dirty(f"{preference} must be 1, 0.5 or 0, got {label:g}")
        pictures = _pictures(row, (first, second))
        return Ranked(_caption(row, caption), pictures, (1 - label, label))

    return Layout("own", (first, second, caption, preference), read)


_PARTS = ("first", "second", "caption", "preference")


def _pick_a_pic(row: Mapping[str, Any]) -> Ranked:
    if row.get("has_label") is False:
        raise Dirty("no label")
    labels = _number(row, "label_0"), _number(row, "label_1")
    if labels not in ((1.0, 0.0), (0.0, 1.0), (0.5, 0.5)):
        raise Dirty(f"labels must be 1 and 0, or 0.5 and 0.5, got {labels[0]:g} and {labels[1]:g}")
    pictures = _pictures(row, ("jpg_0", "jpg_1"))
    return Ranked(_caption(row, "caption"), pictures, (labels[1], labels[0]))


def _hpd_2(row: Mapping[str, Any], column: str, sign: int) -> Ranked:
    paths, ranks = row.get("image_path"), row.get(column)
    if not isinstance(paths, Sequence) or isinstance(paths, str) or len(paths) < 2:
        raise Dirty("image_path must be a list of two or more pictures")
    if not isinstance(ranks, Sequence) or len(ranks) != len(paths):
        raise Dirty(f"{column} must have a number for each picture")
    numbers = [_number({column: rank}, column) for rank in ranks]
    pictures = _pictures({str(i): path for i, path in enumerate(paths)}, None)
    return Ranked(_caption(row, "prompt"), pictures, tuple(sign * x for x in numbers))


def _hpd_3(row: Mapping[str, Any]) -> Ranked:
    return Ranked(_caption(row, "prompt"), _pictures(row, ("path1", "path2")), (0.0, 1.0))


def _image_reward(row: Mapping[str, Any]) -> Ranked:
    group = row.get("prompt_id")
    if group is None or group == "":
        raise Dirty("no prompt_id")
    rank = _number(row, "rank")
    return Ranked(_caption(row, "prompt"), _pictures(row, ("image_path",)), (rank,), str(group))


LAYOUTS: tuple[Layout, ...] = (
    Layout("pickapic", ("jpg_0", "jpg_1", "caption", "label_0", "label_1"), _pick_a_pic),
    Layout(
        "hpd",
        ("prompt", "image_path", "human_preference"),
        lambda row: _hpd_2(row, "human_preference", -1),
    ),
    Layout("imagereward", ("prompt_id", "prompt", "image_path", "rank"), _image_reward),
    Layout("hpd-ranks", ("prompt", "image_path", "rank"), lambda row: _hpd_2(row, "rank", 1)),
    Layout("hpd3", ("prompt", "path1", "path2"), _hpd_3),
)
"""Published layouts; data has the first one that fits."""


def _caption(row: Mapping[str, Any], column: str) -> str:
    caption = row.get(column)
    if not isinstance(caption, str) or not caption.strip():
        raise Dirty(f"no {column}")
    return caption


def _pictures(row: Mapping[str, Any], columns: Sequence[str] | None) -> tuple[Any, ...]:
    names = list(row) if columns is None else columns
    for name in names:
        if row.get(name) is None or row[name] in ("", b""):
            raise Dirty("no picture" if columns is None else f"no picture {name}")
    return tuple(row[name] for name in names)


def _number(row: Mapping[str, Any], column: str) -> float:
    try:
        value = float(row[column])
    except (LookupError, TypeError, ValueError):
        value = math.nan
    if not math.isfinite(value):
        raise Dirty(f"no {column}")
    return value
