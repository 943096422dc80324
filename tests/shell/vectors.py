"""The recorded ssh-mldsa44-ed25519 key, and what OpenSSH 10.6 made with it (tests/vectors/ssh)."""

from pathlib import Path

from tests.protocol.vectors import VECTORS

SSH = VECTORS / "ssh"


def armoured(name: str, kind: str) -> bytes:
    """A file whose armour lines are not in the repository."""
    body = (SSH / f"{name}.base64").read_bytes()
    return b"-----BEGIN %s-----\n%s-----END %s-----\n" % (kind.encode(), body, kind.encode())


def private_key(name: str = "id_mldsa44_ed25519") -> bytes:
    return armoured(name, "OPENSSH PRIVATE KEY")


def place(directory: Path, name: str = "id_mldsa44_ed25519") -> Path:
    """A copy of a private key as a file that may be read."""
    path = directory / name
    path.write_bytes(private_key(name))
    path.chmod(0o600)
    return path
