"""A monitor whose worker and listener are the test: what it says to whatever they say. Inside World.call."""

from __future__ import annotations

import contextlib
import os
import signal
import socket
import struct
import subprocess
from collections.abc import Mapping, Sequence
from dataclasses import replace
from ipaddress import IPv4Address
from pathlib import Path
from types import TracebackType
from typing import Any

from pqtun.daemon.settings import SshdSettings
from pqtun.shell import ssh

ssh.prepare()

import asyncssh  # noqa: E402

from pqtun.shell.sshd import confinement, messages, process  # noqa: E402
from pqtun.shell.sshd.authentication import Authentication  # noqa: E402
from pqtun.shell.sshd.link import Link  # noqa: E402
from pqtun.shell.sshd.login import Login  # noqa: E402
from pqtun.shell.sshd.monitor import Monitor, Worker  # noqa: E402
from pqtun.shell.sshd.signer import Signer  # noqa: E402
from tests.net.process import wait_until  # noqa: E402

CLIENT = IPv4Address("10.42.0.7")
HASH = bytes(range(32))
SETTINGS = SshdSettings(pam=None, max_channels=3)
PATIENCE = 20.0


def string(data: bytes) -> bytes:
    return struct.pack(">I", len(data)) + data


class Rig:
    """A context; `calls` and `signing` are the worker's ends, `link` is the listener's."""

    def __init__(self, run: Path = Path("/run"), **settings: Any) -> None:
        self.settings = replace(SETTINGS, run=run, **settings)
        self.key = asyncssh.generate_private_key("ssh-ed25519")
        self.algorithm = self.key.get_algorithm()

    def __enter__(self) -> Rig:
        self.signer = Signer(Path("/run/keys"), confinement.empty_directory(Path("/run")))
        self.calls, calls = messages.pair()
        self.signing, signing = messages.pair()
        self.link, link = messages.pair()
        signer = self.signer.connect()
        for sock in (self.calls, self.signing, self.link):
            sock.settimeout(PATIENCE)
        ours = [self.calls, self.signing, self.link]
        # Stands for the worker's process, which the monitor kills in the end and whose end is the monitor's.
        self.worker = 0
        self._gate, gate = os.pipe()

        def be_monitor() -> None:
            os.close(self._gate)
            for sock in ours:
                sock.close()
            self.worker = process.start("worker", signal.pause)
            os.write(gate, str(self.worker).encode())
            login = Login(
                settings=self.settings,
                name="tests-1",
                source=str(CLIENT),
                source_port=40000,
                own="10.42.0.1",
                own_port=1,
            )
            Monitor(
                Worker(self.worker, calls, signing),
                login,
                CLIENT,
                Authentication(self.settings),
                Link(link, self.settings.run),
                signer,
            ).run()

        self.pid = process.start("monitor", be_monitor)
        os.close(gate)
        self.worker = int(os.read(self._gate, 20))
        for sock in (calls, signing, link, signer):
            sock.close()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        process.kill(self.pid)
        if self.worker:
            with contextlib.suppress(ProcessLookupError):
                os.kill(self.worker, signal.SIGKILL)
        self.signer.close()

    @property
    def ended(self) -> bool:
        return process.ended(self.pid)

    def wait_end(self) -> None:
        wait_until(lambda: self.ended, PATIENCE, "the end of the monitor")

    def descriptors(self) -> int:
        return len(os.listdir(f"/proc/{self.pid}/fd"))

    # -- as the worker ---------------------------------------------------------------------------

    def ask(self, op: str, fds: Sequence[int] = (), **fields: object) -> dict[str, Any]:
        """The answer to a question, without its id; descriptors go to `self.fds`."""
        messages.send(self.calls, {"id": 5, "op": op, **fields}, fds)
        answer, self.fds = messages.receive(self.calls)
        assert answer.pop("id") == 5
        return answer

    def sign(self, data: bytes = HASH, algorithm: str = "ssh-ed25519") -> dict[str, Any]:
        fields = {"algorithm": algorithm, "data": messages.encode_bytes(data)}
        messages.send(self.signing, {"id": 0, **fields})
        return messages.receive(self.signing)[0]

    def allowed(self, user: str, key: bytes | None = None) -> dict[str, Any]:
        return self.ask("allowed", user=user, key=messages.encode_bytes(key or self.key.public_data))

    def request(self, user: str = "alice", session_id: bytes = HASH) -> bytes:
        algorithm = string(self.algorithm.encode())
        words = string(b"ssh-connection") + string(b"publickey") + b"\1"
        return string(session_id) + b"\x32" + string(user.encode()) + words + algorithm + string(self.key.public_data)

    def authenticate(
        self, user: str = "alice", signed: bytes | None = None, signature: bytes | None = None
    ) -> dict[str, Any]:
        signed = self.request(user) if signed is None else signed
        signature = self.key.sign(signed, self.key.algorithm) if signature is None else signature
        fields = {"message": messages.encode_bytes(signed), "signature": messages.encode_bytes(signature)}
        messages.send(self.calls, {"id": 5, "op": "authenticate", "user": user, **fields})
        return {}

    def log_in(self, **answer: object) -> dict[str, Any]:
        """Authenticate as alice; the listener's answer is that she may."""
        self.sign()
        self.authenticate()
        assert messages.receive(self.link)[0] == {"op": "authenticated", "user": "alice"}
        messages.send(self.link, answer or {"allowed": True})
        return self.answer()

    def answer(self) -> dict[str, Any]:
        found, self.fds = messages.receive(self.calls)
        assert found.pop("id") == 5
        return found

    # -- as the listener -------------------------------------------------------------------------

    def audited(self) -> Mapping[str, Any]:
        message, _ = messages.receive(self.link)
        assert message["op"] == "audit"
        event: Mapping[str, Any] = message["event"]
        return event


def allow(rig: Rig, user: str = "alice", options: str = "") -> None:
    """Put the rig's key into a user's authorized_keys."""
    path = Path(f"/home/{user}/.ssh/authorized_keys")
    path.parent.mkdir(mode=0o700, exist_ok=True)
    path.write_text(f"{options} {rig.key.export_public_key().decode()}".lstrip())
    subprocess.run(["chown", "-R", f"{user}:{user}", str(path.parent)], check=True, timeout=10)


def host_ended(sock: socket.socket) -> bool:
    """Whether the user's process has closed its end."""
    try:
        messages.receive(sock)
    except EOFError:
        return True
    return False
