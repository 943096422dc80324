"""Known answers recorded from PQConnect (see tests/vectors/README.md)."""

import json
from functools import cache
from pathlib import Path
from typing import Any

from pqtun.protocol.handshake import ServerSecretKey
from pqtun.protocol.keytree import ServerPublicKey

VECTORS = Path(__file__).parent.parent / "vectors"


@cache
def load(name: str) -> Any:
    return json.loads((VECTORS / name).read_text())


def key_file(name: str) -> bytes:
    return (VECTORS / "server-keys" / name).read_bytes()


@cache
def public_key() -> ServerPublicKey:
    return ServerPublicKey(key_file("mceliece_pk"), key_file("x25519_pk"))


@cache
def secret_key() -> ServerSecretKey:
    return ServerSecretKey(key_file("mceliece_sk"), key_file("x25519_sk"))
