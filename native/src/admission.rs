//! Which datagrams that are no tunnel packets reach the control plane; as pqtun/pump/admission.py. What it keeps has a
//! fixed size, and what is no handshake, cookie or hint costs a look at its length.

use std::net::{IpAddr, SocketAddr};
use std::sync::{Mutex, MutexGuard, PoisonError};

use crate::bucket::Bucket;
use crate::limits::{
    ALL_BURST_SECONDS, EXPECTED_SECONDS, HINTS_PER_SECOND, PREFIX_BURST_SECONDS, PREFIX_SLOTS, UNEXPECTED_SHARE,
};
use crate::prefixes::Slots;
use crate::tunnel::{COOKIE, COOKIE_PREFIX};

/// 01 00, c0, c1, t1, c3, t3 (doc/protocol.md section 5)
const HANDSHAKE: [u8; 2] = [1, 0];
const HANDSHAKE_BYTES: usize = 1299;
const HANDSHAKE_FAILED: [u8; 2] = [3, 0];

/// Handshakes and cookies a second, from expected sources and from a prefix.
#[derive(Clone, Copy)]
pub struct Limits {
    pub per_second: f64,
    pub per_prefix: f64,
}

/// Admits hints at a client; at a server handshakes and returned cookies, within its limits.
pub struct Admission {
    hints: Mutex<Bucket>,
    server: Option<Server>,
}

struct Server {
    limits: Limits,
    slots: Slots,
    state: Mutex<State>,
}

struct State {
    slots: Box<[Slot]>,
    expected: Bucket,
    others: Bucket,
}

/// Of the prefixes that share it.
#[derive(Clone)]
struct Slot {
    bucket: Bucket,
    expected_until: f64,
}

impl Admission {
    pub fn new(limits: Option<Limits>, now: f64) -> Self {
        let server = limits.map(|limits| {
            let slot = Slot {
                bucket: Bucket::new(limits.per_prefix * PREFIX_BURST_SECONDS, now),
                expected_until: now,
            };
            Server {
                limits,
                slots: Slots::new(PREFIX_SLOTS),
                state: Mutex::new(State {
                    slots: vec![slot; PREFIX_SLOTS].into_boxed_slice(),
                    expected: Bucket::new(burst(limits.per_second), now),
                    others: Bucket::new(burst(limits.per_second * UNEXPECTED_SHARE), now),
                }),
            }
        });
        Admission {
            hints: Mutex::new(Bucket::new(HINTS_PER_SECOND, now)),
            server,
        }
    }

    /// The next handshake may well come from this outer address: its prefix is expected for some time.
    pub fn expect(&self, host: IpAddr, now: f64) {
        if let Some(server) = &self.server {
            let slot = server.slots.of(host);
            server.state().slots[slot].expected_until = now + EXPECTED_SECONDS;
        }
    }

    /// Whether this host takes handshakes.
    pub fn is_server(&self) -> bool {
        self.server.is_some()
    }

    /// Whether a datagram that the control plane is to see was expected.
    ///
    /// Refused: datagram_unknown, handshake_unwanted (at a client), handshake_prefix_limit, handshake_limit,
    /// hint_unwanted (at a server), hint_limit.
    pub fn admit(&self, data: &[u8], source: SocketAddr, now: f64) -> Result<bool, &'static str> {
        if data == HANDSHAKE_FAILED {
            return match self.server {
                None if self.takes_hint(now) => Ok(false),
                None => Err("hint_limit"),
                Some(_) => Err("hint_unwanted"),
            };
        }
        let is_handshake = data.len() == HANDSHAKE_BYTES && data.starts_with(&HANDSHAKE);
        let is_cookie = data.len() == COOKIE && data.starts_with(COOKIE_PREFIX);
        if !is_handshake && !is_cookie {
            return Err("datagram_unknown");
        }
        match &self.server {
            None => Err("handshake_unwanted"),
            Some(server) => server.admit(source.ip(), now),
        }
    }

    fn takes_hint(&self, now: f64) -> bool {
        let mut hints = self.hints.lock().unwrap_or_else(PoisonError::into_inner);
        hints.take(1.0, HINTS_PER_SECOND, HINTS_PER_SECOND, now)
    }
}

impl Server {
    fn admit(&self, host: IpAddr, now: f64) -> Result<bool, &'static str> {
        let Limits { per_second, per_prefix } = self.limits;
        let slot = self.slots.of(host);
        let mut state = self.state();
        let Slot { bucket, expected_until } = &mut state.slots[slot];
        if !bucket.take(1.0, per_prefix, per_prefix * PREFIX_BURST_SECONDS, now) {
            return Err("handshake_prefix_limit");
        }
        let expected = now < *expected_until;
        let (bucket, rate) = if expected {
            (&mut state.expected, per_second)
        } else {
            (&mut state.others, per_second * UNEXPECTED_SHARE)
        };
        if bucket.take(1.0, rate, burst(rate), now) {
            Ok(expected)
        } else {
            Err("handshake_limit")
        }
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

fn burst(rate: f64) -> f64 {
    (rate * ALL_BURST_SECONDS).max(1.0)
}

#[cfg(test)]
#[path = "admission_tests.rs"]
mod tests;
