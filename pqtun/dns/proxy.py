"""The DNS proxy: carries redirected lookups to the resolvers that the programs asked, and answers back rewritten."""

import socket
from collections import Counter
from collections.abc import Callable, Mapping, Sequence

from pqtun.dns.datagrams import DatagramProxy
from pqtun.dns.origin import OriginalDestinations, Upstream
from pqtun.dns.streams import StreamProxy


class DnsProxy:
    """Serves the sockets of redirect.open_sockets() in an asyncio loop; needs no privileges."""

    def __init__(
        self,
        udp_socks: Sequence[socket.socket],
        tcp_socks: Sequence[socket.socket],
        origins: OriginalDestinations,
        rewrite: Callable[[bytes, Upstream], bytes],
        clock: Callable[[], float],
    ) -> None:
        """``rewrite(message, (resolver, port))`` returns the answer for the program, the same object if unchanged."""
        self._counters: Counter[str] = Counter()
        self._origins = origins
        self._datagrams = DatagramProxy(udp_socks, origins, rewrite, clock, self._counters)
        self._streams = StreamProxy(tcp_socks, origins, rewrite, self._counters)

    def start(self) -> None:
        """Begin to serve, in the running loop."""
        self._datagrams.start()
        self._streams.start()

    async def close(self) -> None:
        """Stop and end all that is under way. The sockets that were given stay open."""
        self._datagrams.close()
        await self._streams.close()

    @property
    def counters(self) -> Mapping[str, int]:
        """What came, what was passed or rewritten, and what was dropped, by reason."""
        return self._counters + self._origins.counters

    @property
    def outstanding(self) -> tuple[int, int]:
        """UDP queries and TCP connections under way."""
        return self._datagrams.outstanding, self._streams.outstanding
