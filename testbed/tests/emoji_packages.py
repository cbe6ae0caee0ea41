"""Small packages in the formats of the real ones: six learned names and two held-out ones."""

import base64
import hashlib
import io
import json
import tarfile

from rwguidance_testbed.data import sources

TRAIN = ("red apple", "blue heart", "sun", "pizza", "key", "car")
HELD_OUT = ("green apple", "blue book")
TONED = "1f44b-1f3fb"


def archive(folder, package, version, members):
    """A package as npm packs it, and the hash that is stated for it."""

    path = folder / f"{package.lstrip('@').replace('/', '-')}-{version}.tgz"
    with tarfile.open(path, "w:gz") as file:
        for name, content in members.items():
            raw = json.dumps(content).encode()
            info = tarfile.TarInfo(f"package/{name}")
            info.size = len(raw)
            file.addfile(info, io.BytesIO(raw))
    return "sha512-" + base64.b64encode(hashlib.sha512(path.read_bytes()).digest()).decode()


def svg(inside, size=32):
    return f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {size} {size}">{inside}</svg>'


def body(index, shade):
    """A shape of its own for every name, a color of its own for every style."""

    color = f"rgb({40 * index % 256},{25 * shade},{(90 * index + 60) % 256})"
    return f'<circle cx="8" cy="8" r="5" fill="{color}"/><rect width="{index + 2}" height="4"/>'


def icons(style, shade):
    slugs = ["red-apple", "blue-heart", "sun", "pizza", "key", "car", "green-apple", "blue-book"]
    if style == "fxemoji":
        slugs = [slug.replace("-", "") for slug in slugs]
    other_names = {"twemoji": ("pizza", "pizza-slice"), "emojione": ("sun", "sol")}
    was, name = other_names.get(style, ("", ""))
    slugs = [name if slug == was else slug for slug in slugs]
    table = {"mirrored": {"body": body(11, shade)}} if style == "noto-v1" else {}
    table |= {slug: {"body": body(i, shade)} for i, slug in enumerate(slugs)}
    table["hidden-thing"] = {"body": body(1, shade), "hidden": True}
    table["unheard-of"] = {"body": body(1, shade)}
    aliases = {}
    if style == "noto":
        table["automobile"] = table.pop("car")
        aliases = {"car": {"parent": "automobile"}, "sol": {"parent": "sun"}}
        aliases["mirrored"] = {"parent": "key", "hFlip": True}
        table["waving-hand-light"] = {"body": body(1, shade)}
    return {"icons": table, "aliases": aliases, "width": 16, "height": 16}


def write_packages(folder):
    """Writes archives to a folder; returns the table of sources that belongs to them."""

    table = json.loads(json.dumps(sources()))
    table["rendered"] = "unknown"
    rows = [
        {"hexcode": f"{0x1F300 + i:X}-FE0F", "label": name.capitalize(), "tags": ["thing", name]}
        | {"group": 4, "subgroup": 42}
        for i, name in enumerate((*TRAIN, *HELD_OUT))
    ]
    rows.append({"hexcode": "1F1E6", "label": "regional indicator A", "tags": []})
    rows.append(rows[0] | {"hexcode": "1F5FF", "label": "hidden thing"})
    groups = {"groups": {"4": "food-drink"}, "subgroups": {"42": "food-fruit"}}
    members = {"en/data.json": rows, "meta/groups.json": groups}
    row = table["words"]
    row["integrity"] = archive(folder, row["package"], row["version"], members)
    codes = {f"{0x1F300 + i:x}": name.replace(" ", "-") for i, name in enumerate(TRAIN)}
    pizza = f"{0x1F300 + TRAIN.index('pizza'):x}"
    codes[TONED] = "waving-hand-light"
    for shade, row in enumerate(table["styles"]):
        chars = {"noto": codes, "twemoji": {pizza: "pizza-slice"}}.get(row["name"], {})
        members = {"icons.json": icons(row["name"], shade), "chars.json": chars}
        row["integrity"] = archive(folder, row["package"], row["version"], members)
    return table
