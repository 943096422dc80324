//! The engine: all lanes, and what the control plane asks of them.

use std::cmp::Reverse;
use std::collections::BinaryHeap;
use std::fs::File;
use std::io;
use std::net::{IpAddr, SocketAddr, UdpSocket};
use std::os::fd::{BorrowedFd, OwnedFd};
use std::sync::Arc;
use std::thread::JoinHandle;

use crate::admission::Limits;
use crate::clock::Clock;
use crate::cookie::Sealing;
use crate::drops::Drops;
use crate::events::{Event, Events};
use crate::lane::Lane;
use crate::offload::{Offload, State, Wanted};
use crate::packet::host_unreachable;
use crate::sender::Plaintext;
use crate::shared::{Place, Shared};
use crate::tunnel::{Beginning, Tid, Tunnel, TunnelStats};
use crate::worker::{self, Stop, SLOTS};

/// A tunnel's deadline as bits, which for positive numbers compare as the numbers do, and which one it was to be added.
type Deadline = Reverse<(u64, u64, Tid)>;

/// What only the control plane's thread uses.
struct Control {
    lane: Lane,
    deadlines: BinaryHeap<Deadline>,
    /// How many tunnels have been added.
    added: u64,
}

pub struct Engine {
    shared: Arc<Shared>,
    queues: Vec<(Arc<File>, Arc<UdpSocket>)>,
    stop: Arc<Stop>,
    workers: Vec<JoinHandle<()>>,
    /// None when closed.
    control: Option<Control>,
}

/// A snapshot of what belongs to no tunnel.
pub struct Stats {
    pub drops: Drops,
    pub held_addresses: usize,
    pub held_packets: usize,
    pub held_bytes: usize,
    pub early_packets: usize,
}

/// Why a tunnel was not added, or not moved.
#[derive(Debug)]
pub enum Refused {
    NotAPeer,
    Exists,
    Unknown,
    Closed,
    System(io::Error),
}

impl Engine {
    /// Takes over one TUN queue and one socket for each worker. `virtio`: the queues speak virtio_net_hdr.
    pub fn new(
        tuns: Vec<OwnedFd>,
        sockets: Vec<OwnedFd>,
        place: &Place,
        handshakes: Option<Limits>,
        virtio: bool,
        wanted: Wanted,
        clock: Clock,
    ) -> io::Result<Self> {
        let tuns: Vec<File> = tuns.into_iter().map(File::from).collect();
        let sockets: Vec<UdpSocket> = sockets.into_iter().map(UdpSocket::from).collect();
        if tuns.is_empty() || tuns.len() != sockets.len() {
            return Err(io::Error::new(
                io::ErrorKind::InvalidInput,
                "a worker needs one TUN queue and one socket",
            ));
        }
        for tun in &tuns {
            rustix::io::ioctl_fionbio(tun, true)?;
        }
        let offload = Offload::new(wanted);
        offload.probe(&tuns, &sockets, virtio);
        let shared = Arc::new(Shared::new(Events::new()?, place, handshakes, clock, virtio, offload));
        let queues: Vec<_> = tuns
            .into_iter()
            .zip(sockets)
            .map(|(tun, socket)| (Arc::new(tun), Arc::new(socket)))
            .collect();
        let (tun, socket) = &queues[0];
        let lane = Lane::new(Arc::clone(&shared), Arc::clone(tun), Arc::clone(socket), 1, false)?;
        Ok(Engine {
            shared,
            queues,
            stop: Arc::new(Stop::new()?),
            workers: Vec::new(),
            control: Some(Control {
                lane,
                deadlines: BinaryHeap::new(),
                added: 0,
            }),
        })
    }

    /// Begins to move packets.
    pub fn start(&mut self) -> io::Result<()> {
        for (number, (tun, socket)) in self.queues.iter().enumerate() {
            let lane = Lane::new(
                Arc::clone(&self.shared),
                Arc::clone(tun),
                Arc::clone(socket),
                SLOTS,
                true,
            )?;
            let stop = Arc::clone(&self.stop);
            self.workers
                .push(worker::spawn(number, lane, Arc::clone(tun), Arc::clone(socket), stop)?);
        }
        Ok(())
    }

