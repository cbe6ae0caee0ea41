"""The documentation, executed: every Python block runs, every relative link leads somewhere."""

import contextlib
import importlib
import io
import pkgutil
import re
import runpy
import socket
import unicodedata
from pathlib import Path
from types import ModuleType

import pytest

import backbones
import rewards
import rwguidance

rwguidance_testbed = pytest.importorskip("rwguidance_testbed", reason="pages show the test bed")

ROOT = Path(__file__).parents[1]
DOCS = ROOT / "docs"
PAGES = sorted(p for p in DOCS.rglob("*.md") if "_build" not in p.parts)
MARKDOWN = [*sorted(ROOT.glob("*.md")), *PAGES]
BLOCK = re.compile(r"^```python\n(.*?)^```$", re.MULTILINE | re.DOTALL)
PROMISE = re.compile(r"# prints (.*)$", re.MULTILINE)

name_of = lambda path: path.relative_to(ROOT).as_posix()


def blocks_of(path):
    """The first line number and the source of every Python block."""

    text = path.read_text(encoding="utf-8")
    return [(text.count("\n", 0, m.start(1)), m.group(1)) for m in BLOCK.finditer(text)]


WITH_CODE = [p for p in (ROOT / "README.md", *PAGES) if blocks_of(p)]


@pytest.fixture
def isolated(monkeypatch, tmp_path):
    """An empty folder, no network, and registries that forget what a page registers."""

    def refuse(*arguments):
        raise AssertionError("the documentation must run without a network")

    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setattr(socket.socket, "connect", refuse)
    for package in (rewards, backbones):
        registry = package.registry._registry
        monkeypatch.setattr(registry, "_values", dict(registry._values))


@pytest.mark.parametrize("path", WITH_CODE, ids=name_of)
def test_python_blocks_run_from_top_to_bottom(path, isolated):
    namespace = {"__name__": "__main__"}
    for line, source in blocks_of(path):
        code = compile("\n" * line + source, str(path), "exec")  # tracebacks name the page's line
        with contextlib.redirect_stdout(io.StringIO()) as printed:
            exec(code, namespace)
        promised = PROMISE.findall(source)
        if promised:
            assert printed.getvalue().splitlines() == promised, f"{name_of(path)}:{line}"


def test_the_guides_have_code():
    assert {"docs/index.md", "docs/concepts.md", "docs/extending.md", "docs/training.md"} <= set(
        map(name_of, WITH_CODE)
    )


def test_the_figures_of_the_readme_are_those_of_the_pages():
    figures = re.compile(r"\d+\.\d+ ± \d+\.\d+")
    pages = "".join(page.read_text(encoding="utf-8") for page in PAGES)
    stated = figures.findall((ROOT / "README.md").read_text(encoding="utf-8"))
    assert len(stated) >= 5
    assert set(stated) <= set(figures.findall(pages))


def test_names_that_moved_lead_somewhere():
    page = (DOCS / "migration.md").read_text(encoding="utf-8")
    cells = re.findall(r"^\|[^|]*\|([^|]*)\|", page, re.MULTILINE)
    names = [name for cell in cells for name in re.findall(r"`(rwguidance[\w.]*\w)`", cell)]
    assert len(names) > 10
    for name in names:
        pkgutil.resolve_name(name)


def prose_of(path):
    text = re.sub(r"^(```+|~~~+).*?^\1", "", path.read_text(encoding="utf-8"), flags=re.M | re.S)
    return re.sub(r"`[^`\n]*`|\$[^$]*\$", "", text)


def anchors_of(path):
    """Anchors as GitHub makes them from headings."""

    headings = re.findall(r"^#+ (.*)$", path.read_text(encoding="utf-8"), re.MULTILINE)
    plain = (unicodedata.normalize("NFC", h).replace("`", "").strip().lower() for h in headings)
    return {re.sub(r"[^\w\- ]", "", h).replace(" ", "-") for h in plain}


@pytest.mark.parametrize("path", MARKDOWN, ids=name_of)
def test_relative_links_resolve(path):
    for target in re.findall(r"\]\(([^)\s]+)\)", prose_of(path)):
        if re.match(r"[a-z]+:", target):  # https:, mailto:
            continue
        file, _, anchor = target.partition("#")
        page = (path.parent / file).resolve() if file else path
        assert page.exists(), f"{name_of(path)} links to {target}, which does not exist"
        if anchor and page.suffix == ".md":
            assert anchor in anchors_of(page), f"{name_of(path)} links to {target}, no such heading"


