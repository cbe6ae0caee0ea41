"""Sphinx settings. The build needs no network: `make docs` reads docstrings and Markdown.

Nor does a page that was built: fonts and scripts, those of the formulas too, are beside it, which
`make docs` checks. For that the extra `docs` must be installed as a whole; without the two
extensions that come from it the pages are built, and load the formulas from elsewhere.
"""

import importlib.metadata
import importlib.util
import pkgutil
import sys
from pathlib import Path

from docutils import nodes
from myst_parser.parsers.sphinx_ import MystParser
from sphinx import addnodes

import rwguidance

sys.path.insert(0, str(Path(__file__).parent))
import notebooks

project = "rwguidance"
author = "The rwguidance authors"
copyright = f"2026, {author}"
version = release = rwguidance.__version__

extensions = [
    "myst_parser",
    "sphinx.ext.autodoc",
    "sphinx.ext.mathjax",
    "sphinx.ext.napoleon",
    "sphinx.ext.viewcode",
    *filter(importlib.util.find_spec, ("sphinx-mathjax-offline", "sphinx_copybutton")),
]
exclude_patterns = ["_build"]

myst_enable_extensions = ["dollarmath", "deflist"]
myst_heading_anchors = 3

# The names of __all__, in the order of the source (see _skip_private), where they are defined.
autodoc_default_options = {
    "members": True,
    "member-order": "bysource",
    "ignore-module-all": True,
    "show-inheritance": True,
}
autodoc_inherit_docstrings = False
viewcode_follow_imported_members = False  # followed ones get links that lead nowhere
autodoc_preserve_defaults = True
autodoc_typehints = "description"
autodoc_typehints_description_target = "documented"
autodoc_typehints_format = "short"
add_module_names = False
python_use_unqualified_type_names = True

napoleon_google_docstring = True
napoleon_numpy_docstring = False
napoleon_use_rtype = False
napoleon_use_ivar = True

html_theme = "furo"
html_static_path = ["_static"]
html_css_files = ["site.css"]
html_title = "rwguidance"
html_copy_source = False
html_show_sourcelink = False
html_theme_options = {"navigation_with_keys": True}
# The link to the repository, once the project states one.
_urls = importlib.metadata.metadata("rwguidance").get_all("Project-URL") or []
for label, _, url in (one.partition(", ") for one in _urls):
    if label.lower() in ("repository", "source"):
        html_theme_options |= {"source_repository": url, "source_branch": "main"}
        html_theme_options |= {"source_directory": "docs/"}
copybutton_selector = "div:not(.output) > div.highlight > pre"
copybutton_exclude = ".linenos, .gp, .go"
pygments_style = "friendly"
pygments_dark_style = "monokai"


class NotebookParser(MystParser):
    """Reads tutorials, which are notebooks, as the pages that they are."""

    supported = ("notebook",)

    def parse(self, inputstring, document):
        path = Path(document["source"])
        super().parse(notebooks.markdown(notebooks.read(path), path.name), document)


def _resolve_public_name(app, env, node, contnode):
    """Leads references to a public name, `rwguidance.Tilt`, to where it is described."""

    if node.get("refdomain") != "py":
        return None
    try:
        value = pkgutil.resolve_name(node["reftarget"])
        name = f"{value.__module__}.{value.__qualname__}"
    except (ImportError, AttributeError, ValueError):
        return None
    python = env.get_domain("py")
    if name not in python.objects:
        return None
    return python.resolve_xref(
        env, node["refdoc"], app.builder, node["reftype"], name, node, contnode
    )


def _skip_private(app, what, name, value, skip, options):
    """Leaves out what a module does not list; autodoc itself would then sort by __all__."""

    module = sys.modules.get(app.env.temp_data.get("autodoc:module"))
    return True if what == "module" and name not in getattr(module, "__all__", [name]) else None


def _drop_empty_signature(app, what, name, value, options, signature, returns):
    """Says nothing rather than "*args, **kwargs" of classes without a constructor."""

    return ("", returns) if what == "class" and signature == "(*args, **kwargs)" else None


def _public_path(module, name):
    """The path by which users import a name: the shortest whose package lists it."""

    value = getattr(importlib.import_module(module), name, None)
    parts = module.split(".")
    for i in range(1, len(parts) + 1):
        package = importlib.import_module(".".join(parts[:i]))
        if getattr(package, name, None) is value and name in getattr(package, "__all__", ()):
            break
    path = package.__name__
    return f"rwguidance.{path}" if parts[0] in ("rewards", "backbones") else path


def _show_public_paths(app, doctree):
    """Writes the path to import from before the name of what a module describes."""

    for signature in doctree.findall(addnodes.desc_signature):
        module, name = signature.get("module"), signature.get("fullname", "")
        shown = next(iter(signature.findall(addnodes.desc_name)), None)
        if module and shown is not None and "." not in name:
            path = f"{_public_path(module, name)}."
            place = signature.index(shown)
            signature.insert(place, addnodes.desc_addname("", "", nodes.Text(path)))


def _keep_errors_with_figures(app, doctree):
    """Breaks no line of a table between a figure, its sign and its error."""

    for entry in doctree.findall(nodes.entry):
        for text in list(entry.findall(nodes.Text)):
            whole = text.replace(" ± ", "\N{NO-BREAK SPACE}±\N{NO-BREAK SPACE}")
            text.parent.replace(text, nodes.Text(whole))


def setup(app):
    app.add_source_suffix(".ipynb", "notebook")
    app.add_source_parser(NotebookParser)
    app.connect("doctree-read", _show_public_paths)
    app.connect("doctree-read", _keep_errors_with_figures)
    app.connect("missing-reference", _resolve_public_name)
    app.connect("autodoc-skip-member", _skip_private)
    app.connect("autodoc-process-signature", _drop_empty_signature)
