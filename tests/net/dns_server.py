"""An authoritative DNS server for tests: dns_server.py ZONE-FILE QUERY-LOG, UDP and TCP port 53, IPv4 and IPv6.

The zone is master-file text as dnslib reads it, with absolute names. It is read again when the file changes. Every
question is a line "name type udp|tcp client-address" of the query log. It follows CNAMEs within the zone, keeps the
case of the question's name, answers NXDOMAIN and "no data" with the zone's SOA, and truncates over UDP.
"""

from __future__ import annotations

import itertools
import os
import socket
import socketserver
import sys
import threading
from pathlib import Path
from typing import IO

from dnslib import CLASS, QTYPE, RCODE, RR, DNSError, DNSLabel, DNSRecord

_CHAIN_LIMIT = 8
_TCP_IDLE = 10.0


class Zone:
    """Records by name and type, re-read when their file changes."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._stamp = 0
        self._records: list[RR] = []
        self._lock = threading.Lock()

    def records(self) -> list[RR]:
        """The present records."""
        with self._lock:
            stamp = os.stat(self._path).st_mtime_ns
            if stamp != self._stamp:
                self._records = list(RR.fromZone(self._path.read_text()))
                self._stamp = stamp
            return self._records

    def answer(self, question: DNSRecord) -> DNSRecord:
        """The complete answer to a question (RFC 1034 section 4.3.2, without delegations and wildcards)."""
        reply = question.reply(ra=1, aa=1)
        records = self.records()
        wanted, name = question.q.qtype, question.q.qname
        for _ in range(_CHAIN_LIMIT):
            here = [rr for rr in records if _same(rr.rname, name)]
            found = [rr for rr in here if rr.rtype == wanted or wanted == QTYPE.ANY]
            alias = [rr for rr in here if rr.rtype == QTYPE.CNAME]
            for rr in found or alias:
                ttl, rclass = rr.ttl, rr.rclass
                reply.add_answer(RR(name, rr.rtype, rclass, ttl, rr.rdata))
            if found or not alias:
                break
            name = alias[0].rdata.label
        else:
            here = found = alias
        if not found:
            if not any(_within(rr.rname, name) for rr in records):
                reply.header.rcode = RCODE.NXDOMAIN
            soas = [rr for rr in records if rr.rtype == QTYPE.SOA and _within(name, rr.rname)]
            if soas:
                reply.add_auth(soas[0])
        return reply


def _same(a: DNSLabel, b: DNSLabel) -> bool:
    return str(a).lower() == str(b).lower()


def _within(name: DNSLabel, zone: DNSLabel) -> bool:
    return ("." + str(name).lower()).endswith("." + str(zone).lower().lstrip("."))


class Server:
    """Answers datagrams and streams from one Zone and writes the query log."""

    def __init__(self, zone: Zone, log: IO[str]) -> None:
        self._zone = zone
        self._log = log

    def respond(self, data: bytes, protocol: str, client: str) -> bytes | None:
        """The answer's bytes, None for what is no question."""
        try:
            question = DNSRecord.parse(data)
        except DNSError:
            return None
        if question.header.qr or len(question.questions) != 1:
            return None
        name = str(question.q.qname).rstrip(".").lower() or "."
        kind = QTYPE.forward.get(question.q.qtype, f"TYPE{question.q.qtype}")
        self._log.write(f"{name} {kind} {protocol} {client.removeprefix('::ffff:')}\n")
        if question.q.qclass != CLASS.IN:
            reply = question.reply()
            reply.header.rcode = RCODE.REFUSED
        else:
            reply = self._zone.answer(question)
        packed: bytes = reply.pack()
        limit = 512
        for extra in question.ar:
            if extra.rtype == QTYPE.OPT:
                limit = max(limit, extra.edns_len)
        if protocol == "udp" and len(packed) > limit:
            packed = reply.truncate().pack()
        return packed


def main(zone_file: str, query_log: str) -> None:
    """Serve until killed."""
    zone = Zone(Path(zone_file))
    zone.records()
    server = Server(zone, open(query_log, "a", buffering=1))

    class Stream(socketserver.StreamRequestHandler):
        timeout = _TCP_IDLE

        def handle(self) -> None:
            while len(head := self.rfile.read(2)) == 2:
                data = self.rfile.read(int.from_bytes(head, "big"))
                reply = server.respond(data, "tcp", self.client_address[0])
                if reply is None:
                    return
                self.wfile.write(len(reply).to_bytes(2, "big") + reply)

    class StreamServer(socketserver.ThreadingTCPServer):
        address_family = socket.AF_INET6
        allow_reuse_address = True
        daemon_threads = True
        request_queue_size = 64

    def datagrams(sock: socket.socket) -> None:
        while True:
            data, client = sock.recvfrom(65535)
            reply = server.respond(data, "udp", client[0])
            if reply is not None:
                try:
                    sock.sendto(reply, client)
                except OSError:  # the client's host has become unreachable: its affair
                    pass

    for family in (socket.AF_INET, socket.AF_INET6):
        for address in _local_addresses(family):
            # A socket an address: the answer must leave from the address that was asked.
            sock = socket.socket(family, socket.SOCK_DGRAM)
            if family == socket.AF_INET6:
                sock.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)
            sock.bind((address, 53))
            threading.Thread(target=datagrams, args=(sock,), daemon=True).start()
    with StreamServer(("::", 53), Stream) as streams:
        streams.serve_forever()


def _local_addresses(family: socket.AddressFamily) -> list[str]:
    if family == socket.AF_INET:
        lines = Path("/proc/net/fib_trie").read_text().splitlines()
        local = {before.split()[-1] for before, line in itertools.pairwise(lines) if "/32 host LOCAL" in line}
        return sorted(local)
    found = []
    for line in Path("/proc/net/if_inet6").read_text().splitlines():
        digits, _index, _prefix, scope, *_ = line.split()
        if scope != "20":  # link-local addresses would need their interface
            found.append(socket.inet_ntop(socket.AF_INET6, bytes.fromhex(digits)))
    return sorted(found)


if __name__ == "__main__":
    main(*sys.argv[1:])
