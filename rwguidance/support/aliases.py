"""Two names for one module: `rewards` is `rwguidance.rewards`, and a module that moved is found.

The folders `rewards` and `backbones` lie beside `rwguidance`, in a checkout as in an installation.
Their names are generic: another package may install one of the same name, and scripts lie beside
folders that are called so. So :func:`adopt` loads them from where they lie, as `rwguidance.rewards`
and `rwguidance.backbones`, whatever else `import rewards` finds. Under their short names they are
the same module objects, with one registry (:func:`alias`).
"""

import importlib
import importlib.util
import sys
import warnings
from collections.abc import Sequence
from importlib.abc import Loader, MetaPathFinder
from importlib.machinery import ModuleSpec
from pathlib import Path
from types import ModuleType

__all__ = ["adopt", "alias", "moved"]

_ROOT = Path(__file__).resolve().parents[2]
"""The folder in which `rwguidance` lies, and its sibling packages."""


def adopt(name: str) -> None:
    """Loads the folder beside `rwguidance` as its subpackage of the same name.

    The module that calls this, `rwguidance/rewards.py` say, is replaced by the package.

    Arguments:
        name: The full name of the module that calls.

    Raises:
        ImportError: If the folder is not there, or another distribution wrote over it; names it.
    """

    package, _, short = name.rpartition(".")
    folder = _ROOT / short
    file = folder / "__init__.py"
    if not file.is_file():
        raise ImportError(f"{name} needs {file}, which is not there: install {package} again")
    if b"rwguidance.support.aliases" not in file.read_bytes():
        raise ImportError(
            f"{file} is not that of {package}: another distribution has a package {short!r} and "
            f"wrote over it; find it with `pip list`, remove it and install {package} again, or "
            "keep the two in environments of their own"
        )
    spec = importlib.util.spec_from_file_location(
        name, file, submodule_search_locations=[str(folder)]
    )
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module
    spec.loader.exec_module(module)


def alias(short: str, full: str) -> None:
    """Makes `short` another name of the package `full`, and so for all modules in it.

    Called by the package itself, under whichever name it is imported first.

    Arguments:
        short: The name of the module that calls.
        full: The package that it stands for.
    """

    if short == full:
        return
    sys.modules[short] = importlib.import_module(full)
    _finder.names[short] = full
    # Found here, a module is not set as an attribute of its package again: `backbones.guide` is a
    # function there.
    for name in [name for name in sys.modules if name.startswith(f"{full}.")]:
        sys.modules[short + name[len(full) :]] = sys.modules[name]


def moved(old: str, new: str) -> None:
    """Finds a module under its old name, too, with a warning.

    Arguments:
        old: The name that it had.
        new: The name that it has.
    """

    _finder.names[old] = new
    _finder.warned.add(old)


class _Finder(MetaPathFinder, Loader):
    """Answers for the names of which it is told with the modules of other names."""

    def __init__(self) -> None:
        self.names: dict[str, str] = {}
        self.warned: set[str] = set()
        self._specs: dict[str, ModuleSpec | None] = {}

    def find_spec(
        self, fullname: str, path: Sequence[str] | None, target: ModuleType | None = None
    ) -> ModuleSpec | None:
        for old, new in self.names.items():
            if fullname == old or fullname.startswith(f"{old}."):
                if fullname == old and old not in self.warned:
                    return None  # a package under its short name, found as any other
                if old in self.warned:
                    text = f"{old} is now {new}"
                    warnings.warn(text, DeprecationWarning, stacklevel=2)
                real = new + fullname[len(old) :]
                self._specs[fullname] = importlib.import_module(real).__spec__
                return importlib.util.spec_from_loader(fullname, self, origin=real)
        return None

    def create_module(self, spec: ModuleSpec) -> ModuleType:
        assert spec.origin is not None
        return sys.modules[spec.origin]

    def exec_module(self, module: ModuleType) -> None:
        """Gives the module its own spec back, which the import has just replaced."""

        spec = module.__spec__
        assert spec is not None
        module.__spec__ = self._specs.pop(spec.name)


_finder = _Finder()
sys.meta_path.insert(0, _finder)
