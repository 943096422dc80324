//! What the engine reports to the control plane: a bounded queue and a descriptor that says when to look.

use std::collections::{HashMap, VecDeque};
use std::hash::{BuildHasher, RandomState};
use std::io;
use std::net::SocketAddr;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::sync::{Mutex, MutexGuard, PoisonError};

use rustix::event::{eventfd, EventfdFlags};

use crate::limits::{QUEUED_DATAGRAMS, QUEUED_EVENTS_PER_TUNNEL, QUEUED_PEER_EVENTS};
use crate::tunnel::Tid;

/// As in pqtun/pump/engine.py.
#[derive(Debug, PartialEq)]
pub enum Event {
    /// The last says whether it was expected.
    Datagram(Vec<u8>, SocketAddr, bool),
    Wanted([u8; 4]),
    Alive(Tid),
    Roamed(Tid, SocketAddr),
    Dead(Tid),
    Control(Tid, Vec<u8>),
    Cookie(Tid, Vec<u8>),
    Failed(String),
}

#[derive(Default)]
struct Queue {
    /// In order.
    events: VecDeque<Event>,
    /// Datagrams, which come after the events: those that were expected, and others.
    expected: VecDeque<Event>,
    others: VecDeque<Event>,
    /// How many events of each peer there are.
    of_peers: HashMap<Tid, usize>,
    peer_events: usize,
    /// Where the peers are that are said to have moved.
    roamed: HashMap<Tid, SocketAddr>,
    failed: bool,
    /// Draws which datagram has to go, by a random key and a number.
    lot: RandomState,
    drawn: u64,
}

impl Queue {
    fn is_empty(&self) -> bool {
        self.events.is_empty() && self.expected.is_empty() && self.others.is_empty()
    }

    fn put(&mut self, event: Event) -> bool {
        match event {
            Event::Datagram(_, _, expected) => return self.put_datagram(event, expected),
            // Only where a peer is in the end counts.
            Event::Roamed(tid, at) if self.roamed.insert(tid, at).is_some() => return true,
            Event::Roamed(..) => {}
            Event::Control(tid, _) | Event::Cookie(tid, _) => {
                let of_peer = self.of_peers.entry(tid).or_default();
                let half_full = self.peer_events >= QUEUED_PEER_EVENTS / 2;
                let most = if half_full { 1 } else { QUEUED_EVENTS_PER_TUNNEL };
                if self.peer_events >= QUEUED_PEER_EVENTS || *of_peer >= most {
                    return false;
                }
                *of_peer += 1;
                self.peer_events += 1;
            }
            Event::Failed(_) if self.failed => return true,
            Event::Failed(_) => self.failed = true,
            Event::Wanted(_) | Event::Alive(_) | Event::Dead(_) => {}
        }
        self.events.push_back(event);
        true
    }

    /// Where there are too many, one of those that were not expected goes, and nobody decides which.
    fn put_datagram(&mut self, event: Event, expected: bool) -> bool {
        let room = self.expected.len() + self.others.len() < QUEUED_DATAGRAMS;
        if !room {
            if self.others.is_empty() {
                return false;
            }
            self.drawn += 1;
            self.others
                .remove(self.lot.hash_one(self.drawn) as usize % self.others.len());
        }
        let datagrams = if expected { &mut self.expected } else { &mut self.others };
        datagrams.push_back(event);
        room
    }
}

/// What anybody on the network can cause, what a peer can cause and what all of them can is bounded, each by itself; the
/// rest is bounded by the tables that it comes from.
pub struct Events {
    queue: Mutex<Queue>,
    ready: OwnedFd,
}

impl Events {
    pub fn new() -> io::Result<Self> {
        let ready = eventfd(0, EventfdFlags::CLOEXEC | EventfdFlags::NONBLOCK)?;
        Ok(Events {
            queue: Mutex::default(),
            ready,
        })
    }

    /// Readable while there are events.
    pub fn ready(&self) -> BorrowedFd<'_> {
        self.ready.as_fd()
    }

    /// Queues an event. False if there are too many of its kind, and it or one before it is lost.
    #[must_use]
    pub fn put(&self, event: Event) -> bool {
        let mut queue = self.lock();
        let first = queue.is_empty();
        let kept = queue.put(event);
        if first && !queue.is_empty() {
            // It can only fail when its counter is full, and then it is readable.
            let _ = rustix::io::write(&self.ready, &1u64.to_ne_bytes());
        }
        kept
    }

    /// Takes all events, datagrams last.
    pub fn take(&self) -> VecDeque<Event> {
        // First this: an event that comes in between says so again.
        let _ = rustix::io::read(&self.ready, &mut [0; 8]);
        let mut queue = self.lock();
        queue.peer_events = 0;
        queue.of_peers.clear();
        let mut all = std::mem::take(&mut queue.events);
        for event in &mut all {
            if let Event::Roamed(tid, at) = event {
                *at = queue.roamed.remove(tid).unwrap_or(*at);
            }
        }
        all.append(&mut queue.expected);
        all.append(&mut queue.others);
        all
    }

    fn lock(&self) -> MutexGuard<'_, Queue> {
        self.queue.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
#[path = "events_tests.rs"]
mod tests;
