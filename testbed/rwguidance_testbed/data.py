"""The drawings of the test bed: emoji of eight styles, from packages, with names and roles.

    python -m rwguidance_testbed.data --data FOLDER

fetches nine packages of the npm registry through the ``npm`` of this machine, checks them against
the hashes in ``sources.json``, renders every drawing with its transparency and writes
``drawings.safetensors`` and ``drawings.json``. Nothing in it is random, and the hash of what was
rendered is compared with the one in ``sources.json``.

Every drawing has one of three roles, which no two parts of the test bed share: what a generator
learned to draw, neither a proxy reward nor the judge has seen. The roles of a name's drawings are
dealt in an order that the hash of name and style decides, so that every part knows every style and
every name, but from other drawings. The two Fluent styles draw the same shapes and stay together.

Of names that no prompt has, generators draw nothing. There their drawings go to the judge and to
the proxies, half each by a hash; but the autoencoder has seen them, which is trained as if not.
"""

import base64
import hashlib
import json
import re
import subprocess
import tarfile
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from rwguidance.support.files import replacing
from rwguidance.support.outside import require

__all__ = [
    "ROLES",
    "SIZE",
    "Drawing",
    "Drawings",
    "assign_roles",
    "build",
    "default_folder",
    "fetch",
    "load_names",
    "rasterize",
    "read_drawings",
    "sources",
]

SIZE = 80
"""Pixels along a side of a rendered drawing, the drawing touching two opposite sides."""

ROLES = ("generator", "proxy", "judge")
"""Who may see a drawing."""

_SAME_HAND = {"fluent-flat": "fluent"}
_DEAL = ("generator", "judge", "generator", "proxy", "generator", "judge", "proxy")


@dataclass(frozen=True)
class Drawing:
    """One drawing and what is known of it.

    Arguments:
        name: What it shows, as the Unicode standard calls it: "red apple".
        style: One of eight, as named in ``sources.json``.
        group: The larger of the standard's two classes: "food-drink".
        kind: The smaller one: "food-fruit".
        tags: Words that go with the name.
        role: Who may see it, one of `ROLES`.
        encoded: Whether the autoencoder learns from it, too.
    """

    name: str
    style: str
    group: str
    kind: str
    tags: tuple[str, ...]
    role: str
    encoded: bool = False


class Drawings:
    """Drawings with their pixels.

    Arguments:
        entries: What the drawings are.
        pixels: Red, green, blue and alpha, colours premultiplied by alpha, (N, 4, 80, 80), uint8.
    """

    def __init__(self, entries: Sequence[Drawing], pixels: Tensor) -> None:
        if pixels.dtype != torch.uint8 or pixels.shape != (len(entries), 4, SIZE, SIZE):
            raise ValueError(
                f"pixels must be of type uint8 and shape {(len(entries), 4, SIZE, SIZE)}, "
                f"got {pixels.dtype} and {tuple(pixels.shape)}"
            )
        self.entries = tuple(entries)
        self.pixels = pixels

    def __len__(self) -> int:
        return len(self.entries)

    def where(
        self,
        role: str | None = None,
        names: Iterable[str] | None = None,
        encoded: bool | None = None,
    ) -> "Drawings":
        """Those of a role, of some names, that the autoencoder learns from or not, or all of it.

        Raises:
            ValueError: If the role is unknown, or nothing is left.
        """

        if role not in (None, *ROLES):
            raise ValueError(f"role must be one of {', '.join(ROLES)}, got {role!r}")
        wanted = None if names is None else set(names)
        index = [
            i
            for i, entry in enumerate(self.entries)
            if role in (None, entry.role)
            and (wanted is None or entry.name in wanted)
            and encoded in (None, entry.encoded)
        ]
        if not index:
            raise ValueError(f"there is no drawing of role {role!r} with one of the names")
        return Drawings([self.entries[i] for i in index], self.pixels[index])

    @classmethod
    def load(cls, folder: Path | None = None) -> "Drawings":
        """What :func:`build` wrote.

        Raises:
            FileNotFoundError: If nothing was built there; says how to.
        """

        from safetensors.torch import load_file

        folder = folder or default_folder()
        if not (folder / "drawings.json").exists():
            raise FileNotFoundError(
                f"{folder} has no drawings.json; "
                f"build the drawings with: python -m rwguidance_testbed.data --data {folder}"
            )
        table = json.loads((folder / "drawings.json").read_text(encoding="utf-8"))
        entries = [Drawing(**{**row, "tags": tuple(row["tags"])}) for row in table]
        return cls(entries, load_file(folder / "drawings.safetensors")["pixels"])

    def save(self, folder: Path) -> None:
        """Writes ``drawings.safetensors`` and ``drawings.json``."""

        from safetensors.torch import save_file

        folder.mkdir(parents=True, exist_ok=True)
        with replacing(folder / "drawings.safetensors") as path:
            save_file({"pixels": self.pixels}, path)
        with replacing(folder / "drawings.json") as path:
            path.write_text(json.dumps([vars(e) for e in self.entries]), encoding="utf-8")


def default_folder() -> Path:
    """Where drawings are built and looked for, unless told otherwise: ``out/testbed``."""

    return Path("out") / "testbed"


def sources() -> dict[str, Any]:
    """The packages, their hashes, licences and credits: the content of ``sources.json``."""

    path = Path(__file__).with_name("sources.json")
    return json.loads(path.read_text(encoding="utf-8"))


def load_names() -> dict[str, list[str]]:
    """The names that the generators learn to draw, "train", and those kept from them, "held_out".

    Every word of a name that is kept occurs in a name that is learned.
    """

    path = Path(__file__).with_name("names.json")
    return json.loads(path.read_text(encoding="utf-8"))


