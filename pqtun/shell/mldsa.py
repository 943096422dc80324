"""Keys of type ssh-mldsa44-ed25519 for asyncssh: two signatures in one, post-quantum and classical.

Source: draft-miller-sshm-mldsa44-ed25519-composite-sigs, as OpenSSH 10.6 speaks it. A signature is good only if both of
its parts are. Certificates, agents and SSHSIG come with the key type, from asyncssh.
"""

from hashlib import sha512
from typing import Final

from asyncssh import agent
from asyncssh.crypto import CryptoKey
from asyncssh.packet import SSHPacket, String
from asyncssh.public_key import (
    KeyExportError,
    KeyImportError,
    SSHKey,
    SSHOpenSSHCertificateV01,
    register_certificate_alg,
    register_public_key_alg,
)
from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey, Ed25519PublicKey
from cryptography.hazmat.primitives.asymmetric.mldsa import MLDSA44PrivateKey, MLDSA44PublicKey

ALGORITHM: Final = b"ssh-mldsa44-ed25519"
CERTIFICATE_ALGORITHM: Final = b"ssh-mldsa44-ed25519-cert"

SEED_BYTES: Final = 32
"""Either part's private key in its short form."""

PRIVATE_BYTES: Final = 2 * SEED_BYTES
MLDSA_PUBLIC_BYTES: Final = 1312
PUBLIC_BYTES: Final = MLDSA_PUBLIC_BYTES + 32
MLDSA_SIGNATURE_BYTES: Final = 2420
SIGNATURE_BYTES: Final = MLDSA_SIGNATURE_BYTES + 64

_LABEL: Final = b"COMPSIG-MLDSA44-Ed25519-SHA512"
_PREFIX: Final = b"CompositeAlgorithmSignatures2025" + _LABEL + b"\0"  # 0: the length of the empty context


def _representative(message: bytes) -> bytes:
    """What both parts sign."""
    return _PREFIX + sha512(message).digest()


class PublicPair(CryptoKey):
    """Both public keys."""

    def __init__(self, public: bytes) -> None:
        """`public` is ML-DSA-44's key, then Ed25519's: 1344 bytes (ValueError otherwise)."""
        if len(public) != PUBLIC_BYTES:
            raise ValueError(f"a public key has {PUBLIC_BYTES} bytes")
        self.public = public
        self._mldsa = MLDSA44PublicKey.from_public_bytes(public[:MLDSA_PUBLIC_BYTES])
        self._ed25519 = Ed25519PublicKey.from_public_bytes(public[MLDSA_PUBLIC_BYTES:])

    def verify(self, data: bytes, sig: bytes, hash_name: str = "") -> bool:
        """Whether `sig` has the right length and both of its parts are good."""
        if len(sig) != SIGNATURE_BYTES:
            return False
        signed = _representative(data)
        try:
            self._mldsa.verify(sig[:MLDSA_SIGNATURE_BYTES], signed, _LABEL)
            self._ed25519.verify(sig[MLDSA_SIGNATURE_BYTES:], signed)
        except InvalidSignature:
            return False
        return True


class PrivatePair(PublicPair):
    """Both private keys."""

    def __init__(self, seeds: bytes) -> None:
        """`seeds` is ML-DSA-44's seed, then Ed25519's: 64 bytes (ValueError otherwise)."""
        if len(seeds) != PRIVATE_BYTES:
            raise ValueError(f"a private key has {PRIVATE_BYTES} bytes")
        self._mldsa_private = MLDSA44PrivateKey.from_seed_bytes(seeds[:SEED_BYTES])
        self._ed25519_private = Ed25519PrivateKey.from_private_bytes(seeds[SEED_BYTES:])
        parts = (self._mldsa_private, self._ed25519_private)
        super().__init__(b"".join(part.public_key().public_bytes_raw() for part in parts))

    @classmethod
    def generate(cls) -> "PrivatePair":
        """A fresh pair, of the system's random numbers."""
        parts = (MLDSA44PrivateKey.generate(), Ed25519PrivateKey.generate())
        return cls(b"".join(part.private_bytes_raw() for part in parts))

    @property
    def seeds(self) -> bytes:
        """Both seeds, as key files hold them."""
        return self._mldsa_private.private_bytes_raw() + self._ed25519_private.private_bytes_raw()

    def sign(self, data: bytes, hash_name: str = "") -> bytes:
        """ML-DSA-44's signature (randomised), then Ed25519's: 2484 bytes."""
        signed = _representative(data)
        return self._mldsa_private.sign(signed, _LABEL) + self._ed25519_private.sign(signed)


