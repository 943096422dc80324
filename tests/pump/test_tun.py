"""pqtun.pump.tun: what goes wrong, and what the kernel puts into a queue. With engines: tests/net/test_pump.py."""

import errno
import fcntl
import os
import subprocess
import sys
import textwrap
from pathlib import Path

import pytest

from pqtun.protocol.errors import UserError
from pqtun.pump import tun

ROOT = Path(__file__).resolve().parents[2]


@pytest.mark.parametrize("name", ["", "sixteen-letters!", "a/b", "a b", "a\tb", "pq%d", "ääääääää"])
def test_bad_names(name: str) -> None:
    with pytest.raises(UserError, match="interface name"):
        tun.open_tun(name)


def test_no_device(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(tun, "DEVICE", str(tmp_path / "tun"))
    with pytest.raises(UserError, match="modprobe tun"):
        tun.open_tun("pq0")


@pytest.mark.parametrize(
    ("number", "text"),
    [
        (errno.EPERM, "run as root"),
        (errno.EBUSY, "exists already"),
        (errno.EINVAL, "no TUN device"),
        (errno.ENOMEM, "Cannot allocate memory"),
    ],
)
def test_refusals_of_the_kernel(number: int, text: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    device = tmp_path / "tun"
    device.touch()

    def refuse(*_: object) -> None:
        raise OSError(number, "Cannot allocate memory")

    monkeypatch.setattr(tun, "DEVICE", str(device))
    monkeypatch.setattr(fcntl, "ioctl", refuse)
    with pytest.raises(UserError, match=text) as caught:
        tun.open_tun("pq0")
    assert "pq0" in str(caught.value)
    assert "\n" not in str(caught.value)


def in_own_network(text: str) -> list[str]:
    """Run a program in a network namespace of its own; the lines that it prints."""
    program = "from tests.pump.kernel import *\n" + textwrap.dedent(text)
    argv = ["unshare", "--net", sys.executable, "-c", program]
    done = subprocess.run(argv, cwd=ROOT, capture_output=True, text=True, timeout=30)
    assert done.returncode == 0, done.stderr
    return done.stdout.splitlines()


@pytest.mark.root
@pytest.mark.tun
def test_queues() -> None:
    """All of them write, and what the host answers comes back through one of them."""
    said = in_own_network(
        """
        queues = open_tun("pq0", queues=3)
        ip("addr add 10.9.0.1/24 dev pq0"); ip("link set pq0 up")
        print(len(queues), any(map(os.get_blocking, queues)), any(map(os.get_inheritable, queues)))
        for number, queue in enumerate(queues):
            os.write(queue, p.ip("10.9.0.2", "10.9.0.1", p.ICMP, p.icmp(8, 0, bytes([number] * 4))))
        print(sorted(packet[24] for packet in read_all(queues) if packet[9] == p.ICMP))
        for queue in queues:
            os.close(queue)
        print("pq0" in socket.if_nameindex().__repr__())
        """
    )
    assert said == ["3 False False", "[0, 1, 2]", "False"]


@pytest.mark.root
@pytest.mark.tun
def test_a_read_with_a_virtio_header_brings_a_whole_train() -> None:
    """The kernel's TCP gives segments of a connection as one packet, of at most the size that the host has set."""
    said = in_own_network(
        """
        tun = make_tun("pq0", IPv4Interface("10.9.0.1/24"), 1396, movable=False, vnet_header=True)
        (queue,) = (file.fileno() for file in tun.files)
        fcntl.ioctl(queue, TUNSETOFFLOAD, TUN_F_CSUM | TUN_F_TSO4)
        trains = [train for train in stream(queue, "10.9.0.1", "10.9.0.2", 300_000) if train.gso_type == 1]
        segments, size = segment_limits(1396)
        print(len(trains) > 0, all(train.gso_size == 1396 - 52 for train in trains))
        print(max(len(train.packet) for train in trains) > 20_000)
        print(all(len(train.packet) <= size and train.segments <= segments for train in trains))
        print(all(train.csum_start == 20 and train.csum_offset == 16 and train.flags & 1 for train in trains))
        """
    )
    assert said == ["True True", "True", "True", "True"]


@pytest.mark.root
@pytest.mark.tun
def test_without_offload_a_virtio_header_says_nothing() -> None:
    said = in_own_network(
        """
        tun = make_tun("pq0", IPv4Interface("10.9.0.1/24"), 1396, movable=False, vnet_header=True)
        (queue,) = (file.fileno() for file in tun.files)
        seen = stream(queue, "10.9.0.1", "10.9.0.2", 20_000)
        print({train.gso_type for train in seen}, max(len(train.packet) for train in seen))
        """
    )
    assert said == ["{0} 1396"]


@pytest.mark.parametrize("refused", [1, 2, 3])
def test_fewer_queues_where_the_kernel_refuses(
    refused: int, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """A kernel without multi-queue says EINVAL to the first, one that has enough of them something else later."""
    device = tmp_path / "tun"
    device.touch()
    flags: list[int] = []

    def ioctl(_: int, request: int, argument: bytes) -> None:
        flags.append(int.from_bytes(argument[16:18], sys.byteorder))
        if len(flags) == refused:
            raise OSError(errno.EINVAL if refused == 1 else errno.E2BIG, "no")

    monkeypatch.setattr(tun, "DEVICE", str(device))
    monkeypatch.setattr(fcntl, "ioctl", ioctl)
    descriptors = tun.open_tun("pq0", queues=4, vnet_header=True)
    for fd in descriptors:
        os.close(fd)
    assert len(descriptors) == max(1, refused - 1)
    assert all(word & tun._IFF_VNET_HDR for word in flags)
    assert [bool(word & tun._IFF_TUN_EXCL) for word in flags] == [True, *[refused == 1] * (len(flags) - 1)]
    assert ("instead of 4" in caplog.text) == (refused > 1)
