"""Opens a TUN device (Linux Documentation/networking/tuntap.rst). Needs CAP_NET_ADMIN."""

import errno
import fcntl
import os
import struct

from pqtun.protocol.errors import UserError

DEVICE = "/dev/net/tun"
NAME_BYTES = 15  # IFNAMSIZ less the terminating NUL

# linux/if_tun.h
_TUNSETIFF = 0x400454CA
_IFF_TUN = 0x0001
_IFF_NO_PI = 0x1000
_IFF_TUN_EXCL = 0x8000
_IFREQ = struct.Struct("16sH22x")


def open_tun(name: str) -> int:
    """Make the TUN device ``name`` (1 to 15 bytes) and return its non-blocking descriptor; one read is one IP packet.

    The device is not persistent: it vanishes with its last descriptor, however the process ends. Address, MTU and
    link state are left to the caller. Raises UserError: bad name, no TUN in this kernel, not permitted, name taken.
    """
    encoded = name.encode()
    if not 1 <= len(encoded) <= NAME_BYTES or "/" in name or "%" in name or any(c.isspace() or c == "\0" for c in name):
        raise UserError(f"interface name {name!r}: choose 1 to {NAME_BYTES} characters without '/', '%' and spaces")
    try:
        fd = os.open(DEVICE, os.O_RDWR | os.O_CLOEXEC | os.O_NONBLOCK)
    except OSError as error:
        raise UserError(_open_failure(error)) from error
    try:
        fcntl.ioctl(fd, _TUNSETIFF, _IFREQ.pack(encoded, _IFF_TUN | _IFF_NO_PI | _IFF_TUN_EXCL))
    except OSError as error:
        os.close(fd)
        raise UserError(_create_failure(name, error)) from error
    return fd


def _open_failure(error: OSError) -> str:
    if error.errno in (errno.ENOENT, errno.ENODEV, errno.ENXIO):
        return f"{DEVICE} is missing: load the kernel module (modprobe tun), or let the container have the device"
    if error.errno in (errno.EACCES, errno.EPERM):
        return f"{DEVICE} may not be opened: run as root, and let the container have the device"
    return f"cannot open {DEVICE}: {error.strerror}"


def _create_failure(name: str, error: OSError) -> str:
    if error.errno == errno.EPERM:
        return f"not permitted to make the interface {name}: run as root (CAP_NET_ADMIN)"
    if error.errno in (errno.EBUSY, errno.EEXIST):
        return f"the interface {name} exists already: stop what uses it, or choose another name with --interface"
    if error.errno == errno.EINVAL:
        return f"the interface {name} exists already and is no TUN device, or the name is not allowed: choose another"
    return f"cannot make the interface {name}: {error.strerror}"
