"""Why there is no connection, for who decides whether to try again."""

from pqtun.protocol.errors import UserError


class Unreachable(UserError):
    """The network or the server is not there at the moment; another attempt may succeed."""


class Refusal(UserError):
    """The server will not have us: no key is accepted, or no algorithm is common."""


class Mistrust(UserError):
    """The server is not who it should be."""
