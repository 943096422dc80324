"""What the Python engine keeps for one tunnel."""

from collections import Counter
from ipaddress import IPv4Address

from pqtun.protocol.constants import CONTROL_PROTOCOL, HEADER_BYTES, TID_BYTES
from pqtun.protocol.tunnel import Tunnel
from pqtun.pump.budget import SendBudget
from pqtun.pump.engine import Endpoint, TunnelStats
from pqtun.pump.icmp import echo_token
from pqtun.pump.inner import IPV4_HEADER_BYTES, Inbound
from pqtun.pump.limits import CONTROL_BURST, CONTROL_RATE
from pqtun.rates.buckets import TokenBucket

_INDEX_AT = 2 + TID_BYTES


class Link:
    """A tunnel, the address it stands for, where its peer was last heard from, and its counters."""

    __slots__ = (
        "_newest",
        "budget",
        "bytes_received",
        "bytes_sent",
        "control",
        "cookie",
        "created",
        "drops",
        "endpoint",
        "inbound",
        "inner",
        "last_received",
        "last_sent",
        "last_used",
        "mtu",
        "number",
        "packets_received",
        "packets_sent",
        "standby",
        "tid",
        "tunnel",
    )

    def __init__(
        self,
        tunnel: Tunnel,
        inner: IPv4Address,
        inbound: Inbound,
        endpoint: Endpoint,
        now: float,
        *,
        confirmed: bool,
        standby: bool,
    ) -> None:
        self.tid = tunnel.tid
        self.number = 0  # of the table that it is in
        self.tunnel = tunnel
        self.inner = inner
        self.inbound = inbound  # readdresses what comes from ``inner``
        self.endpoint = endpoint
        self.budget = SendBudget(confirmed, now)
        self.control = TokenBucket(CONTROL_RATE, CONTROL_BURST, now)
        self.standby = standby
        self.mtu: int | None = None
        self.created = now
        self.last_sent: float | None = None
        self.last_received: float | None = None
        self.last_used: float | None = None
        self.packets_sent = 0
        self.packets_received = 0
        self.bytes_sent = 0
        self.bytes_received = 0
        self.drops: Counter[str] = Counter()
        self.cookie: bytes | None = None  # to be returned before the next packet
        self._newest = b""

    def heard(self, datagram: bytes, source: Endpoint, plaintext_bytes: int, now: float) -> bool:
        """Account for a datagram that authenticated; say whether the peer has moved to ``source``.

        Only a packet newer than all before it moves the peer, so that a delayed or copied one cannot. Epoch and
        counter are big-endian and compare as the bytes that they are.
        """
        self.last_received = now
        self.packets_received += 1
        self.bytes_received += plaintext_bytes
        index = datagram[_INDEX_AT:HEADER_BYTES]
        moved = index > self._newest and source != self.endpoint
        if moved:
            self.endpoint = source
            self.budget.moved()
        self._newest = max(self._newest, index)
        if source == self.endpoint:
            self.budget.received(len(datagram))
        return moved

    @property
    def use(self) -> float:
        """When it was used last, or made."""
        return self.created if self.last_used is None else self.last_used

    def stats(self) -> TunnelStats:
        """Return a snapshot of the counters."""
        return TunnelStats(
            tid=self.tid,
            inner=self.inner,
            endpoint=self.endpoint,
            send_epoch=self.tunnel.send_epoch,
            recv_epoch=self.tunnel.recv_epoch,
            created=self.created,
            last_sent=self.last_sent,
            last_received=self.last_received,
            last_used=self.last_used,
            confirmed=self.budget.confirmed,
            mtu=self.mtu,
            packets_sent=self.packets_sent,
            packets_received=self.packets_received,
            bytes_sent=self.bytes_sent,
            bytes_received=self.bytes_received,
            drops=dict(self.drops),
        )


def for_control_plane(plaintext: bytes) -> bool:
    """Whether a plaintext is for the control plane: a control packet (section 8) or the answer to an echo of ours."""
    if len(plaintext) < IPV4_HEADER_BYTES or plaintext[0] >> 4 != 4:
        return False
    return plaintext[9] == CONTROL_PROTOCOL or echo_token(plaintext) is not None
