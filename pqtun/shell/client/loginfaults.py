"""Why there is no connection, for who decides whether to try again."""

from pqtun.protocol.errors import UserError


class Unreachable(UserError):
    """The network or the server is not there at the moment; another attempt may succeed."""


class Refusal(UserError):
    """The server will not have us, or is not who it should be; another attempt would end the same way."""