class CompositeKey(SSHKey):
    """A public or private key in asyncssh's registry, made by its functions (`asyncssh.generate_private_key`, ...)."""

    _key: PublicPair

    algorithm = ALGORITHM
    sig_algorithms = (ALGORITHM,)
    all_sig_algorithms = {ALGORITHM}  # noqa: RUF012  # asyncssh says which type these have

    def __eq__(self, other: object) -> bool:
        return (
            isinstance(other, CompositeKey)
            and self._key.public == other._key.public
            and isinstance(self._key, PrivatePair) == isinstance(other._key, PrivatePair)
        )

    def __hash__(self) -> int:
        return hash(self._key.public)

    @classmethod
    def generate(cls, algorithm: bytes, **kwargs: object) -> "CompositeKey":
        """A fresh private key. No parameter is known (ValueError)."""
        if kwargs:
            raise ValueError(f"{algorithm.decode()} keys have no {' and no '.join(kwargs)}")
        return cls(PrivatePair.generate())

    @classmethod
    def make_private(cls, key_params: object) -> "CompositeKey":
        """A private key of what `decode_ssh_private` returned. KeyImportError if the parts do not fit."""
        public, seeds = _pair_of_bytes(key_params)
        try:
            pair = PrivatePair(seeds)
        except ValueError:
            raise KeyImportError("Invalid ML-DSA-44 and Ed25519 private key") from None
        if pair.public != public:
            raise KeyImportError("The public half of the private key does not belong to it")
        return cls(pair)

    @classmethod
    def make_public(cls, key_params: object) -> "CompositeKey":
        """A public key of what `decode_ssh_public` returned. KeyImportError if it is none."""
        public, _ = _pair_of_bytes(key_params)
        try:
            return cls(PublicPair(public))
        except ValueError:
            raise KeyImportError("Invalid ML-DSA-44 and Ed25519 public key") from None

    @classmethod
    def decode_ssh_private(cls, packet: SSHPacket) -> tuple[bytes, bytes]:
        """Both strings of a private key after its name: public keys, seeds."""
        return packet.get_string(), packet.get_string()

    @classmethod
    def decode_ssh_public(cls, packet: SSHPacket) -> tuple[bytes, bytes]:
        """The string of a public key after its name, and nothing in the place of the seeds."""
        return packet.get_string(), b""

    def encode_ssh_private(self) -> bytes:
        """What `decode_ssh_private` reads. KeyExportError for a public key."""
        return String(self._key.public) + String(self._private().seeds)

    def encode_ssh_public(self) -> bytes:
        """What `decode_ssh_public` reads."""
        return String(self._key.public)

    def encode_agent_cert_private(self) -> bytes:
        """What follows a certificate that is given to an agent: the seeds alone, as the public half is in it."""
        return String(self._private().seeds)

    def _private(self) -> PrivatePair:
        if not isinstance(self._key, PrivatePair):
            raise KeyExportError("Key is not private")
        return self._key

    def sign_ssh(self, data: bytes, sig_algorithm: bytes) -> bytes:
        """The signature as a string. ValueError for a public key."""
        if not isinstance(self._key, PrivatePair):
            raise ValueError("Private key needed for signing")
        return String(self._key.sign(data))

    def verify_ssh(self, data: bytes, sig_algorithm: bytes, packet: SSHPacket) -> bool:
        """Whether the rest of the signature blob, a string, signs `data`. PacketDecodeError for anything else."""
        signature = packet.get_string()
        packet.check_end()
        return self._key.verify(data, signature)


def _pair_of_bytes(key_params: object) -> tuple[bytes, bytes]:
    match key_params:
        case (bytes() as public, bytes() as seeds):
            return public, seeds
    raise KeyImportError("Invalid ML-DSA-44 and Ed25519 key")


class AgentKeyPair(agent.SSHAgentKeyPair):
    """A key in an agent. asyncssh knows certificates by how their algorithm's name ends, and ours ends otherwise."""

    def __init__(self, client: agent.SSHAgentClient, algorithm: bytes, public_data: bytes, comment: bytes) -> None:
        super().__init__(client, algorithm, public_data, comment)
        if algorithm == CERTIFICATE_ALGORITHM:
            self._is_cert = True
            self.sig_algorithm = ALGORITHM
            self.sig_algorithms = (ALGORITHM,)


def register() -> None:
    """Adds the key type and its certificates to asyncssh's registry, and to what it knows of agents."""
    agent.SSHAgentKeyPair = AgentKeyPair  # type: ignore[assignment, misc]
    register_public_key_alg(ALGORITHM, CompositeKey, True)
    register_certificate_alg(1, ALGORITHM, CERTIFICATE_ALGORITHM, CompositeKey, SSHOpenSSHCertificateV01, True)
