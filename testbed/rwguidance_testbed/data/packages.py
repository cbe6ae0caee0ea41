"""The packages of the npm registry that hold the drawings: fetched, checked and read."""

import base64
import hashlib
import json
import re
import subprocess
import tarfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from .drawings import Drawing
from .roles import assign_roles
from .tables import load_names

__all__ = ["fetch", "read_drawings"]


def fetch(package: str, version: str, integrity: str, folder: Path) -> Path:
    """Returns the archive of a package, from a folder or fetched to it through ``npm pack``.

    Arguments:
        package: Name of the package.
        version: Exact version.
        integrity: Expected hash, "sha512-" and base64.
        folder: Folder of archives.

    Raises:
        ValueError: If the archive has another hash.
        FileNotFoundError: If the archive is not there and ``npm`` is missing.
    """

    folder.mkdir(parents=True, exist_ok=True)
    path = folder / f"{package.lstrip('@').replace('/', '-')}-{version}.tgz"
    if not path.exists():
        try:
            subprocess.run(
                ["npm", "pack", "--silent", f"{package}@{version}"],
                cwd=folder,
                check=True,
                stdout=subprocess.DEVNULL,
            )
        except FileNotFoundError:
            raise FileNotFoundError(
                f"{path} is missing and there is no npm to fetch it; put the archive there"
            ) from None
    digest = hashlib.sha512(path.read_bytes()).digest()
    found = "sha512-" + base64.b64encode(digest).decode()
    if found != integrity:
        raise ValueError(f"{path} must have the hash {integrity}, got {found}")
    return path


def read_drawings(styles: Mapping[str, Path], words: Path) -> tuple[list[Drawing], list[str]]:
    """Reads the drawings that there are, without skin tones, in order of name and style.

    A drawing belongs to a name if its own name, or an alias of it, is one that any style uses for
    the same character. Of drawings of the same name and style the first is taken.

    Arguments:
        styles: Archive of each style.
        words: Archive of ``emojibase-data``.

    Returns:
        The drawings and, for each, its SVG document.
    """

    known = {_code(row["hexcode"]): row for row in _member(words, "en/data.json")}
    classes = _member(words, "meta/groups.json")
    documents = _documents(styles, known)
    styles_of: dict[str, list[str]] = {}
    for code, style in documents:
        styles_of.setdefault(code, []).append(style)
    names = load_names()
    asked = {*names["train"], *names["held_out"]}
    drawings = []
    for (code, style), document in documents.items():
        row = known[code]
        if "group" not in row:
            continue
        name = row["label"].lower()
        first = assign_roles(name, styles_of[code])[style]
        drawing = Drawing(
            name=name,
            style=style,
            group=classes["groups"][str(row["group"])],
            kind=classes["subgroups"][str(row["subgroup"])],
            tags=tuple(row.get("tags", ())),
            role=assign_roles(name, styles_of[code], name in asked)[style],
            encoded=first == "generator" and name not in names["held_out"],
        )
        drawings.append((drawing, document))
    drawings.sort(key=lambda pair: (pair[0].name, pair[0].style))
    return [drawing for drawing, _ in drawings], [document for _, document in drawings]


def _documents(
    styles: Mapping[str, Path], known: Mapping[str, Mapping[str, Any]]
) -> dict[tuple[str, str], str]:
    """Returns the SVG documents by character and style.

    Arguments:
        styles: Archive of each style.
        known: Rows of ``emojibase-data`` by character.
    """

    icons = {style: _member(path, "icons.json") for style, path in styles.items()}
    codes = {_key(row["label"]): code for code, row in known.items()}
    for style, path in styles.items():
        for code, slug in _member(path, "chars.json").items():
            if _code(code) in known:
                codes.setdefault(_key(slug), _code(code))
        for alias, target in icons[style].get("aliases", {}).items():
            pair = _key(alias), _key(target["parent"])
            for one, other in (pair, pair[::-1]):
                if one in codes and len(target) == 1:
                    codes.setdefault(other, codes[one])
    found: dict[tuple[str, str], str] = {}
    for style, table in icons.items():
        for slug, icon in table["icons"].items():
            character = codes.get(_key(slug))
            if character is not None and not icon.get("hidden"):
                found.setdefault((character, style), _document(icon, table))
    return found


def _member(archive: Path, name: str) -> Any:
    with tarfile.open(archive) as file:
        member = file.extractfile(f"package/{name}")
        assert member is not None
        return json.load(member)


def _document(icon: Mapping[str, Any], table: Mapping[str, Any]) -> str:
    width = icon.get("width", table.get("width", 16))
    height = icon.get("height", table.get("height", 16))
    left, top = icon.get("left", 0), icon.get("top", 0)
    return (
        '<svg xmlns="http://www.w3.org/2000/svg" xmlns:xlink="http://www.w3.org/1999/xlink" '
        f'viewBox="{left} {top} {width} {height}">{icon["body"]}</svg>'
    )


def _code(code: str) -> str:
    return "-".join(part for part in code.lower().split("-") if part != "fe0f")


def _key(text: str) -> str:
    return re.sub(r"[^a-z0-9]", "", text.lower())
