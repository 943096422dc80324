"""`pqtun ssh` as far as it uses another program's connection: mux_rider.py ARGUMENTS."""

import sys

from pqtun.protocol.errors import UserError
from pqtun.shell.client.config import resolve
from pqtun.shell.client.mux_client import attach
from pqtun.shell.client.options import parse
from pqtun.shell.client.ui import UserInterface

NO_MASTER = 99

if __name__ == "__main__":
    options = parse(sys.argv[1:])
    config = resolve(options)
    try:
        status = attach(options, config, UserInterface(level=config.loglevel))
    except UserError as error:
        sys.exit(f"pqtun: {error}")
    sys.exit(NO_MASTER if status is None else status)
