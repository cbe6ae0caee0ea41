from ..commands import run
from .command import widen

run(widen)
