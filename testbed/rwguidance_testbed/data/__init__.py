"""The drawings of the test bed: emoji of eight styles, from packages, with names and roles."""

from .drawings import SIZE, Drawing, Drawings
from .roles import ROLES, assign_roles
from .tables import load_names, sources

__all__ = ["ROLES", "SIZE", "Drawing", "Drawings", "assign_roles", "load_names", "sources"]
