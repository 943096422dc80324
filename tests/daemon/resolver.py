"""A DNS resolver on the event loop, for tests."""

import asyncio
import contextlib

import dns.message
import dns.rdatatype
import dns.rrset


class Resolver(asyncio.DatagramProtocol):
    """Answers questions from a dict of (name, type) to texts of records; the first ``lost`` ones it does not hear."""

    def __init__(self, records, lost=0):
        self.records = records
        self.lost = lost
        self.asked = []

    def connection_made(self, transport):
        self.transport = transport

    def datagram_received(self, data, source):
        query = dns.message.from_wire(data)
        answer = dns.message.make_response(query)
        name, kind = query.question[0].name, dns.rdatatype.to_text(query.question[0].rdtype)
        question = str(name).rstrip("."), kind
        self.asked.append(question)
        if len(self.asked) <= self.lost:
            return
        for text in self.records.get(question, ()):
            answer.answer.append(dns.rrset.from_text(name, 60, "IN", kind, f'"{text}"' if kind == "TXT" else text))
        self.transport.sendto(answer.to_wire(), source)


@contextlib.asynccontextmanager
async def serving(protocol, address=("127.0.0.1", 0)):
    """Let a resolver serve; the address to ask it at."""
    loop = asyncio.get_running_loop()
    transport, _ = await loop.create_datagram_endpoint(lambda: protocol, local_addr=address)
    try:
        yield transport.get_extra_info("sockname")[:2]
    finally:
        transport.close()
