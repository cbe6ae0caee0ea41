from ..commands import run
from .command import train

run(train)
