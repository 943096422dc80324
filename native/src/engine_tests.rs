//! Tunnels that come, stand by, move and go, while packets are held and while threads send.

use super::*;

use std::io::{Read, Write};
use std::sync::atomic::{AtomicU32, AtomicU64, Ordering};
use std::sync::Barrier;
use std::time::{Duration, Instant};

use rustix::net::{socketpair, AddressFamily, SocketFlags, SocketType};

use crate::crypto::Cipher;
use crate::limits::{UNCONFIRMED_BYTES, UNCONFIRMED_FACTOR, UNCONFIRMED_RATE};
use crate::packet::{Inbound, Plan};
use crate::schedule::work;
use crate::tunnel::{HEADER, OVERHEAD, TAG};

const OWN: [u8; 4] = [10, 43, 0, 1];
const PEER: [u8; 4] = [10, 43, 0, 7];
const OTHER: [u8; 4] = [10, 43, 0, 8];
const HEADERS: usize = 28;

struct Rig {
    engine: Engine,
    clock: Arc<AtomicU64>,
    programs: File,
    lane: Lane,
}

impl Rig {
    fn new() -> Self {
        Self::with(None, false)
    }

    fn with(own6: Option<[u8; 16]>, virtio: bool) -> Self {
        let pair = socketpair(AddressFamily::UNIX, SocketType::SEQPACKET, SocketFlags::NONBLOCK, None);
        let (tun, programs) = pair.unwrap();
        let place = Place {
            own: OWN,
            own6,
            network: 0x0a2b_0000,
            mask: 0xffff_0000,
            deliver_to: None,
        };
        let wanted = Wanted {
            tun_tso: false,
            tun_uso: false,
            tun_gro: false,
            udp_gso: true,
            udp_gro: false,
        };
        let clock = Arc::new(AtomicU64::new(1000f64.to_bits()));
        let socket = UdpSocket::bind("127.0.0.1:0").unwrap();
        let manual = Clock::Manual(Arc::clone(&clock));
        let engine = Engine::new(vec![tun], vec![socket.into()], &place, None, virtio, wanted, manual).unwrap();
        let (tun, socket) = engine.queues[0].clone();
        let lane = Lane::new(Arc::clone(&engine.shared), tun, socket, SLOTS, true).unwrap();
        Rig {
            engine,
            clock,
            programs: programs.into(),
            lane,
        }
    }

    fn now(&self) -> f64 {
        self.engine.shared.clock.now()
    }

    fn pass(&self, seconds: f64) {
        self.clock.store((self.now() + seconds).to_bits(), Ordering::Release);
    }

    fn add(&mut self, peer: &Peer, inner: [u8; 4], confirmed: bool, standby: bool) {
        let beginning = Beginning {
            tid: [peer.number; 32],
            send_root: &[peer.number; 32],
            receive_root: &[!peer.number; 32],
            epoch: 0,
            inner,
            endpoint: peer.socket.local_addr().unwrap(),
            confirmed,
        };
        self.engine.add_tunnel(&beginning, None, standby).unwrap();
    }

    /// A program sends packets with these numbers, and the worker takes them.
    fn send(&mut self, to: [u8; 4], numbers: impl IntoIterator<Item = u32>) {
        for number in numbers {
            (&self.programs).write_all(&packet(to, number)).unwrap();
            self.lane.from_tun(self.now());
        }
    }

    /// What has come from the network is handled.
    fn receive(&mut self) {
        while self.lane.receiver.receive(self.now()) {}
    }

    fn address(&self) -> SocketAddr {
        self.engine.queues[0].1.local_addr().unwrap()
    }

    fn wanted(&self) -> usize {
        let is_wanted = |event: &Event| matches!(event, Event::Wanted(_));
        self.engine.events().filter(is_wanted).count()
    }

    fn drops(&self, tid: u8) -> Vec<(&'static str, u64)> {
        let tunnel = self.engine.shared.table.tunnel(&[tid; 32]).unwrap();
        tunnel
            .drops()
            .iter()
            .map(|((reason, _), count)| (*reason, *count))
            .collect()
    }
}

