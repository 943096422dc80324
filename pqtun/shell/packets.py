"""What asyncssh sends on the wire, without what is of no use here."""

from asyncssh.connection import SSHConnection
from asyncssh.constants import MSG_IGNORE


def register() -> None:
    """Have asyncssh send no empty SSH_MSG_IGNORE before each packet.

    It does so against an attack on ciphers in CBC mode (RFC 4251, 9.3.1), of which there is none in `ssh.CIPHERS`. And
    TinySSH (20250501) waits for more after such a packet, even if the next one has come with it.
    """
    send = SSHConnection.send_packet

    def send_packet(self: SSHConnection, pkttype: int, *args: bytes, handler: object = None) -> None:
        if pkttype != MSG_IGNORE:
            send(self, pkttype, *args, handler=handler)  # type: ignore[arg-type]

    SSHConnection.send_packet = send_packet  # type: ignore[method-assign]
