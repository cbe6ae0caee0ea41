from ..commands import run_several
from .command import match, walk

run_several(walk, match)