/// The other end of a tunnel.
struct Peer {
    number: u8,
    socket: UdpSocket,
    tunnel: Arc<Tunnel>,
    cipher: Cipher,
}

impl Peer {
    fn new(number: u8) -> Self {
        let socket = UdpSocket::bind("127.0.0.1:0").unwrap();
        socket.set_nonblocking(true).unwrap();
        let endpoint = socket.local_addr().unwrap();
        let beginning = Beginning {
            tid: [number; 32],
            send_root: &[!number; 32],
            receive_root: &[number; 32],
            epoch: 0,
            inner: PEER,
            endpoint,
            confirmed: true,
        };
        let tunnel = Tunnel::new(&beginning, Inbound::new(PEER, OWN), 0, 1000.0).unwrap();
        Peer {
            number,
            socket,
            tunnel: Arc::new(tunnel),
            cipher: Cipher::new(),
        }
    }

    /// The numbers of the packets that have come.
    fn numbers(&mut self) -> Vec<u32> {
        let mut numbers = Vec::new();
        let mut datagram = [0; 2000];
        let source = self.socket.local_addr().unwrap();
        while let Ok(length) = self.socket.recv(&mut datagram) {
            let mut side = self.tunnel.receive_side(1000.0);
            let datagram = &mut datagram[..length];
            let mut work = work().unwrap();
            let opened = self
                .tunnel
                .open(&mut side, datagram, source, 1000.0, &mut self.cipher, &mut work);
            opened.unwrap();
            let text = &datagram[HEADER..length - TAG];
            assert_eq!(text[16..20], [0; 4]);
            numbers.push(u32::from_be_bytes(text[HEADERS..HEADERS + 4].try_into().unwrap()));
        }
        numbers
    }

    fn send(&mut self, to: SocketAddr) {
        let mut keys = [0; 32];
        let mut side = self.tunnel.send_side();
        let (counter, _) = side.keys.take_keys(1, &mut keys);
        let mut datagram = vec![0; HEADER];
        crate::tunnel::put_header(&mut datagram, &self.tunnel.tid, side.keys.epoch, counter);
        let mut text = packet([0; 4], 0);
        text[12..16].copy_from_slice(&[10, 42, 0, 1]);
        let mut tag = [0; TAG];
        self.cipher.seal(&keys, &datagram, &mut text, &mut tag);
        datagram.extend_from_slice(&text);
        datagram.extend_from_slice(&tag);
        self.socket.send_to(&datagram, to).unwrap();
    }
}

/// A UDP packet of a program here, without checksums.
fn packet(to: [u8; 4], number: u32) -> Vec<u8> {
    let mut packet = vec![0; HEADERS + 4];
    packet[0] = 0x45;
    packet[3] = packet.len() as u8;
    packet[8..10].copy_from_slice(&[64, 17]);
    packet[12..16].copy_from_slice(&OWN);
    packet[16..20].copy_from_slice(&to);
    packet[25] = 12;
    packet[HEADERS..].copy_from_slice(&number.to_be_bytes());
    packet
}

#[test]
fn packets_are_held_beside_a_tunnel_and_reported_once() {
    let (mut rig, mut peer) = (Rig::new(), Peer::new(1));
    rig.add(&peer, PEER, true, false);
    rig.send(PEER, 0..3);
    rig.engine.hold(PEER, true);
    rig.send(PEER, 3..6);
    assert_eq!((peer.numbers(), rig.wanted()), (vec![0, 1, 2], 1));
    rig.engine.hold(PEER, false);
    rig.send(PEER, 6..7);
    rig.engine.hold(PEER, true);
    assert_eq!((rig.wanted(), rig.engine.stats().held_packets), (0, 4));
    rig.engine.drop_held(PEER, false);
    rig.send(PEER, 7..8);
    assert_eq!((peer.numbers(), rig.wanted()), (vec![7], 0));
    assert_eq!(rig.engine.stats().held_addresses, 0);
}

