import asyncio
import socket
import subprocess

import asyncssh
import pytest
from asyncssh.crypto import Curve25519DH
from asyncssh.kex import get_kex
from asyncssh.logging import logger
from asyncssh.packet import SSHPacket, String
from hypothesis import given
from hypothesis import strategies as st

from pqtun.protocol.constants import SNTRUP_CT_BYTES, SNTRUP_PK_BYTES
from pqtun.shell import sntrup
from pqtun.shell.sntrup import Sntrup761
from tests.shell import openssh

NAMES = [name.decode() for name in sntrup.NAMES]
OPENSSH_9 = NAMES[1]  # OpenSSH 9.2 has this one only


def test_both_sides_get_the_same_secret():
    client, server = Sntrup761(b"sntrup761"), Sntrup761(b"sntrup761")
    public = client.get_public()
    secret, ciphertext = server.encaps(public)
    assert len(public) == SNTRUP_PK_BYTES
    assert len(ciphertext) == SNTRUP_CT_BYTES
    assert len(secret) == 32
    assert client.decaps(ciphertext) == secret
    assert client.decaps(bytes(SNTRUP_CT_BYTES)) != secret


def test_keys_are_fresh():
    kem = Sntrup761(b"sntrup761")
    assert kem.get_public() != kem.get_public()
    assert kem.encaps(kem.get_public())[0] != kem.encaps(kem.get_public())[0]


@given(st.integers(0, 3000).filter(lambda size: size != SNTRUP_PK_BYTES))
def test_public_key_of_another_size(size):
    with pytest.raises(ValueError, match="ekem"):
        Sntrup761(b"sntrup761").encaps(bytes(size))


@given(st.integers(0, 3000).filter(lambda size: size != SNTRUP_CT_BYTES))
def test_ciphertext_of_another_size(size):
    kem = Sntrup761(b"sntrup761")
    kem.get_public()
    with pytest.raises(ValueError, match="ekem"):
        kem.decaps(bytes(size))


def test_no_key_pair():
    with pytest.raises(ValueError, match="no key pair"):
        Sntrup761(b"sntrup761").decaps(bytes(SNTRUP_CT_BYTES))


def test_repr_holds_no_secret():
    kem = Sntrup761(b"sntrup761")
    kem.get_public()
    assert repr(kem) == "Sntrup761()"


class Connection:
    """As much of a connection as a key exchange uses before it sends its answer."""

    logger = logger

    def __init__(self, client):
        self._client = client

    def is_client(self):
        return self._client

    def is_server(self):
        return not self._client


def exchange(client, name=NAMES[0]):
    return get_kex(Connection(client), name.encode())


GOOD_POINT = Curve25519DH().get_public()


@pytest.mark.parametrize("name", NAMES)
def test_hybrid_agrees(name):
    client, server = exchange(True, name), exchange(False, name)
    server._parse_client_key(SSHPacket(client._format_client_key()))
    shared = server._compute_server_shared()
    client._parse_server_key(SSHPacket(server._format_server_key()))
    assert client._compute_client_shared() == shared
    assert len(shared) == 4 + 64  # a string of SHA-512, not an integer: draft-ietf-sshm-ntruprime-ssh


@pytest.mark.parametrize("size", [0, 1, 31, 32, SNTRUP_PK_BYTES, SNTRUP_PK_BYTES + 31, SNTRUP_PK_BYTES + 33, 20000])
def test_client_values_of_another_size(size):
    server = exchange(False)
    server._parse_client_key(SSHPacket(String((bytes(SNTRUP_PK_BYTES) + GOOD_POINT + bytes(20000))[:size])))
    with pytest.raises(asyncssh.ProtocolError):
        server._compute_server_shared()


@pytest.mark.parametrize("size", [0, 1, 31, 32, SNTRUP_CT_BYTES, SNTRUP_CT_BYTES + 31, SNTRUP_CT_BYTES + 33, 20000])
def test_server_values_of_another_size(size):
    client = exchange(True)
    client._parse_server_key(SSHPacket(String((bytes(SNTRUP_CT_BYTES) + GOOD_POINT + bytes(20000))[:size])))
    with pytest.raises(asyncssh.ProtocolError):
        client._compute_client_shared()


def test_point_of_small_order():
    server = exchange(False)
    server._parse_client_key(SSHPacket(String(Sntrup761(b"").get_public() + bytes(32))))
    with pytest.raises(asyncssh.ProtocolError):
        server._compute_server_shared()


@pytest.mark.root
def test_client_with_sshd(tmp_path):
    async def run(sock, key):
        connection, _ = await asyncio.wait_for(
            asyncssh.create_connection(
                None,
                "pqtun.test",
                sock=sock,
                username="root",
                client_keys=[key],
                known_hosts=None,
                kex_algs=[OPENSSH_9],
                config=None,
                agent_path=None,
            ),
            30,
        )
        async with connection:
            assert connection._kex is None  # it is over
            assert connection._strict_kex
            done = await connection.run("echo through", check=True)
            assert done.stdout == "through\n"

    key = asyncssh.generate_private_key("ssh-ed25519")
    with openssh.sshd(tmp_path, key.export_public_key().decode(), f"KexAlgorithms {OPENSSH_9}") as sock:
        asyncio.run(run(sock, key))


def test_server_with_ssh(tmp_path):
    user = openssh.keygen(tmp_path / "user")

    class Server(asyncssh.SSHServer):
        def connection_made(self, conn):
            self._connection = conn

        def begin_auth(self, username):
            self._connection.set_authorized_keys(str(tmp_path / "user.pub"))
            return True

    async def run():
        path = tmp_path / "socket"
        listening = socket.socket(socket.AF_UNIX)
        listening.bind(str(path))
        server = await asyncssh.listen(
            sock=listening,
            server_factory=Server,
            server_host_keys=[asyncssh.generate_private_key("ssh-ed25519")],
            process_factory=lambda process: (process.stdout.write("served\n"), process.exit(3)),
            kex_algs=[OPENSSH_9],
        )
        argv = openssh.ssh_argv(tmp_path, path, "-i", str(user), "-o", f"KexAlgorithms={OPENSSH_9}")
        ssh = await asyncio.create_subprocess_exec(
            *argv, "anything", stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.PIPE
        )
        out, err = await asyncio.wait_for(ssh.communicate(), 30)
        server.close()
        await server.wait_closed()
        assert ssh.returncode == 3, err.decode()
        assert out == b"served\n"
        assert f"kex: algorithm: {OPENSSH_9}" in err.decode()

    asyncio.run(run())
