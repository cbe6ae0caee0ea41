from ..commands import run
from .command import build

run(build)
