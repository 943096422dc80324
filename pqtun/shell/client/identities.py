"""The keys to log in with, in ssh(1)'s order: certificates, the agent's, then files.

A file's private key is read only when the server says that it takes the public one, as it may need a passphrase.
"""

from __future__ import annotations

import asyncio
import os
from collections.abc import AsyncIterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Final

import asyncssh

from pqtun.protocol.errors import UserError
from pqtun.shell import keyfile
from pqtun.shell.client.config import Config
from pqtun.shell.client.ui import UserInterface
from pqtun.shell.ssh import CERTIFICATE_ALGORITHMS, KEY_ALGORITHMS

DEFAULT_FILES: Final = ("~/.ssh/id_mldsa44_ed25519", "~/.ssh/id_ed25519", "~/.ssh/id_ed25519_sk")
_BARE: Final = dict(zip(CERTIFICATE_ALGORITHMS, KEY_ALGORITHMS, strict=True))
_RSA: Final = ("rsa-sha2-512", "rsa-sha2-256")
_CERTIFICATE_ENDS: Final = ("-cert-v01@openssh.com", "-cert")


def signature_algorithms(algorithm: str) -> tuple[str, ...]:
    """Return the algorithms that a key or certificate of a type can sign with."""
    for end in _CERTIFICATE_ENDS:
        if algorithm not in _BARE and algorithm.endswith(end):
            algorithm = algorithm.removesuffix(end) + ("@openssh.com" if algorithm.startswith("sk-") else "")
    algorithm = _BARE.get(algorithm, algorithm)
    return _RSA if algorithm == "ssh-rsa" else (algorithm,)


class KeyPair(asyncssh.SSHKeyPair):
    """A public key or certificate whose private part is elsewhere."""

    def __init__(self, algorithm: str, public: bytes, comment: str) -> None:
        """``public``: the encoding of the key or certificate."""
        signing = tuple(name.encode() for name in signature_algorithms(algorithm))
        super().__init__(algorithm.encode(), signing[0], signing, signing, public, comment)
        self._certificate = algorithm in CERTIFICATE_ALGORITHMS or algorithm.endswith(_CERTIFICATE_ENDS)

    @property
    def has_cert(self) -> bool:
        """See asyncssh: whether the algorithm stays when that of the signature is chosen."""
        return self._certificate

    async def sign_async(self, data: bytes) -> bytes:
        """Sign. Raises ValueError if that cannot be: the next key is tried then."""
        raise NotImplementedError


class AgentKeyPair(KeyPair):
    """A key of the agent's; ``shown`` is the certificate for it, if another than the agent's."""

    def __init__(self, agent: asyncssh.SSHAgentClient, blob: bytes, comment: str, shown: bytes | None = None) -> None:
        """``blob``: what the agent knows the key by."""
        super().__init__(algorithm_of(shown or blob), shown or blob, comment)
        self._agent = agent
        self._blob = blob

    async def sign_async(self, data: bytes) -> bytes:
        """Have the agent sign."""
        flags = {b"rsa-sha2-256": 2, b"rsa-sha2-512": 4}.get(self.sig_algorithm, 0)  # PROTOCOL.agent
        return await self._agent.sign(self._blob, data, flags)


class FileKeyPair(KeyPair):
    """A key in a file."""

    def __init__(self, path: Path, public: bytes, comment: str, ui: UserInterface) -> None:
        """``public``: the key in the file, or a certificate for it."""
        super().__init__(algorithm_of(public), public, comment)
        self._path = path
        self._ui = ui
        self._asked = 0

    async def sign_async(self, data: bytes) -> bytes:
        """Read the private key, ask for its passphrase if need be, and sign."""
        try:
            key = keyfile.load_private(self._path, self._passphrase)
        except keyfile.EncryptedError as error:
            self._ui.debug(str(error))
            raise ValueError("no passphrase") from None
        except UserError as error:
            self._ui.say(str(error))
            raise ValueError("not loaded") from None
        return key.sign(data, self.sig_algorithm)

    def _passphrase(self, path: Path) -> str:
        return self._ui.ask(f"Enter passphrase for key '{path}': ", echo=False) or ""


@dataclass(frozen=True)
class _Public:
    path: Path  # of the private key
    blob: bytes
    comment: str
    certificate: bool = False


def algorithm_of(blob: bytes) -> str:
    """Return the name that a key's or certificate's encoding begins with; "" if it is none."""
    length = int.from_bytes(blob[:4], "big")
    return blob[4 : 4 + length].decode("ascii", errors="replace") if 0 < length <= len(blob) - 4 else ""


def agent_path(config: Config) -> str | None:
    """Return the socket of the agent to ask, None if there is none."""
    path = os.environ.get("SSH_AUTH_SOCK") if config.identityagent is None else config.identityagent
    return None if not path or path == "none" else path


