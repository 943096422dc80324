//! Packets that wait for their tunnel, from either side; bounded in every direction, as in pqtun/pump/held.py and early.py.

use std::collections::{HashMap, VecDeque};
use std::net::SocketAddr;

use crate::limits::{
    EARLY_BYTES, EARLY_PACKETS, EARLY_PACKETS_PER_TUNNEL, EARLY_SECONDS, HELD_ADDRESSES, HELD_BYTES, HELD_PACKETS,
    HELD_PACKETS_PER_PEER, HELD_SECONDS,
};
use crate::tunnel::Tid;

#[derive(Default)]
struct Queue {
    packets: VecDeque<(f64, Vec<u8>)>,
    /// Whether the next packet is to be reported.
    report: bool,
}

/// Packets of programs by the private address that they go to. Where a bound is reached the new packet is refused.
#[derive(Default)]
pub struct Held {
    queues: HashMap<[u8; 4], Queue>,
    pub packets: usize,
    pub bytes: usize,
}

impl Held {
    pub fn addresses(&self) -> usize {
        self.queues.len()
    }

    pub fn holds(&self, inner: [u8; 4]) -> bool {
        self.queues.contains_key(&inner)
    }

    /// Begins to hold for an address, or goes on. `report`: the next packet is to be reported. False if too many
    /// addresses are held for.
    pub fn hold(&mut self, inner: [u8; 4], report: bool) -> bool {
        if !self.holds(inner) && self.queues.len() >= HELD_ADDRESSES {
            return false;
        }
        self.queues.entry(inner).or_default().report = report;
        true
    }

    /// Whether a packet that has come for an address is to be reported; the next one is not.
    pub fn take_report(&mut self, inner: [u8; 4]) -> bool {
        self.queues
            .get_mut(&inner)
            .is_some_and(|queue| std::mem::take(&mut queue.report))
    }

    /// Adds a packet for an address that is held for. False if it was refused: queue or total is full.
    pub fn add(&mut self, inner: [u8; 4], packet: &[u8], now: f64) -> bool {
        let Some(queue) = self.queues.get_mut(&inner) else {
            return false;
        };
        if queue.packets.len() >= HELD_PACKETS_PER_PEER
            || self.packets >= HELD_PACKETS
            || self.bytes + packet.len() > HELD_BYTES
        {
            return false;
        }
        queue.packets.push_back((now, packet.to_vec()));
        self.packets += 1;
        self.bytes += packet.len();
        true
    }

    /// Ends the holding for an address; returns its packets, oldest first.
    pub fn take(&mut self, inner: [u8; 4]) -> Vec<Vec<u8>> {
        let packets: Vec<_> = self
            .queues
            .remove(&inner)
            .unwrap_or_default()
            .packets
            .into_iter()
            .map(|(_, packet)| packet)
            .collect();
        self.packets -= packets.len();
        self.bytes -= packets.iter().map(Vec::len).sum::<usize>();
        packets
    }

    /// Drops packets that have waited 30 s; returns how many. Their addresses are held for still.
    pub fn expire(&mut self, now: f64) -> u64 {
        let mut dropped = 0;
        for queue in self.queues.values_mut() {
            while queue
                .packets
                .front()
                .is_some_and(|(since, _)| since + HELD_SECONDS <= now)
            {
                self.bytes -= queue.packets.pop_front().map_or(0, |(_, packet)| packet.len());
                self.packets -= 1;
                dropped += 1;
            }
        }
        dropped
    }

    /// When the oldest packet has waited long enough.
    pub fn next_deadline(&self) -> f64 {
        let oldest = self
            .queues
            .values()
            .filter_map(|queue| queue.packets.front())
            .map(|(since, _)| *since);
        oldest.fold(f64::INFINITY, f64::min) + HELD_SECONDS
    }

    pub fn clear(&mut self) {
        *self = Held::default();
    }
}

struct EarlyPacket {
    arrived: f64,
    tid: Tid,
    data: Vec<u8>,
    source: SocketAddr,
}

/// Tunnel packets that came before their handshake. Anyone can write into it, so the oldest make room for new ones.
#[derive(Default)]
pub struct Early {
    packets: VecDeque<EarlyPacket>,
    counts: HashMap<Tid, usize>,
    bytes: usize,
}

impl Early {
    pub fn packets(&self) -> usize {
        self.packets.len()
    }

    /// Keeps a datagram; returns how many datagrams were dropped for it (itself, or older ones).
    pub fn add(&mut self, tid: &Tid, datagram: &[u8], source: SocketAddr, now: f64) -> u64 {
        let of_tunnel = self.counts.get(tid).copied().unwrap_or(0);
        if of_tunnel >= EARLY_PACKETS_PER_TUNNEL || datagram.len() > EARLY_BYTES {
            return 1;
        }
        let mut dropped = 0;
        while self.packets.len() >= EARLY_PACKETS || self.bytes + datagram.len() > EARLY_BYTES {
            self.drop_oldest();
            dropped += 1;
        }
        self.bytes += datagram.len();
        *self.counts.entry(*tid).or_default() += 1;
        self.packets.push_back(EarlyPacket {
            arrived: now,
            tid: *tid,
            data: datagram.to_vec(),
            source,
        });
        dropped
    }

    /// Removes and returns the datagrams of a tunnel, in the order in which they came.
    pub fn take(&mut self, tid: &Tid) -> Vec<(Vec<u8>, SocketAddr)> {
        if self.counts.remove(tid).is_none() {
            return Vec::new();
        }
        let mut taken = Vec::new();
        for packet in std::mem::take(&mut self.packets) {
            if packet.tid == *tid {
                self.bytes -= packet.data.len();
                taken.push((packet.data, packet.source));
            } else {
                self.packets.push_back(packet);
            }
        }
        taken
    }

    /// Drops datagrams older than a second; returns how many.
    pub fn expire(&mut self, now: f64) -> u64 {
        let mut dropped = 0;
        while self.next_deadline() <= now {
            self.drop_oldest();
            dropped += 1;
        }
        dropped
    }

    /// When the oldest datagram is a second old.
    pub fn next_deadline(&self) -> f64 {
        self.packets
            .front()
            .map_or(f64::INFINITY, |oldest| oldest.arrived + EARLY_SECONDS)
    }

    pub fn clear(&mut self) {
        *self = Early::default();
    }

    fn drop_oldest(&mut self) {
        let Some(packet) = self.packets.pop_front() else { return };
        self.bytes -= packet.data.len();
        if let Some(count) = self.counts.get_mut(&packet.tid) {
            *count -= 1;
            if *count == 0 {
                self.counts.remove(&packet.tid);
            }
        }
    }
}

#[cfg(test)]
#[path = "waiting_tests.rs"]
mod tests;