#[test]
fn the_latest_tunnel_that_is_no_standby_is_sent_through() {
    let mut rig = Rig::new();
    let [mut one, mut two, mut three] = [1, 2, 3].map(Peer::new);
    rig.add(&one, PEER, true, false);
    rig.add(&two, PEER, true, true);
    rig.send(PEER, 0..1);
    rig.add(&three, PEER, true, false);
    rig.send(PEER, 1..2);
    rig.engine.remove_tunnel(&[3; 32]);
    rig.send(PEER, 2..3);
    assert_eq!(
        [one.numbers(), two.numbers(), three.numbers()],
        [vec![0, 2], vec![], vec![1]]
    );
    rig.engine.remove_tunnel(&[1; 32]);
    rig.send(PEER, 3..6);
    assert_eq!((two.numbers(), rig.wanted()), (vec![], 1));
    rig.engine.move_tunnel(&[2; 32], PEER).unwrap();
    rig.send(PEER, 6..7);
    assert_eq!(two.numbers(), [3, 4, 5, 6]);
}

#[test]
fn a_tunnel_that_goes_while_packets_are_held_sends_none_of_them() {
    let mut rig = Rig::new();
    let [mut one, mut two] = [1, 2].map(Peer::new);
    rig.add(&one, PEER, true, false);
    rig.add(&two, PEER, true, false);
    rig.engine.hold(PEER, false);
    rig.engine.remove_tunnel(&[2; 32]);
    rig.send(PEER, 0..2);
    assert_eq!((one.numbers(), two.numbers()), (vec![], vec![]));
    rig.engine.drop_held(PEER, true);
    rig.send(PEER, 2..3);
    assert_eq!((one.numbers(), rig.wanted()), (vec![2], 0));
}

#[test]
fn a_tunnel_takes_its_packets_to_another_address() {
    let (mut rig, mut peer) = (Rig::new(), Peer::new(1));
    rig.add(&peer, PEER, true, false);
    rig.send(OTHER, 0..2);
    rig.engine.move_tunnel(&[1; 32], OTHER).unwrap();
    rig.send(OTHER, 2..3);
    rig.send(PEER, 3..4);
    assert_eq!((peer.numbers(), rig.wanted()), (vec![0, 1, 2], 2));
    peer.send(rig.address());
    rig.receive();
    let mut delivered = [0; 100];
    assert_eq!((&rig.programs).read(&mut delivered).unwrap(), HEADERS + 4);
    assert_eq!((&delivered[12..16], &delivered[16..20]), (&OTHER[..], &OWN[..]));
    let refused = rig.engine.move_tunnel(&[1; 32], OWN);
    assert!(matches!(refused, Err(Refused::NotAPeer)));
    assert!(matches!(rig.engine.move_tunnel(&[2; 32], PEER), Err(Refused::Unknown)));
}

#[test]
fn an_unconfirmed_endpoint_has_a_budget() {
    let (mut rig, mut peer) = (Rig::new(), Peer::new(1));
    rig.add(&peer, PEER, false, false);
    let each = (OVERHEAD + HEADERS + 4) as u64;
    let most = UNCONFIRMED_BYTES as u64 / each;
    let mut sent = 0;
    let mut next = |rig: &mut Rig, peer: &mut Peer, count: u64| {
        let mut got = 0;
        for _ in 0..count {
            rig.send(PEER, sent..sent + 1);
            sent += 1;
            got += peer.numbers().len() as u64;
        }
        got
    };
    assert_eq!(next(&mut rig, &mut peer, most + 5), most);
    assert_eq!(rig.drops(1), [("unconfirmed", 5)]);
    peer.send(rig.address());
    rig.receive();
    assert_eq!(next(&mut rig, &mut peer, 10), UNCONFIRMED_FACTOR);
    rig.pass(1.0);
    let second = UNCONFIRMED_RATE as u64 / each;
    assert!((second..=second + 1).contains(&next(&mut rig, &mut peer, second + 10)));
    rig.engine.confirm(&[1; 32], "127.0.0.1:1".parse().unwrap());
    assert_eq!(next(&mut rig, &mut peer, 10), 0);
    rig.engine.confirm(&[1; 32], peer.socket.local_addr().unwrap());
    assert_eq!(next(&mut rig, &mut peer, 10), 10);
}

