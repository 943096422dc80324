"""Whatever clients do, and in whatever order the engine's events come: whose is an address, and what is remembered."""

import asyncio
from dataclasses import replace
from ipaddress import IPv4Address, IPv4Interface
from unittest.mock import patch

from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, rule

from pqtun.daemon import clock
from pqtun.daemon.host import Tun
from pqtun.daemon.server import ServerService
from pqtun.daemon.settings import ServerSettings
from pqtun.keys.directory import LongTermKey
from pqtun.protocol import control
from pqtun.protocol.keytree import KeyTree
from pqtun.pump.engine import Alive, Control, Datagram, Dead, Roamed, Wanted
from pqtun.rates.buckets import source_prefix
from tests.daemon.serving import CLIENT, RecordingEngine, connect, resume
from tests.protocol.vectors import key_file, public_key, secret_key

OWN = IPv4Interface("10.42.0.1/28")
ADDRESSES = [IPv4Address(f"10.42.0.{number}") for number in range(2, 15)]
CLIENTS = range(5)
ELSEWHERE = ("2001:db8::1", 7)
ANY = st.integers(0, 2**16)
HELLO = control.Hello(1, control.FEATURE_RESUME, 1396)


class Server(RuleBasedStateMachine):
    def __init__(self):
        super().__init__()
        self.engine = RecordingEngine()
        self.patched = patch.object(clock, "boottime", lambda: self.engine.now)
        self.patched.start()
        asyncio.run(self.begin())
        self.sessions = []  # of all clients, live or not, with the client that each is of
        self.late = []  # events of the engine that were not delivered yet
        self.cookies = []
        self.secrets = {}
        self.owner = {}  # the client whom each address belongs to, live or reserved

    async def begin(self):
        key = LongTermKey(secret_key(), public_key(), key_file("session_key"), KeyTree(public_key()).keyhash)
        tun = Tun(None, "pqtsrv0", OWN, mtu=1396)
        self.service = ServerService(ServerSettings(address=OWN), tun, self.engine, key)
        self.service.start()
        self.service.failed.cancel()

    def teardown(self):
        self.service.close()
        self.patched.stop()
        assert all(secret == bytes(32) for secret in self.secrets.values())

    def pick(self, number, things):
        return things[number % len(things)] if things else None

    @rule(client=st.sampled_from(CLIENTS), heard=st.booleans())
    def connect(self, client, heard):
        _, session = connect(self.service, (f"192.0.{client}.1", client))
        self.sessions.append((client, session))
        if heard and session.tid in self.engine.tunnels:
            self.hears(session.tid)

    def hears(self, tid):
        figures = {"last_received": self.engine.now, "last_used": self.engine.now}
        self.engine.tunnels[tid] = replace(self.engine.tunnels[tid], **figures)
        self.late.append(Alive(tid))

    @rule(which=ANY, claims=st.lists(ANY, max_size=3), hello=st.booleans(), soon=st.booleans())
    def says(self, which, claims, hello, soon):
        """A client that keeps to the protocol continues its own tunnels, in any order."""
        picked = self.pick(which, [entry for entry in self.sessions if entry[1].tid in self.engine.tunnels])
        if picked is None:
            return
        client, session = picked
        own = [old for of, old in self.sessions if of == client]
        items = [resume(self.pick(claim, own), session) for claim in claims]
        if hello:
            items.insert(0, HELLO)
        self.late.append(Control(session.tid, control.encode(items, CLIENT)))
        if soon:
            self.deliver_all()

    @rule(client=st.sampled_from(CLIENTS), gone=st.booleans())
    def comes_back(self, client, gone):
        """As most do: a new tunnel that continues the last one, live or gone."""
        old = [session for of, session in self.sessions if of == client and session.tid in self.engine.tunnels]
        if not old:
            return
        self.hears(old[-1].tid)
        self.late.append(Control(old[-1].tid, control.encode([HELLO], CLIENT)))
        self.deliver_all()
        self.service._tenants.confirmed(old[-1].tid, ELSEWHERE)
        if gone and old[-1].tid in self.engine.tunnels:
            self.engine.remove_tunnel(old[-1].tid)
            self.late.append(Dead(old[-1].tid))
        self.connect(client, heard=True)
        new = self.sessions[-1][1]
        inner = self.service._tenants.address(old[-1].tid)
        memory = self.service._resumption
        known = old[-1].tid in memory._live or old[-1].tid in memory._gone  # which it is not once a cookie was made
        self.late.append(Control(new.tid, control.encode([HELLO, resume(old[-1], new)], CLIENT)))
        self.deliver_all()
        if known and inner is not None and new.tid in self.engine.tunnels:
            assert self.engine.tunnels[new.tid].inner == inner

    @rule(which=ANY, whose=ANY, secret_of=ANY)
    def steals(self, which, whose, secret_of):
        """Somebody who saw a tunnel's id knows no secret of it but those of his own tunnels."""
        mine = self.pick(which, [entry for entry in self.sessions if entry[1].tid in self.engine.tunnels])
        if mine is None:
            return
        client, session = mine
        victims = [old for of, old in self.sessions if of != client]
        if not victims:
            return
        own = self.pick(secret_of, [old for of, old in self.sessions if of == client])
        claim = control.Resume(self.pick(whose, victims).tid, resume(own, session).proof)
        self.deliver_all()
        before = dict(self.engine.tunnels), self.service.status()["reserved_addresses"]
        self.service.handle(Control(session.tid, control.encode([claim], CLIENT)))
        assert (dict(self.engine.tunnels), self.service.status()["reserved_addresses"]) == before

    @rule(which=ANY, kind=st.sampled_from([control.Bye(0), control.Ping(bytes(8))]))
    def ends(self, which, kind):
        tid = self.pick(which, list(self.engine.tunnels))
        if tid:
            self.late.append(Control(tid, control.encode([kind], CLIENT)))

    @rule(which=ANY)
    def roams(self, which):
        tid = self.pick(which, list(self.engine.tunnels))
        if tid:
            self.engine.tunnels[tid] = replace(self.engine.tunnels[tid], endpoint=ELSEWHERE)
            self.late.append(Roamed(tid, ELSEWHERE))

    @rule(which=ANY)
    def answers_questions(self, which):
        tid = self.pick(which, list(self.service._confirmations._questions))
        if tid:
            token = self.service._confirmations._questions[tid].token
            self.late.append(Control(tid, control.encode([control.Pong(token)], CLIENT)))

    @rule(which=ANY)
    def dies(self, which):
        tid = self.pick(which, list(self.engine.tunnels))
        if tid:
            self.engine.remove_tunnel(tid)
            self.late.append(Dead(tid))

    @rule(address=st.sampled_from(ADDRESSES))
    def wanted(self, address):
        if all(tunnel.inner != address for tunnel in self.engine.tunnels.values()):
            self.late.append(Wanted(address))

    @rule()
    def makes_room(self):
        self.service._evict(self.engine.now)

    @rule(which=ANY)
    def returns(self, which):
        """Cookies come back, also twice, late, or while the tunnel is there again."""
        self.cookies += [cookie for cookie in self.engine.cookies.values() if cookie not in self.cookies]
        cookie = self.pick(which, self.cookies)
        if cookie:
            before = set(self.engine.tunnels)
            self.late.append(Datagram(cookie, ("203.0.113.1", 1)))
            self.deliver_all()
            for tid in set(self.engine.tunnels) - before:
                self.hears(tid)

    @rule(number=st.integers(1, 5))
    def delivers(self, number):
        for _ in range(min(number, len(self.late))):
            self.service.handle(self.late.pop(0))

    def deliver_all(self):
        self.delivers(len(self.late))

    @rule(seconds=st.sampled_from([0.5, 4.0, 31.0, 61.0, 121.0, 24 * 3600.0]))
    def time_passes(self, seconds):
        self.engine.now += seconds
        self.service.expire(self.engine.now)

    @invariant()
    def addresses_have_one_owner(self):
        tenants, tunnels = self.service._tenants, self.engine.tunnels
        dead = {event.tid for event in self.late if isinstance(event, Dead)}
        assert set(tunnels) <= set(tenants.tids()) <= set(tunnels) | dead
        inner = [tunnel.inner for tunnel in tunnels.values()]
        assert len(set(inner)) == len(inner)
        for tid, tunnel in tunnels.items():
            assert tenants.address(tid) == tunnel.inner
            assert not tenants.is_reserved(tunnel.inner)
        taken = {tenants.address(tid) for tid in [*tenants.tids(), *tenants._reserved]}
        assert len(taken) == len(tenants) + tenants.reserved
        assert not taken & {IPv4Address(tenants._network + number) for number in tenants._freed}

    @invariant()
    def nobody_has_anothers(self):
        """An address goes from one client to another through being free, and what is held for it goes then."""
        client_of = {session.tid: client for client, session in self.sessions}
        tenants = self.service._tenants
        owner = {tenants.address(tid): client_of[tid] for tid in [*tenants.tids(), *tenants._reserved]}
        waiting = {*self.service._waiting._since, *self.service._waiting._asked}
        assert all(tenants.is_reserved(address) for address in waiting)
        assert all(owner[address] == self.owner.get(address) for address in waiting if address in self.waiting_before)
        self.owner, self.waiting_before = owner, waiting

    waiting_before: frozenset = frozenset()

    @invariant()
    def what_is_forgotten_is_overwritten(self):
        memory = self.service._resumption
        kept = {id(secret): secret for secret in memory._live.values()}
        kept |= {id(secret): secret for secret, _ in [*memory._new.values(), *memory._gone.values()]}
        assert all(secret == bytes(32) for key, secret in self.secrets.items() if key not in kept)
        assert all(secret != bytes(32) for secret in kept.values())
        self.secrets |= kept
        tenants = self.service._tenants
        assert len(memory._gone) <= tenants.reserved
        assert set(memory._gone) <= set(tenants._reserved)
        assert set(memory._live) <= set(tenants.tids())
        assert len(self.service._confirmations) <= len(tenants)

    @invariant()
    def prefixes_agree(self):
        tenants = self.service._tenants
        places = {tid: tenants.get(tid).group for tid in tenants.tids()}
        places |= {tid: group for tid, (_, group) in tenants._reserved.items()}
        assert {tid: group for group, tids in tenants._by_group.items() for tid in tids} == places
        for tid in tenants.tids():
            elsewhere, tenant = source_prefix("2001:db8::1"), tenants.get(tid)
            assert tenant.group[1:] in (source_prefix(tenant.source[0]), elsewhere)


Server.TestCase.settings = settings(max_examples=40, stateful_step_count=50, deadline=None)
TestServer = Server.TestCase
