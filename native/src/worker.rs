//! The threads that move packets, one for each TUN queue. None of them ever waits for Python.

use std::fs::File;
use std::io;
use std::net::UdpSocket;
use std::os::fd::OwnedFd;
use std::panic::{catch_unwind, AssertUnwindSafe};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::Arc;
use std::thread::{self, JoinHandle};

use rustix::event::{eventfd, poll, EventfdFlags, PollFd, PollFlags};

use crate::events::Event;
use crate::lane::{Lane, Outcome};
use crate::sys;

/// Messages that a worker receives at a time. More would fall out of the cache before they are written.
pub const SLOTS: usize = 8;

/// What the scheduler is asked for, so that packets do not wait for a handshake or for other programs. The shortest that
/// the kernel grants is 0.1 ms.
const TURN_NANOSECONDS: u64 = 200_000;

/// Tells all workers to end. Once set, it stays so.
pub struct Stop {
    said: AtomicBool,
    wake: OwnedFd,
}

impl Stop {
    pub fn new() -> io::Result<Self> {
        Ok(Stop {
            said: AtomicBool::new(false),
            wake: eventfd(0, EventfdFlags::CLOEXEC | EventfdFlags::NONBLOCK)?,
        })
    }

    pub fn say(&self) {
        self.said.store(true, Ordering::Release);
        let _ = rustix::io::write(&self.wake, &1u64.to_ne_bytes());
    }
}

/// Starts the worker of a lane.
pub fn spawn(
    number: usize,
    lane: Lane,
    tun: Arc<File>,
    socket: Arc<UdpSocket>,
    stop: Arc<Stop>,
) -> io::Result<JoinHandle<()>> {
    thread::Builder::new().name(format!("pump-{number}")).spawn(move || {
        sys::block_signals();
        let _ = sys::take_short_turns(TURN_NANOSECONDS); // else packets wait longer where the machine is busy
        work(lane, &tun, &socket, &stop);
    })
}

fn work(mut lane: Lane, tun: &File, socket: &UdpSocket, stop: &Stop) {
    let mut device = true;
    while !stop.said.load(Ordering::Acquire) {
        // No packet may end the moving of packets.
        let turn = catch_unwind(AssertUnwindSafe(|| turn(&mut lane, device)));
        let busy = match turn {
            Ok((busy, gone)) => {
                if let Some(reason) = gone {
                    device = false;
                    let _ = lane.shared.events.put(Event::Failed(reason));
                }
                busy
            }
            Err(_) => {
                lane.receiver.forget();
                lane.shared.drops().count("internal_error");
                true
            }
        };
        if busy {
            continue;
        }
        let blocked = device && lane.blocked();
        let socket_flags = if blocked {
            PollFlags::IN | PollFlags::OUT
        } else {
            PollFlags::IN
        };
        let mut ready = [
            PollFd::new(&stop.wake, PollFlags::IN),
            PollFd::new(socket, socket_flags),
            PollFd::new(tun, PollFlags::IN),
        ];
        let watched = if device && !blocked { 3 } else { 2 };
        let _ = poll(&mut ready[..watched], None);
    }
}

/// Looks at both sides once; says whether there was anything, and whether the device is gone.
fn turn(lane: &mut Lane, device: bool) -> (bool, Option<String>) {
    let now = lane.shared.clock.now();
    let received = lane.receiver.receive(now);
    let read = if device { lane.from_tun(now) } else { Outcome::Nothing };
    let busy = received || read == Outcome::Something;
    lane.settle(busy);
    match read {
        Outcome::Gone(reason) => (busy, Some(reason)),
        Outcome::Something | Outcome::Nothing => (busy, None),
    }
}
