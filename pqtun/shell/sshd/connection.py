"""The SSH connection as asyncssh has it, with what is root's to decide asked of the monitor."""

import socket
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Final

import asyncssh
from asyncssh.connection import SSHServerConnection
from asyncssh.constants import DISC_NO_MORE_AUTH_METHODS_AVAILABLE, OPEN_RESOURCE_SHORTAGE
from asyncssh.crypto import MLKEM, Curve25519DH
from asyncssh.encryption import get_encryption, get_encryption_params
from asyncssh.misc import ChannelOpenError, DisconnectError
from asyncssh.packet import String

import pqtun
from pqtun.daemon.settings import SshdSettings
from pqtun.shell import ssh
from pqtun.shell.sntrup import Sntrup761
from pqtun.shell.sshd import messages
from pqtun.shell.sshd.channels import Channels
from pqtun.shell.sshd.hostkeys import PublicKey
from pqtun.shell.sshd.limits import LOGIN_SECONDS
from pqtun.shell.sshd.messages import Caller, MessageError, Refused
from pqtun.shell.sshd.permission import Permission
from pqtun.shell.sshd.request import MAX_KEY, MAX_SIGNATURE

# Answers "no" in one connection; the monitor counts keys, this also what costs it nothing, such as other methods.
MAX_FAILURES: Final = 20
# Bytes that may wait while a request is thought about. Whoever has not logged in yet has nothing to send meanwhile.
MAX_WAITING: Final = 64 << 10
MAX_WAITING_LATER: Final = 8 << 20
KEEPALIVES: Final = 3  # without an answer, then the client is gone, as in OpenSSH (ClientAliveCountMax)
REKEY_BYTES: Final = 1 << 30  # as OpenSSH has it for ciphers with blocks of 8 bytes
REKEY_SECONDS: Final = 3600

Sign = Callable[[str, bytes], bytes]


class HostKey(asyncssh.SSHKeyPair):
    """A host key whose private part is in another process."""

    _key_type = "remote"

    def __init__(self, key: PublicKey, sign: Sign) -> None:
        name = key.algorithm.encode()
        super().__init__(name, name, (name,), (name,), key.blob, None)
        self._sign = sign

    def sign(self, data: bytes) -> bytes:
        """Ask for a signature. Waits, since asyncssh does here, for what takes a millisecond."""
        return self._sign(self.algorithm.decode(), data)


def ask_to_sign(sock: socket.socket, algorithm: str, data: bytes) -> bytes:
    """Return the monitor's signature. Raises DisconnectError if it gives none."""
    try:
        messages.send(sock, {"id": 0, "algorithm": algorithm, "data": messages.encode_bytes(data)})
        answer, fds = messages.receive(sock)
        messages.close_all(fds)
        return messages.decode_bytes(answer.get("signature"))
    except (OSError, EOFError, MessageError):
        raise asyncssh.KeyExchangeFailed("no host key at the moment") from None


def options(settings: SshdSettings, keys: Sequence[PublicKey], sign: Sign) -> asyncssh.SSHServerConnectionOptions:
    """What asyncssh has to know; made once, as it takes a while. Each of its own files and methods is left out."""
    return asyncssh.SSHServerConnectionOptions(
        config=None,
        server_factory=asyncssh.SSHServer,
        server_version=f"pqtun_{pqtun.__version__}",
        server_host_keys=[HostKey(key, sign) for key in keys],
        kex_algs=ssh.KEX,
        encryption_algs=ssh.CIPHERS,
        mac_algs=ssh.MACS,
        compression_algs=ssh.COMPRESSION,
        signature_algs=ssh.SIGNATURE_ALGORITHMS,
        public_key_auth=True,
        password_auth=False,
        kbdint_auth=False,
        host_based_auth=False,
        gss_host=None,
        gss_kex=False,
        gss_auth=False,
        x509_trusted_certs=None,
        authorized_client_keys=None,
        login_timeout=LOGIN_SECONDS,
        keepalive_interval=settings.keepalive,
        keepalive_count_max=KEEPALIVES,
        rekey_bytes=REKEY_BYTES,
        rekey_seconds=REKEY_SECONDS,
        rdns_lookup=False,
        line_editor=False,
        encoding=None,
        agent_forwarding=settings.agent_forwarding,
        x11_forwarding=settings.x11_forwarding,
        sftp_factory=None,
        allow_scp=False,
    )


def warm_up() -> None:
    """Use each algorithm once, so that what is loaded and set up at first use is there: workers cannot open files."""
    for kem in (MLKEM(b"mlkem768"), Sntrup761(b"sntrup761")):
        kem.encaps(kem.get_public())
    Curve25519DH().get_shared(Curve25519DH().get_public())
    for name in map(str.encode, ssh.CIPHERS):
        key_bytes, nonce_bytes, *_ = get_encryption_params(name)
        get_encryption(name, bytes(key_bytes), bytes(nonce_bytes)).encrypt_packet(0, bytes(4), bytes(16))


