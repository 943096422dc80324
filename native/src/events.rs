//! What the engine reports to the control plane: a bounded queue and a descriptor that says when to look.

use std::collections::VecDeque;
use std::io;
use std::net::SocketAddr;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::sync::{Mutex, MutexGuard, PoisonError};

use rustix::event::{eventfd, EventfdFlags};

use crate::limits::{QUEUED_DATAGRAMS, QUEUED_PEER_EVENTS};
use crate::tunnel::Tid;

/// As in pqtun/pump/engine.py.
#[derive(Debug, PartialEq)]
pub enum Event {
    Datagram(Vec<u8>, SocketAddr),
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
    events: VecDeque<Event>,
    datagrams: usize,
    peer_events: usize,
    failed: bool,
}

/// What anybody on the network can cause and what a peer can cause is bounded, each by itself; the rest is bounded by
/// the tables that it comes from.
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

    /// Queues an event. False if there are too many of its kind, and it is lost.
    #[must_use]
    pub fn put(&self, event: Event) -> bool {
        let mut queue = self.lock();
        match event {
            Event::Datagram(..) if queue.datagrams >= QUEUED_DATAGRAMS => return false,
            Event::Datagram(..) => queue.datagrams += 1,
            Event::Control(..) | Event::Cookie(..) | Event::Roamed(..) => {
                if queue.peer_events >= QUEUED_PEER_EVENTS {
                    return false;
                }
                queue.peer_events += 1;
            }
            Event::Failed(_) if queue.failed => return true,
            Event::Failed(_) => queue.failed = true,
            Event::Wanted(_) | Event::Alive(_) | Event::Dead(_) => {}
        }
        queue.events.push_back(event);
        if queue.events.len() == 1 {
            // It can only fail when its counter is full, and then it is readable.
            let _ = rustix::io::write(&self.ready, &1u64.to_ne_bytes());
        }
        true
    }

    /// Takes all events.
    pub fn take(&self) -> VecDeque<Event> {
        // First this: an event that comes in between says so again.
        let _ = rustix::io::read(&self.ready, &mut [0; 8]);
        let mut queue = self.lock();
        queue.datagrams = 0;
        queue.peer_events = 0;
        std::mem::take(&mut queue.events)
    }

    fn lock(&self) -> MutexGuard<'_, Queue> {
        self.queue.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
