"""Connects and logs in: ssh_config, the tunnel, jump hosts, the host key, agent and identities."""

from __future__ import annotations

import asyncio
import errno
import logging
import os
import socket
from collections.abc import AsyncIterator, Sequence
from concurrent.futures import Future
from functools import partial
from pathlib import Path
from typing import Any, Final

from pqtun.protocol.errors import UserError
from pqtun.shell import ssh

ssh.prepare()  # before whatever else imports asyncssh

import asyncssh  # noqa: E402

from pqtun.shell.client import transport, tunnel  # noqa: E402
from pqtun.shell.client.ahead import Found  # noqa: E402
from pqtun.shell.client.config import Config, resolve  # noqa: E402
from pqtun.shell.client.hostkeys import HostKey, KnownHosts, TunnelKeys, Verifier  # noqa: E402
from pqtun.shell.client.identities import Identities, agent_path  # noqa: E402
from pqtun.shell.client.loginfaults import Mistrust, Refusal, Unreachable  # noqa: E402
from pqtun.shell.client.options import Options, split_hop  # noqa: E402
from pqtun.shell.client.printable import printable  # noqa: E402
from pqtun.shell.client.ui import UserInterface  # noqa: E402

MAX_HOPS: Final = 16
LOGIN_SECONDS: Final = 120
WINDOW: Final = 2 << 20  # bytes


async def connect(
    options: Options, *, ui: UserInterface, config: Config | None = None, begun: Future[Found] | None = None
) -> asyncssh.SSHClientConnection:
    """Return a connection that is logged in; its jump hosts are closed with it.

    ``config``: what config.resolve(options) gave, if it was asked already; ``begun``: what ahead.start() gave. Raises
    UserError (one line as ssh's users know it: no tunnel, unknown host, refused, wrong host key, no key accepted).
    """
    return await _connect(options, config or resolve(options), ui, depth=0, begun=begun)


async def _connect(
    options: Options, config: Config, ui: UserInterface, depth: int, begun: Future[Found] | None = None
) -> asyncssh.SSHClientConnection:
    if depth > MAX_HOPS:
        raise UserError(f"more than {MAX_HOPS} jump hosts, or a loop among them")
    settings = _Settings(options, config, ui)
    if config.proxyjump is not None:
        hop_settings = hop_options(options, config, config.expand(config.proxyjump))
        hop = await _connect(hop_settings, resolve(hop_settings), ui, depth + 1)
        try:
            connection = await settings.login(KnownHosts(config, None, ui), tunnel=hop)
        except BaseException:
            hop.close()
            raise
        connection.set_tunnel(hop)
        return connection
    if config.proxycommand is not None:
        if not options.direct:
            raise UserError(
                "ProxyCommand: where it leads cannot be known, so there may be no tunnel; --direct allows it"
            )
        stream = transport.proxied(config)
        connection = await settings.login(KnownHosts(config, None, ui), sock=stream.sock)
        connection.set_extra_info(proxy_command=stream.process)  # which lives as long
        return connection
    found = Found(await transport.resolve(config)) if begun is None else await asyncio.wrap_future(begun)
    return await _over_tcp(options, config, ui, settings, found)


async def _over_tcp(
    options: Options, config: Config, ui: UserInterface, settings: _Settings, found: Found
) -> asyncssh.SSHClientConnection:
    """Try the host's addresses in turn; outside tunnels only with --direct."""
    run = None if options.run is None else Path(options.run)
    failure: UserError | None = None
    for attempt in range(max(1, config.connectionattempts)):
        if attempt:
            await asyncio.sleep(1)
        for address in found.addresses:
            shown = str(address[1][0])
            sock, known = found.take(address), found.known
            try:
                if sock is not None:
                    ui.debug(f"Connected to {config.hostname} [{shown}] port {config.port}.")
                else:
                    known = None if options.direct else tunnel.identify(config.hostname, shown, run)
                    sock = (await transport.connect(config, address, ui)).sock
            except (OSError, TimeoutError) as error:
                # asyncio's own text is about a call; ssh's users know the error's name.
                named = isinstance(error, socket.gaierror) and error.strerror
                reason = named or os.strerror(error.errno or errno.ETIMEDOUT)
                failure = Unreachable(f"connect to host {config.hostname} port {config.port}: {reason}")
                ui.debug(f"connect to address {shown} port {config.port}: {reason}")
                continue
            keys: Verifier
            if known is None:
                keys = KnownHosts(config, shown, ui)
            else:
                ui.debug(f"The tunnel to {shown} has proved the key hash {known.keyhash} of {known.name}.")
                confirm = partial(tunnel.confirm, known, config.hostname, shown, run)
                keys = TunnelKeys(known.keyhash, config.port, ui, confirm=confirm)
            return await settings.login(keys, sock=sock)
    assert failure is not None
    raise failure


