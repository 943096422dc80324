"""Whether an address leads into a tunnel, and to whom: the pqtun client that runs here is asked."""

from pathlib import Path
from typing import Final

from pqtun.daemon.whois import Known, NotRunningError, UnknownAddressError, ask
from pqtun.protocol.errors import UserError

RUN_DIRECTORY: Final = Path("/run/pqtun")  # as pqtun.daemon.settings has it, whose import takes long
_DIRECT: Final = "--direct goes there without a tunnel"


def identify(name: str, address: str, run: Path | None = None) -> Known:
    """Return who is at the other end of the tunnel that an address leads into.

    ``name``: what was looked up. Raises UserError that says why there is no tunnel.
    """
    directory = run or RUN_DIRECTORY
    try:
        return ask(directory, address)
    except NotRunningError:
        raise UserError(
            f"no pqtun client runs here (nothing answers in {directory}), so there is no tunnel to {name}; {_DIRECT}"
        ) from None
    except UnknownAddressError:
        what = f"{name} is an address" if name == address else f"{name} announces no key: {address} is an address"
        raise UserError(f"{what} outside all tunnels; {_DIRECT}") from None


def confirm(known: Known, name: str, address: str, run: Path | None = None) -> None:
    """Ask again: without the tunnel, whoever is connected by now may be anybody. Raises UserError."""
    if identify(name, address, run) != known:
        raise UserError(f"{name} leads into another tunnel by now; try again")