def public_modules():
    """Modules of the packages that state their public names; commands are not a library."""

    for package in (rwguidance, rewards, backbones, rwguidance_testbed):
        for module in pkgutil.walk_packages(package.__path__, package.__name__ + "."):
            if module.ispkg or ".app." in module.name or "._" in module.name:
                continue
            found = importlib.import_module(module.name)
            # rwguidance/rewards.py and backbones.py stand for the packages beside it.
            if hasattr(found, "__all__") and not hasattr(found, "__path__"):
                yield module.name


def test_the_reference_covers_every_public_module():
    pages = "".join(p.read_text(encoding="utf-8") for p in (DOCS / "api").glob("*.md"))
    described = re.findall(r"automodule:: ([\w.]+)", pages)
    assert sorted(described) == sorted(set(described))
    assert set(public_modules()) == set(described), "add or remove an automodule in docs/api"


@pytest.mark.parametrize("package", [rwguidance, rewards, backbones], ids=lambda p: p.__name__)
def test_every_exported_name_is_described_where_it_is_defined(package):
    for name in [
        name
        for name in package.__all__
        if name != "__version__" and not isinstance(getattr(package, name), ModuleType)
    ]:
        module = importlib.import_module(getattr(package, name).__module__)
        assert name in module.__all__, f"{module.__name__} does not list {name}"
        assert getattr(package, name).__doc__, f"{name} has no docstring"


def test_the_tables_of_methods_say_what_the_methods_say():
    tables = runpy.run_path(str(DOCS / "tables.py"))
    page = tables["PAGE"].read_text(encoding="utf-8")
    for name in ("methods", "settings"):
        assert f"<!-- table: {name} -->" in page
    assert tables["written"](page) == page, "run `python docs/tables.py`, which writes them anew"
    assert tables["written"](page.replace("reward", "rewind")) != page.replace("reward", "rewind")


def test_the_page_of_claims_and_the_readme_say_what_was_measured():
    tables = runpy.run_path(str(DOCS / "tables.py"))
    for file in ("PAPER", "README"):
        page = tables[file].read_text(encoding="utf-8")
        assert "<!-- table: cost -->" in page
        assert tables["paper"](page) == page, "run `python docs/tables.py`, which writes them anew"
        changed = page.replace("On the test bed the paper", "On no test bed the paper")
        assert tables["paper"](changed) == page != changed


def test_the_reference_of_the_commands_says_what_the_commands_say():
    commands = runpy.run_path(str(DOCS / "commands.py"))
    page = commands["PAGE"].read_text(encoding="utf-8")
    assert commands["written"]() == page, "run `python docs/commands.py`, which writes it anew"
    for part in ("## `rwguidance generate`", "| `--kl NUMBER` |", "| `--images INTEGER` |"):
        assert part in page


def test_the_check_of_the_site_finds_dead_links_and_loads_from_elsewhere(tmp_path):
    problems = runpy.run_path(str(DOCS / "check_site.py"))["problems"]
    (tmp_path / "api").mkdir()
    (tmp_path / "a.png").touch()
    (tmp_path / "style.css").write_text("p {background: url('a.png')}")
    (tmp_path / "api" / "one.html").write_text('<h1 id="here">One</h1><a href="..">up</a>')
    good = """<link rel="stylesheet" href="style.css?v=1"><img src="a.png"><p id="p">
        <a href="api/one.html#here">one</a> <a href="#p">p</a> <a href="https://x.org">far</a>
        <a href="mailto:a@b">mail</a> <link rel="canonical" href="https://x.org">"""
    (tmp_path / "index.html").write_text(good)
    assert problems(tmp_path) == []
    bad = {
        '<script src="https://x.org/y.js"></script>': "loads https://x.org/y.js",
        '<link rel="preload" href="//x.org/f">': "loads //x.org/f",
        '<img src="b.png">': "loads b.png, which is not there",
        '<p style="background: url(http://x.org/z)">': "loads http://x.org/z",
        '<a href="two.html">': "links to two.html, which is not there",
        '<a href="api/one.html#there">': "links to api/one.html#there, and there is no such place",
    }
    (tmp_path / "index.html").write_text(good + "".join(bad))
    assert set(problems(tmp_path)) == {f"index.html: {text}" for text in bad.values()}
    (tmp_path / "index.html").write_text(good)
    (tmp_path / "style.css").write_text('@import "https://x.org/w.css";')
    assert problems(tmp_path) == ["style.css: loads https://x.org/w.css"]
