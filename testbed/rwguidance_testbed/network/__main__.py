from rwguidance.support.outside import require

from .command import train

require("typer", "the command needs", "testbed").run(train)
