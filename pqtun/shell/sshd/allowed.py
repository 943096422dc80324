"""What a user may have forwarded: what his key says and what the server's settings say, together."""

from dataclasses import dataclass
from ipaddress import ip_address

from pqtun.daemon.settings import SshdSettings
from pqtun.shell.sshd.messages import Refused
from pqtun.shell.sshd.permission import Permission


@dataclass(frozen=True, slots=True)
class Allowed:
    """Each method raises Refused, with a reason for the user, if that may not be done."""

    permission: Permission
    settings: SshdSettings

    def _need(self, by_settings: bool, by_key: bool) -> None:
        if not by_settings:
            raise Refused("this server's settings do not allow it")
        if not by_key:
            raise Refused("the key that you logged in with does not allow it")

    def connect(self, host: str, port: int) -> None:
        """A TCP connection to there."""
        self._need(self.settings.tcp_forwarding, self.permission.permits(host, port))

    def connect_unix(self) -> None:
        """A connection to a Unix-domain socket."""
        self._need(self.settings.stream_local_forwarding, self.permission.permits_unix())

    def listen(self, host: str, port: int) -> None:
        """A listening TCP socket."""
        self._need(self.settings.tcp_forwarding, self.permission.permits_listen(host, port))

    def listen_unix(self) -> None:
        """A listening Unix-domain socket."""
        self._need(self.settings.stream_local_forwarding, self.permission.permits_listen_unix())

    def agent(self) -> None:
        """The client's agent, under a path that programs here find."""
        self._need(self.settings.agent_forwarding, self.permission.agent_forwarding)

    def x11(self) -> None:
        """The client's X display."""
        self._need(self.settings.x11_forwarding, self.permission.x11_forwarding)

    def pty(self) -> None:
        """A pseudo-terminal."""
        self._need(True, self.permission.pty)

    def address(self, host: str) -> str | None:
        """Return the address to listen on, or None for this host's loopback addresses.

        As with sshd's GatewayPorts=no, others can only reach a forwarded port where the key names that very address in
        ``permitlisten``.
        """
        if not any(named == host for named, _ in self.permission.permit_listen or ()):
            return None
        try:
            return str(ip_address(host))
        except ValueError:
            return None