def fetch(package: str, version: str, integrity: str, folder: Path) -> Path:
    """The archive of a package: from `folder` if it lies there, else through ``npm pack``.

    Arguments:
        package: Its name.
        version: Exactly.
        integrity: The expected hash, "sha512-" and base64.
        folder: Where archives are kept.

    Raises:
        ValueError: If the content is not the expected one.
        FileNotFoundError: If it does not lie there and ``npm`` is missing.
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
    """Reads which drawings there are, without skin tones, in order of name and style.

    A drawing belongs to a name if its own name, or an alias of it, is one that any style uses for
    the same character. Of a name that a style draws twice, the first is taken.

    Arguments:
        styles: The archive of each style.
        words: The archive of ``emojibase-data``.

    Returns:
        The drawings and, for each, its svg document.
    """

    known = {_code(row["hexcode"]): row for row in _member(words, "en/data.json")}
    classes = _member(words, "meta/groups.json")
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
            code = codes.get(_key(slug))
            if code is not None and not icon.get("hidden"):
                found.setdefault((code, style), _document(icon, table))
    hands: dict[str, list[str]] = {}
    for code, style in found:
        hands.setdefault(code, []).append(style)
    names = load_names()
    asked = {*names["train"], *names["held_out"]}
    drawings = []
    for (code, style), document in found.items():
        row = known[code]
        if "group" not in row:
            continue
        name = row["label"].lower()
        drawing = Drawing(
            name=name,
            style=style,
            group=classes["groups"][str(row["group"])],
            kind=classes["subgroups"][str(row["subgroup"])],
            tags=tuple(row.get("tags", ())),
            role=assign_roles(name, hands[code], name in asked)[style],
            encoded=assign_roles(name, hands[code])[style] == "generator"
            and name not in names["held_out"],
        )
        drawings.append((drawing, document))
    drawings.sort(key=lambda pair: (pair[0].name, pair[0].style))
    return [drawing for drawing, _ in drawings], [document for _, document in drawings]


def assign_roles(name: str, styles: Iterable[str], asked: bool = True) -> dict[str, str]:
    """The role of each drawing of a name.

    Arguments:
        name: Of what is drawn.
        styles: Those that draw it.
        asked: Whether prompts have the name. If not, the generators get nothing: a hand that would
            be theirs goes to the judge or to the proxies, as its hash says.

    Returns:
        A role for each style.
    """

    styles = set(styles)
    digest = lambda hand: hashlib.sha256(f"{name}/{hand}".encode()).digest()
    order = sorted({_SAME_HAND.get(style, style) for style in styles}, key=digest)
    roles = dict(zip(order, _DEAL, strict=False))
    if not asked:
        for hand in order:
            if roles[hand] == "generator":
                roles[hand] = ("judge", "proxy")[digest(hand)[-1] % 2]
    return {style: roles[_SAME_HAND.get(style, style)] for style in styles}


def rasterize(document: str, size: int = SIZE) -> Tensor:
    """Renders a drawing, cut to the square around what is not transparent.

    Arguments:
        document: An svg document.
        size: Pixels along a side.

    Returns:
        Red, green, blue and alpha, colours premultiplied, with shape (4, size, size) and type
        uint8.

    Raises:
        ValueError: If nothing is drawn.
    """

    import io

    import numpy

    resvg = require("resvg_py", "rendering needs", "testbed")
    image = require("PIL.Image", "rendering needs", "testbed")
    encoded = bytes(resvg.svg_to_bytes(svg_string=document, width=2 * size, height=2 * size))
    picture = image.open(io.BytesIO(encoded)).convert("RGBa")
    box = picture.getchannel("a").point(lambda a: 255 * (a > 12)).getbbox()
    if box is None:
        raise ValueError(f"the drawing is empty: {document[:200]}")
    side = max(box[2] - box[0], box[3] - box[1])
    left, top = ((box[i] + box[i + 2] - side) // 2 for i in (0, 1))
    canvas = image.new("RGBa", (side, side))
    canvas.paste(picture, (-left, -top))
    small = canvas.resize((size, size), image.Resampling.LANCZOS)
    pixels = torch.from_numpy(numpy.array(small)).permute(2, 0, 1).contiguous()
    return torch.cat((pixels[:3].minimum(pixels[3:]), pixels[3:]))


def build(data: Path = Path("out/testbed"), packages: Path | None = None) -> Drawings:
    """Fetches the packages, renders all drawings and writes them.

    Arguments:
        data: Folder to write to.
        packages: Folder with the archives of the packages, or where to fetch them to. Default:
            a folder inside `data`.

    Raises:
        ValueError: If a package is not the expected one.
    """

    import warnings

    from rich.progress import track

    packages = packages or data / "packages"
    table = sources()
    archive = lambda row: fetch(row["package"], row["version"], row["integrity"], packages)
    styles = {row["name"]: archive(row) for row in table["styles"]}
    drawings, documents = read_drawings(styles, archive(table["words"]))
    pixels = torch.stack([rasterize(d) for d in track(documents, description="rendering")])
    result = Drawings(drawings, pixels)
    result.save(data)
    found = fingerprint(result)
    if found != table["rendered"]:
        warnings.warn(
            f"the drawings have the hash {found}, those of the shipped models have "
            f"{table['rendered']}; they were rendered by {table['renderer']}",
            stacklevel=2,
        )
    return result


def fingerprint(drawings: Drawings) -> str:
    """The SHA-256 of all pixels and of what the drawings are."""

    digest = hashlib.sha256(json.dumps([vars(e) for e in drawings.entries]).encode())
    digest.update(drawings.pixels.numpy().tobytes())
    return digest.hexdigest()


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


if __name__ == "__main__":
    require("typer", "the command needs", "testbed").run(build)
