from rwguidance.support.outside import require

from .command import build

require("typer", "the command needs", "testbed").run(build)
