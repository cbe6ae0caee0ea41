"""Sphinx settings. The build needs no network: `make docs` reads docstrings and Markdown."""

import importlib
import inspect

import rwguidance

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
]
exclude_patterns = ["_build"]
suppress_warnings = ["config.cache"]  # napoleon_custom_sections holds tuples

myst_enable_extensions = ["dollarmath", "deflist"]
myst_heading_anchors = 3

# One entry per name of __all__, in the order of the source, described where it is defined.
autodoc_default_options = {"members": True, "member-order": "bysource", "show-inheritance": True}
autodoc_inherit_docstrings = False
autodoc_preserve_defaults = True
autodoc_typehints = "description"
autodoc_typehints_description_target = "documented"
autodoc_typehints_format = "short"
add_module_names = False
python_use_unqualified_type_names = True

napoleon_google_docstring = True
napoleon_numpy_docstring = False
napoleon_custom_sections = [("Arguments", "params_style")]
napoleon_use_rtype = False
napoleon_use_ivar = True

html_theme = "furo"
html_title = "rwguidance"
html_copy_source = False
html_show_sourcelink = False
html_theme_options = {"navigation_with_keys": True}
pygments_style = "friendly"
pygments_dark_style = "monokai"


def _resolve_public_name(app, env, node, contnode):
    """Leads references to a public name, `rwguidance.Tilt`, to where it is described."""

    if node.get("refdomain") != "py":
        return None
    target = node["reftarget"]
    package, _, name = target.rpartition(".")
    package = package or node.get("py:module") or ""
    if package.split(".")[0] not in ("rwguidance", "rewards", "backbones"):
        return None
    try:
        module = inspect.getmodule(getattr(importlib.import_module(package), name))
    except (ImportError, AttributeError):
        return None
    python = env.get_domain("py")
    found = python.objects.get(f"{module.__name__}.{name}") if module else None
    if found is None:
        return None
    return python.resolve_xref(
        env,
        node["refdoc"],
        app.builder,
        node["reftype"],
        f"{module.__name__}.{name}",
        node,
        contnode,
    )


def setup(app):
    app.connect("missing-reference", _resolve_public_name)