/// A run that is to be cut is sent as far as the budget goes.
#[test]
fn a_budget_counts_the_packets_of_a_run() {
    use crate::packet::segment::{VnetHeader, GSO_UDP_L4};

    let (mut rig, mut peer) = (Rig::new(), Peer::new(1));
    rig.add(&peer, PEER, false, false);
    let mut whole = packet(PEER, 0);
    whole.resize(HEADERS + 40_000, 1);
    let total = whole.len() as u16;
    whole[2..4].copy_from_slice(&total.to_be_bytes());
    whole[24..26].copy_from_slice(&(total - 20).to_be_bytes());
    let header = VnetHeader {
        gso_type: GSO_UDP_L4,
        gso_size: 1000,
        ..VnetHeader::default()
    };
    let plan = Plan::new(&header, &whole).unwrap();
    let tunnel = rig.engine.shared.table.tunnel(&[1; 32]).unwrap();
    let mut got = 0;
    for _ in 0..8 {
        rig.lane.sender.seal(&tunnel, Plaintext::Cut(&plan, &whole), 1000.0);
        rig.lane.sender.flush(1000.0);
        got += peer.numbers().len() as u64;
    }
    assert_eq!(got, UNCONFIRMED_BYTES as u64 / (OVERHEAD + HEADERS + 1000) as u64);
    assert_eq!(rig.drops(1), [("unconfirmed", 320 - got)]);
}

/// Whoever sees that there is a tunnel sends at once: what was held has to be on its way before.
#[test]
fn nothing_overtakes_what_was_held() {
    for _ in 0..50 {
        let (mut rig, mut peer) = (Rig::new(), Peer::new(1));
        rig.send(PEER, 0..20);
        let shared = Arc::clone(&rig.engine.shared);
        let arrived = peer.socket.try_clone().unwrap();
        let ready = Arc::new(Barrier::new(2));
        let worker_ready = Arc::clone(&ready);
        let worker = std::thread::spawn(move || {
            worker_ready.wait();
            while shared.table.route(PEER).is_none() {
                std::hint::spin_loop();
            }
            arrived.peek(&mut [0; 100]).is_ok()
        });
        ready.wait();
        rig.add(&peer, PEER, true, false);
        assert!(worker.join().unwrap());
        assert!(peer.numbers().into_iter().eq(0..20));
    }
}

/// The tunnel that comes back begins with the next epoch: a thread that still has this one must use none of its keys, on
/// either side, also when its clock is ahead.
#[test]
fn a_tunnel_that_was_put_aside_does_nothing_more() {
    let (mut rig, mut peer) = (Rig::new(), Peer::new(1));
    rig.add(&peer, PEER, true, false);
    let tunnel = rig.engine.shared.table.tunnel(&[1; 32]).unwrap();
    let sealing = Sealing {
        key: &[3; 32],
        nonce: &[4; 12],
        timestamp: 5,
    };
    rig.lane.sender.put_aside(&tunnel, &sealing, rig.now()).unwrap();
    rig.pass(31.0);
    rig.send(PEER, 0..1);
    drop(peer.tunnel.ready_to_send(rig.now()).unwrap());
    peer.send(rig.address());
    rig.receive();
    assert_eq!(rig.drops(1), [("dead", 2)]);
    let mut datagram = [0; 200];
    assert_eq!(peer.socket.recv(&mut datagram).unwrap(), OVERHEAD + 144);
    assert!(peer.socket.recv(&mut datagram).is_err());
}

