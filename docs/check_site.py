"""Checks a built site: ``python docs/check_site.py docs/_build``.

No page loads anything from elsewhere, and every link within the site leads to a file and, where it
names a place in it, to that place. Links that a reader follows may lead elsewhere.
"""

import re
import sys
from html.parser import HTMLParser
from pathlib import Path
from urllib.parse import unquote, urlsplit

# Attributes by which a page loads what they name; a link or a form leads there only.
_LOADS = {"src", "srcset", "poster", "data"}
_LOADING_LINKS = {"stylesheet", "icon", "preload", "prefetch", "modulepreload", "manifest"}
_IN_STYLES = re.compile(r"(?:url\(|@import)\s*[\"']?([^\"')\s;]+)")

_SOURCES = "_modules"
"""Folder of sphinx's pages of source code, which does not mark all the places that it names."""


class Page(HTMLParser):
    """What one page loads, where it links to, and the places that it has."""

    def __init__(self, text):
        super().__init__()
        self.loaded, self.linked, self.places = [], [], {"", "top"}
        self.feed(text)

    def handle_starttag(self, tag, attributes):
        given = {name: value or "" for name, value in attributes}
        self.places |= {given[name] for name in ("id", "name") if name in given}
        self.loaded += [given[name] for name in _LOADS & given.keys()]
        self.loaded += _IN_STYLES.findall(given.get("style", ""))
        if tag == "link" and _LOADING_LINKS & set(given.get("rel", "").split()):
            self.loaded.append(given["href"])
        if tag == "a" and "href" in given:
            self.linked.append(given["href"])


def problems(site):
    """What is wrong with a site, a line each."""

    pages = {path: Page(path.read_text(encoding="utf-8")) for path in sorted(site.rglob("*.html"))}
    found = []
    for path, page in pages.items():
        say = lambda text, path=path: found.append(f"{path.relative_to(site).as_posix()}: {text}")
        for target in page.loaded:
            if _elsewhere(target):
                say(f"loads {target}")
            elif not target.startswith("data:") and not _file(path, target).exists():
                say(f"loads {target}, which is not there")
        for target in page.linked:
            if _elsewhere(target) or urlsplit(target).scheme or _SOURCES in path.parts:
                continue
            file, place = _file(path, target), unquote(urlsplit(target).fragment)
            place = "" if _SOURCES in file.parts else place
            if not file.exists():
                say(f"links to {target}, which is not there")
            elif file in pages and place not in pages[file].places:
                say(f"links to {target}, and there is no such place")
    for path in sorted(site.rglob("*.css")):
        for target in _IN_STYLES.findall(path.read_text(encoding="utf-8")):
            if _elsewhere(target):
                found.append(f"{path.relative_to(site).as_posix()}: loads {target}")
    return list(dict.fromkeys(found))


def _elsewhere(target):
    return target.startswith("//") or urlsplit(target).scheme in ("http", "https", "ftp")


def _file(page, target):
    """The file that a page means by a target, itself where that is a place."""

    name = unquote(urlsplit(target).path)
    file = (page.parent / name).resolve() if name else page
    return file / "index.html" if file.is_dir() else file


if __name__ == "__main__":
    wrong = problems(Path(sys.argv[1]).resolve())
    print("\n".join(wrong) or "nothing is loaded from elsewhere, and every link leads somewhere")
    sys.exit(bool(wrong))
