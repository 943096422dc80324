"""Opens a TUN device (Linux Documentation/networking/tuntap.rst). Needs CAP_NET_ADMIN."""

import errno
import fcntl
import logging
import os
import struct

from pqtun.protocol.errors import UserError

log = logging.getLogger(__name__)

DEVICE = "/dev/net/tun"
NAME_BYTES = 15  # IFNAMSIZ less the terminating NUL

# linux/if_tun.h
_TUNSETIFF = 0x400454CA
_IFF_TUN = 0x0001
_IFF_MULTI_QUEUE = 0x0100
_IFF_NO_PI = 0x1000
_IFF_VNET_HDR = 0x4000
_IFF_TUN_EXCL = 0x8000
_IFREQ = struct.Struct("16sH22x")


def open_tun(name: str, *, queues: int = 1, vnet_header: bool = False) -> list[int]:
    """Make the TUN device ``name`` (1 to 15 bytes) and return its non-blocking descriptors, one a queue.

    One read is one IP packet; with ``vnet_header`` a virtio header of 10 bytes stands before it (linux/virtio_net.h,
    struct virtio_net_hdr). There are fewer queues than asked for, at least one, where the kernel has no more. The
    device is not persistent: it vanishes with its last descriptor, however the process ends. Address, MTU and link
    state are left to the caller. Raises UserError: bad name, no TUN in this kernel, not permitted, name taken.
    """
    encoded = name.encode()
    if not 1 <= len(encoded) <= NAME_BYTES or "/" in name or "%" in name or any(c.isspace() or c == "\0" for c in name):
        raise UserError(f"interface name {name!r}: choose 1 to {NAME_BYTES} characters without '/', '%' and spaces")
    flags = _IFF_TUN | _IFF_NO_PI | (_IFF_VNET_HDR if vnet_header else 0)
    if queues > 1:
        try:
            first = _open_queue(name, flags | _IFF_MULTI_QUEUE | _IFF_TUN_EXCL)
        except OSError as error:
            if error.errno != errno.EINVAL:
                raise UserError(_create_failure(name, error)) from error
        else:
            return _open_more(name, flags | _IFF_MULTI_QUEUE, first, queues)
    try:
        return [_open_queue(name, flags | _IFF_TUN_EXCL)]
    except OSError as error:
        raise UserError(_create_failure(name, error)) from error


def _open_more(name: str, flags: int, first: int, queues: int) -> list[int]:
    descriptors = [first]
    try:
        while len(descriptors) < queues:
            descriptors.append(_open_queue(name, flags))
    except (OSError, UserError) as error:
        log.warning("%s gets %d queues instead of %d: %s", name, len(descriptors), queues, error)
    return descriptors


def _open_queue(name: str, flags: int) -> int:
    try:
        fd = os.open(DEVICE, os.O_RDWR | os.O_CLOEXEC | os.O_NONBLOCK)
    except OSError as error:
        raise UserError(_open_failure(error)) from error
    try:
        fcntl.ioctl(fd, _TUNSETIFF, _IFREQ.pack(name.encode(), flags))
    except OSError:
        os.close(fd)
        raise
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
