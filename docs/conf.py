"""Sphinx settings. The build needs no network: `make docs` reads docstrings and Markdown."""

import pkgutil
import sys

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


def setup(app):
    app.connect("missing-reference", _resolve_public_name)
    app.connect("autodoc-skip-member", _skip_private)
    app.connect("autodoc-process-signature", _drop_empty_signature)