class Owner(asyncssh.SSHServer):
    """asyncssh's questions: users' are the channels' to answer."""

    def __init__(self) -> None:
        self.channels: Channels | None = None

    def begin_auth(self, username: str) -> bool:
        """Everybody has to authenticate."""
        return True

    def public_key_auth_supported(self) -> bool:
        """With a key, and nothing else."""
        return True

    def _ready(self) -> Channels:
        if self.channels is None:
            raise ChannelOpenError(OPEN_RESOURCE_SHORTAGE, "not logged in")
        return self.channels

    def session_requested(self) -> Any:
        """A session channel."""
        return self._ready().session_requested()

    def connection_requested(self, dest_host: str, dest_port: int, orig_host: str, orig_port: int) -> Any:
        """A TCP connection from here (-L, -D, -W)."""
        return self._ready().connection_requested(dest_host, dest_port, orig_host, orig_port)

    def server_requested(self, listen_host: str, listen_port: int) -> Any:
        """A listening TCP port here (-R)."""
        return self._ready().server_requested(listen_host, listen_port)

    def unix_connection_requested(self, dest_path: str) -> Any:
        """A connection to a Unix-domain socket."""
        return self._ready().unix_connection_requested(dest_path)

    def unix_server_requested(self, listen_path: str) -> Any:
        """A listening Unix-domain socket."""
        return self._ready().unix_server_requested(listen_path)


class Connection(SSHServerConnection):
    """A server connection whose users the monitor authenticates."""

    def __init__(
        self,
        loop: Any,
        options: asyncssh.SSHServerConnectionOptions,
        settings: SshdSettings,
        owner: Owner,
        monitor: Caller,
    ) -> None:
        super().__init__(loop, options)
        self._protocol_factory = lambda: owner
        self._settings = settings
        self._monitor = monitor
        self._answered_no = 0

    async def reload_config(self) -> None:
        """There is no file that could say something else for a user."""

    def data_received(self, data: bytes, datatype: Any = None) -> None:
        """Take what came; a client that sends on while it has to wait for an answer is ended."""
        super().data_received(data, datatype)
        most = MAX_WAITING_LATER if self._auth_complete else MAX_WAITING + self._max_recv_pktlen
        if len(self._inpbuf) > most:
            self.abort()

    def add_channel(self, chan: Any) -> int:
        """Number a channel. Raises ChannelOpenError if there are too many."""
        if len(self._channels) >= self._settings.max_channels:
            raise ChannelOpenError(OPEN_RESOURCE_SHORTAGE, "too many channels in this connection")
        return super().add_channel(chan)

    def send_userauth_failure(self, partial_success: bool) -> None:
        """Say no, but not for ever. Raises DisconnectError."""
        self._answered_no += 1
        if self._answered_no > MAX_FAILURES:
            raise _too_many()
        super().send_userauth_failure(partial_success)

    async def validate_public_key(self, username: str, key_data: bytes, msg: bytes, signature: bytes) -> bool:
        """Ask the monitor whether a key would do, or log its owner in. Raises DisconnectError after too many."""
        if len(key_data) > MAX_KEY or len(signature) > MAX_SIGNATURE:
            return False
        try:
            if not msg:
                answer = await self._monitor.call("allowed", user=username, key=messages.encode_bytes(key_data))
                return answer.fields.get("allowed") is True
            answer = await self._monitor.call(
                "authenticate",
                user=username,
                message=messages.encode_bytes(String(self._session_id) + msg),
                signature=messages.encode_bytes(signature),
            )
        except MessageError:
            return False
        except Refused:
            raise _too_many() from None
        if answer.fields.get("allowed") is not True:
            if text := answer.fields.get("text"):
                self.send_auth_banner(f"{text}\n")
            return False
        self._log_in(answer.fields, answer.fds)
        return True

    def _log_in(self, fields: Mapping[str, Any], fds: Sequence[int]) -> None:
        sock = socket.socket(fileno=fds[0])
        host = Caller(sock, self._host_event, self._host_ended)
        permission = Permission.from_json(fields["permission"])
        assert isinstance(self._owner, Owner)
        self._owner.channels = Channels(self, host, self._monitor, permission, self._settings)

    def _host_event(self, event: dict[str, Any], fds: list[int]) -> None:
        assert isinstance(self._owner, Owner)
        assert self._owner.channels is not None
        self._owner.channels.event(event, fds)

    def _host_ended(self) -> None:
        self.abort()


def _too_many() -> DisconnectError:
    return DisconnectError(DISC_NO_MORE_AUTH_METHODS_AVAILABLE, "Too many authentication failures")
