"""Whether a user has signed with the key that lets him in."""

from typing import Final

from pqtun.shell.sshd import certificates
from pqtun.shell.sshd.certificates import CertificateError, Reader
from pqtun.shell.sshd.permission import Permission

_SECURITY_KEY: Final = "sk-ssh-ed25519@openssh.com"
USER_VERIFIED: Final = 0x04  # SSH_SK_USER_VERIFICATION_REQD, PROTOCOL.u2f of OpenSSH


def verify(permission: Permission, key_blob: bytes, message: bytes, signature: bytes) -> bool:
    """Whether `signature` over `message` is that of the key, or of the key in the certificate, `key_blob`.

    Of a security key also whether its owner touched it, and gave PIN or fingerprint, where `permission` wants that.
    """
    try:
        if certificates.type_of(key_blob) in certificates.KEY_TYPES:
            key_blob = certificates.decode(key_blob).key_blob
        if certificates.type_of(key_blob) != permission.key_type:
            return False
        if permission.key_type == _SECURITY_KEY and permission.verify_required and not _user_verified(signature):
            return False
    except CertificateError:
        return False
    return certificates.verify_signature(
        key_blob, message, signature, touch_required=permission.key_type == _SECURITY_KEY and permission.touch_required
    )


def _user_verified(signature: bytes) -> bool:
    """The flags of a security key's signature: algorithm, signature, flags, counter. They are signed themselves."""
    reader = Reader(signature)
    reader.string()
    reader.string()
    rest = signature[reader.position :]
    return len(rest) == 5 and bool(rest[0] & USER_VERIFIED)
