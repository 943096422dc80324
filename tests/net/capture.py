"""What went over a wire of the lab: tcpdump into a file, and the file read back."""

from __future__ import annotations

import ipaddress
import re
import signal
import struct
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from tests.net.lab import Lab
from tests.net.process import LabError

_MICROSECONDS, _NANOSECONDS = 0xA1B2C3D4, 0xA1B23C4D  # pcap file magic, draft-ietf-opsawg-pcap
_ETHERNET, _RAW = 1, 101  # link types; the second is that of a TUN device
_TCP, _UDP, _FRAGMENT6 = 6, 17, 44


@dataclass(frozen=True)
class Packet:
    """One IP packet of a capture; ports are 0 where there are none, `payload` is what follows the UDP/TCP/IP header."""

    time: float
    source: str
    destination: str
    protocol: int
    source_port: int
    destination_port: int
    payload: bytes
    frame: bytes


class Capture:
    """tcpdump on one device of a namespace, from construction to stop()."""

    def __init__(self, lab: Lab, ns: str, device: str, expression: str = "") -> None:
        serial = len(list(lab.directory.glob("*.pcap")))
        self.path = lab.directory / f"{serial:02}-{device}.pcap"
        # In immediate mode each frame takes as much of the kernel's buffer (64 MB) as the longest may have.
        argv = ["tcpdump", "-i", device, "-n", "-U", "--immediate-mode", "-s", "9216", "-B", "65536", "-Z", "root"]
        self._process = lab.spawn(ns, *argv, "-w", str(self.path), expression)
        self._process.wait_output("listening on", 10)

    def stop(self) -> None:
        """End the capture; all that the kernel has handed over by then is in the file."""
        if self._process.running:
            self._process.signal(signal.SIGINT)
            self._process.wait(10)
        self._process.kill()

    @property
    def missed(self) -> int:
        """After stop(): how many packets the kernel could not hand over."""
        found = re.search(r"(\d+) packets? dropped by kernel", self._process.output())
        if found is None:
            raise LabError(f"tcpdump has not ended well:\n{self._process.output()}")
        return int(found[1])

    def packets(self) -> list[Packet]:
        """The IP packets captured so far (call stop() first to have all of them)."""
        return list(read_pcap(self.path))


def read_pcap(path: Path) -> Iterator[Packet]:
    """The IPv4 and IPv6 packets of a pcap file of Ethernet frames or of bare packets; ValueError if it is none."""
    data = path.read_bytes()
    order = "<" if data[:4] in (_MICROSECONDS.to_bytes(4, "little"), b"\x4d\x3c\xb2\xa1") else ">"
    magic, *_, link = struct.unpack_from(order + "IHHiIII", data)
    if magic not in (_MICROSECONDS, _NANOSECONDS) or link & 0xFFFF not in (_ETHERNET, _RAW):
        raise ValueError(f"{path} is no pcap file of Ethernet frames or IP packets")
    head = 14 if link & 0xFFFF == _ETHERNET else 0
    fraction = 1e-6 if magic == _MICROSECONDS else 1e-9
    at = 24
    while at + 16 <= len(data):
        seconds, part, length, _ = struct.unpack_from(order + "IIII", data, at)
        frame = data[at + 16 : at + 16 + length]
        at += 16 + length
        if len(frame) == length:  # the last record may be half written while the capture runs
            packet = _packet(seconds + part * fraction, frame, head)
            if packet is not None:
                yield packet


def _packet(time: float, frame: bytes, head: int) -> Packet | None:
    """Of a frame whose link layer header has `head` bytes; None if it is no IP packet."""
    ip = frame[head:]
    version = {b"\x08\x00": 4, b"\x86\xdd": 6}.get(frame[head - 2 : head]) if head else ip[0] >> 4
    if version == 4:
        header, protocol = (ip[0] & 15) * 4, ip[9]
        source, destination = ipaddress.ip_address(ip[12:16]), ipaddress.ip_address(ip[16:20])
        end = int.from_bytes(ip[2:4], "big") or len(ip)  # 0: segmentation offload of the sender
        first = int.from_bytes(ip[6:8], "big") & 0x1FFF == 0
    elif version == 6:
        header, protocol = 40, ip[6]
        source, destination = ipaddress.ip_address(ip[8:24]), ipaddress.ip_address(ip[24:40])
        end, first = 40 + int.from_bytes(ip[4:6], "big"), protocol != _FRAGMENT6
    else:
        return None
    body = ip[header:end]
    ports = (0, 0)
    if first and protocol in (_TCP, _UDP) and len(body) >= 8:
        ports = struct.unpack_from(">HH", body)
        body = body[8 if protocol == _UDP else (body[12] >> 4) * 4 :]
    return Packet(time, str(source), str(destination), protocol, *ports, body, frame)