/// An IPv6 packet has 40 bytes more than one of IPv4 at most.
#[test]
fn the_longest_run_of_ipv6_is_sent() {
    use crate::packet::segment::{VnetHeader, GSO_UDP_L4};

    let [own6, peer6] = [(0xf8d2, OWN), (0xf8cc, PEER)].map(|(balance, inner): (u16, [u8; 4])| {
        let mut address = [0; 16];
        address[..2].copy_from_slice(&[0xfd, 0]);
        address[10..12].copy_from_slice(&balance.to_be_bytes());
        address[12..].copy_from_slice(&inner);
        address
    });
    let (mut rig, peer) = (Rig::with(Some(own6), true), Peer::new(1));
    rig.add(&peer, PEER, true, false);
    let header = VnetHeader {
        gso_type: GSO_UDP_L4,
        gso_size: 1200,
        ..VnetHeader::default()
    };
    let mut message = header.to_bytes().to_vec();
    message.extend_from_slice(&[0x60, 0, 0, 0, 0xff, 0xff, 17, 64]);
    message.extend_from_slice(&[own6, peer6].concat());
    message.extend_from_slice(&[0, 1, 0, 2, 0xff, 0xff, 0, 0]);
    message.resize(10 + 40 + 65535, 7);
    (&rig.programs).write_all(&message).unwrap();
    rig.lane.from_tun(rig.now());
    let mut datagrams = 0;
    while peer.socket.recv(&mut [0; 2000]).is_ok() {
        datagrams += 1;
    }
    assert_eq!(datagrams, 65527usize.div_ceil(1200));
}

/// The worker sends without a pause while tunnels come as standbys, take over, move away and go. Each packet comes once.
#[test]
fn nothing_is_lost_or_doubled_while_tunnels_change() {
    let Rig {
        mut engine,
        programs,
        lane,
        ..
    } = Rig::new();
    drop(lane);
    engine.start().unwrap();
    let mut rig = Rig {
        lane: Lane::new(
            Arc::clone(&engine.shared),
            Arc::clone(&engine.queues[0].0),
            Arc::clone(&engine.queues[0].1),
            1,
            false,
        )
        .unwrap(),
        engine,
        clock: Arc::default(),
        programs,
    };
    let mut peers: Vec<Peer> = (0..40).map(Peer::new).collect();
    let sender = rig.programs.try_clone().unwrap();
    // So far ahead of what has come: all of it fits where packets are held, and into the socket of a peer.
    const AHEAD: u32 = 100;
    let allowed = Arc::new(AtomicU32::new(AHEAD));
    let limit = Arc::clone(&allowed);
    rig.add(&peers[0], PEER, true, false);
    let program = std::thread::spawn(move || {
        let mut number = 0;
        loop {
            match limit.load(Ordering::Acquire) {
                0 => return number,
                limit if number < limit && (&sender).write(&packet(PEER, number)).is_ok() => number += 1,
                _ => std::thread::yield_now(),
            }
        }
    });
    let mut got = Vec::new();
    for number in 1..peers.len() {
        let tid = [number as u8; 32];
        let inner = if number % 2 == 0 { PEER } else { OTHER };
        rig.add(&peers[number], inner, true, number % 2 == 0);
        if number % 3 == 0 {
            rig.engine.hold(PEER, false);
        }
        std::thread::sleep(Duration::from_millis(1));
        rig.engine.move_tunnel(&tid, PEER).unwrap();
        std::thread::sleep(Duration::from_millis(1));
        if number % 5 == 0 {
            rig.engine.move_tunnel(&tid, OTHER).unwrap();
        }
        for peer in &mut peers {
            got.extend(peer.numbers());
        }
        allowed.store(got.len() as u32 + AHEAD, Ordering::Release);
    }
    allowed.store(0, Ordering::Release);
    let sent = program.join().unwrap();
    let end = Instant::now() + Duration::from_secs(10);
    while got.len() < sent as usize && Instant::now() < end {
        for peer in &mut peers {
            got.extend(peer.numbers());
        }
    }
    got.sort_unstable();
    let dropped: Vec<_> = rig.engine.stats().drops.iter().copied().collect();
    assert!(
        got.iter().copied().eq(0..sent),
        "{} of {sent} came, {dropped:?}",
        got.len()
    );
    assert!(sent > 100);
    assert_eq!(dropped, []);
}