def hop_options(options: Options, config: Config, jump: str) -> Options:
    """Return the options for the last jump host, which is reached through those before it.

    As with ssh, the configuration speaks for each hop, not the command line; but -v, -F and what we added hold.
    """
    before, _, last = jump.rpartition(",")
    user, host, port = split_hop(last.removeprefix("ssh://").rstrip("/"))
    if not host or host.startswith("-"):
        raise UserError(f"Invalid jump host {last!r}")
    settings: list[tuple[str, str]] = []
    if user is not None:
        settings.append(("user", user))
    if port is not None:
        settings.append(("port", port))
    if before:
        settings.append(("proxyjump", before))
    if config.batchmode:
        settings.append(("batchmode", "yes"))
    # A hop passes bytes on, so it is given nothing else.
    settings += [("clearallforwardings", "yes"), ("forwardagent", "no"), ("forwardx11", "no")]
    settings.append(("loglevel", config.loglevel))
    return Options(
        host=host, settings=settings, config_file=options.config_file, direct=options.direct, run=options.run
    )


class _Client(asyncssh.SSHClient):
    """What asyncssh asks while it logs in."""

    def __init__(self, verifier: Verifier, identities: Identities, ui: UserInterface) -> None:
        self._verifier = verifier
        self._ui = ui
        self._offers: AsyncIterator[asyncssh.SSHKeyPair] = identities.offers()
        self.fault: UserError | None = None
        self._connection: asyncssh.SSHClientConnection | None = None

    def connection_made(self, conn: asyncssh.SSHClientConnection) -> None:
        """See asyncssh.SSHClient."""
        self._connection = conn
        loop = asyncio.get_running_loop()

        def ended() -> None:
            # What came last is looked at in a task, whose finding (no common algorithm) asyncssh would not wait for.
            loop.call_soon(conn.connection_lost, None)

        conn.eof_received = ended  # type: ignore[method-assign]

    def connection_lost(self, exc: Exception | None) -> None:
        """See asyncssh.SSHClient: tell how it ended, as the connection forgets us now."""
        if self._connection is not None:
            self._connection.set_extra_info(lost=exc)

    def validate_host_public_key(self, host: str, addr: str, port: int, key: asyncssh.SSHKey) -> bool:
        """See asyncssh.SSHClient: a key that is not among the known ones."""
        try:
            return self._verifier.accept(_host_key(key))
        except UserError as error:
            self.fault = error
            return False

    async def public_key_auth_requested(self) -> asyncssh.SSHKeyPair | None:
        """See asyncssh.SSHClient: the next key to offer."""
        return await anext(self._offers, None)

    def auth_banner_received(self, msg: str, lang: str) -> None:
        """See asyncssh.SSHClient."""
        self._ui.banner(msg)

    def learn(self, added: list[asyncssh.SSHKey], removed: object, retained: object, revoked: object) -> None:
        """The server has proved to have more keys."""
        keys = [_host_key(key) for key in added]
        self._verifier.learn([key for key in keys if key.algorithm in ssh.KEY_ALGORITHMS])


def _host_key(key: asyncssh.SSHKey) -> HostKey:
    return HostKey(key.get_algorithm(), key.public_data)


class _Settings:
    """What one connection tells asyncssh."""

    def __init__(self, options: Options, config: Config, ui: UserInterface) -> None:
        """Raises UserError for algorithms that cannot be."""
        self._config = config
        self._ui = ui
        classical = (*ssh.CLASSICAL_SIGNATURES, "ssh-rsa")
        self._signatures = _chosen(
            "PubkeyAcceptedAlgorithms", config.pubkeyacceptedalgorithms, ssh.SIGNATURE_ALGORITHMS, classical
        )
        self._host_keys = _chosen(
            "HostKeyAlgorithms", config.hostkeyalgorithms, ssh.HOST_KEY_ALGORITHMS, ssh.CLASSICAL_SIGNATURES
        )
        self._algorithms = {
            "kex_algs": _chosen("KexAlgorithms", config.kexalgorithms, ssh.KEX, ssh.CLASSICAL_KEX),
            "encryption_algs": _chosen("Ciphers", config.ciphers, ssh.CIPHERS, ()),
            "mac_algs": _chosen("MACs", config.macs, ssh.MACS, ()),
            "compression_algs": ("zlib@openssh.com", "none") if config.compression else ssh.COMPRESSION,
            "signature_algs": self._signatures,
        }
        _log_to(ui)

    async def login(self, verifier: Verifier, **way: Any) -> asyncssh.SSHClientConnection:
        """Exchange keys and log in; ``way``: the sock or the tunnel. Raises UserError."""
        config, ui = self._config, self._ui
        identities = Identities(config, self._signatures, ui)
        client = _Client(verifier, identities, ui)
        trusted, authorities, revoked = (_importable(blobs) for blobs in verifier.known())
        peer = _peer(config, way.get("sock"))
        seconds, loop = config.connecttimeout or LOGIN_SECONDS, asyncio.get_running_loop()
        try:
            async with asyncio.timeout(seconds) as limit:
                # What a person takes to answer is no delay of the server's.
                ui.answered = lambda: limit.reschedule(loop.time() + seconds)
                return await asyncssh.connect(
                    config.hostname,
                    config.port,
                    **way,
                    **self._algorithms,
                    config=None,
                    client_factory=lambda: client,
                    username=config.user,
                    known_hosts=lambda *_: (trusted, authorities, revoked),
                    host_key_alias=config.hostkeyalias,
                    server_host_key_algs=self._offered(verifier.preferred(), certified=bool(authorities)),
                    server_host_keys_handler=client.learn if isinstance(verifier, TunnelKeys) else None,
                    client_keys=None,
                    preferred_auth="publickey",
                    gss_kex=False,
                    gss_auth=False,
                    gss_host=None,
                    login_timeout=0,
                    tcp_keepalive=config.tcpkeepalive,
                    keepalive_interval=config.serveraliveinterval or 0,
                    keepalive_count_max=max(1, config.serveralivecountmax),
                    agent_forwarding=_forwarded_agent(config),
                    x509_trusted_certs=None,
                    encoding=None,
                    request_pty=False,
                    window=WINDOW,
                )
        except (asyncssh.Error, OSError, TimeoutError) as error:
            raise (Mistrust(str(client.fault)) if client.fault else _explained(error, config, peer)) from None
        except ValueError as error:  # asyncssh's option checks
            raise UserError(f"{config.hostname}: {error}") from None
        finally:
            ui.answered = None
            identities.close()

    def _offered(self, preferred: Sequence[str], *, certified: bool) -> list[str]:
        """Return host key algorithms: of known keys first, as ssh has it; certificates only where a CA is known."""
        usable = [name for name in self._host_keys if certified or name not in ssh.CERTIFICATE_ALGORITHMS]
        if self._config.hostkeyalgorithms is not None and not self._config.hostkeyalgorithms.startswith(("+", "^")):
            return usable
        first = [name for name in usable if name in preferred or (name.startswith("rsa-") and "ssh-rsa" in preferred)]
        certificates = [name for name in usable if name in ssh.CERTIFICATE_ALGORITHMS]
        return list(dict.fromkeys([*certificates, *first, *usable]))


