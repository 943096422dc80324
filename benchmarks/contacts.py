"""What the first packets to a name cost: DNS delay, and the time to the first byte of a page."""

from __future__ import annotations

import os
import statistics

from benchmarks.contenders import Pqconnect, Pqtun
from benchmarks.measure import dns_times, first_byte
from benchmarks.samples import Samples
from tests.net.lab import SERVER4, Lab, Topology
from tests.net.process import LabError

PLAIN = "plain.example.net"
PLAIN_RECORDS = f"{PLAIN}. IN A {SERVER4}\n"
_PAGE = "small"


def serve_page(lab: Lab, net: Topology) -> None:
    """A web server with a small page on the server."""
    www = lab.directory / "www"
    www.mkdir()
    (www / _PAGE).write_bytes(os.urandom(1000))
    lab.web_server(net.server, www)


def contacts(lab: Lab, net: Topology, name: str, contender: Pqtun | Pqconnect, samples: Samples) -> None:
    """Nothing known, then the key known but no tunnel, then the tunnel up; and the delay of other answers."""
    without = statistics.median(dns_times(lab, net.client, PLAIN))
    url = f"http://{contender.host}/{_PAGE}"
    if isinstance(contender, Pqtun):
        contender.forget()
    states = ("first_contact", "key_cached") if isinstance(contender, Pqtun) else ("first_contact",)
    contender.start_server()
    try:
        for state in states:
            contender.start_client()
            try:
                page = first_byte(lab, net.client, url)
                if page.address == SERVER4:
                    raise LabError(f"{name}: the page did not come through the tunnel")
                samples.add(name, state, page.first_byte)
                samples.add(name, "tunnel_up", first_byte(lab, net.client, url).first_byte)
                if state == states[-1]:
                    delayed = statistics.median(dns_times(lab, net.client, PLAIN))
                    samples.add(name, "dns_delay", delayed - without)
            finally:
                contender.client.stop()
    finally:
        contender.stop()