    /// Readable while there are events.
    pub fn ready(&self) -> BorrowedFd<'_> {
        self.shared.events.ready()
    }

    pub fn events(&self) -> impl Iterator<Item = Event> {
        self.shared.events.take().into_iter()
    }

    pub fn offload(&self) -> [(&'static str, State); 5] {
        let offload = &self.shared.offload;
        [
            ("tun-tso", offload.tun_tso.state()),
            ("tun-uso", offload.tun_uso.state()),
            ("tun-gro", offload.tun_gro.state()),
            ("udp-gso", offload.udp_gso.state()),
            ("udp-gro", offload.udp_gro.state()),
        ]
    }

    /// Takes a tunnel into use; then what came early is opened, `first` is sent, and what was held, in this order. A
    /// `standby` is not sent through yet, so that what is held stays.
    pub fn add_tunnel(&mut self, beginning: &Beginning, first: Option<&[u8]>, standby: bool) -> Result<(), Refused> {
        let &Beginning { tid, inner, .. } = beginning;
        if !self.shared.outbound.is_peer(inner) {
            return Err(Refused::NotAPeer);
        }
        if self.shared.table.contains(&tid) {
            return Err(Refused::Exists);
        }
        let Some(Control { lane, deadlines, added }) = &mut self.control else {
            return Err(Refused::Closed);
        };
        let now = self.shared.clock.now();
        let inbound = self.shared.inbound(inner);
        *added += 1;
        let tunnel = Arc::new(Tunnel::new(beginning, inbound, *added, now).map_err(Refused::System)?);
        deadlines.push(Reverse((tunnel.deadline().to_bits(), tunnel.number, tid)));
        // Workers that have a packet for this tunnel wait here until it is complete.
        let mut waiting = self.shared.waiting();
        for (datagram, source) in waiting.early.take(&tid) {
            lane.receiver.receive_early(&tunnel, &datagram, source, now);
        }
        self.shared.table.insert(&tunnel, standby);
        if let Some(first) = first {
            lane.sender.seal(&tunnel, Plaintext::Raw(first), now);
        }
        if !standby {
            lane.send_held(&tunnel, &mut waiting.held, now);
        }
        lane.sender.flush(now);
        if !standby {
            self.shared.table.open_route(inner); // last: who finds it does not wait for us
        }
        drop(waiting);
        lane.settle(false);
        Ok(())
    }

    /// Has a tunnel stand for `inner`, which may be the address that it has, and sends through it from now on.
    pub fn move_tunnel(&mut self, tid: &Tid, inner: [u8; 4]) -> Result<(), Refused> {
        if !self.shared.outbound.is_peer(inner) {
            return Err(Refused::NotAPeer);
        }
        let (Some(tunnel), Some(Control { lane, .. })) = (self.shared.table.tunnel(tid), &mut self.control) else {
            return Err(Refused::Unknown);
        };
        let now = self.shared.clock.now();
        let before = tunnel.inner();
        let mut waiting = self.shared.waiting();
        self.shared.table.transfer(&tunnel, inner, self.shared.inbound(inner));
        if before != inner && !waiting.held.holds(before) {
            self.shared.table.open_route(before);
        }
        lane.send_held(&tunnel, &mut waiting.held, now);
        lane.sender.flush(now);
        self.shared.table.open_route(inner);
        drop(waiting);
        lane.settle(false);
        Ok(())
    }

    /// Erases and forgets a tunnel.
    pub fn remove_tunnel(&mut self, tid: &Tid) {
        forget(&self.shared, tid);
    }

    pub fn confirm(&mut self, tid: &Tid, endpoint: SocketAddr) {
        if let Some(tunnel) = self.shared.table.tunnel(tid) {
            tunnel.confirm(endpoint);
        }
    }

    /// Sends the peer its tunnel as a cookie, and forgets it.
    pub fn put_aside(&mut self, tid: &Tid, sealing: &Sealing) {
        let (Some(tunnel), Some(Control { lane, .. })) = (self.shared.table.tunnel(tid), &mut self.control) else {
            return;
        };
        let now = self.shared.clock.now();
        if let Err(reason) = lane.sender.put_aside(&tunnel, sealing, now) {
            tunnel.send_side().drops.count(reason);
        }
        lane.sender.flush(now);
        forget(&self.shared, tid);
        lane.settle(false);
    }

    /// Begins a new sending epoch before the time of this one is over.
    pub fn next_epoch(&mut self, tid: &Tid) {
        if let (Some(tunnel), Some(Control { lane, .. })) = (self.shared.table.tunnel(tid), &mut self.control) {
            tunnel.send_side().keys.begin_next(self.shared.clock.now());
            lane.settle(false);
        }
    }

    pub fn expect(&mut self, host: IpAddr) {
        self.shared.admission.expect(host, self.shared.clock.now());
    }

    pub fn set_mtu(&mut self, tid: &Tid, mtu: u32) {
        if let Some(tunnel) = self.shared.table.tunnel(tid) {
            tunnel.set_mtu(mtu);
        }
    }

    /// Holds packets for an address from now on, tunnel or not. `report`: the next one is reported as Wanted.
    pub fn hold(&mut self, inner: [u8; 4], report: bool) {
        let mut waiting = self.shared.waiting();
        if waiting.held.hold(inner, report) {
            self.shared.table.close_route(inner);
        } else {
            self.shared.drops().count("held_addresses_full");
        }
    }

    pub fn drop_held(&mut self, inner: [u8; 4], unreachable: bool) {
        let mut waiting = self.shared.waiting();
        let packets = waiting.held.take(inner);
        self.shared.table.open_route(inner);
        drop(waiting);
        let mut drops = self.shared.drops();
        for packet in &packets {
            drops.count("held_dropped");
            if !unreachable {
                continue;
            }
            if let (Some(answer), Some(control)) = (host_unreachable(packet), &mut self.control) {
                if let Err(error) = control.lane.receiver.write_packet(answer.as_bytes()) {
                    drops.count_error("tun_write", &error);
                }
            }
        }
    }

    pub fn send_datagram(&mut self, data: &[u8], to: SocketAddr) {
        match &mut self.control {
            Some(Control { lane, .. }) => {
                let now = self.shared.clock.now();
                lane.sender.datagram(data, to, now);
                lane.sender.flush(now);
                lane.settle(false);
            }
            None => self.shared.drops().count("closed"),
        }
    }

    pub fn send_inner(&mut self, tid: &Tid, packet: &[u8], only: Option<SocketAddr>) {
        let (Some(tunnel), Some(Control { lane, .. })) = (self.shared.table.tunnel(tid), &mut self.control) else {
            self.shared.drops().count("send_unknown_tunnel");
            return;
        };
        let now = self.shared.clock.now();
        let text = only.map_or(Plaintext::Raw(packet), |only| Plaintext::Question(packet, only));
        lane.sender.seal(&tunnel, text, now);
        lane.sender.flush(now);
        lane.settle(false);
    }

    /// Does all that is due; returns in how many seconds there is something to do next.
    pub fn expire(&mut self) -> f64 {
        let now = self.shared.clock.now();
        let mut waiting = self.shared.waiting();
        let late = waiting.early.expire(now);
        let waited = waiting.held.expire(now);
        let mut next = waiting.early.next_deadline().min(waiting.held.next_deadline());
        drop(waiting);
        for (reason, count) in [("unknown_tunnel", late), ("held_timeout", waited)] {
            if count > 0 {
                self.shared.drops().add((reason, 0), count);
            }
        }
        let Some(Control { deadlines, .. }) = &mut self.control else {
            return f64::INFINITY;
        };
        while let Some(&Reverse((deadline, number, tid))) = deadlines.peek() {
            if f64::from_bits(deadline) > now {
                next = next.min(f64::from_bits(deadline));
                break;
            }
            deadlines.pop();
            // One that was removed and added again is watched under its new number.
            let Some(tunnel) = self.shared.table.tunnel(&tid).filter(|tunnel| tunnel.number == number) else {
                continue;
            };
            // One look, because a worker with a later clock may be expiring it too.
            let deadline = tunnel.expire(now);
            if deadline.is_infinite() {
                forget(&self.shared, &tid);
                let _ = self.shared.events.put(Event::Dead(tid)); // bounded by the tunnels
            } else {
                deadlines.push(Reverse((deadline.to_bits(), number, tid)));
            }
        }
        next - now
    }

    pub fn tunnels(&self) -> Vec<TunnelStats> {
        self.shared.table.all().iter().map(|tunnel| tunnel.stats()).collect()
    }

    pub fn stats(&self) -> Stats {
        let waiting = self.shared.waiting();
        let mut drops = Drops::new();
        drops.merge(&self.shared.drops());
        Stats {
            drops,
            held_addresses: waiting.held.addresses(),
            held_packets: waiting.held.packets,
            held_bytes: waiting.held.bytes,
            early_packets: waiting.early.packets(),
        }
    }

    /// Stops the workers, erases all keys and closes all descriptors. May be called twice.
    pub fn close(&mut self) {
        self.stop.say();
        for worker in self.workers.drain(..) {
            let _ = worker.join(); // a panic of it was counted where it happened
        }
        self.control = None;
        self.queues.clear();
        for tunnel in self.shared.table.all() {
            self.remove_tunnel(&tunnel.tid);
        }
        let mut waiting = self.shared.waiting();
        waiting.held.clear();
        waiting.early.clear();
    }
}

/// Erases a tunnel; its counters stay.
fn forget(shared: &Shared, tid: &Tid) {
    let waiting = shared.waiting();
    let removed = shared.table.remove(tid);
    if let Some(tunnel) = removed {
        if !waiting.held.holds(tunnel.inner()) {
            shared.table.open_route(tunnel.inner());
        }
        drop(waiting);
        tunnel.erase();
        shared.drops().merge(&tunnel.drops());
    }
}

impl Drop for Engine {
    fn drop(&mut self) {
        self.close();
    }
}

#[cfg(test)]
#[path = "engine_tests.rs"]
mod tests;
