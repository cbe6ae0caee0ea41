"""The facts about a reward that is made of rewards, from the facts about its parts."""

import re
from collections.abc import Iterable, Sequence

from .base import Reward, RewardSpec

__all__ = ["joint_spec"]


def joint_spec(
    parts: Sequence[Reward],
    *,
    name: str,
    title: str,
    formula: str,
    typical_range: tuple[float, float],
    needs_prompt: bool = False,
) -> RewardSpec:
    """The facts about a composition: those that follow from its parts, beside those given.

    It is differentiable if all parts are, needs prompts if one does, permits commercial use if all
    do, and its licenses, files and sources are those of all parts together.

    Arguments:
        parts: The rewards.
        name: Name of the composition, of the names of the parts.
        title: Title of the composition, of the titles of the parts.
        formula: The formula of the composition; those of the parts are appended.
        typical_range: Smallest and largest usual value, in the composition's reward units.
        needs_prompt: Whether prompts are needed even if no part needs them.
    """

    specs = [part.spec for part in parts]
    permissions = [spec.commercial_use for spec in specs]
    lengths = [spec.context_length for spec in specs if spec.context_length is not None]
    return RewardSpec(
        name=name,
        title=title,
        differentiable=all(spec.differentiable for spec in specs),
        needs_prompt=needs_prompt or any(spec.needs_prompt for spec in specs),
        code_license=_licenses(spec.code_license for spec in specs),
        weights_license=_licenses(spec.weights_license for spec in specs),
        formula="; ".join([formula, *_unique(f"{s.name}: {s.formula}" for s in specs)]),
        typical_range=typical_range,
        citation="; ".join(_unique(s.citation for s in specs if s.citation != "none")) or "none",
        commercial_use=(False if False in permissions else None if None in permissions else True),
        files=tuple(dict.fromkeys(file for spec in specs for file in spec.files)),
        preprocessing="; ".join(_unique(f"{s.name}: {s.preprocessing}" for s in specs)),
        context_length=min(lengths, default=None),
        parity="; ".join(_unique(f"{s.name}: {s.parity}" for s in specs if s.parity)),
    )


def _unique(texts: Iterable[str]) -> list[str]:
    return list(dict.fromkeys(texts))


def _licenses(names: Iterable[str]) -> str:
    """An SPDX expression of all licenses; "none" only if there is no other."""

    outside = r" AND (?![^(]*\))"  # not within parentheses
    parts = [part for name in names for part in re.split(outside, name) if part != "none"]
    texts = [f"({part})" if " OR " in part and not part.startswith("(") else part for part in parts]
    return " AND ".join(_unique(texts)) or "none"