def _chosen(option: str, text: str | None, ours: Sequence[str], named: Sequence[str]) -> tuple[str, ...]:
    return tuple(ours) if text is None else ssh.choose(option, text, ours, named)


def _importable(blobs: Sequence[bytes]) -> list[asyncssh.SSHKey]:
    """Return keys of the types that are known here; others cannot be shown by a server either."""
    keys = []
    for blob in blobs:
        try:
            keys.append(asyncssh.import_public_key(_public_line(blob)))
        except (ValueError, TypeError):
            continue
    return keys


def _public_line(blob: bytes) -> bytes:
    import binascii

    name = blob[4 : 4 + int.from_bytes(blob[:4], "big")]
    return name + b" " + binascii.b2a_base64(blob, newline=False)


def _forwarded_agent(config: Config) -> str | bool:
    if config.forwardagent == "no":
        return False
    return (agent_path(config) if config.forwardagent == "yes" else config.forwardagent) or False


def _peer(config: Config, sock: Any) -> str:
    try:
        address = sock.getpeername()
    except (AttributeError, OSError):
        address = None
    return f"{address[0]} port {address[1]}" if isinstance(address, tuple) else f"{config.hostname} port {config.port}"


def _explained(error: Exception, config: Config, peer: str) -> UserError:
    """Return what ssh says of it."""
    match error:
        case asyncssh.HostKeyNotVerifiable():
            return Mistrust("Host key verification failed.")
        case asyncssh.PermissionDenied():
            return Refusal(f"{config.user}@{config.hostname}: Permission denied (publickey).")
        case asyncssh.KeyExchangeFailed():
            return Refusal(f"Unable to negotiate with {peer}: {printable(str(error))}")
        case asyncssh.ConnectionLost() if "timeout" in str(error).lower():
            return Unreachable(f"Connection to {peer} timed out: {error}")
        case asyncssh.ConnectionLost():
            return Unreachable(f"Connection closed by {peer}")
        case asyncssh.ChannelOpenError():
            return Unreachable(
                f"jump host: channel open to {config.hostname}:{config.port} failed: {printable(error.reason)}"
            )
        case asyncssh.DisconnectError():
            return UserError(f"Received disconnect from {peer}: {printable(error.reason)}")
        case ConnectionResetError() | BrokenPipeError():
            return Unreachable(f"Connection reset by {peer}")
        case TimeoutError():
            return Unreachable(f"Connection to {peer} timed out")
        case _:
            return Unreachable(f"{peer}: {printable(str(error))}")


def _log_to(ui: UserInterface) -> None:
    """Have asyncssh's own log go where -v wants it; never a line of it otherwise."""
    logger = logging.getLogger("asyncssh")
    logger.propagate = False
    logger.handlers = [_Handler(ui)]
    verbosity = ui.verbosity
    logger.setLevel(logging.CRITICAL if verbosity == 0 else logging.INFO if verbosity == 1 else logging.DEBUG)
    asyncssh.set_debug_level(max(1, min(verbosity - 1, 2)))


class _Handler(logging.Handler):
    def __init__(self, ui: UserInterface) -> None:
        super().__init__()
        self._ui = ui

    def emit(self, record: logging.LogRecord) -> None:
        self._ui.debug(printable(record.getMessage()))