class Identities:
    """What one login may offer."""

    def __init__(self, config: Config, allowed: Sequence[str], ui: UserInterface) -> None:
        """``allowed``: the signature algorithms in use (PubkeyAcceptedAlgorithms)."""
        self._config = config
        self._allowed = allowed
        self._ui = ui
        self._agent: asyncssh.SSHAgentClient | None = None

    async def offers(self) -> AsyncIterator[asyncssh.SSHKeyPair]:
        """Yield key after key; each is looked for when the one before was refused."""
        if self._config.pubkeyauthentication == "no":
            return
        files = self._files()
        held = await self._held()
        offered: set[bytes] = set()
        for pair in self._ordered(files, held):
            if pair.public_data not in offered and self._fits(pair):
                offered.add(pair.public_data)
                self._ui.debug(f"Offering public key: {pair.get_comment()} {pair.get_algorithm()}")
                yield pair

    def close(self) -> None:
        """Leave the agent."""
        if self._agent is not None:
            self._agent.close()

    def _ordered(self, files: Sequence[_Public], held: Sequence[tuple[bytes, str]]) -> list[KeyPair]:
        blobs = dict(held)
        named = {public.blob for public in files}
        certificates = [public for public in files if public.certificate]
        keys = [public for public in files if not public.certificate]
        pairs = [self._from_file(public, blobs) for public in certificates]
        pairs += [self._from_file(public, blobs) for public in keys if public.blob in blobs]
        if not self._config.identitiesonly and self._agent is not None:
            agent = self._agent
            pairs += [AgentKeyPair(agent, blob, comment) for blob, comment in held if blob not in named]
        return pairs + [self._from_file(public, blobs) for public in keys if public.blob not in blobs]

    def _from_file(self, public: _Public, held: dict[bytes, str]) -> KeyPair:
        comment = str(public.path)
        if self._agent is not None:
            if public.blob in held:
                return AgentKeyPair(self._agent, public.blob, comment)
            key = _certified(public.blob) if public.certificate else None
            if key in held:
                return AgentKeyPair(self._agent, key, comment, public.blob)
        return FileKeyPair(public.path, public.blob, comment, self._ui)

    def _fits(self, pair: KeyPair) -> bool:
        if any(name in self._allowed for name in signature_algorithms(pair.get_algorithm())):
            if not (isinstance(pair, FileKeyPair) and pair.get_algorithm().startswith("sk-")):
                return True
            self._ui.say(f"{pair.get_comment()}: keys of security keys are used through ssh-agent only; ssh-add it")
        elif isinstance(pair, FileKeyPair):
            self._ui.say(
                f"{pair.get_comment()}: a key of type {pair.get_algorithm()} is not used, as it is not among "
                "PubkeyAcceptedAlgorithms; `pqtun ssh-keygen -t mldsa44-ed25519` makes a post-quantum one"
            )
        else:
            self._ui.debug(f"the agent's {pair.get_algorithm()} key {pair.get_comment()} is not used")
        return False

    def _files(self) -> list[_Public]:
        given = self._config.identityfile
        found: list[_Public] = []
        for name in given or map(os.path.expanduser, DEFAULT_FILES):
            path = Path(name)
            if given and not path.exists() and not keyfile.beside(path).exists():
                self._ui.say(f"Warning: Identity file {path} not accessible: No such file or directory.")
                continue
            public = self._public(path, given=bool(given))
            if public is None:
                continue
            found.append(public)
            beside = keyfile.beside(public.path, "-cert.pub")
            found += self._certificate(public.path, beside) if beside.exists() else []
        for name in self._config.certificatefile:
            beside = Path(name.removesuffix("-cert.pub"))
            for certificate in self._certificate(beside, Path(name)):
                key = _certified(certificate.blob)
                paths = (public.path for public in found if public.blob == key)
                found.append(replace(certificate, path=next(paths, beside)))
        return found

    def _public(self, path: Path, *, given: bool) -> _Public | None:
        """What is public of a key; NAME.pub first, as the private file need not be there or be readable."""
        private = path.with_suffix("") if path.suffix == ".pub" else path
        for source in (keyfile.beside(private), path):
            if source.exists():
                try:
                    key = keyfile.load_public(source)
                except UserError as error:
                    if given and source == path:
                        self._ui.say(f'Load key "{path}": {error}')
                    continue
                return _Public(private, key.public_data, str(path))
        return None

    def _certificate(self, private: Path, path: Path) -> list[_Public]:
        try:
            certificate = keyfile.load_certificate(path)
        except UserError as error:
            self._ui.say(str(error))
            return []
        return [_Public(private, certificate.public_data, str(path), certificate=True)]

    async def _held(self) -> list[tuple[bytes, str]]:
        path = agent_path(self._config)
        if path is None:
            return []
        self._agent = asyncssh.SSHAgentClient(path)
        try:
            async with asyncio.timeout(10):
                keys = await self._agent.get_keys()
        except (ValueError, TimeoutError) as error:
            self._ui.debug(f"the agent at {path} does not answer: {error}")
            self._agent.close()
            self._agent = None
            return []
        return [(key.public_data, (key.get_comment_bytes() or b"").decode(errors="replace")) for key in keys]


def _certified(blob: bytes) -> bytes | None:
    """Return the key that a certificate is about."""
    try:
        return asyncssh.import_certificate(_line(blob)).key.public_data
    except (ValueError, TypeError):
        return None


def _line(blob: bytes) -> bytes:
    import binascii

    return algorithm_of(blob).encode() + b" " + binascii.b2a_base64(blob, newline=False)
